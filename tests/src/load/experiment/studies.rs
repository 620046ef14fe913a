//! What does it cost images that somebody looks inside the model? In pairs: the mixed trace by itself, and beside a client who
//! asks for one Jacobian after the other. And what is left to such clients when images take all they can get: their calls
//! among all.

use std::time::Duration;

use anyhow::Result;

use crate::load::bar::{Bar, Side, Unit};
use crate::load::client::Manners;
use crate::load::lab::{GRACE, Lab, Setting};
use crate::load::stats::turn;
use crate::load::subject::Subject;
use crate::load::trace::Job;

/// The load of the images, as a share of the capacity: with what a look may take beside it, images still find room.
const LOAD: f64 = 0.6;

/// What the clients ask for who keep the server full.
const JOB: Job = Job { steps: 20, guided: false, n: 1 };

/// How many they are: twice the rows of a full tick.
const CLIENTS: usize = 64;

/// Clients who ask for Jacobians while images wait: of two, one has calls to make while the other's matrix is taken apart.
const ASKERS: usize = 2;

/// One pair.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// p99 of the images' latency beside Jacobians, over that without.
    pub latency: f64,
    /// Calls of the Jacobian's graph while images wait, of all.
    pub share: f64,
    /// The same, of those that are a tenth of all.
    pub tenth: f64,
    /// Jacobians answered beside the trace.
    pub answered: usize,
}

/// All pairs.
pub async fn run(lab: &mut Lab, subject: &Subject) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for number in 0..lab.plan.turns {
        let (mut alone, mut beside) = (None, None);
        for kind in turn(number, 2) {
            let (manners, seconds) = (Manners::Leave, lab.plan.seconds);
            let experiment = if kind == 0 { "images alone" } else { "images beside" };
            let setting = Setting { experiment, turn: number, load: LOAD, seconds, manners, grace: GRACE };
            if kind == 0 {
                alone = Some(lab.measure(subject, setting).await?.summary.latency[2]);
            } else {
                let target = subject.target.clone();
                let (outcomes, answered) = target.study(1, lab.measure(subject, setting)).await?;
                beside = Some((outcomes?.summary.latency[2], answered));
            }
        }
        if let (Some(alone), Some((beside, answered))) = (alone, beside) {
            let (of_studies, all) = calls(lab, subject).await?;
            println!(
                "  turn {}: p99 {beside:.2} s beside {answered} Jacobians, {alone:.2} s without; {of_studies} of {all} calls while \
                 images wait",
                number + 1,
            );
            let (share, tenth) = (of_studies / all, tenth(of_studies, all));
            pairs.push(Pair { latency: beside / alone, share, tenth, answered });
        }
    }
    Ok(pairs)
}

/// Calls of studies, and all calls, of a server that always has more images than it can draw.
async fn calls(lab: &Lab, subject: &Subject) -> Result<(f64, f64)> {
    let during = async {
        let (measured, _) = subject
            .target
            .study(ASKERS, async {
                // Until images wait, and the graph is open.
                tokio::time::sleep(Duration::from_secs(2)).await;
                let before = subject.scrape_after_tick().await?;
                tokio::time::sleep(Duration::from_secs_f64(lab.plan.brief)).await;
                let after = subject.scrape_after_tick().await?;
                anyhow::Ok((before, after))
            })
            .await?;
        measured
    };
    let (measured, _) = subject.target.saturate(JOB, CLIENTS, during).await;
    let (before, after) = measured?;
    subject.idle().await?;
    let (ticks, units) = (after.ticks - before.ticks, after.units - before.units);
    Ok((units, ticks + units))
}

/// Calls of studies, of a tenth of all in whole numbers: where every tenth call is a study's, a stretch of 1,231 that is cut
/// anywhere has 123 of them or 124, and has kept its tenth.
fn tenth(of_studies: f64, all: f64) -> f64 {
    of_studies / (all / 10.0).floor().max(1.0)
}

/// What images pay, and what is left to whoever looks inside.
pub fn bars(pairs: &[Pair]) -> Vec<Bar> {
    vec![
        Bar {
            name: "p99 of images beside Jacobians, of that without, at 0.6 of the capacity",
            side: Side::AtMost,
            limit: 1.5,
            unit: Unit::Percent,
            turns: pairs.iter().map(|pair| pair.latency).collect(),
        },
        Bar {
            name: "calls of a Jacobian, of a tenth of all calls while images wait",
            side: Side::AtLeast,
            limit: 1.0,
            unit: Unit::Percent,
            turns: pairs.iter().map(|pair| pair.tenth).collect(),
        },
        Bar {
            name: "the same, of all calls",
            side: Side::Told,
            limit: 0.0,
            unit: Unit::Percent,
            turns: pairs.iter().map(|pair| pair.share).collect(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_kept_wherever_the_stretch_is_cut_and_one_call_less_is_not() {
        // Every tenth call is a study's.
        let is_study = |call: usize| call % 10 == 9;
        for first in 0..20 {
            for all in [100, 1231, 1239] {
                let of_studies = (first..first + all).filter(|&call| is_study(call)).count();
                assert!(tenth(of_studies as f64, all as f64) >= 1.0, "{of_studies} of {all}");
            }
        }
        assert!(tenth(122.0, 1231.0) < 1.0);
    }
}
