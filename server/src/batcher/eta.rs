//! How long will it take? A pure estimate, as things stand: what arrives later is not in it.

mod course;

use std::collections::BTreeMap;
use std::time::Duration;

use super::Caller;
use super::costs::TickCosts;
use crate::sampler::Unit;

pub use course::{Chain, Course};

/// What a request asks of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Whose it is.
    pub caller: Caller,
    /// Row evaluations.
    pub work: u64,
    /// Ticks of its longest unit.
    pub longest: usize,
    /// Its units, in their order.
    units: Vec<Chain>,
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
        Self::new(
            caller,
            units.iter().map(|unit| Chain { rows: unit.rows(), ticks: unit.evaluations_left() }),
        )
    }

    fn new(caller: Caller, units: impl IntoIterator<Item = Chain>) -> Self {
        let units: Vec<_> = units.into_iter().collect();
        let work = units.iter().map(|unit| (unit.rows * unit.ticks) as u64).sum();
        let longest = units.iter().map(|unit| unit.ticks).max().unwrap_or(0);
        Self { caller, work, longest, units }
    }

    /// Time until all of it is done. Two bounds, of which the larger is close.
    ///
    /// By the engine's work: what is ahead within the caller's queue, and as much of every other caller's as it is
    /// given in the meantime. By the steps: the ticks that it takes with the engine to itself, each with its own rows and
    /// what fills the rest of `room`.
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
        let Alone { time, full, filling } = self.course(costs, size);
        // However its ticks are filled, they take no longer than full ones.
        let filled = costs.work(all.min(filling), room).min(full.saturating_sub(time));
        by_work.max(time.saturating_add(filled))
    }

    /// Time until all of it is done with the engine to itself.
    pub fn alone(&self, costs: &TickCosts, size: TickSize) -> Duration {
        self.course(costs, size).time
    }

    fn course(&self, costs: &TickCosts, size: TickSize) -> Alone {
        let TickSize { room, least } = size;
        let mut alone = Alone { time: Duration::ZERO, full: Duration::ZERO, filling: 0 };
        for phase in Course::new(self.units.iter().copied(), room) {
            let rows = phase.rows.max(least);
            let ticks = u32::try_from(phase.ticks).unwrap_or(u32::MAX);
            let lasting = |rows: usize| costs.tick(rows).saturating_mul(ticks);
            alone.time = alone.time.saturating_add(lasting(rows));
            alone.full = alone.full.saturating_add(lasting(room));
            alone.filling += (room.saturating_sub(rows) * phase.ticks) as u64;
        }
        alone
    }
}

/// A request with the engine to itself.
struct Alone {
    /// What it takes.
    time: Duration,
    /// What as many full ticks would take.
    full: Duration,
    /// Rows that these would have beside its own.
    filling: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 1 ms each, ten to a tick.
    fn eta(demand: &Demand, there: &[(u32, u64, bool)]) -> u128 {
        filled_up_to(1, demand, there)
    }

    fn filled_up_to(least: usize, demand: &Demand, there: &[(u32, u64, bool)]) -> u128 {
        let costs = TickCosts::new([(1, Duration::from_millis(1)), (10, Duration::from_millis(10))]);
        let ahead = there.iter().map(|&(caller, work, goes_first)| Ahead {
            caller: Caller(caller),
            work,
            goes_first,
        });
        demand.eta(ahead, &costs, TickSize { room: 10, least }).as_millis()
    }

    fn demand(rows: usize, longest: usize) -> Demand {
        Demand::new(Caller(0), vec![Chain { rows: 1, ticks: longest }; rows])
    }

    #[test]
    fn alone_it_is_its_own_ticks() {
        assert_eq!(eta(&demand(1, 20), &[]), 20);
        assert_eq!(eta(&demand(4, 20), &[]), 80);
        // Wider than a tick: the last five rows come when the first ten are done.
        assert_eq!(eta(&demand(15, 20), &[]), 300);
        // Six guided images, of which five fit.
        let guided = Demand::new(Caller(0), [Chain { rows: 2, ticks: 20 }; 6]);
        assert_eq!(eta(&guided, &[]), 240);
    }

    #[test]
    fn one_long_unit_among_many_short_ones_is_not_taken_for_many_long_ones() {
        let long = Chain { rows: 1, ticks: 1000 };
        let short = [Chain { rows: 1, ticks: 1 }; 63];
        let first = Demand::new(Caller(0), [long].into_iter().chain(short));
        let last = Demand::new(Caller(0), short.into_iter().chain([long]));
        // Seven full ticks of nine short ones, and the rest one row at a time; six, and four in the seventh.
        assert_eq!(eta(&first, &[]), 7 * 10 + 993);
        assert_eq!(eta(&last, &[]), 6 * 10 + 4 + 999);
    }

    #[test]
    fn ticks_that_cost_the_same_however_full_are_not_paid_for_twice() {
        let costs = TickCosts::new([(1, Duration::from_millis(10)), (10, Duration::from_millis(10))]);
        let behind = Ahead { caller: Caller(0), work: 5000, goes_first: false };
        let size = TickSize { room: 10, least: 1 };
        let eta = demand(1, 20).eta(std::iter::once(behind), &costs, size);
        assert_eq!(eta, Duration::from_millis(200));
    }

    #[test]
    fn what_goes_first_is_waited_for_and_what_goes_later_fills_the_ticks() {
        assert_eq!(eta(&demand(10, 20), &[(0, 500, true)]), 700);
        assert_eq!(eta(&demand(10, 20), &[(0, 500, false)]), 200);
        // One row of ten: the other nine are somebody's, as long as there are any.
        assert_eq!(eta(&demand(1, 20), &[(0, 5000, false)]), 200);
        assert_eq!(eta(&demand(1, 20), &[(0, 30, false)]), 50);
    }

    #[test]
    fn a_tick_that_is_filled_up_takes_as_long_as_a_full_one() {
        assert_eq!(filled_up_to(10, &demand(1, 20), &[]), 200);
        // The rows that fill it up may as well be somebody's.
        assert_eq!(filled_up_to(10, &demand(1, 20), &[(0, 100, false)]), 200);
        assert_eq!(filled_up_to(4, &demand(1, 20), &[]), 80);
    }

    #[test]
    fn others_take_their_share_and_no_more() {
        assert_eq!(eta(&demand(10, 20), &[(1, 5000, true)]), 400);
        assert_eq!(eta(&demand(10, 20), &[(1, 5000, true), (2, 50, true)]), 450);
    }
}
