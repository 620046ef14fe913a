//! How long will it take? A pure estimate, as things stand: what arrives later is not in it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Caller;
use super::costs::TickCosts;
use crate::sampler::Unit;

/// What a request asks of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Whose it is.
    pub caller: Caller,
    /// Row evaluations.
    pub work: u64,
    /// Rows of all its units.
    pub rows: usize,
    /// Ticks of its longest unit.
    pub longest: usize,
}

/// Work that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Whose it is.
    pub caller: Caller,
    /// Row evaluations left.
    pub work: u64,
    /// Whether it goes before the new request if both are one caller's.
    pub goes_first: bool,
}

/// How large ticks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TickSize {
    /// Rows of a full one.
    pub room: usize,
    /// Rows to which smaller ones are filled up.
    pub least: usize,
}

// === impl Demand ===

impl Demand {
    /// What these units ask for.
    pub fn of(caller: Caller, units: &[Unit]) -> Self {
        Self {
            caller,
            work: units.iter().map(Unit::work).sum(),
            rows: units.iter().map(Unit::rows).sum(),
            longest: units.iter().map(Unit::evaluations_left).max().unwrap_or(0),
        }
    }

    /// Time until all of it is done. Two bounds, of which the larger is close.
    ///
    /// By the engine's work: what is ahead within the caller's queue, and as much of every other caller's as it is
    /// given in the meantime. By the steps: its longest unit needs that many ticks one after another, each with its own
    /// rows and what fills the rest of `room`.
    pub fn eta(&self, there: impl Iterator<Item = Ahead>, costs: &TickCosts, size: TickSize) -> Duration {
        let room = size.room;
        let (mut before, mut all, mut others) = (self.work, 0, BTreeMap::<Caller, u64>::new());
        for Ahead { caller, work, goes_first } in there {
            all += work;
            if caller != self.caller {
                *others.entry(caller).or_default() += work;
            } else if goes_first {
                before += work;
            }
        }
        let shared: u64 = others.values().map(|&work| work.min(before)).sum();
        let by_work = costs.work(before + shared, room);
        let filling = (room.saturating_sub(self.rows.max(size.least)) * self.longest) as u64;
        by_work.max(self.alone(costs, size) + costs.work(all.min(filling), room))
    }

    /// Time until all of it is done with the engine to itself.
    pub fn alone(&self, costs: &TickCosts, size: TickSize) -> Duration {
        let TickSize { room, least } = size;
        let (rows, turns) = (self.rows.max(least).min(room), self.rows.div_ceil(room.max(1)));
        let ticks = u32::try_from(self.longest * turns).unwrap_or(u32::MAX);
        costs.tick(rows).saturating_mul(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 1 ms each, ten to a tick.
    fn eta(demand: Demand, there: &[(u32, u64, bool)]) -> u128 {
        filled_up_to(1, demand, there)
    }

    fn filled_up_to(least: usize, demand: Demand, there: &[(u32, u64, bool)]) -> u128 {
        let costs = TickCosts::new([(1, Duration::from_millis(1)), (10, Duration::from_millis(10))]);
        let ahead = there.iter().map(|&(caller, work, goes_first)| Ahead {
            caller: Caller(caller),
            work,
            goes_first,
        });
        demand.eta(ahead, &costs, TickSize { room: 10, least }).as_millis()
    }

    fn demand(rows: usize, longest: usize) -> Demand {
        Demand { caller: Caller(0), work: (rows * longest) as u64, rows, longest }
    }

    #[test]
    fn alone_it_is_its_own_ticks() {
        assert_eq!(eta(demand(1, 20), &[]), 20);
        assert_eq!(eta(demand(4, 20), &[]), 80);
        // Wider than a tick: it takes turns with itself.
        assert_eq!(eta(demand(15, 20), &[]), 400);
    }

    #[test]
    fn what_goes_first_is_waited_for_and_what_goes_later_fills_the_ticks() {
        assert_eq!(eta(demand(10, 20), &[(0, 500, true)]), 700);
        assert_eq!(eta(demand(10, 20), &[(0, 500, false)]), 200);
        // One row of ten: the other nine are somebody's, as long as there are any.
        assert_eq!(eta(demand(1, 20), &[(0, 5000, false)]), 200);
        assert_eq!(eta(demand(1, 20), &[(0, 30, false)]), 50);
    }

    #[test]
    fn a_tick_that_is_filled_up_takes_as_long_as_a_full_one() {
        assert_eq!(filled_up_to(10, demand(1, 20), &[]), 200);
        // The rows that fill it up may as well be somebody's.
        assert_eq!(filled_up_to(10, demand(1, 20), &[(0, 100, false)]), 200);
        assert_eq!(filled_up_to(4, demand(1, 20), &[]), 80);
    }

    #[test]
    fn others_take_their_share_and_no_more() {
        assert_eq!(eta(demand(10, 20), &[(1, 5000, true)]), 400);
        assert_eq!(eta(demand(10, 20), &[(1, 5000, true), (2, 50, true)]), 450);
    }
}
