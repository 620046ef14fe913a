//! May it come in? A pure ledger of what each caller has outstanding, in row evaluations, and of what it was promised.
//! No clock and no lock: the time of day is an argument.
//!
//! A caller alone may have the whole limit outstanding; of several, each may have its share, so that nobody's flood
//! shuts others out. Whoever is refused is told when to come back, and **the time is a promise**: the queue goes on
//! outside, in the clients that wait. The room that will be free then is kept for the one that was told, so it is
//! taken when it comes, and a newcomer is not let in ahead of it. A client is known again by the fingerprint of its
//! request, since one that obeys `retry-after` sends the same bytes. A promise that nobody claims lapses.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Caller;

/// Promises of one caller that are kept; beyond them times are still told, but not kept free.
const MOST_PROMISES: usize = 4096;

/// Promises to one fingerprint. Many may ask for the same, and one may ask without waiting: it is not to put off everybody
/// else for ever. Beyond them the latest of their times is told again.
const MOST_ALIKE: usize = 64;

/// The farthest time that is promised.
const FARTHEST: Duration = Duration::from_secs(600);

/// How much too early a client may be: clocks and timers differ.
const EARLY: Duration = Duration::from_millis(250);

/// How long a promise waits for its client, beyond a tenth of the time it was told.
const GRACE: Duration = Duration::from_secs(2);

/// What the limit may be exceeded by to keep a promise: the times were estimates, and a machine may have become slower
/// since. A kept word is worth more than a short queue.
const SLACK: f64 = 2.0;

/// What is told is so much longer than the work ahead takes as things stand. The times are estimates, and newcomers take
/// what a promise leaves free: if all of the engine were promised, every estimate that was too short would add to the
/// queue and none would take away from it. As it is, the queue comes back to where newcomers fill it.
const MARGIN: f64 = 1.25;

/// Share of the limit below which a newcomer comes in whatever is promised for later: no promise leaves the engine
/// idle.
const BUSY_ENOUGH: f64 = 0.5;

/// The ledger.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    callers: BTreeMap<Caller, Account>,
}

/// A request for admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Whose it is.
    pub caller: Caller,
    /// What tells it from others.
    pub fingerprint: u64,
    /// Row evaluations.
    pub work: u64,
}

/// What things stand like when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// The time, on any clock that does not go back.
    pub now: Duration,
    /// Row evaluations that may be outstanding.
    pub limit: u64,
    /// Seconds of a row evaluation.
    pub row: f64,
}

/// What is outstanding and promised of one caller.
#[derive(Debug, Clone, Default)]
struct Account {
    outstanding: u64,
    promises: Vec<Promise>,
}

#[derive(Debug, Clone, Copy)]
struct Promise {
    fingerprint: u64,
    work: u64,
    /// What the caller might have outstanding when it was given: a machine that has become slower since does not break
    /// it.
    share: u64,
    due: Duration,
    lapses: Duration,
}

// === impl Ledger ===

impl Ledger {
    /// Admits the request, or says in how many whole seconds it will be.
    pub fn ask(&mut self, ask: Ask, terms: Terms) -> Result<(), u64> {
        let Terms { now, limit, row } = terms;
        self.forget(now);
        let account = self.callers.entry(ask.caller).or_default();
        let kept = account.claim(ask.fingerprint, now + EARLY);
        let active = self.callers.len() as u64;
        let share = (limit / active).max(1);
        let account = self.callers.entry(ask.caller).or_default();
        let (outstanding, promised) = (account.outstanding, account.promised());
        let admitted = outstanding == 0
            || if let Some(then) = kept {
                // Work of more than a share counts as one: it would never find so much room, and it has waited its time.
                (outstanding + ask.work.min(share)) as f64 <= share.max(then) as f64 * SLACK
            } else {
                (outstanding + promised).saturating_add(ask.work) <= share
                    || (outstanding + ask.work) as f64 <= share as f64 * BUSY_ENOUGH
            };
        if admitted {
            account.outstanding += ask.work;
            return Ok(());
        }
        if kept.is_none()
            && let Some(due) = account.latest_of_many(ask.fingerprint)
        {
            return Err(whole_seconds(due.saturating_sub(now)));
        }
        // Until the limit holds, the caller's share of the engine has to do this much of what is ahead. A promise that
        // could not be kept has nobody ahead of it but what runs.
        let ahead = if kept.is_some() { outstanding } else { outstanding + promised };
        let work = ahead.saturating_add(ask.work).saturating_sub(share).max(1);
        let wait =
            Duration::try_from_secs_f64(work as f64 * active as f64 * row * MARGIN).unwrap_or(Duration::MAX);
        let seconds = whole_seconds(wait);
        let wait = Duration::from_secs(seconds);
        if wait <= FARTHEST && account.promises.len() < MOST_PROMISES {
            let due = now + wait;
            let lapses = due + GRACE + wait / 10;
            account.promises.push(Promise {
                fingerprint: ask.fingerprint,
                work: ask.work,
                share,
                due,
                lapses,
            });
        }
        Err(seconds)
    }

    /// `work` row evaluations of `caller` are done, or will not be.
    pub fn give_back(&mut self, caller: Caller, work: u64) {
        if let Some(account) = self.callers.get_mut(&caller) {
            account.outstanding = account.outstanding.saturating_sub(work);
            if account.is_empty() {
                self.callers.remove(&caller);
            }
        }
    }

    /// Row evaluations outstanding, of all callers.
    pub fn outstanding(&self) -> u64 {
        self.callers.values().map(|account| account.outstanding).sum()
    }

    /// Drops promises that nobody claimed, and callers without any business.
    fn forget(&mut self, now: Duration) {
        self.callers.retain(|_, account| {
            account.promises.retain(|promise| now <= promise.lapses);
            !account.is_empty()
        });
    }
}

// === impl Account ===

impl Account {
    fn is_empty(&self) -> bool {
        self.outstanding == 0 && self.promises.is_empty()
    }

    /// Takes the earliest promise to this fingerprint that is due by `now`. Whoever comes before its time is taken for
    /// somebody else who asks for the same. What is returned is the share that it was given on.
    fn claim(&mut self, fingerprint: u64, now: Duration) -> Option<u64> {
        let due =
            self.promises.iter().enumerate().filter(|(_, p)| p.fingerprint == fingerprint && p.due <= now);
        let earliest = due.min_by_key(|(_, promise)| promise.due).map(|(i, _)| i);
        earliest.map(|i| self.promises.remove(i).share)
    }

    /// When the latest promise to this fingerprint is due, if it has as many as one may have.
    fn latest_of_many(&self, fingerprint: u64) -> Option<Duration> {
        let due = || self.promises.iter().filter(|p| p.fingerprint == fingerprint).map(|p| p.due);
        if due().count() < MOST_ALIKE { None } else { due().max() }
    }

    fn promised(&self) -> u64 {
        self.promises.iter().map(|promise| promise.work).sum()
    }
}

/// Rounded up, since coming back a moment too early would be refused again; at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 10 ms, of which 1000 may be outstanding: ten seconds.
    fn terms(now: f64) -> Terms {
        Terms { now: Duration::from_secs_f64(now), limit: 1000, row: 0.01 }
    }

    fn ask(caller: u32, fingerprint: u64, work: u64) -> Ask {
        Ask { caller: Caller(caller), fingerprint, work }
    }

    #[test]
    fn the_limit_is_work_and_an_empty_engine_takes_anything() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 5000), terms(0.0)), Ok(()));
        // 4100 of 5100 have to be done first: 41 s, and a quarter more.
        assert_eq!(ledger.ask(ask(0, 2, 100), terms(0.0)), Err(52));
        ledger.give_back(Caller(0), 5000);
        assert_eq!(ledger.ask(ask(0, 3, 900), terms(0.0)), Ok(()));
        assert_eq!(ledger.outstanding(), 900);
    }

    #[test]
    fn a_promise_is_kept_and_newcomers_wait_behind_it() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        assert_eq!(ledger.ask(ask(0, 2, 300), terms(0.0)), Err(4));
        assert_eq!(ledger.ask(ask(0, 3, 300), terms(0.0)), Err(8));
        // Three seconds later 300 are done: the room is the first one's, not a newcomer's, and not the second one's.
        ledger.give_back(Caller(0), 300);
        assert_eq!(ledger.ask(ask(0, 4, 300), terms(3.0)), Err(8));
        assert_eq!(ledger.ask(ask(0, 2, 300), terms(4.0)), Ok(()));
        ledger.give_back(Caller(0), 300);
        assert_eq!(ledger.ask(ask(0, 3, 300), terms(8.0)), Ok(()));
    }

    #[test]
    fn many_may_ask_for_the_same() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        // Each has a promise of its own, though nothing tells them apart.
        let seconds = [2, 3, 4, 5, 7];
        for second in seconds {
            assert_eq!(ledger.ask(ask(0, 7, 100), terms(0.0)), Err(second));
        }
        for second in seconds {
            ledger.give_back(Caller(0), 100);
            assert_eq!(ledger.ask(ask(0, 7, 100), terms(second as f64)), Ok(()));
        }
    }

    #[test]
    fn who_asks_without_waiting_puts_nobody_off_for_ever() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        let mut told = 0;
        for i in 0..10_000 {
            told = ledger.ask(ask(0, 7, 100), terms(f64::from(i) * 1e-4)).unwrap_err();
        }
        // 64 promises of a second, and a quarter more.
        assert!((75..=81).contains(&told), "{told}");
        let polite = ledger.ask(ask(0, 8, 100), terms(1.0)).unwrap_err();
        assert!(polite <= 83, "{polite}");
    }

    #[test]
    fn work_beyond_the_limit_comes_in_when_it_was_told() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        let seconds = ledger.ask(ask(0, 2, 4000), terms(0.0)).unwrap_err();
        // All the while there are newcomers, and as much comes in as is done.
        ledger.give_back(Caller(0), 500);
        assert_eq!(ledger.ask(ask(0, 2, 4000), terms(seconds as f64)), Ok(()));
    }

    #[test]
    fn an_idle_engine_refuses_nobody() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 6000), terms(0.0)), Ok(()));
        assert_eq!(ledger.ask(ask(0, 2, 100), terms(0.0)), Err(64));
        ledger.give_back(Caller(0), 6000);
        assert_eq!(ledger.ask(ask(0, 2, 100), terms(1.0)), Ok(()));
    }

    #[test]
    fn who_does_not_come_back_loses_the_place() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        assert_eq!(ledger.ask(ask(0, 2, 400), terms(0.0)), Err(5));
        ledger.give_back(Caller(0), 400);
        // 5 s, 0.5 s and 2 s of grace.
        assert_eq!(ledger.ask(ask(0, 3, 400), terms(7.0)), Err(5));
        let mut later = ledger.clone();
        assert_eq!(later.ask(ask(0, 4, 400), terms(7.6)), Err(5));
        later.give_back(Caller(0), 400);
        assert_eq!(later.ask(ask(0, 3, 400), terms(12.0)), Ok(()));
    }

    #[test]
    fn promises_leave_no_engine_idle() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        (0..50).for_each(|i| assert!(ledger.ask(ask(0, 10 + i, 300), terms(0.0)).is_err()));
        ledger.give_back(Caller(0), 900);
        assert_eq!(ledger.ask(ask(0, 2, 300), terms(0.5)), Ok(()));
        assert!(ledger.ask(ask(0, 3, 300), terms(0.5)).is_err());
    }

    #[test]
    fn a_flood_of_one_caller_does_not_shut_out_another() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        assert!(ledger.ask(ask(0, 2, 300), terms(0.0)).is_err());
        assert_eq!(ledger.ask(ask(1, 1, 400), terms(0.0)), Ok(()));
        // Half of the limit is its share now, and half of the engine is at work for it.
        assert_eq!(ledger.ask(ask(1, 2, 200), terms(0.0)), Err(3));
    }

    #[test]
    fn a_promise_outlives_a_machine_that_slows_down() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
        assert_eq!(ledger.ask(ask(0, 2, 500), terms(0.0)), Err(7));
        // Half of what was expected is done, and rows cost twice as much by now.
        ledger.give_back(Caller(0), 250);
        let slower = Terms { limit: 500, row: 0.02, ..terms(7.0) };
        assert!(ledger.clone().ask(ask(0, 3, 500), slower).is_err());
        assert_eq!(ledger.ask(ask(0, 2, 500), slower), Ok(()));
    }

    #[test]
    fn promises_are_bounded() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.ask(ask(0, 0, u64::MAX / 4), terms(0.0)), Ok(()));
        for i in 1..10_000 {
            assert!(ledger.ask(ask(0, i, 1), terms(0.0)).is_err());
        }
        assert_eq!(ledger.callers[&Caller(0)].promises.len(), 0);
    }

    /// The minute, in steps of 10 ms.
    const STORM: u64 = 6000;

    /// What came of a storm in which three times what the engine can do is asked for, every refused client being back
    /// when it was told.
    struct Overload {
        /// When clients were back, for which time, and whether they were admitted then.
        back: Vec<(u64, u32, bool)>,
        /// Share of the storm in which the engine had work.
        busy: f64,
        /// Share of the storm in which a quarter more was outstanding than the limit.
        overfull: f64,
        /// The most that was outstanding, in limits as they were then.
        fullest: f64,
    }

    /// In steps of 10 ms, of which a row takes one at full speed. The engine's speed is what `speed` says at a time; the
    /// price of a row is its mean over half a minute. A request has 20 to 200 rows.
    fn overload(storm: u64, speed: impl Fn(u64) -> f64) -> Overload {
        let mut ledger = Ledger::default();
        // (when, fingerprint, work, how often it was told to come back): 64 rows in the mean.
        let size = |at: u64| [20, 20, 20, 40, 40, 100, 200, 72][(at * 7919 / 21 % 8) as usize];
        let mut coming: Vec<(u64, u64, u64, u32)> =
            (0..storm).step_by(21).map(|at| (at, at, size(at), 0)).collect();
        let (mut back, mut busy, mut overfull, mut fullest) = (Vec::new(), 0, 0, 0.0_f64);
        let (mut running, mut credit, mut price, mut at) = (0_u64, 0.0, 0.01, 0);
        while !coming.is_empty() {
            price += (0.01 / speed(at) - price) / 3000.0;
            let terms =
                Terms { now: Duration::from_millis(at * 10), limit: (5.0 / price) as u64, row: price };
            let (due, later): (Vec<_>, Vec<_>) = coming.into_iter().partition(|&(when, ..)| when <= at);
            coming = later;
            for (_, fingerprint, work, told) in due {
                let answer = ledger.ask(ask(0, fingerprint, work), terms);
                if told > 0 {
                    back.push((at, told, answer.is_ok()));
                }
                match answer {
                    Ok(()) => running += work,
                    Err(seconds) => coming.push((at + seconds * 100, fingerprint, work, told + 1)),
                }
            }
            fullest = fullest.max(running as f64 / terms.limit as f64);
            if at < storm {
                busy += u64::from(running > 0);
                overfull += u64::from(running > terms.limit + terms.limit / 4);
            }
            credit += speed(at);
            let done = running.min(credit as u64);
            credit -= credit.floor();
            running -= done;
            ledger.give_back(Caller(0), done);
            at += 1;
        }
        let share = |steps: u64| steps as f64 / storm as f64;
        Overload { back, busy: share(busy), overfull: share(overfull), fullest }
    }

    #[test]
    fn clients_that_obey_are_admitted_and_the_engine_stays_busy() {
        type Speed = Box<dyn Fn(u64) -> f64>;
        // A machine that keeps its speed, and shared ones whose speed drifts within seconds and within a minute.
        let drift = |seconds: f64, depth: f64| {
            move |at: u64| 1.0 + depth * (at as f64 / 100.0 / seconds * std::f64::consts::TAU).sin()
        };
        let speeds: [(&str, Speed); 4] = [
            ("steady", Box::new(|_| 1.0)),
            ("seconds", Box::new(drift(7.0, 0.25))),
            ("a minute", Box::new(drift(60.0, 0.2))),
            ("once", Box::new(|at| if at < 2000 { 1.0 } else { 0.85 })),
        ];
        for (name, speed) in speeds {
            let Overload { back, busy, overfull, .. } = overload(STORM, speed);
            let (admitted, back) = (back.iter().filter(|(.., admitted)| *admitted).count(), back.len());
            println!("{name}: {admitted} of {back} admitted, busy {busy:.3}, overfull {overfull:.3}");
            assert!(back > 150, "{name}: {back}");
            assert!(admitted as f64 >= 0.95 * back as f64, "{name}: {admitted} of {back}");
            assert!(busy >= 0.95, "{name}: busy {busy}");
            assert!(overfull <= 0.1, "{name}: overfull {overfull}");
        }
    }

    /// Twenty seconds into a storm the device becomes three times slower for good. What was promised by then was measured
    /// on another device, and what is promised next by a mean that still has that in it.
    #[test]
    fn a_device_that_becomes_three_times_slower_breaks_some_promises_for_a_minute_and_then_none() {
        const CHANGE: u64 = 2000;
        let Overload { back, busy, fullest, .. } =
            overload(STORM, |at| if at < CHANGE { 1.0 } else { 1.0 / 3.0 });
        // Clients that were back for the first time, and those of them that were admitted.
        let kept = |from: u64, to: u64| {
            let first = || back.iter().filter(|(at, told, _)| (from..to).contains(at) && *told == 1);
            (first().count(), first().filter(|(.., admitted)| *admitted).count())
        };
        let (before, learning, after) =
            (kept(0, CHANGE), kept(CHANGE, 4 * CHANGE), kept(4 * CHANGE, u64::MAX));
        println!("{before:?} {learning:?} {after:?}, busy {busy:.3}, fullest {fullest:.2}");
        for ((back, admitted), share) in [(before, 0.95), (learning, 0.5), (after, 0.95)] {
            assert!(
                back >= 20 && admitted as f64 >= share * back as f64,
                "{admitted} of {back}, not {share}"
            );
        }
        // Whatever becomes of the promises, the engine works on and takes no more than they allow: a promise that was
        // given when three times as much fitted, and its slack.
        assert!(busy >= 0.95, "busy {busy}");
        assert!(fullest <= 3.0 * SLACK, "{fullest} limits");
    }
}
