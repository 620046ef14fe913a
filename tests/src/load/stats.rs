//! Order statistics, and whose turn it is. No means: a latency has a tail, and a busy machine has moods.

/// A number measured several times: the middle one, and the outermost ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

/// The smallest value that at least `percent` of 100 do not exceed (nearest rank); NaN where there is none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    // A product such as 99.9 / 100 * 1000 lies a rounding error above the integer that is meant.
    let rank = (percent / 100.0 * sorted.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// The middle value, or the mean of the middle two; NaN where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The order in which `kinds` measurements take their places in this turn: each turn begins with another one, so that a
/// machine that grows slower or faster, and whoever ran before, meet all of them alike.
pub fn turn(turn: usize, kinds: usize) -> impl Iterator<Item = usize> {
    (0..kinds).map(move |place| (place + turn) % kinds)
}

// === impl Spread ===

impl Spread {
    /// Of these measurements.
    pub fn of(values: &[f64]) -> Self {
        Self { median: median(values), least: percentile(values, 0.0), most: percentile(values, 100.0) }
    }

    /// The same in another unit.
    pub fn scaled(self, factor: f64) -> Self {
        Self { median: self.median * factor, least: self.least * factor, most: self.most * factor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_nearest_rank() {
        // The worked example of the nearest-rank method in Wikipedia's article "Percentile".
        let list = [15.0, 20.0, 35.0, 40.0, 50.0];
        let ranks = [5.0, 30.0, 40.0, 50.0, 100.0].map(|percent| percentile(&list, percent));
        assert_eq!(ranks, [15.0, 20.0, 20.0, 35.0, 50.0]);
        let thousand: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        assert_eq!([50.0, 99.0, 99.9].map(|percent| percentile(&thousand, percent)), [500.0, 990.0, 999.0]);
        assert!(percentile(&[], 50.0).is_nan());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_spread_is_the_middle_and_the_ends() {
        let spread = Spread::of(&[3.0, 9.0, 1.0]);
        assert_eq!(spread, Spread { median: 3.0, least: 1.0, most: 9.0 });
        assert_eq!(spread.scaled(10.0), Spread { median: 30.0, least: 10.0, most: 90.0 });
    }

    #[test]
    fn everybody_is_first_once_in_as_many_turns() {
        let turns: Vec<Vec<usize>> = (0..3).map(|n| turn(n, 3).collect()).collect();
        assert_eq!(turns, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        // Pairs: A B, B A, A B, …
        assert_eq!(turn(4, 2).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(turn(5, 2).collect::<Vec<_>>(), [1, 0]);
    }
}
