//! `cargo xtask soak`: a storm for as long as one likes, every answer checked, memory and latency kept. This file owns the
//! flags and the order; the parts are in `suite::soak`.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use suite::load::machine::Machine;
use suite::load::usage::{Usage, Who};
use suite::soak::record::Record;
use suite::soak::report::Soak;
use suite::soak::traffic::Traffic;
use suite::{Process, root};
use tokio::task::LocalSet;

/// Storms a server with clients of every kind and checks every answer: known requests have the same bytes, all others
/// are whole, errors are explained, memory is flat, and afterwards nothing is left.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak", after_help = AFTER)]
struct Args {
    /// Minutes.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,

    /// Clients at a time.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,

    /// Folder for the record; without it `server/benches/soaks/<date>-<minutes>m` for an hour or more, else the target folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const AFTER: &str = "\
Try it:
  cargo xtask soak --minutes 1
  cargo xtask soak --minutes 60     # and keep the record";

/// How often memory is looked at, and progress told.
const LOOK: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(run(&args)))
}

async fn run(args: &Args) -> Result<()> {
    let length = Duration::from_secs(args.minutes * 60);
    let models = root().join("models/tiny");
    let models = models.to_str().context("the path of the models is not UTF-8")?;
    let store = tempfile::tempdir().context("no folder for jobs")?;
    let jobs = format!("sqlite:{}", store.path().join("jobs.sqlite").display());
    let flags = ["--models", models, "--port", "0", "--max-backlog", "5", "--log", "warn", "--jobs", &jobs];
    let mut process = Process::windowpane(&flags);
    let url = process.url_or_end().with_context(|| "the server does not serve")?;
    let traffic = Rc::new(Traffic::begin(&url).await.context("before the storm")?);
    let mut machine = Machine::look(&traffic.runtime().await?)?;
    machine.command = format!("cargo xtask soak --minutes {} --clients {}", args.minutes, args.clients);
    let record = Rc::new(RefCell::new(Record::default()));
    let begin = Instant::now();
    let clients: Vec<_> = (0..args.clients)
        .map(|number| {
            let (traffic, record) = (Rc::clone(&traffic), Rc::clone(&record));
            tokio::task::spawn_local(async move {
                let told = |answer| record.borrow_mut().answers.push(answer);
                traffic.client(number, begin, begin + length, told).await;
            })
        })
        .collect();
    let mut ends = Vec::new();
    while begin.elapsed() < length {
        tokio::time::sleep(LOOK).await;
        match Usage::of(Who::Process(process.id())) {
            Ok(usage) => record.borrow_mut().memory.push((begin.elapsed(), usage.resident)),
            Err(error) => {
                ends.push(format!("the server is gone: {error:#}"));
                break;
            }
        }
        progress(begin.elapsed(), length, &record.borrow());
    }
    for client in clients {
        if ends.is_empty() {
            client.await?;
        } else {
            client.abort();
        }
    }
    if ends.is_empty() {
        ends.extend(left(&traffic).await.err().map(|error| format!("{error:#}")));
    }
    process.signal("TERM");
    let exit = process.end();
    if exit.code != Some(0) || exit.errors.contains("ERROR") || exit.errors.contains("panicked") {
        ends.push(format!("it left with {:?} and said: {}", exit.code, exit.errors));
    }
    let record = record.borrow();
    let soak = Soak { machine: &machine, length, clients: args.clients, record: &record, ends: &ends };
    let kept = || root().join(format!("server/benches/soaks/{}-{}m", machine.date, args.minutes));
    let brief = || root().join("target/tmp/soak");
    let folder = args.out.clone().unwrap_or_else(|| if args.minutes >= 60 { kept() } else { brief() });
    soak.write(&folder)?;
    println!("\n{}\nwritten to {}", soak.page(), folder.display());
    match soak.failures().len() {
        0 => Ok(()),
        count => bail!("{count} things were wrong"),
    }
}

/// What is left after the storm: nothing, and the same bytes.
async fn left(traffic: &Traffic) -> Result<()> {
    let start = Instant::now();
    while traffic.under_way().await? > 0.0 {
        if start.elapsed() > Duration::from_secs(30) {
            bail!("images are under way that nobody waits for");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let jobs = traffic.jobs_left().await?;
    ensure!(jobs == 0, "{jobs} jobs are left that somebody saw the end of, or cancelled");
    traffic.again().await
}

/// A line that says how far it is, where somebody looks.
fn progress(elapsed: Duration, length: Duration, record: &Record) {
    if std::io::stderr().is_terminal() {
        let (minutes, of) = (elapsed.as_secs_f64() / 60.0, length.as_secs_f64() / 60.0);
        let (answers, memory) = (record.answers.len(), record.memory.last().map_or(0.0, |(_, mib)| *mib));
        eprint!(
            "\r{minutes:.1} of {of:.0} minutes, {answers} answers, {} wrong, {memory:.0} MiB ",
            record.wrong().len()
        );
    }
}
