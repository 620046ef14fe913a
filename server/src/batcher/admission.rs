//! May it come in? A pure ledger of what each caller has outstanding, in row evaluations and in images, and of what it was
//! promised. No clock and no lock: the time of day is an argument.
//!
//! A caller alone may have the whole limit outstanding; of several, each may have its share, so that nobody's flood
//! shuts others out. Whoever has less than a share leaves the rest of it to the others. Whoever is refused is told when to come
//! back, and **the time is a promise**: the queue goes on outside, in the clients that wait. The room that will be free then
//! is kept for the one that was told, so it is taken when it comes, and a newcomer is not let in ahead of it. A promise that
//! nobody claims lapses.
//!
//! **Who is who?** One that comes back with the id of its refusal is known for certain, and admitted even if somebody else
//! took its place. Others are known again by the fingerprint of their request, since one that obeys `retry-after` sends the
//! same bytes. A newcomer that sends these too is told a time of its own, unless it happens to come when a place is due; then
//! nothing tells the two apart, and as many are admitted as were promised.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use super::Caller;

/// Promises of one caller that are kept; beyond them times are still told, but not kept free.
const MOST_PROMISES: usize = 4096;

/// Promises to one fingerprint. Many may ask for the same, and one may ask without waiting: it is not to put off everybody
/// else for ever. Beyond them the latest of their times is told again.
const MOST_ALIKE: usize = 64;

/// The farthest time that is told. Whoever would have to wait longer is told this one, which is kept like any other: it has
/// nobody ahead of it then but what runs.
const FARTHEST: Duration = Duration::from_secs(3600);

/// How much too early a client may be that is known by its id: clocks and timers differ.
const EARLY: Duration = Duration::from_millis(250);

/// The same for one that is known by its bytes alone. Whoever was told a time hears of it later than it was decided, so most
/// come a moment late; the less a promise waits for them, the fewer newcomers are taken for them.
const HARDLY_EARLY: Duration = Duration::from_millis(50);

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

/// What is bounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Row evaluations.
    pub work: u64,
    /// Images.
    pub images: u64,
}

/// A request for admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Whose it is.
    pub caller: Caller,
    /// What tells it from others.
    pub fingerprint: u64,
    /// The number of its id and of what it asks, by which it is known again wherever it comes back from.
    pub id: u64,
    /// What it brings.
    pub load: Load,
}

/// What things stand like when somebody asks.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The time, on any clock that does not go back.
    pub now: Duration,
    /// What may be outstanding.
    pub limit: Load,
    /// Seconds of a row evaluation.
    pub row: f64,
    /// How images end.
    pub ends: Ends<'a>,
}

/// What is done until so many images have ended: of a caller, if nobody else had work, or of all.
#[derive(Clone, Copy)]
pub struct Ends<'a>(pub &'a dyn Fn(Option<Caller>, u64) -> Served);

/// Work that is done, and the seconds that it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Served {
    /// Row evaluations.
    pub work: u64,
    /// Seconds, with the engine to itself.
    pub seconds: f64,
}

/// What is outstanding and promised of one caller.
#[derive(Debug, Clone, Default)]
struct Account {
    outstanding: Load,
    promises: Vec<Promise>,
}

#[derive(Debug, Clone, Copy)]
struct Promise {
    fingerprint: u64,
    id: u64,
    load: Load,
    /// What the caller might have outstanding when it was given: a machine that has become slower since does not break
    /// it.
    share: Load,
    due: Duration,
    lapses: Duration,
    /// Somebody who sent the same was admitted by it; whose it is may still come.
    taken: bool,
}

// === impl Ledger ===

impl Ledger {
    /// Admits the request, or says in how many whole seconds it will be.
    pub fn ask(&mut self, ask: Ask, terms: Terms<'_>) -> Result<(), u64> {
        let Terms { now, limit, .. } = terms;
        self.forget(now);
        let Ask { caller, load, .. } = ask;
        let kept = self.callers.get_mut(&caller).and_then(|account| account.claim(&ask, now));
        let others: Vec<Load> =
            self.callers.iter().filter(|(other, _)| **other != caller).map(|(_, a)| a.business()).collect();
        let all: u64 = self.callers.values().map(|account| account.outstanding.images).sum();
        let account = self.callers.entry(caller).or_default();
        let share = Load {
            work: fair(limit.work, others.iter().map(|other| other.work)),
            images: fair(limit.images, others.iter().map(|other| other.images)),
        };
        let (outstanding, promised) = (account.outstanding, account.promised());
        // A request of more than a share counts as one: it would never find so much room, and an empty engine takes it whole.
        let needed = Load { work: load.work.min(share.work), images: load.images.min(share.images) };
        // Who has nothing may bring a whole request, as long as all that is kept in memory is bounded.
        let first = Load {
            work: u64::from(outstanding.work == 0),
            images: u64::from(
                all == 0 || outstanding.images == 0 && all.saturating_add(load.images) <= 2 * limit.images,
            ),
        };
        let fits = |part: fn(&Load) -> u64| {
            let [outstanding, promised, needed, whole, share, first] =
                [&outstanding, &promised, &needed, &load, &share, &first].map(part);
            let (now, soon) = (outstanding.saturating_add(whole), outstanding.saturating_add(promised));
            first > 0
                || if let Some(then) = &kept {
                    (outstanding + needed) as f64 <= share.max(part(then)) as f64 * SLACK
                } else {
                    soon.saturating_add(whole) <= share || now as f64 <= share as f64 * BUSY_ENOUGH
                }
        };
        if fits(|load| load.work) && fits(|load| load.images) {
            account.outstanding += load;
            // It came before its time, and there was room.
            account.promises.retain(|promise| promise.id != ask.id);
            return Ok(());
        }
        if kept.is_none()
            && let Some(due) = account.own(ask.id)
        {
            return Err(whole_seconds(due.saturating_sub(now)));
        }
        if kept.is_none()
            && let Some(due) = account.latest_of_many(ask.fingerprint)
        {
            return Err(whole_seconds(due.saturating_sub(now)));
        }
        // A promise that could not be kept has nobody ahead of it but what runs.
        let promised = if kept.is_some() { Load::default() } else { promised };
        let queue = Waiting { outstanding, promised, needed, share, others: &others };
        let mut wait = queue.for_work(terms.row).max(queue.for_images(caller, terms));
        if outstanding.images == 0 && first.images == 0 {
            // Others have all the places.
            let ends = (all + load.images).saturating_sub(2 * limit.images);
            wait = wait.max((terms.ends.0)(None, ends).seconds);
        }
        let wait = Duration::try_from_secs_f64(wait * MARGIN).unwrap_or(FARTHEST);
        let seconds = whole_seconds(wait.min(FARTHEST));
        account.promise(&ask, share, now, Duration::from_secs(seconds));
        Err(seconds)
    }

    /// So much of what `caller` has outstanding is done, or will not be.
    pub fn give_back(&mut self, caller: Caller, done: Load) {
        if let Some(account) = self.callers.get_mut(&caller) {
            let Load { work, images } = &mut account.outstanding;
            (*work, *images) = (work.saturating_sub(done.work), images.saturating_sub(done.images));
            if account.is_empty() {
                self.callers.remove(&caller);
            }
        }
    }

    /// Row evaluations outstanding, of all callers.
    pub fn outstanding(&self) -> u64 {
        self.callers.values().map(|account| account.outstanding.work).sum()
    }

    /// Drops promises that nobody claimed, and callers without any business.
    fn forget(&mut self, now: Duration) {
        self.callers.retain(|_, account| {
            account.promises.retain(|promise| now <= promise.lapses);
            !account.is_empty()
        });
    }
}

// === impl Load ===

impl AddAssign for Load {
    fn add_assign(&mut self, more: Self) {
        self.work = self.work.saturating_add(more.work);
        self.images = self.images.saturating_add(more.images);
    }
}

// === impl Ends ===

impl fmt::Debug for Ends<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ends")
    }
}

// === impl Account ===

impl Account {
    fn is_empty(&self) -> bool {
        self.outstanding == Load::default() && self.promises.is_empty()
    }

    /// Takes the promise to this request. What is returned is the share that it was given on.
    ///
    /// One that comes with the id of its refusal has its own, whether or not somebody took it. Of others the earliest that is
    /// due is theirs; whoever comes before its time is taken for somebody else who asks for the same.
    fn claim(&mut self, ask: &Ask, now: Duration) -> Option<Load> {
        let own = self.promises.iter().position(|p| p.id == ask.id && p.due <= now + EARLY);
        if let Some(i) = own {
            return Some(self.promises.remove(i).share);
        }
        if self.own(ask.id).is_some() {
            return None;
        }
        let alike = || self.promises.iter().enumerate().filter(|(_, p)| p.fingerprint == ask.fingerprint);
        let due = alike().filter(|(_, p)| !p.taken && p.due <= now + HARDLY_EARLY);
        let i = due.min_by_key(|(_, p)| p.due).map(|(i, _)| i)?;
        self.promises[i].taken = true;
        Some(self.promises[i].share)
    }

    /// When the promise is due that was given to this very request before.
    fn own(&self, id: u64) -> Option<Duration> {
        self.promises.iter().find(|promise| promise.id == id).map(|promise| promise.due)
    }

    /// Keeps the room for this request from `wait` on, if there are not too many promises.
    fn promise(&mut self, ask: &Ask, share: Load, now: Duration, wait: Duration) {
        if self.promises.len() < MOST_PROMISES {
            let &Ask { fingerprint, id, load, .. } = ask;
            let due = now + wait;
            let lapses = due + GRACE + wait / 10;
            self.promises.push(Promise { fingerprint, id, load, share, due, lapses, taken: false });
        }
    }

    /// Promises that somebody is still to come for.
    fn open(&self) -> impl Iterator<Item = &Promise> {
        self.promises.iter().filter(|promise| !promise.taken)
    }

    /// When the latest promise to this fingerprint is due, if it has as many as one may have.
    fn latest_of_many(&self, fingerprint: u64) -> Option<Duration> {
        let due = || self.open().filter(|p| p.fingerprint == fingerprint).map(|p| p.due);
        if due().count() < MOST_ALIKE { None } else { due().max() }
    }

    fn promised(&self) -> Load {
        let mut all = Load::default();
        self.open().for_each(|promise| all += promise.load);
        all
    }

    /// What it has, or will have when those come back that were told to.
    fn business(&self) -> Load {
        let mut all = self.promised();
        all += self.outstanding;
        all
    }
}

/// What somebody waits for who was refused.
struct Waiting<'a> {
    outstanding: Load,
    promised: Load,
    needed: Load,
    share: Load,
    /// What each other caller has.
    others: &'a [Load],
}

// === impl Waiting ===

impl Waiting<'_> {
    /// Seconds until its caller's work has come down by what is too much.
    fn for_work(&self, row: f64) -> f64 {
        let Load { work: ahead, .. } = self.outstanding;
        let ahead = ahead.saturating_add(self.promised.work).saturating_add(self.needed.work);
        let work = ahead.saturating_sub(self.share.work);
        self.beside_others(work) as f64 * row
    }

    /// Seconds until as many of its caller's images have ended as are too many: first those that are there, in the order in
    /// which they do, and then those that were promised.
    fn for_images(&self, caller: Caller, terms: Terms<'_>) -> f64 {
        let ahead = self.outstanding.images + self.promised.images + self.needed.images;
        let images = ahead.saturating_sub(self.share.images);
        if images == 0 {
            return 0.0;
        }
        let Served { work, seconds } = (terms.ends.0)(Some(caller), images.min(self.outstanding.images));
        let rest = images.saturating_sub(self.outstanding.images).min(self.promised.images);
        let mean = self.promised.work as f64 / self.promised.images.max(1) as f64;
        let promised = (mean * rest as f64) as u64;
        let work = work.saturating_add(promised);
        let shared = self.beside_others(work).saturating_sub(work);
        seconds + promised.saturating_add(shared) as f64 * terms.row
    }

    /// What the engine does until it has done so much of this caller's work: as much of each other's, or all there is of it.
    fn beside_others(&self, work: u64) -> u64 {
        self.others.iter().fold(work, |all, other| all.saturating_add(other.work.min(work)))
    }
}

/// What one may have of `limit` beside others who have so much: an even share, and what those leave who have less.
fn fair(limit: u64, others: impl Iterator<Item = u64>) -> u64 {
    let mut others: Vec<u64> = others.collect();
    others.sort_unstable();
    let (mut left, mut sharers) = (limit, others.len() as u64 + 1);
    for other in others {
        if other > left / sharers {
            break;
        }
        left -= other;
        sharers -= 1;
    }
    (left / sharers).max(1)
}

/// Rounded up, since coming back a moment too early would be refused again; at least 1.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests;
