//! What is measured: the release binary with a policy's flags, on a free port. It is started once and idles between its
//! turns, which costs nothing, since its threads do not spin.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client::Target;
use super::scrape::Scrape;
use super::usage::{Usage, Who};
use crate::Process;

/// Time that a server has to drop what its clients no longer wait for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A way to serve, and the flags that choose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name in tables and files.
    pub name: &'static str,
    /// Its flags.
    pub flags: Vec<String>,
}

/// The model that is served.
#[derive(Debug, Clone)]
pub struct Served<'a> {
    /// Its package.
    pub folder: &'a Path,
    /// Its name.
    pub name: &'a str,
    /// Its number of classes.
    pub classes: usize,
    /// Flags that every server gets, whatever its policy.
    pub flags: &'a [String],
}

/// A running server.
#[derive(Debug)]
pub struct Subject {
    /// Its policy's name.
    pub policy: &'static str,
    /// Where it is asked.
    pub target: Target,
    process: Process,
}

// === impl Policy ===

impl Policy {
    /// One request at a time.
    pub fn serial() -> Self {
        Self::new("one at a time", &["--scheduling", "serial"])
    }

    /// Ours, with room for whoever comes: what is measured when it is full is the engine, and not who may come in.
    pub fn full() -> Self {
        Self { name: "continuous", flags: Vec::new() }
    }

    /// Request-level batching: what arrives within the delay, or until so many rows, runs together to the end.
    pub fn request(delay_ms: u32, max_rows: u32) -> Self {
        let (delay, rows) = (delay_ms.to_string(), max_rows.to_string());
        let flags = ["--scheduling", "request", "--batch-delay-ms", &delay, "--max-rows", &rows];
        Self::new("request batches", &flags)
    }

    /// Ours: everybody takes part in the next tick.
    pub fn continuous() -> Self {
        Self::new("continuous", &["--scheduling", "continuous"])
    }

    fn new(name: &'static str, flags: &[&str]) -> Self {
        let flags = ["--max-backlog", MAX_BACKLOG].iter().chain(flags).map(|&flag| flag.to_owned()).collect();
        Self { name, flags }
    }
}

/// Seconds of work that every policy admits: goodput counts what is answered within seconds, so whoever would be late is
/// better refused.
const MAX_BACKLOG: &str = "5";

// === impl Subject ===

impl Subject {
    /// Starts it and waits until its model is loaded.
    pub fn start(policy: &Policy, served: &Served) -> Result<Self> {
        let models = served.folder.to_str().context("the model's path is not UTF-8")?;
        let mut args = vec!["--models", models, "--port", "0"];
        args.extend(policy.flags.iter().chain(served.flags).map(String::as_str));
        let mut process = Process::windowpane(&args);
        let Some(url) = process.url_or_end() else {
            anyhow::bail!(
                "`windowpane {}` does not serve; it said: {}",
                args.join(" "),
                process.end().errors
            );
        };
        let authority = url.trim_start_matches("http://").to_owned();
        let target = Target { authority, model: served.name.to_owned(), classes: served.classes };
        Ok(Self { policy: policy.name, target, process })
    }

    /// Rows of one call of the network, as it found them fastest.
    pub async fn piece(&self) -> Result<usize> {
        let text = self.target.get(&format!("/v1/models/{}", self.target.model)).await?;
        let model: serde_json::Value = serde_json::from_str(&text).context("/v1/models is no JSON")?;
        let piece =
            model["engine"]["piece_rows"].as_u64().context("/v1/models has no `engine.piece_rows`")?;
        Ok(usize::try_from(piece)?)
    }

    /// Its numbers about itself.
    pub async fn scrape(&self) -> Result<Scrape> {
        Scrape::read(&self.target.get("/metrics").await?, &self.target.model)
    }

    /// The same, just after a tick: between two such readings lie whole ticks. Only for a server that has work.
    pub async fn scrape_after_tick(&self) -> Result<Scrape> {
        let (start, first) = (Instant::now(), self.scrape().await?);
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let scrape = self.scrape().await?;
            if scrape.ticks > first.ticks {
                return Ok(scrape);
            }
            ensure!(start.elapsed() < PATIENCE, "{} makes no tick for {PATIENCE:?}", self.policy);
        }
    }

    /// What it uses.
    pub fn usage(&self) -> Result<Usage> {
        Usage::of(Who::Process(self.process.id()))
    }

    /// Waits until it has nothing to do: those who hung up are gone at its next tick.
    pub async fn idle(&self) -> Result<()> {
        let start = Instant::now();
        while self.scrape().await?.trajectories > 0.0 {
            ensure!(
                start.elapsed() < PATIENCE,
                "{} still works {PATIENCE:?} after its clients left",
                self.policy
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Tells it to leave, and waits.
    pub fn stop(mut self) -> Result<()> {
        self.process.signal("TERM");
        let exit = self.process.end();
        ensure!(exit.code == Some(0), "{} left with {:?}: {}", self.policy, exit.code, exit.errors);
        Ok(())
    }
}
