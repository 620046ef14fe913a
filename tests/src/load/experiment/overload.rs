//! What happens when three times too much comes, for a minute? In pairs with the load of the highest goodput: the same
//! goodput, refusals at once, a kept word for those who come back when they were told to, and no more memory.

use std::time::Duration;

use anyhow::Result;

use crate::load::bar::{Bar, Side, Unit};
use crate::load::client::{Manners, Outcome, Record};
use crate::load::lab::{GRACE, Lab, Outcomes, Setting};
use crate::load::stats::{median, percentile, turn};
use crate::load::subject::Subject;

/// The overload, as a multiple of the capacity.
const LOAD: f64 = 3.0;

/// Time between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(250);

/// One pair.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Goodput under overload, of that at the peak.
    pub goodput: f64,
    /// The same, where a client's time counts from when it came first and not from when it was told to come back.
    pub goodput_from_first: f64,
    /// Seconds to a refusal, at 99.9 % of them.
    pub refusal: f64,
    /// Those admitted when they came back for the first time, of those who came back.
    pub admitted: f64,
    /// Times that the most patient client came back.
    pub returns: u32,
    /// Growth of the server's resident memory from the second fifth of the overload to its last fifth.
    pub growth: f64,
    /// The sender's share of the processors.
    pub sender: f64,
}

/// All pairs; `peak` is the load of the highest goodput.
pub async fn run(lab: &mut Lab, subject: &Subject, peak: f64) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for number in 0..lab.plan.turns {
        let (mut calm, mut storm) = (None, None);
        for kind in turn(number, 2) {
            if kind == 0 {
                let setting = Setting {
                    experiment: "peak",
                    turn: number,
                    load: peak,
                    seconds: lab.plan.brief,
                    manners: Manners::Leave,
                    grace: GRACE,
                };
                calm = Some(lab.measure(subject, setting).await?.summary.goodput);
            } else {
                storm = Some(overload(lab, subject, number).await?);
            }
        }
        if let (Some(calm), Some((outcomes, growth))) = (calm, storm) {
            let pair = pair(&outcomes, calm, growth);
            println!(
                "  turn {}: {:.0} % of the peak's goodput, refusals in {:.1} ms, {:.0} % of those who came back \
                 admitted, memory {:+.1} %",
                number + 1,
                pair.goodput * 100.0,
                pair.refusal * 1e3,
                pair.admitted * 100.0,
                pair.growth * 100.0
            );
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

/// The overload, and how the server's memory grew during it.
async fn overload(lab: &mut Lab, subject: &Subject, number: usize) -> Result<(Outcomes, f64)> {
    let (seconds, grace) = (lab.plan.overload, lab.plan.returns);
    let manners = Manners::Return;
    let setting = Setting { experiment: "overload", turn: number, load: LOAD, seconds, manners, grace };
    let (mut looks, start) = (Vec::new(), tokio::time::Instant::now());
    let watch = async {
        loop {
            match subject.usage() {
                Ok(usage) => looks.push((start.elapsed().as_secs_f64(), usage.resident)),
                Err(error) => return error,
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let outcomes = tokio::select! {
        outcomes = lab.measure(subject, setting) => outcomes?,
        error = watch => return Err(error),
    };
    Ok((outcomes, growth(&looks, seconds)))
}

/// From the second fifth to the last, by medians.
fn growth(looks: &[(f64, f64)], seconds: f64) -> f64 {
    let fifth = |number: f64| {
        let within =
            |look: &&(f64, f64)| (number * seconds / 5.0..(number + 1.0) * seconds / 5.0).contains(&look.0);
        median(&looks.iter().filter(within).map(|look| look.1).collect::<Vec<_>>())
    };
    fifth(4.0) / fifth(1.0) - 1.0
}

fn pair(outcomes: &Outcomes, calm: f64, growth: f64) -> Pair {
    let is_refused = |record: &&Record| matches!(record.outcome, Outcome::Refused { .. });
    let records = &outcomes.records;
    let refusals: Vec<f64> =
        records.iter().filter(is_refused).map(|record| record.end - record.due).collect();
    let back = || records.iter().filter(|record| record.attempt == 1);
    let turned_away =
        |record: &&Record| matches!(record.outcome, Outcome::Refused { .. } | Outcome::Failed(_));
    Pair {
        goodput: outcomes.summary.goodput / calm,
        goodput_from_first: outcomes.summary.goodput_from_first / calm,
        refusal: percentile(&refusals, 99.9),
        admitted: 1.0 - back().filter(turned_away).count() as f64 / back().count() as f64,
        returns: records.iter().map(|record| record.attempt).max().unwrap_or(0),
        growth,
        sender: outcomes.sender,
    }
}

/// Goodput, refusals, those who come back, memory.
pub fn bars(pairs: &[Pair]) -> Vec<Bar> {
    let bar = |name, side, limit, unit, of: &dyn Fn(&Pair) -> f64| Bar {
        name,
        side,
        limit,
        unit,
        turns: pairs.iter().map(of).collect(),
    };
    vec![
        bar("goodput at 3 times the capacity, of the peak's", Side::AtLeast, 0.95, Unit::Percent, &|p| {
            p.goodput
        }),
        bar(
            "the same, of those answered in time from when they came first",
            Side::Told,
            0.0,
            Unit::Percent,
            &|p| p.goodput_from_first,
        ),
        bar("time to a refusal, p99.9", Side::AtMost, 0.05, Unit::Millis, &|p| p.refusal),
        bar("admitted on return, of those who obey Retry-After", Side::AtLeast, 0.95, Unit::Percent, &|p| {
            p.admitted
        }),
        bar("growth of memory during the overload", Side::AtMost, 0.05, Unit::Percent, &|p| p.growth),
        bar(
            "processors used by the sender, with its returning clients",
            Side::Told,
            0.0,
            Unit::Percent,
            &|p| p.sender,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::summary::Summary;
    use crate::load::trace::Job;

    #[test]
    fn those_who_come_back_are_counted_once() {
        let record = |attempt, outcome, end| Record {
            job: Job { steps: 10, guided: false, n: 1 },
            first: 0.0,
            due: 0.0,
            sent: 0.0,
            end,
            outcome,
            attempt,
        };
        let refused = Outcome::Refused { retry_after: Some(1) };
        let records = vec![
            record(0, refused, 0.01),
            record(0, refused, 0.02),
            record(0, Outcome::Done, 1.0),
            record(1, Outcome::Done, 1.0),
            record(1, refused, 0.03),
            record(2, Outcome::Done, 1.0),
        ];
        let summary =
            Summary { goodput: 90.0, goodput_from_first: 30.0, ..Summary::of(&records, 1.0, [0.0, 1.0]) };
        let pair = pair(&Outcomes { summary, sender: 0.0, records }, 100.0, 0.0);
        assert_eq!((pair.goodput, pair.goodput_from_first), (0.9, 0.3));
        assert_eq!((pair.admitted, pair.returns, pair.refusal), (0.5, 2, 0.03));
    }

    #[test]
    fn growth_is_from_the_second_fifth_to_the_last() {
        let looks: Vec<(f64, f64)> =
            (0..50).map(|i| (f64::from(i) / 10.0, 100.0 + f64::from(i / 10))).collect();
        assert!((growth(&looks, 5.0) - (104.0 / 101.0 - 1.0)).abs() < 1e-12);
    }
}
