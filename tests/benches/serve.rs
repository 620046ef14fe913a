//! `cargo xtask bench serve`: the server under load, and the project's promises about it as bars. This file owns the
//! flags and the order of the experiments; the parts are in `suite::load`, and how to read the result in
//! `server/benches/README.md`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use suite::load::bare::Bare;
use suite::load::experiment::{curve, gap, overload, saturation, short_jobs, studies};
use suite::load::lab::{Lab, Plan};
use suite::load::machine::Machine;
use suite::load::report::{self, Run};
use suite::load::subject::{Policy, Subject};
use suite::root;

/// Measures the server under load: what HTTP costs, goodput and latency at 0.3 to 1.2 of the capacity for three
/// policies, short jobs among long ones, a minute of three times too much.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench serve", bin_name = "cargo xtask bench serve", after_help = AFTER)]
struct Args {
    /// The model package that is served.
    #[arg(long, default_value = "models/fashion-dit", value_name = "DIR")]
    model: PathBuf,

    /// Everything once around in two to four minutes, to see that it works; its numbers mean nothing.
    #[arg(long)]
    quick: bool,

    /// Only this experiment, and the saturation that tells the capacity. Its results go to the target folder.
    #[arg(long, value_enum, value_name = "EXPERIMENT")]
    only: Option<Experiment>,

    /// Turns: every bar is the median of so many interleaved pairs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    turns: Option<u16>,

    /// Seconds of a measurement at 0.8 of the capacity, where short jobs are compared; the others take at most 15. A fifth
    /// warms up and is not counted.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: Option<u16>,

    /// Folder for the results; without it `server/benches/runs/<date>-<hardware>`, or the target folder for a quick or
    /// a partial run.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Set by cargo.
    #[arg(long, hide = true)]
    bench: bool,

    /// Flags for every server, after `--`.
    #[arg(last = true, value_name = "SERVER FLAGS")]
    flags: Vec<String>,
}

/// What can be asked for alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Experiment {
    /// What HTTP costs, and the gap between ticks.
    Saturation,
    /// The sweep of request-level batching, and the three policies at every load.
    Curve,
    /// Three times the capacity.
    Overload,
    /// Images beside somebody who looks inside the model.
    Studies,
}

/// The load whose goodput an overload is compared with where no curve says which is the highest.
const PEAK: f64 = 0.9;

/// Images that the server of a quick overload admits: so few that they are refused within seconds.
const QUICK_QUEUE: &str = "16";

const AFTER: &str = "\
It takes three quarters of an hour, and wants the machine for itself: whatever else runs is
measured too. The server is the release build. How to read the result: server/benches/README.md.

Try it:
  cargo xtask bench serve --quick
  cargo xtask bench serve --only saturation --seconds 10
  cargo xtask bench serve -- --queue-limit 64";

fn main() -> Result<()> {
    let mut args = Args::parse();
    // Cargo adds its word at the end, where it is among the server's if there are any.
    args.flags.retain(|flag| flag != "--bench");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    // Cargo runs a benchmark in its package's folder; paths are meant from the repository's.
    let from_root = |path: &Path| root().join(path);
    let model = from_root(&args.model);
    let bare = Bare::open(&model).with_context(|| format!("`--model {}`", model.display()))?;
    ensure!(bare.manifest.config.classes > 0, "`{}` has no classes, so nothing to guide", model.display());
    let machine = Machine::look(bare.version())?;
    let (plan, flags, traces) = (plan(args), args.flags.clone(), root().join("server/benches/traces"));
    let mut lab = Lab { plan, bare, model, flags, traces, capacity: 0.0, raw: String::new() };
    let wants = |experiment| args.only.is_none_or(|only| only == experiment);

    println!("saturation: the server kept full, against the network by itself");
    let pairs = saturation::run(&mut lab).await?;
    let mut bars = saturation::bars(&pairs);
    bars.extend(gap::bars(&pairs));
    let (mut tries, mut best, mut points) = (Vec::new(), None, Vec::new());
    if wants(Experiment::Curve) {
        println!("request-level batching, swept over delay and rows at {} of the capacity", short_jobs::LOAD);
        tries = short_jobs::sweep(&mut lab).await?;
        let taken = short_jobs::best(&tries)?.clone();
        println!("  taken: {} ms, {} rows", taken.delay_ms, taken.rows);
        println!("three policies at {:?} of the capacity", lab.plan.levels);
        let policies = [Policy::serial(), Policy::request(taken.delay_ms, taken.rows), Policy::continuous()];
        let subjects = policies.iter().map(|policy| lab.start(policy)).collect::<Result<Vec<Subject>>>()?;
        points = curve::run(&mut lab, &subjects).await?;
        subjects.into_iter().try_for_each(Subject::stop)?;
        bars.extend(short_jobs::bars(&points)?);
        bars.extend(curve::bars(&points));
        best = Some(taken);
    }
    if wants(Experiment::Overload) {
        let mut ours = Policy::continuous();
        if args.quick && !args.flags.iter().any(|flag| flag.starts_with("--queue-limit")) {
            ours.flags.extend(["--queue-limit", QUICK_QUEUE].map(str::to_owned));
        }
        let peak = curve::peak(&points, ours.name).unwrap_or(PEAK);
        println!("overload, against the goodput at {peak} of the capacity");
        let subject = lab.start(&ours)?;
        bars.extend(overload::bars(&overload::run(&mut lab, &subject, peak).await?));
        subject.stop()?;
    }
    if wants(Experiment::Studies) {
        println!("images beside Jacobians");
        let subject = lab.start(&Policy::full())?;
        bars.extend(studies::bars(&studies::run(&mut lab, &subject).await?));
        subject.stop()?;
    }
    let run = Run {
        machine: &machine,
        lab: &lab,
        bars: &bars,
        tries: &tries,
        best: best.as_ref(),
        points: &points,
    };
    let is_full = !args.quick && args.only.is_none();
    let default = if is_full {
        machine.folder(&root().join("server/benches/runs"))
    } else {
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("serve")
    };
    let folder = args.out.as_deref().map_or(default, from_root);
    run.write(&folder)?;
    println!("\n{}\nwritten to {}", run.tables(), folder.display());
    if args.out.is_none() && is_full {
        let readme = root().join("server/benches/README.md");
        let text = std::fs::read_to_string(&readme).context("cannot read `server/benches/README.md`")?;
        // Beside it, where it is the default.
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let tables = format!("The whole of it: [runs/{name}](runs/{name}/report.md).\n\n{}", run.tables());
        std::fs::write(&readme, report::put(&text, &tables)?)
            .context("cannot write `server/benches/README.md`")?;
        println!("and its tables to server/benches/README.md");
    }
    Ok(())
}

fn plan(args: &Args) -> Plan {
    let full = Plan {
        turns: 5,
        turns_elsewhere: 1,
        seconds: 30.0,
        brief: 15.0,
        levels: vec![0.3, 0.6, short_jobs::LOAD, 1.0, 1.2],
        sweep: [0, 20, 100].into_iter().flat_map(|delay| [8, 16, 32].map(|rows| (delay, rows))).collect(),
        sweep_turns: 3,
        overload: 60.0,
        returns: 240.0,
    };
    let quick = Plan {
        turns: 1,
        turns_elsewhere: 1,
        seconds: 4.0,
        brief: 4.0,
        levels: vec![0.3, short_jobs::LOAD, 1.2],
        sweep: vec![(0, 32), (20, 32)],
        sweep_turns: 1,
        overload: 12.0,
        returns: 24.0,
    };
    let plan = if args.quick { quick } else { full };
    Plan {
        turns: args.turns.map_or(plan.turns, usize::from),
        seconds: args.seconds.map_or(plan.seconds, f64::from),
        brief: args.seconds.map_or(plan.brief, |seconds| plan.brief.min(f64::from(seconds))),
        ..plan
    }
}
