//! Do small requests suffer from large ones? The 99th percentile of the short jobs' latency at 0.8 of the capacity,
//! against request-level batching at its best: swept over delay and rows first.

use anyhow::{Context, Result};

use super::curve::Point;
use crate::load::bar::{Bar, Side, Unit};
use crate::load::client::Manners;
use crate::load::lab::{GRACE, Lab, Setting};
use crate::load::stats::{Spread, turn};
use crate::load::subject::Policy;
use crate::load::summary::Summary;

/// The load of the comparison.
pub const LOAD: f64 = 0.8;

/// Settings whose goodput is this close to the best one's count as equal in it.
const AS_GOOD: f64 = 0.95;

/// One setting of request-level batching.
#[derive(Debug, Clone)]
pub struct Try {
    /// Milliseconds that the first request of a batch waits for others.
    pub delay_ms: u32,
    /// Rows that are a full batch.
    pub rows: u32,
    /// What came of it, one a trace.
    pub turns: Vec<Summary>,
}

// === impl Try ===

impl Try {
    /// Median and spread of a number.
    pub fn spread(&self, of: impl Fn(&Summary) -> f64) -> Spread {
        Spread::of(&self.turns.iter().map(of).collect::<Vec<_>>())
    }

    fn goodput(&self) -> f64 {
        self.spread(|summary| summary.goodput).median
    }

    fn short_p99(&self) -> f64 {
        self.spread(|summary| summary.short_p99).median
    }
}

/// Tries every setting under the first traces, a turn for each: one try alone would let a mood of the machine choose
/// whom we are compared with.
pub async fn sweep(lab: &mut Lab) -> Result<Vec<Try>> {
    let settings = lab.plan.sweep.iter();
    let mut tries: Vec<Try> =
        settings.map(|&(delay_ms, rows)| Try { delay_ms, rows, turns: Vec::new() }).collect();
    for number in 0..lab.plan.sweep_turns {
        for kind in turn(number, tries.len()) {
            let one = &mut tries[kind];
            let subject = lab.start(&Policy::request(one.delay_ms, one.rows))?;
            let (seconds, manners) = (lab.plan.brief, Manners::Leave);
            let setting =
                Setting { experiment: "sweep", turn: number, load: LOAD, seconds, manners, grace: GRACE };
            let summary = lab.measure(&subject, setting).await?.summary;
            subject.stop()?;
            println!(
                "  turn {}, {} ms, {} rows: {:.0} rows/s in time, short jobs' p99 {:.2} s",
                number + 1,
                one.delay_ms,
                one.rows,
                summary.goodput,
                summary.short_p99
            );
            one.turns.push(summary);
        }
    }
    Ok(tries)
}

/// The best setting, by medians: of those whose goodput is within 5 % of the highest, the one with the lowest tail of short jobs. A
/// low tail alone could be had by refusing nearly everybody.
pub fn best(tries: &[Try]) -> Result<&Try> {
    let most = tries.iter().map(Try::goodput).fold(0.0, f64::max);
    let good = tries.iter().filter(|one| one.goodput() >= AS_GOOD * most);
    let best = good.min_by(|a, b| a.short_p99().total_cmp(&b.short_p99()));
    best.context("the sweep has no setting")
}

/// The tail of short jobs as a share of request-level batching's, turn by turn.
pub fn bars(points: &[Point]) -> Result<Vec<Bar>> {
    let at = |policy: Policy| {
        let is = |point: &&Point| point.policy == policy.name && (point.load - LOAD).abs() < 1e-9;
        points.iter().find(is).with_context(|| format!("the curve has no point at load {LOAD}"))
    };
    let (ours, theirs) = (at(Policy::continuous())?, at(Policy::request(0, 1))?);
    let pairs = ours.turns.iter().zip(&theirs.turns);
    Ok(vec![Bar {
        name: "p99 latency of short jobs at 0.8 of the capacity, of request-level batching's",
        side: Side::AtMost,
        limit: 1.0 / 3.0,
        unit: Unit::Percent,
        turns: pairs.map(|(ours, theirs)| ours.short_p99 / theirs.short_p99).collect(),
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_lowest_tail_among_the_good() {
        let one = |delay_ms, goodput, short_p99| {
            let mut summary = Summary::of(&[], 1.0, [0.0, 1.0]);
            (summary.goodput, summary.short_p99) = (goodput, short_p99);
            // One trace in three that went badly decides nothing.
            let bad = Summary { goodput: 0.0, short_p99: 100.0, ..summary };
            Try { delay_ms, rows: 8, turns: vec![summary, bad, summary] }
        };
        let tries = [one(0, 50.0, 0.1), one(1, 100.0, 3.0), one(2, 96.0, 2.0), one(3, 99.0, f64::NAN)];
        assert_eq!(best(&tries).unwrap().delay_ms, 2);
        assert!(best(&[]).is_err());
    }
}
