//! What do clients get at every load? The mixed trace at shares of the capacity, for each policy in turn.

use anyhow::Result;

use super::short_jobs;
use crate::load::bar::{Bar, Side, Unit};
use crate::load::client::Manners;
use crate::load::lab::{GRACE, Lab, Setting};
use crate::load::stats::{Spread, turn};
use crate::load::subject::Subject;
use crate::load::summary::Summary;

/// One policy at one load: a summary a turn.
#[derive(Debug, Clone)]
pub struct Point {
    /// The policy's name.
    pub policy: &'static str,
    /// The load, as a share of the capacity.
    pub load: f64,
    /// One a turn.
    pub turns: Vec<Summary>,
    /// The sender's share of the processors, one a turn.
    pub sender: Vec<f64>,
}

// === impl Point ===

impl Point {
    /// Median and spread of a number.
    pub fn spread(&self, of: impl Fn(&Summary) -> f64) -> Spread {
        Spread::of(&self.turns.iter().map(of).collect::<Vec<_>>())
    }
}

/// All points, policies in the order of `subjects` at each load.
pub async fn run(lab: &mut Lab, subjects: &[Subject]) -> Result<Vec<Point>> {
    let levels = lab.plan.levels.clone();
    let mut points: Vec<Point> = levels
        .iter()
        .flat_map(|&load| subjects.iter().map(move |subject| (load, subject.policy)))
        .map(|(load, policy)| Point { policy, load, turns: Vec::new(), sender: Vec::new() })
        .collect();
    for number in 0..lab.plan.turns {
        for (row, &load) in levels.iter().enumerate() {
            let is_bar = (load - short_jobs::LOAD).abs() < 1e-9;
            if number >= lab.plan.turns_elsewhere && !is_bar {
                continue;
            }
            for kind in turn(number, subjects.len()) {
                let seconds = if is_bar { lab.plan.seconds } else { lab.plan.brief };
                let manners = Manners::Leave;
                let setting =
                    Setting { experiment: "curve", turn: number, load, seconds, manners, grace: GRACE };
                let outcomes = lab.measure(&subjects[kind], setting).await?;
                let point = &mut points[row * subjects.len() + kind];
                let Summary { goodput, latency: [p50, _, p99], refused, failed, .. } = outcomes.summary;
                println!(
                    "  turn {}, load {load:.2}, {:>15}: {goodput:.0} rows/s in time, p50 {p50:.2} s, p99 {p99:.2} s, \
                     {:.0} % refused, {:.0} % failed",
                    number + 1,
                    point.policy,
                    refused * 100.0,
                    failed * 100.0
                );
                point.turns.push(outcomes.summary);
                point.sender.push(outcomes.sender);
            }
        }
    }
    Ok(points)
}

/// The load at which a policy's median goodput is highest.
pub fn peak(points: &[Point], policy: &str) -> Option<f64> {
    let of = |point: &&Point| point.spread(|summary| summary.goodput).median;
    points
        .iter()
        .filter(|point| point.policy == policy)
        .max_by(|a, b| of(a).total_cmp(&of(b)))
        .map(|point| point.load)
}

/// What must not happen at all, and the sender's share of the processors, over all loads and policies.
pub fn bars(points: &[Point]) -> Vec<Bar> {
    let failed = points.iter().flat_map(|point| &point.turns).map(|summary| summary.failed);
    vec![
        Bar {
            name: "answers that are neither images nor refusals, where they are most",
            side: Side::AtMost,
            limit: 0.0,
            unit: Unit::Percent,
            turns: vec![failed.fold(0.0, f64::max)],
        },
        Bar {
            name: "processors used by the sender, over the whole curve",
            side: Side::Told,
            limit: 0.0,
            unit: Unit::Percent,
            turns: points.iter().flat_map(|point| &point.sender).copied().collect(),
        },
    ]
}
