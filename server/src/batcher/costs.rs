//! What does a tick cost? Measured at load for each bucket of rows, followed while serving. Everything that promises a
//! time (admission, `retry-after`, deadlines, queue positions) asks here, and so does the choice of a tick's size.

use std::time::Duration;

/// Share of the best throughput that a smaller tick has to reach. What it gives up, everybody waits longer for; but an
/// image takes its steps one a tick, so a short request takes half the time in ticks of half the rows. Over the benchmark's
/// traces, on the costs of a small model on two cores, the slowest short requests take least in ticks of 12 rows, which reach
/// 0.90 to 0.92: larger ones keep each of their steps longer, and in smaller ones they wait for one another.
const GOOD_ENOUGH: f64 = 0.88;

/// Rows that a tick may have even where fewer are as efficient: with less room a guided request of several images
/// would take turns with itself.
const LEAST_TARGET: usize = 12;

/// Weight of the newest tick in the running correction.
const NEWEST: f64 = 1.0 / 16.0;

/// Seconds of ticks over which the trend is taken. Promises reach about as far ahead, and a shared machine that is slow
/// this second is likely to be as fast as ever by then.
const TREND: f64 = 30.0;

/// Measured tick durations of a model, linear between the measured sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct TickCosts {
    /// `(rows, seconds)`, rows strictly ascending, all seconds positive.
    measured: Vec<(usize, f64)>,
    /// How much longer ticks take now than they did at load: other models, other programs.
    correction: f64,
    /// The same in the long run, and of how many ticks that is.
    trend: f64,
    ticks: u32,
}

// === impl TickCosts ===

impl TickCosts {
    /// From measurements in any order, one for each size; at least one.
    pub fn new(measured: impl IntoIterator<Item = (usize, Duration)>) -> Self {
        // A clock too coarse for a tiny network must not make work free.
        let seconds = |time: Duration| time.as_secs_f64().max(1e-7);
        let mut measured: Vec<_> =
            measured.into_iter().map(|(rows, time)| (rows.max(1), seconds(time))).collect();
        measured.sort_by_key(|&(rows, _)| rows);
        measured.dedup_by_key(|&mut (rows, _)| rows);
        assert!(!measured.is_empty(), "a model is timed before it serves; this is a bug");
        Self { measured, correction: 1.0, trend: 1.0, ticks: 1 }
    }

    /// The same, where more rows than `piece` run in even pieces of at most so many, one after another.
    #[must_use]
    pub fn in_pieces_of(mut self, piece: usize) -> Self {
        let whole = self.clone();
        for (rows, seconds) in self.measured.iter_mut().filter(|(rows, _)| *rows > piece) {
            let pieces = rows.div_ceil(piece.max(1));
            *seconds = pieces as f64 * whole.at_load(rows.div_ceil(pieces));
        }
        self
    }

    /// Sizes that were measured.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, Duration)> + '_ {
        self.measured.iter().map(|&(rows, time)| (rows, Duration::from_secs_f64(time)))
    }

    /// The smallest measured size that holds so many rows, or the largest there is.
    pub fn bucket(&self, rows: usize) -> usize {
        let largest = self.measured[self.measured.len() - 1].0;
        self.measured.iter().map(|&(size, _)| size).find(|&size| size >= rows).unwrap_or(largest)
    }

    /// Duration of a tick of `rows` rows as ticks go now.
    pub fn tick(&self, rows: usize) -> Duration {
        Duration::from_secs_f64(self.at_load(rows) * self.correction)
    }

    /// Duration of `work` row evaluations in ticks of `per_tick` rows.
    pub fn work(&self, work: u64, per_tick: usize) -> Duration {
        let row = self.at_load(per_tick.max(1)) * self.correction / per_tick.max(1) as f64;
        Duration::try_from_secs_f64(row * work as f64).unwrap_or(Duration::MAX)
    }

    /// Seconds of a row evaluation in ticks of `per_tick` rows, in the long run.
    pub fn row(&self, per_tick: usize) -> f64 {
        self.at_load(per_tick.max(1)) * self.trend / per_tick.max(1) as f64
    }

    /// Rows of a full tick: the fewest, and at least 12, whose throughput is within 12 % of the best up to
    /// `max_rows`.
    pub fn target(&self, max_rows: usize) -> usize {
        // Between two measured sizes as well, since the next one up may be twice as long.
        let mut all: Vec<usize> = self.measured.iter().map(|&(rows, _)| rows).chain([LEAST_TARGET]).collect();
        all.retain(|&rows| rows < max_rows);
        all.sort_unstable();
        let sizes = || all.iter().copied().chain([max_rows]);
        let throughput = |rows: usize| rows as f64 / self.at_load(rows);
        let best = sizes().map(throughput).fold(0.0, f64::max);
        let fewest = sizes().find(|&rows| throughput(rows) >= GOOD_ENOUGH * best).unwrap_or(max_rows);
        fewest.max(LEAST_TARGET).min(max_rows)
    }

    /// A tick of `rows` rows took `elapsed`.
    pub fn observe(&mut self, rows: usize, elapsed: Duration) {
        // One stalled tick is not a trend.
        let ratio = (elapsed.as_secs_f64() / self.at_load(rows)).clamp(0.1, 10.0);
        self.correction += NEWEST * (ratio - self.correction);
        // At first the mean of what there is, in which the load's measurement counts as one tick.
        self.ticks = self.ticks.saturating_add(1);
        let weight = (elapsed.as_secs_f64() / TREND).min(NEWEST).max(1.0 / f64::from(self.ticks));
        self.trend += weight * (ratio - self.trend);
    }

    /// Seconds of a tick when the model was loaded.
    fn at_load(&self, rows: usize) -> f64 {
        let (first, last) = (self.measured[0], self.measured[self.measured.len() - 1]);
        let at = self.measured.partition_point(|&(size, _)| size < rows);
        match self.measured.get(at) {
            Some(&(size, time)) if size == rows || at == 0 => time,
            Some(&(size, time)) => {
                let (size_before, time_before) = self.measured[at - 1];
                let part = (rows - size_before) as f64 / (size - size_before) as f64;
                time_before + part * (time - time_before)
            }
            // Beyond the largest: at its price for a row.
            None => (last.1 * rows as f64 / last.0 as f64).max(first.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    #[test]
    fn a_bucket_holds_its_rows_and_there_are_few() {
        let costs = TickCosts::new([(1, ms(10)), (4, ms(16)), (8, ms(24))]);
        assert_eq!([1, 2, 4, 5, 8, 9, 1000].map(|rows| costs.bucket(rows)), [1, 4, 4, 8, 8, 8, 8]);
    }

    #[test]
    fn measured_sizes_are_exact_and_others_lie_between() {
        let costs = TickCosts::new([(8, ms(16)), (1, ms(4)), (4, ms(10))]);
        for (rows, time) in [(1, 4), (4, 10), (8, 16), (2, 6), (6, 13), (16, 32)] {
            assert_eq!(costs.tick(rows), ms(time), "{rows}");
        }
        assert_eq!(costs.work(80, 8), ms(160));
    }

    #[test]
    fn pieces_cost_what_they_cost_alone() {
        let costs = TickCosts::new([(1, ms(4)), (4, ms(10)), (8, ms(16)), (32, ms(200))]).in_pieces_of(8);
        for (rows, time) in [(4, 10), (8, 16), (32, 64)] {
            assert_eq!(costs.tick(rows), ms(time), "{rows}");
        }
        assert_eq!(costs.target(32), LEAST_TARGET);
    }

    #[test]
    fn a_full_tick_has_the_fewest_rows_that_are_efficient() {
        // A device that takes the same time for up to 64 rows, and one whose rows cost the same each.
        let flat = TickCosts::new([(1, ms(10)), (32, ms(10)), (64, ms(10)), (128, ms(20))]);
        assert_eq!(flat.target(128), 64);
        assert_eq!(flat.target(48), 48);
        let linear = TickCosts::new([(1, ms(2)), (16, ms(32)), (64, ms(128))]);
        assert_eq!(linear.target(64), LEAST_TARGET);
        assert_eq!(linear.target(4), 4);
    }

    #[test]
    fn the_correction_follows_what_is_observed() {
        let mut costs = TickCosts::new([(1, ms(1)), (8, ms(8))]);
        (0..200).for_each(|_| costs.observe(8, ms(16)));
        let tick = costs.tick(8).as_secs_f64();
        assert!((tick - 0.016).abs() < 1e-4, "{tick}");
        assert!((costs.row(8) - 0.002).abs() < 1e-4, "{}", costs.row(8));
        // One slow second of many is no trend, half a minute is.
        (0..30_000).for_each(|_| costs.observe(8, ms(8)));
        (0..63).for_each(|_| costs.observe(8, ms(16)));
        assert!((0.001..0.00105).contains(&costs.row(8)), "{}", costs.row(8));
        (0..6000).for_each(|_| costs.observe(8, ms(16)));
        assert!((costs.row(8) - 0.002).abs() < 1e-4, "{}", costs.row(8));
    }

    proptest! {
        #[test]
        fn more_rows_never_cost_less(times in prop::collection::vec(1..1000u64, 1..6), rows in 1..200usize) {
            let mut total = 0;
            let rising = times.iter().enumerate().map(|(i, time)| {
                total += time;
                (1 << i, ms(total))
            });
            let costs = TickCosts::new(rising);
            prop_assert!(costs.tick(rows) <= costs.tick(rows + 1));
        }
    }
}
