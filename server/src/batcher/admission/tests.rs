//! The ledger by itself: promises, shares, and storms of clients that obey.

use super::*;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Images that may be outstanding where they do not matter.
const MANY: u64 = 1 << 40;

/// Rows of 10 ms, of which 1000 may be outstanding: ten seconds.
fn terms(now: f64) -> Terms<'static> {
    Terms {
        now: Duration::from_secs_f64(now),
        limit: Load { work: 1000, images: MANY },
        row: 0.01,
        ends: Ends(&|_, _| Served::default()),
    }
}

/// Somebody who is known by the bytes alone: no id comes twice.
fn ask(caller: u32, fingerprint: u64, work: u64) -> Ask {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
    Ask { caller: Caller(caller), fingerprint, id: NEXT.fetch_add(1, Relaxed), load: rows(work) }
}

fn rows(work: u64) -> Load {
    Load { work, images: 0 }
}

#[test]
fn the_limit_is_work_and_an_empty_engine_takes_anything() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 5000), terms(0.0)), Ok(()));
    // 4100 of 5100 have to be done first: 41 s, and a quarter more.
    assert_eq!(ledger.ask(ask(0, 2, 100), terms(0.0)), Err(52));
    ledger.give_back(Caller(0), rows(5000));
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
    ledger.give_back(Caller(0), rows(300));
    assert_eq!(ledger.ask(ask(0, 4, 300), terms(3.0)), Err(8));
    assert_eq!(ledger.ask(ask(0, 2, 300), terms(4.0)), Ok(()));
    ledger.give_back(Caller(0), rows(300));
    assert_eq!(ledger.ask(ask(0, 3, 300), terms(8.0)), Ok(()));
}

#[test]
fn who_asks_again_before_its_time_keeps_its_one_promise() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
    let own = Ask { id: 5, ..ask(0, 7, 300) };
    assert_eq!(ledger.ask(own, terms(0.0)), Err(4));
    for now in [0.5, 1.0, 2.5] {
        let from_elsewhere = Ask { fingerprint: 8, ..own };
        assert_eq!(ledger.ask(from_elsewhere, terms(now)), Err((4.0_f64 - now).ceil() as u64), "{now}");
    }
    let promises = &ledger.callers[&Caller(0)].promises;
    assert_eq!(promises.len(), 1, "{promises:?}");
    ledger.give_back(Caller(0), rows(300));
    // From another address, too.
    assert_eq!(ledger.ask(Ask { fingerprint: 8, ..own }, terms(4.0)), Ok(()));
    assert!(ledger.callers[&Caller(0)].promises.is_empty());
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
        ledger.give_back(Caller(0), rows(100));
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
    ledger.give_back(Caller(0), rows(500));
    assert_eq!(ledger.ask(ask(0, 2, 4000), terms(seconds as f64)), Ok(()));
}

#[test]
fn a_request_larger_than_its_share_is_told_when_the_engine_is_free_and_no_later() {
    let mut ledger = Ledger::default();
    let terms = |now| Terms { limit: Load { work: 3000, images: MANY }, ..terms(now) };
    // A second's work, and then forty seconds of which thirty may be outstanding.
    assert_eq!(ledger.ask(ask(0, 1, 100), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(ask(0, 2, 4000), terms(0.0)), Err(2));
    ledger.give_back(Caller(0), rows(100));
    let mut idle = ledger.clone();
    assert_eq!(idle.ask(ask(0, 2, 4000), terms(2.0)), Ok(()));
    // Newcomers do not shut it out: a promise leaves them half of the limit, and it finds its place beside that.
    assert_eq!(ledger.ask(ask(0, 4, 1500), terms(1.0)), Ok(()));
    assert!(ledger.ask(ask(0, 5, 500), terms(1.0)).is_err());
    assert_eq!(ledger.ask(ask(0, 2, 4000), terms(2.0)), Ok(()));
}

/// 64 samples of a thousand guided steps, by a method of two evaluations a step: more than half an hour of one client.
#[test]
fn a_time_far_away_is_kept_too() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 256_000), terms(0.0)), Ok(()));
    let told = ledger.ask(ask(0, 2, 100), terms(0.0)).unwrap_err();
    assert_eq!(told, 3189);
    assert_eq!(ledger.ask(ask(0, 3, 256_000), terms(0.0)), Err(3202));
    // An hour is the farthest that anybody is told.
    assert_eq!(ledger.ask(ask(0, 4, 100), terms(0.0)), Err(3600));
    // Newcomers would find no room beside what still runs; whoever was told a time has it.
    ledger.give_back(Caller(0), rows(254_500));
    for (fingerprint, at) in [(2, 3189.0), (4, 3600.0)] {
        assert!(ledger.clone().ask(ask(0, 9, 100), terms(at)).is_err());
        assert_eq!(ledger.ask(ask(0, fingerprint, 100), terms(at)), Ok(()));
    }
}

#[test]
fn an_idle_engine_refuses_nobody() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 6000), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(ask(0, 2, 100), terms(0.0)), Err(64));
    ledger.give_back(Caller(0), rows(6000));
    assert_eq!(ledger.ask(ask(0, 2, 100), terms(1.0)), Ok(()));
}

#[test]
fn who_does_not_come_back_loses_the_place() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(ask(0, 2, 400), terms(0.0)), Err(5));
    ledger.give_back(Caller(0), rows(400));
    // 5 s, 0.5 s and 2 s of grace.
    assert_eq!(ledger.ask(ask(0, 3, 400), terms(7.0)), Err(5));
    let mut later = ledger.clone();
    assert_eq!(later.ask(ask(0, 4, 400), terms(7.6)), Err(5));
    later.give_back(Caller(0), rows(400));
    assert_eq!(later.ask(ask(0, 3, 400), terms(12.0)), Ok(()));
}

#[test]
fn promises_leave_no_engine_idle() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
    (0..50).for_each(|i| assert!(ledger.ask(ask(0, 10 + i, 300), terms(0.0)).is_err()));
    ledger.give_back(Caller(0), rows(900));
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
    ledger.give_back(Caller(0), rows(250));
    let slower = Terms { limit: Load { work: 500, images: MANY }, row: 0.02, ..terms(7.0) };
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
    assert_eq!(ledger.callers[&Caller(0)].promises.len(), MOST_PROMISES);
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

/// By what the clients of a storm can be told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Bytes,
    Id,
    Nothing,
}

impl Overload {
    /// Share of those that were back who were admitted then.
    fn kept(&self) -> f64 {
        self.back.iter().filter(|(.., admitted)| *admitted).count() as f64 / self.back.len() as f64
    }
}

/// In steps of 10 ms, of which a row takes one at full speed. The engine's speed is what `speed` says at a time; the
/// price of a row is its mean over half a minute. A request has 20 to 200 rows.
fn overload(storm: u64, speed: impl Fn(u64) -> f64) -> Overload {
    storm_of(Known::Bytes, storm, 21, speed)
}

/// The same of clients that are known by this, of whom one comes every so many steps, more or less.
fn storm_of(known: Known, storm: u64, gap: usize, speed: impl Fn(u64) -> f64) -> Overload {
    let mut ledger = Ledger::default();
    // (when, fingerprint, work, how often it was told to come back): 64 rows in the mean.
    let size = |at: u64| [20, 20, 20, 40, 40, 100, 200, 72][(at * 7919 / 21 % 8) as usize];
    let mut coming: Vec<(u64, u64, u64, u32)> =
        (0..storm).step_by(gap).map(|at| (at, at, size(at), 0)).collect();
    if known != Known::Bytes {
        // They come at any time, and are back up to 30 ms late.
        coming.iter_mut().for_each(|(at, id, ..)| *at += *id * 31 % 17);
    }
    let (mut back, mut busy, mut overfull, mut fullest) = (Vec::new(), 0, 0, 0.0_f64);
    let (mut running, mut credit, mut price, mut at) = (0_u64, 0.0, 0.01, 0);
    while !coming.is_empty() {
        price += (0.01 / speed(at) - price) / 3000.0;
        let limit = Load { work: (5.0 / price) as u64, images: MANY };
        let terms = Terms { now: Duration::from_millis(at * 10), limit, row: price, ..terms(0.0) };
        let (due, later): (Vec<_>, Vec<_>) = coming.into_iter().partition(|&(when, ..)| when <= at);
        coming = later;
        for (_, id, work, told) in due {
            let asked = match known {
                Known::Bytes => ask(0, id, work),
                Known::Id => Ask { id, ..ask(0, 7, 64) },
                Known::Nothing => ask(0, 7, 64),
            };
            let work = asked.load.work;
            let answer = ledger.ask(asked, terms);
            if told > 0 {
                back.push((at, told, answer.is_ok()));
            }
            match answer {
                Ok(()) => running += work,
                Err(seconds) => {
                    let late = if known == Known::Bytes { 0 } else { (id + at) * 7919 % 4 };
                    coming.push((at + seconds * 100 + late, id, work, told + 1));
                }
            }
        }
        fullest = fullest.max(running as f64 / terms.limit.work as f64);
        if at < storm {
            busy += u64::from(running > 0);
            overfull += u64::from(running > limit.work + limit.work / 4);
        }
        credit += speed(at);
        let done = running.min(credit as u64);
        credit -= credit.floor();
        running -= done;
        ledger.give_back(Caller(0), rows(done));
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
    let (before, learning, after) = (kept(0, CHANGE), kept(CHANGE, 4 * CHANGE), kept(4 * CHANGE, u64::MAX));
    println!("{before:?} {learning:?} {after:?}, busy {busy:.3}, fullest {fullest:.2}");
    for ((back, admitted), share) in [(before, 0.95), (learning, 0.5), (after, 0.95)] {
        assert!(back >= 20 && admitted as f64 >= share * back as f64, "{admitted} of {back}, not {share}");
    }
    // Whatever becomes of the promises, the engine works on and takes no more than they allow: a promise that was
    // given when three times as much fitted, and its slack.
    assert!(busy >= 0.95, "busy {busy}");
    assert!(fullest <= 3.0 * SLACK, "{fullest} limits");
}

/// All send the same bytes, three times what the engine can do.
#[test]
fn who_comes_back_with_an_id_is_told_from_newcomers_that_send_the_same() {
    for gap in [21, 15] {
        let Overload { busy, fullest, .. } = storm_of(Known::Nothing, 1500, gap, |_| 1.0);
        let storm = storm_of(Known::Id, 1500, gap, |_| 1.0);
        println!("{gap}: {} of {}, fullest {}", storm.kept(), storm.back.len(), storm.fullest);
        assert!(storm.back.len() >= 40 && storm.kept() >= 0.95, "{} of {}", storm.kept(), storm.back.len());
        assert!(storm.busy >= 0.95 && busy >= 0.95, "busy {} and {busy}", storm.busy);
        assert!(storm.fullest <= 2.0 && fullest <= 1.3, "{} and {fullest} limits", storm.fullest);
    }
}

/// What can be promised where nothing tells them apart: a newcomer has the place of one in a few, if it happens to come in
/// the moment in which that is due.
#[test]
fn of_those_that_nothing_tells_from_newcomers_most_are_admitted_when_they_were_told() {
    let storm = storm_of(Known::Nothing, 1500, 21, |_| 1.0);
    println!("{} of {}", storm.kept(), storm.back.len());
    assert!(storm.back.len() >= 40 && storm.kept() >= 0.6, "{} of {}", storm.kept(), storm.back.len());
}

#[test]
fn a_newcomer_that_sends_the_same_is_told_a_time_of_its_own() {
    let mut ledger = Ledger::default();
    let mine = ask(0, 7, 300);
    assert_eq!(ledger.ask(ask(0, 1, 1000), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(mine, terms(0.0)), Err(4));
    ledger.give_back(Caller(0), rows(300));
    // Not yet due: whoever comes now is somebody else.
    assert_eq!(ledger.ask(ask(0, 7, 300), terms(3.9)), Err(4));
    let mut taken = ledger.clone();
    assert_eq!(ledger.ask(mine, terms(4.0)), Ok(()));
    // Due: nothing tells a newcomer from it. The place is taken once, and whoever has the id has it all the same.
    assert_eq!(taken.ask(ask(0, 7, 300), terms(4.0)), Ok(()));
    assert!(taken.clone().ask(ask(0, 7, 300), terms(4.0)).is_err());
    assert_eq!(taken.ask(mine, terms(4.0)), Ok(()));
    assert!(taken.ask(mine, terms(4.0)).is_err(), "it has had its place");
}

/// Images of a second each, of which ten may be outstanding.
fn pictures(now: f64) -> Terms<'static> {
    let ends = Ends(&|_, images| Served { work: 100 * images, seconds: images as f64 });
    Terms { limit: Load { work: 1 << 40, images: 10 }, ends, ..terms(now) }
}

fn images(caller: u32, fingerprint: u64, images: u64) -> Ask {
    Ask { load: Load { work: 100 * images, images }, ..ask(caller, fingerprint, 0) }
}

#[test]
fn who_is_too_many_is_told_when_places_are_free_and_has_them_then() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(images(0, 1, 8), pictures(0.0)), Ok(()));
    // Two have to end first, and then six; and a quarter more.
    assert_eq!(ledger.ask(images(0, 2, 4), pictures(0.0)), Err(3));
    assert_eq!(ledger.ask(images(0, 3, 4), pictures(0.0)), Err(8));
    // The fifteenth behind eight waits for those that were promised, too.
    assert_eq!(ledger.ask(images(0, 4, 3), pictures(0.0)), Err(12));
    ledger.give_back(Caller(0), Load { work: 300, images: 3 });
    assert!(ledger.clone().ask(images(0, 9, 2), pictures(3.0)).is_err(), "the places are promised");
    assert_eq!(ledger.ask(images(0, 2, 4), pictures(3.0)), Ok(()));
    ledger.give_back(Caller(0), Load { work: 500, images: 5 });
    assert_eq!(ledger.ask(images(0, 3, 4), pictures(8.0)), Ok(()));
}

#[test]
fn a_place_is_kept_for_work_that_was_promised() {
    let mut ledger = Ledger::default();
    let terms = |now| Terms { limit: Load { work: 1000, images: 4 }, ..terms(now) };
    let ask = |fingerprint, work, images| Ask { load: Load { work, images }, ..ask(0, fingerprint, 0) };
    assert_eq!(ledger.ask(ask(1, 1000, 1), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(ask(2, 300, 2), terms(0.0)), Err(4));
    ledger.give_back(Caller(0), rows(900));
    assert_eq!(ledger.ask(ask(3, 1, 1), terms(3.0)), Ok(()));
    assert!(ledger.ask(ask(4, 1, 1), terms(3.0)).is_err());
    assert_eq!(ledger.ask(ask(2, 300, 2), terms(4.0)), Ok(()));
}

#[test]
fn who_has_nothing_may_bring_a_whole_request_until_memory_ends() {
    let mut ledger = Ledger::default();
    for caller in 0..4 {
        assert_eq!(ledger.ask(images(caller, 1, 5), pictures(0.0)), Ok(()));
    }
    // Twenty are there: five have to end.
    assert_eq!(ledger.ask(images(4, 1, 5), pictures(0.0)), Err(7));
    ledger.give_back(Caller(0), Load { work: 500, images: 5 });
    assert_eq!(ledger.ask(images(4, 1, 5), pictures(7.0)), Ok(()));
}

#[test]
fn a_caller_with_little_takes_little_of_the_others_share() {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.ask(ask(1, 1, 10), terms(0.0)), Ok(()));
    assert_eq!(ledger.ask(ask(2, 1, 20), terms(0.0)), Ok(()));
    // Of a thousand these two leave 970; a third of it would be 333.
    assert_eq!(ledger.ask(ask(0, 1, 970), terms(0.0)), Ok(()));
    // 300 rows, and 30 of the others': 3.3 s and a quarter more, not three times 3 s.
    assert_eq!(ledger.ask(ask(0, 2, 300), terms(0.0)), Err(5));
    assert_eq!(
        [vec![], vec![10], vec![500, 900], vec![10, 400, 900]].map(|o| fair(1000, o.into_iter())),
        [1000, 990, 333, 330]
    );
}
