//! What all experiments share: the plan, the model, the capacity once it is known, and the raw data of every request.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bare::Bare;
use super::client::{Manners, Outcome, Record};
use super::subject::{Policy, Served, Subject};
use super::summary::Summary;
use super::trace::Trace;
use super::usage::{Usage, Who};

/// How much is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Turns, and so pairs, of every bar.
    pub turns: usize,
    /// Turns of the loads that no bar is about.
    pub turns_elsewhere: usize,
    /// Seconds of a measurement at the load of the bar about short jobs, whose tail needs many of them.
    pub seconds: f64,
    /// Seconds of every other measurement.
    pub brief: f64,
    /// Loads of the curve, as shares of the capacity.
    pub levels: Vec<f64>,
    /// Delays in milliseconds and rows over which request-level batching is swept.
    pub sweep: Vec<(u32, u32)>,
    /// Turns, and so traces, of every setting of the sweep.
    pub sweep_turns: usize,
    /// Seconds of overload.
    pub overload: f64,
    /// Seconds that clients who were refused have after it to come back.
    pub returns: f64,
}

/// The laboratory.
#[derive(Debug)]
pub struct Lab {
    /// The plan.
    pub plan: Plan,
    /// The network by itself.
    pub bare: Bare,
    /// The package's folder.
    pub model: PathBuf,
    /// Flags for every server.
    pub flags: Vec<String>,
    /// Where the traces are.
    pub traces: PathBuf,
    /// Row evaluations a second at saturation; 0 until it is measured.
    pub capacity: f64,
    /// A line of CSV for every request, after a header.
    pub raw: String,
}

/// One measurement of a server under a trace.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The experiment, for the raw data.
    pub experiment: &'static str,
    /// The turn, which chooses the trace.
    pub turn: usize,
    /// The load, as a share of the capacity.
    pub load: f64,
    /// How long.
    pub seconds: f64,
    /// What refused clients do.
    pub manners: Manners,
    /// Seconds to wait for answers after the last request was due.
    pub grace: f64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcomes {
    /// In numbers.
    pub summary: Summary,
    /// The sender's share of the machine's processors while it sent.
    pub sender: f64,
    /// Every sending.
    pub records: Vec<Record>,
}

/// The part of a measurement that warms up and is not counted.
pub const WARM_UP: f64 = 0.2;

/// Seconds that answers have after the last request was due, in the curve.
pub const GRACE: f64 = 10.0;

// === impl Lab ===

impl Lab {
    /// A server with this policy.
    pub fn start(&self, policy: &Policy) -> Result<Subject> {
        let manifest = &self.bare.manifest;
        let (name, classes) = (manifest.name.as_str(), manifest.config.classes);
        Subject::start(policy, &Served { folder: &self.model, name, classes, flags: &self.flags })
    }

    /// Plays a trace to a server that then is idle again.
    pub async fn measure(&mut self, subject: &Subject, setting: Setting) -> Result<Outcomes> {
        ensure!(self.capacity > 0.0, "the capacity is measured first; this is a bug");
        let trace = Trace::of_turn(&self.traces, setting.turn)?;
        let schedule = trace.at(setting.load * self.capacity, setting.seconds);
        let end = schedule.last().map_or(0.0, |last| last.at);
        let clock = Clock::start()?;
        let grace = Duration::from_secs_f64(setting.grace);
        let records = subject.target.play(&schedule, setting.manners, grace).await;
        let sender = clock.share()?;
        subject.idle().await?;
        self.log(subject.policy, setting, &records);
        let summary = Summary::of(&records, self.capacity, [WARM_UP * end, end]);
        Ok(Outcomes { summary, sender, records })
    }

    fn log(&mut self, policy: &str, setting: Setting, records: &[Record]) {
        if self.raw.is_empty() {
            self.raw +=
                "experiment,turn,policy,load,due_ms,sent_ms,end_ms,outcome,attempt,steps,guided,n,first_ms\n";
        }
        for Record { job, first, due, sent, end, outcome, attempt } in records {
            let outcome = match outcome {
                Outcome::Done => "200".to_owned(),
                Outcome::Refused { retry_after: Some(seconds) } => format!("429 after {seconds}"),
                Outcome::Refused { retry_after: None } => "429".to_owned(),
                Outcome::Failed(status) => status.to_string(),
                Outcome::Unanswered => "unanswered".to_owned(),
            };
            let Setting { experiment, turn, load, .. } = setting;
            let [first, due, sent, end] = [first, due, sent, end].map(|time| (time * 1e4).round() / 10.0);
            let (steps, guided, n) = (job.steps, u8::from(job.guided), job.n);
            writeln!(
                self.raw,
                "{experiment},{turn},{policy},{load:.2},{due},{sent},{end},{outcome},{attempt},{steps},{guided},{n},{first}"
            )
            .expect("a string takes what is written");
        }
    }
}

/// Measures this process's share of all processors.
#[derive(Debug)]
pub struct Clock(Instant, f64);

// === impl Clock ===

impl Clock {
    /// From now.
    pub fn start() -> Result<Self> {
        Ok(Self(Instant::now(), Usage::of(Who::Us)?.cpu))
    }

    /// Until now.
    pub fn share(&self) -> Result<f64> {
        let cores = std::thread::available_parallelism()?.get() as f64;
        Ok((Usage::of(Who::Us)?.cpu - self.1) / (self.0.elapsed().as_secs_f64() * cores))
    }
}
