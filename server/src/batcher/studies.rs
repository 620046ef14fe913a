//! Who looks inside, and when? The second lane of a worker: studies, which call the network's graphs one unit after another
//! and have time. A pure state machine like `policy.rs`.
//!
//! - **Between images and studies**: while both have work, every tenth turn is a study's, so that images lose a tenth of the
//!   ticks at most and studies are never starved; what the other leaves is one's own. A unit is one call and lasts about
//!   one tick, so that giving way at its end is giving way at once.
//! - **Between callers**: turns go round, one unit each; within a caller the oldest study goes first.
//! - **How many**: a quota for each caller. Beyond it a caller is told when the first of its studies will be done, by what
//!   units take as measured: each kind of call, with as many vectors or rows, by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::Caller;
use super::admission::whole_seconds;
use super::study::{Effort, Like};

/// Turns of images for one of a study, while both have work.
pub const IMAGE_TURNS: u32 = 9;

/// Weight of the newest unit in the running mean.
const NEWEST: f64 = 1.0 / 8.0;

/// What is added to a time that a client is told to wait: units are not all alike.
const MARGIN: f64 = 1.25;

/// The studies of one model.
#[derive(Debug, Clone)]
pub struct Studies {
    /// Studies that one caller may have.
    quota: usize,
    next: u64,
    all: BTreeMap<u64, Entry>,
    /// Turns of images since the latest unit.
    images_since: u32,
    /// Who had the latest unit.
    latest: Option<Caller>,
    /// These two as they were before it.
    before: (u32, Option<Caller>),
    /// Seconds of a unit, whichever it is.
    unit: f64,
    /// Seconds of units of each kind that was measured.
    of: BTreeMap<Like, f64>,
}

/// A study that was admitted and has not ended.
#[derive(Debug, Clone, Copy)]
struct Entry {
    caller: Caller,
    /// Units that are still to come, as it said.
    left: usize,
    /// What most of them are like.
    like: Like,
    /// Whether one of them waits for its turn.
    waits: bool,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Images', or nobody's where there are none.
    Images,
    /// That of the unit that this study waits with.
    Study(u64),
}

/// A caller has as many studies as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// Seconds after which the first of them will be done.
    pub retry_after: u64,
}

/// How fast turns come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Seconds of a full tick of images; 0 where there are none.
    pub tick: f64,
    /// Models that share the device.
    pub sharers: f64,
}

// === impl Studies ===

impl Studies {
    /// None yet; `unit` is what a unit is taken to last until one was measured.
    pub fn new(quota: usize, unit: Duration) -> Self {
        Self {
            quota,
            next: 0,
            all: BTreeMap::new(),
            images_since: 0,
            latest: None,
            before: (0, None),
            unit: unit.as_secs_f64().max(1e-6),
            of: BTreeMap::new(),
        }
    }

    /// Studies under way.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Admits a study, and gives it its number.
    pub fn admit(&mut self, caller: Caller, effort: Effort, pace: Pace) -> Result<u64, Full> {
        let own = || self.all.values().filter(|entry| entry.caller == caller);
        if own().count() >= self.quota {
            // The oldest goes first, and is done first.
            let first = own().next().map_or((1, effort.like), |entry| (entry.left.max(1), entry.like));
            let turns = (first.0 * self.callers(caller), first.1);
            return Err(Full { retry_after: whole_seconds(self.lasting([turns], pace).mul_f64(MARGIN)) });
        }
        let id = self.next;
        self.next += 1;
        self.all.insert(id, Entry { caller, left: effort.units, like: effort.like, waits: false });
        Ok(id)
    }

    /// Time until a new study would be done, if nothing else came.
    pub fn eta(&self, caller: Caller, effort: Effort, pace: Pace) -> Duration {
        let mut turns = vec![(effort.units, effort.like)];
        turns.extend(self.all.values().filter(|entry| entry.caller == caller).map(Entry::turns));
        let own: usize = turns.iter().map(|(units, _)| units).sum();
        // Of everybody else as many, at most: the oldest first.
        let mut others = BTreeMap::<Caller, usize>::new();
        for entry in self.all.values().filter(|entry| entry.caller != caller) {
            let room = others.entry(entry.caller).or_insert(own);
            let units = entry.left.min(*room);
            *room -= units;
            turns.push((units, entry.like));
        }
        self.lasting(turns, pace).saturating_add(at_the_end(effort, pace))
    }

    /// The same, if there were nothing else.
    pub fn alone(&self, effort: Effort, pace: Pace) -> Duration {
        self.lasting([(effort.units, effort.like)], pace).saturating_add(at_the_end(effort, pace))
    }

    /// The study ended, in whatever way.
    pub fn end(&mut self, id: u64) {
        self.all.remove(&id);
    }

    /// The study waits with a unit. `false`: there is no such study.
    pub fn wait(&mut self, id: u64) -> bool {
        let entry = self.all.get_mut(&id);
        entry.map(|entry| entry.waits = true).is_some()
    }

    /// The unit that the study waited with is gone without its turn.
    pub fn leave(&mut self, id: u64) {
        if let Some(entry) = self.all.get_mut(&id) {
            entry.waits = false;
        }
    }

    /// Whose turn it is, where `images` says whether images have work. The turn is taken.
    pub fn turn(&mut self, images: bool) -> Turn {
        if images && self.images_since < IMAGE_TURNS {
            self.images_since += 1;
            return Turn::Images;
        }
        self.unit_turn().map_or(Turn::Images, Turn::Study)
    }

    /// The turn of a unit, if one waits: when images have work but not yet.
    pub fn unit_turn(&mut self) -> Option<u64> {
        let mut first: BTreeMap<Caller, u64> = BTreeMap::new();
        for (&id, entry) in self.all.iter().filter(|(_, entry)| entry.waits) {
            first.entry(entry.caller).or_insert(id);
        }
        let behind = self.latest.map_or(Bound::Unbounded, Bound::Excluded);
        let mut round = first.range((behind, Bound::Unbounded)).chain(first.iter());
        let (&caller, &id) = round.next()?;
        let entry = self.all.get_mut(&id)?;
        (entry.waits, entry.left) = (false, entry.left.saturating_sub(1));
        self.before = (self.images_since, self.latest);
        (self.images_since, self.latest) = (0, Some(caller));
        Some(id)
    }

    /// The latest turn was not made use of: all is as it was before it. `false`: the study has ended since.
    pub fn give_back(&mut self, id: u64) -> bool {
        (self.images_since, self.latest) = self.before;
        let entry = self.all.get_mut(&id);
        entry.map(|entry| (entry.waits, entry.left) = (true, entry.left + 1)).is_some()
    }

    /// A unit like this one took so long.
    pub fn measured(&mut self, like: Like, unit: Duration) {
        let unit = unit.as_secs_f64();
        let of = self.of.entry(like).or_insert(unit);
        for mean in [of, &mut self.unit] {
            *mean += NEWEST * (unit - *mean);
        }
    }

    /// By what factor studies slow images down in the long run, whose full tick takes so many seconds.
    pub fn slowdown(&self, tick: f64) -> f64 {
        if self.is_empty() { 1.0 } else { 1.0 + self.unit / (f64::from(IMAGE_TURNS) * tick.max(1e-9)) }
    }

    /// By how many seconds studies hold up images that take part in so many ticks: the unit under way, and one after every
    /// ninth tick.
    pub fn delay(&self, ticks: f64) -> f64 {
        if self.is_empty() { 0.0 } else { self.unit * (1.0 + ticks / f64::from(IMAGE_TURNS)) }
    }

    /// Callers that have studies, `caller` among them.
    fn callers(&self, caller: Caller) -> usize {
        let all: BTreeSet<Caller> = self.all.values().map(|entry| entry.caller).chain([caller]).collect();
        all.len()
    }

    /// Time in which so many units of each kind have had their turns.
    fn lasting(&self, turns: impl IntoIterator<Item = (usize, Like)>, pace: Pace) -> Duration {
        let turn = |like: Like| self.of.get(&like).unwrap_or(&self.unit) + f64::from(IMAGE_TURNS) * pace.tick;
        let seconds: f64 = turns.into_iter().map(|(units, like)| units as f64 * turn(like)).sum();
        Duration::try_from_secs_f64(seconds * pace.sharers).unwrap_or(Duration::MAX)
    }
}

/// How long a study computes at its end. It stands back for ticks then, so that it has a share of the processors as its units
/// have one of the turns.
fn at_the_end(effort: Effort, pace: Pace) -> Duration {
    if pace.tick > 0.0 { effort.end.saturating_mul(1 + IMAGE_TURNS) } else { effort.end }
}

// === impl Entry ===

impl Entry {
    /// The turns that it still needs.
    fn turns(&self) -> (usize, Like) {
        (self.left, self.like)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the units of these tests are like, unless they say.
    const LOOK: Like = Like { graph: "attention", width: 1 };

    const ALONE: Pace = Pace { tick: 0.0, sharers: 1.0 };

    fn studies(quota: usize) -> Studies {
        Studies::new(quota, Duration::from_millis(100))
    }

    #[test]
    fn images_give_one_turn_in_ten_and_studies_all_that_images_leave() {
        let mut studies = studies(4);
        let id = studies.admit(Caller(0), Effort::of(1000, LOOK), ALONE).unwrap();
        let turns: Vec<bool> = (0..1000)
            .map(|_| {
                studies.wait(id);
                studies.turn(true) == Turn::Study(id)
            })
            .collect();
        assert_eq!(turns.iter().filter(|&&study| study).count(), 100);
        assert!(turns.windows(10).all(|turns| turns.iter().filter(|&&study| study).count() == 1));
        for _ in 0..100 {
            studies.wait(id);
            assert_eq!(studies.turn(false), Turn::Study(id));
        }
        assert_eq!(studies.turn(false), Turn::Images, "it waits with nothing");
        // It comes back after a while in which it computed: it has its turn at once, and not the turns it left.
        (0..50).for_each(|_| assert_eq!(studies.turn(true), Turn::Images));
        studies.wait(id);
        assert_eq!(studies.turn(true), Turn::Study(id));
        studies.wait(id);
        assert_eq!(studies.turn(true), Turn::Images);
    }

    #[test]
    fn a_turn_that_is_given_back_is_the_next_one_again() {
        let mut studies = studies(4);
        let [first, second] =
            [0, 1].map(|caller| studies.admit(Caller(caller), Effort::of(10, LOOK), ALONE).unwrap());
        [first, second].into_iter().for_each(|id| _ = studies.wait(id));
        assert_eq!(studies.turn(false), Turn::Study(first));
        (0..3).for_each(|_| assert_eq!(studies.turn(true), Turn::Images));
        assert_eq!(studies.turn(false), Turn::Study(second));
        // It was not its turn after all; and images have had three of the nine, whatever comes of it.
        assert!(studies.give_back(second));
        studies.wait(first);
        (0..6).for_each(|_| assert_eq!(studies.turn(true), Turn::Images));
        assert_eq!(studies.turn(true), Turn::Study(second));
        assert_eq!(studies.all[&second].left, 9);
        studies.end(second);
        assert!(!studies.give_back(second));
    }

    #[test]
    fn a_caller_over_its_quota_is_told_when_the_first_of_its_studies_is_done() {
        let mut studies = studies(2);
        let first = studies.admit(Caller(0), Effort::of(30, LOOK), ALONE).unwrap();
        studies.admit(Caller(0), Effort::of(5, LOOK), ALONE).unwrap();
        // 30 units of 0.1 s, and a quarter more.
        assert_eq!(studies.admit(Caller(0), Effort::of(1, LOOK), ALONE), Err(Full { retry_after: 4 }));
        // Beside images of 50 ms a tick a unit's turn comes every 0.55 s; beside another model in twice that.
        let busy = Pace { tick: 0.05, sharers: 2.0 };
        assert_eq!(studies.admit(Caller(0), Effort::of(1, LOOK), busy), Err(Full { retry_after: 42 }));
        let other = studies.admit(Caller(1), Effort::of(1, LOOK), ALONE).unwrap();
        assert_eq!(studies.admit(Caller(0), Effort::of(1, LOOK), ALONE), Err(Full { retry_after: 8 }));
        assert_eq!(studies.eta(Caller(1), Effort::of(3, LOOK), ALONE), Duration::from_millis(800));
        studies.end(other);
        studies.end(first);
        studies.admit(Caller(0), Effort::of(1, LOOK), ALONE).unwrap();
        (0..100).for_each(|_| studies.measured(LOOK, Duration::from_millis(300)));
        assert_eq!(studies.admit(Caller(0), Effort::of(1, LOOK), ALONE), Err(Full { retry_after: 2 }));
    }

    #[test]
    fn every_kind_of_unit_takes_its_own_time() {
        let mut studies = studies(4);
        let [wide, narrow] = [8, 1].map(|width| Like { graph: "jvp", width });
        let eta = |studies: &Studies, caller, like| {
            studies.eta(Caller(caller), Effort::of(10, like), ALONE).as_secs_f64()
        };
        let is = |seconds: f64, expected: f64| {
            assert!((seconds - expected).abs() < 1e-6, "{seconds} s, not {expected}")
        };
        // Nothing was measured: what a unit was said to take.
        is(eta(&studies, 0, wide), 1.0);
        studies.measured(wide, Duration::from_millis(200));
        studies.measured(narrow, Duration::from_millis(30));
        is(eta(&studies, 0, wide), 2.0);
        is(eta(&studies, 0, narrow), 0.3);
        // What is under way counts as what it is: all of one's own, of others as many units as one's own.
        studies.admit(Caller(0), Effort::of(5, wide), ALONE).unwrap();
        is(eta(&studies, 0, narrow), 1.3);
        is(eta(&studies, 1, narrow), 1.3);
        studies.admit(Caller(0), Effort::of(100, narrow), ALONE).unwrap();
        is(eta(&studies, 1, narrow), 0.3 + 1.0 + 5.0 * 0.03);
        // And at its end a study computes for a while: for longer while there are images, whichever studies there are.
        let end = Duration::from_secs(60);
        let effort = Effort { end, ..Effort::of(10, narrow) };
        assert_eq!(studies.alone(effort, ALONE), Duration::from_millis(60_300));
        is(studies.eta(Caller(1), effort, ALONE).as_secs_f64(), 61.45);
        let beside = Pace { tick: 0.01, ..ALONE };
        is(studies.eta(Caller(1), effort, beside).as_secs_f64(), 1.45 + 20.0 * 0.09 + 600.0);
    }

    #[test]
    fn images_are_told_that_studies_slow_them_down() {
        let mut studies = studies(1);
        assert_eq!((studies.slowdown(0.05), studies.delay(18.0)), (1.0, 0.0));
        studies.admit(Caller(0), Effort::of(1, LOOK), ALONE).unwrap();
        assert!((studies.slowdown(0.1) - 10.0 / 9.0).abs() < 1e-9);
        // Of units of 0.1 s: that under way, and two more.
        assert!((studies.delay(18.0) - 0.3).abs() < 1e-9);
    }

    proptest! {
        /// Callers with any numbers of studies, which compute for a while between two units; images come and go. Whatever
        /// happens: images have at least nine turns in ten of those in which they have work; a study that waits has its
        /// turn; and of two callers that always wait none has more than one unit more than the other.
        #[test]
        fn turns_are_fair(
            counts in prop::collection::vec(1..4_usize, 1..5),
            images in prop::collection::vec(prop::bool::weighted(0.8), 400),
            away in prop::collection::vec(0..4_usize, 400),
        ) {
            let mut studies = studies(4);
            let (mut of, mut back) = (BTreeMap::new(), BTreeMap::new());
            for (caller, &count) in counts.iter().enumerate() {
                for _ in 0..count {
                    let id = studies.admit(Caller(caller as u32), Effort::of(1000, LOOK), ALONE).unwrap();
                    of.insert(id, caller);
                    back.insert(id, 0);
                }
            }
            // Those of the first caller never compute: they always wait.
            let (mut taken, mut with_images, mut image_turns) = (vec![0; counts.len()], 0_u32, 0_u32);
            let mut waited: BTreeMap<u64, usize> = BTreeMap::new();
            for (step, (&images, &away)) in images.iter().zip(&away).enumerate() {
                for (&id, &when) in &back {
                    if when <= step {
                        studies.wait(id);
                        waited.entry(id).or_insert(step);
                    }
                }
                let turn = studies.turn(images);
                with_images += u32::from(images);
                image_turns += u32::from(images && turn == Turn::Images);
                if let Turn::Study(id) = turn {
                    prop_assert!(waited.remove(&id).is_some(), "it had not waited");
                    taken[of[&id]] += 1;
                    back.insert(id, step + 1 + if of[&id] == 0 { 0 } else { away });
                }
                prop_assert!(turn != Turn::Images || images || waited.is_empty(), "an idle turn");
                // One of each caller's goes at a time: the oldest. No caller waits for more than a round.
                for caller in 0..counts.len() {
                    let oldest = waited.iter().filter(|(id, _)| of[id] == caller).map(|(_, &since)| since).min();
                    let all_wait = waited.keys().filter(|id| of[id] == caller).count() == counts[caller];
                    if let Some(since) = oldest.filter(|_| all_wait && counts[caller] == 1) {
                        prop_assert!(step - since <= 10 * counts.len(), "{caller} waits since {since} at {step}");
                    }
                }
            }
            prop_assert!(image_turns * 10 >= with_images * 9 - 9, "{image_turns} of {with_images}");
            let most = taken.iter().max().unwrap();
            prop_assert!(taken[0] + 1 >= *most, "{taken:?}");
        }
    }
}
