//! What does serving cost? A server kept full by a closed loop against the bare loop of the network, in pairs: row
//! evaluations a second of both, at the same rows a tick. Its median is also the capacity, of which loads are shares.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::load::bar::{Bar, Side, Unit};
use crate::load::client::{Outcome, Record};
use crate::load::lab::{Clock, Lab};
use crate::load::scrape::Ticks;
use crate::load::stats::{median, turn};
use crate::load::subject::{Policy, Subject};
use crate::load::trace::Job;

/// What the clients of the closed loop ask for. One image a request: no request shares its cost with another image.
const JOB: Job = Job { steps: 20, guided: false, n: 1 };

/// Clients: twice the rows of a full tick, so that while the images of one tick are encoded, sent and asked for again,
/// the next tick is full.
const CLIENTS: usize = 64;

/// Pairs a turn: a shared machine's speed drifts by several percent within seconds, and what lies close together
/// drifts together.
const PAIRS: usize = 4;

/// One pair.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// The server's ticks between two readings while it was full.
    pub ticks: Ticks,
    /// Row evaluations a second of the bare loop.
    pub bare: f64,
    /// The sender's share of the processors.
    pub sender: f64,
}

/// All pairs. Sets the capacity.
pub async fn run(lab: &mut Lab) -> Result<Vec<Pair>> {
    let subject = lab.start(&Policy::full())?;
    let piece = subject.piece().await?;
    let (mut pairs, mut bucket) = (Vec::new(), None);
    let seconds = lab.plan.brief / PAIRS as f64;
    for number in 0..lab.plan.turns * PAIRS {
        let (mut served, mut bare) = (None, None);
        for kind in turn(number, 2) {
            if kind == 0 {
                let (ticks, sender) = full(&subject, seconds).await?;
                bucket = Some(ticks.bucket().round() as usize);
                served = Some((ticks, sender));
            } else if let Some(rows) = bucket {
                bare = Some(lab.bare.measure(rows, piece, seconds)?);
            }
        }
        if let (Some((ticks, sender)), Some(bare)) = (served, bare) {
            let (http, rows) = (ticks.throughput(), ticks.bucket());
            println!("  {http:.0} rows/s over HTTP at {rows:.1} rows a tick, {bare:.0} without");
            pairs.push(Pair { ticks, bare, sender });
        }
    }
    subject.stop()?;
    lab.capacity = median(&pairs.iter().map(|pair| pair.ticks.throughput()).collect::<Vec<_>>());
    Ok(pairs)
}

/// The ticks of a server that always has more than it can do, over `seconds`. Rows are the server's own count, since
/// clients get theirs in waves; that they all were answered is seen from the clients.
async fn full(subject: &Subject, seconds: f64) -> Result<(Ticks, f64)> {
    let round = CLIENTS as f64 * JOB.rows() as f64;
    let during = async {
        let first = subject.scrape().await?;
        // It warms up for a round of all clients.
        while first.until(&subject.scrape().await?).rows < round {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (before, clock) = (subject.scrape_after_tick().await?, Clock::start()?);
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let (after, sender) = (subject.scrape_after_tick().await?, clock.share()?);
        anyhow::Ok((before.until(&after), sender))
    };
    let (measured, records) = subject.target.saturate(JOB, CLIENTS, during).await;
    // First, since it is why the clients were stopped if they were stopped early.
    let measured = measured?;
    let wrong: Vec<&Record> = records.iter().filter(|record| record.outcome != Outcome::Done).collect();
    ensure!(wrong.is_empty() && !records.is_empty(), "not all of {} were answered: {wrong:?}", records.len());
    subject.idle().await?;
    Ok(measured)
}

/// Throughput over HTTP as a share of the bare loop's.
pub fn bars(pairs: &[Pair]) -> Vec<Bar> {
    let (throughput, sender) = (
        pairs.iter().map(|pair| pair.ticks.throughput() / pair.bare).collect(),
        pairs.iter().map(|pair| pair.sender).collect(),
    );
    vec![
        Bar {
            name: "throughput over HTTP at saturation, of the bare loop's at the same rows a tick",
            side: Side::AtLeast,
            limit: 0.97,
            unit: Unit::Percent,
            turns: throughput,
        },
        Bar {
            name: "processors used by the sender at saturation",
            side: Side::Told,
            limit: 0.0,
            unit: Unit::Percent,
            turns: sender,
        },
    ]
}
