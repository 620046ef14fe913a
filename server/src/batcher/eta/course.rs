//! The course of one caller's units through ticks, in the order in which they go: what `policy.rs` makes of them if nobody
//! else has work. Ticks with the same units in them are one phase, so that a thousand steps cost no more than one.

use std::collections::VecDeque;

/// A unit, as far as time is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Rows that it takes in a tick.
    pub rows: usize,
    /// Ticks that it needs, one after another.
    pub ticks: usize,
}

/// Ticks in a row that have the same units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// How many ticks.
    pub ticks: usize,
    /// Rows in each.
    pub rows: usize,
    /// Units that end with it.
    pub ended: usize,
}

/// The phases until all is done.
#[derive(Debug)]
pub struct Course {
    left: VecDeque<Chain>,
    room: usize,
    /// How many of those left take a single row.
    singles: usize,
    /// Positions of those that take part, kept from phase to phase.
    part: Vec<usize>,
}

// === impl Course ===

impl Course {
    /// Of these units, in their order, in ticks of at most `room` rows.
    pub fn new(units: impl IntoIterator<Item = Chain>, room: usize) -> Self {
        let left: VecDeque<_> = units.into_iter().filter(|unit| unit.ticks > 0).collect();
        let singles = left.iter().filter(|unit| unit.rows <= 1).count();
        Self { left, room: room.max(1), singles, part: Vec::new() }
    }
}

impl Iterator for Course {
    type Item = Phase;

    fn next(&mut self) -> Option<Phase> {
        let free = fill(self.left.iter(), self.room, self.singles, &mut self.part);
        let ticks = self.part.iter().map(|&i| self.left[i].ticks).min()?;
        let before = self.left.len();
        for &i in self.part.iter().rev() {
            self.left[i].ticks -= ticks;
            if self.left[i].ticks == 0 {
                let unit = self.left.remove(i);
                self.singles -= usize::from(unit.is_some_and(|unit| unit.rows <= 1));
            }
        }
        Some(Phase { ticks, rows: self.room - free, ended: before - self.left.len() })
    }
}

/// Puts the positions of those who go into one tick into `part`, and returns the rows that are left over. `singles` is how
/// many of them take a single row.
fn fill<'a>(
    left: impl Iterator<Item = &'a Chain>,
    room: usize,
    mut singles: usize,
    part: &mut Vec<usize>,
) -> usize {
    let mut free = room;
    part.clear();
    for (i, unit) in left.enumerate() {
        // A row that is left beside pairs goes to the next single one.
        let rows = unit.rows.min(room);
        if rows <= free {
            free -= rows;
            part.push(i);
            singles -= usize::from(unit.rows <= 1);
        }
        // One row is for nobody if no single unit is left to look for.
        if free == 0 || (free == 1 && singles == 0) {
            break;
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batcher::Caller;
    use crate::batcher::policy::{Candidate, Policy};

    fn chains() -> impl Strategy<Value = Vec<Chain>> {
        prop::collection::vec(
            (1..3_usize, 0..30_usize).prop_map(|(rows, ticks)| Chain { rows, ticks }),
            0..40,
        )
    }

    /// Rows and ends of every tick, by the policy itself.
    fn by_the_policy(units: &[Chain], room: usize) -> Vec<(usize, usize)> {
        let (mut policy, mut ticks) = (Policy::default(), Vec::new());
        let mut left: Vec<(u64, Chain)> = (0..).zip(units.iter().copied()).collect();
        left.retain(|(_, unit)| unit.ticks > 0);
        while !left.is_empty() {
            let candidate = |&(id, unit): &(u64, Chain)| Candidate {
                id,
                caller: Caller(0),
                rows: unit.rows,
                deadline: 0,
            };
            let chosen = policy.select(&left.iter().map(candidate).collect::<Vec<_>>(), room);
            let rows = chosen.iter().map(|&i| left[i].1.rows).sum();
            chosen.iter().for_each(|&i| left[i].1.ticks -= 1);
            let before = left.len();
            left.retain(|(_, unit)| unit.ticks > 0);
            ticks.push((rows, before - left.len()));
        }
        ticks
    }

    proptest! {
        /// Units of any lengths, guided and not, tick by tick as the policy runs them.
        #[test]
        fn it_is_what_the_policy_does(units in chains(), room in 2..17_usize) {
            let ticks: Vec<_> = Course::new(units.iter().copied(), room)
                .flat_map(|phase| (1..=phase.ticks).map(move |i| {
                    (phase.rows, if i == phase.ticks { phase.ended } else { 0 })
                }))
                .collect();
            prop_assert_eq!(ticks, by_the_policy(&units, room));
        }
    }

    #[test]
    fn nobody_is_looked_at_for_a_row_that_nobody_takes() {
        let pairs = vec![Chain { rows: 2, ticks: 1 }; 4096];
        let mut looked = 0;
        let free = fill(pairs.iter().inspect(|_| looked += 1), 65, 0, &mut Vec::new());
        assert_eq!((free, looked), (1, 32));
        // One single unit, at the end, is found.
        let units = pairs.iter().chain([&Chain { rows: 1, ticks: 1 }]);
        let mut part = Vec::new();
        assert_eq!(fill(units, 65, 1, &mut part), 0);
        assert_eq!((part.len(), part.last()), (33, Some(&4096)));
    }

    #[test]
    fn many_units_are_quickly_gone_through() {
        let units = (0..4096).map(|i| Chain { rows: 1 + i % 2, ticks: 1 + i * 7919 % 4096 });
        let course: Vec<_> = Course::new(units, 64).collect();
        // A unit at least ends with each phase, where there are a hundred thousand ticks.
        assert!((1001..=4096).contains(&course.len()), "{}", course.len());
        assert_eq!(course.iter().map(|phase| phase.ended).sum::<usize>(), 4096);
        assert!(course.iter().map(|phase| phase.ticks).sum::<usize>() > 100_000);
    }
}
