//! What does a window cost? One attention operation (6 heads of 64, batch 4) in every plan, on 32×32 and 16×16 tokens:
//! dense with a mask against tiles, and a global layer, which no windowed one may be slower than.
//!
//! Run by `cargo xtask bench window`. The graphs are the trainer's own (`windowpane-trainer export-ops DIR`);
//! WINDOWPANE_OPS names a folder that has them already. Sessions are set up as the server's are: one pool that does
//! not spin, subnormals flushed to zero, on both sides of every ratio.
//!
//! First a table: the plans of a window take turns, so that a busy moment of the machine meets all of them alike, and
//! each cell is the fastest of its turns. Then criterion's account of each graph by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;
use windowpane_server::args::Device;
use windowpane_server::engine::dylib;

type Error = Box<dyn std::error::Error>;

const GRIDS: [usize; 2] = [32, 16];
const WINDOWS: [usize; 4] = [3, 5, 9, 13];
const PLANS: [&str; 5] = ["dense", "tiles2x2", "tiles4x4", "tiles4x8", "tiles8x8"];
const BATCH: usize = 4;
/// Width of `qkv`: three times six heads of 64.
const WIDTH: usize = 3 * 6 * 64;
/// Turns of the table: enough that each plan meets a quiet moment.
const TURNS: usize = 25;

fn main() -> Result<(), Error> {
    let library = dylib::locate(None, Device::Cpu)?;
    let threads = std::thread::available_parallelism()?.get();
    // The first session of the process decides for its thread whether subnormals are flushed: this thread's is.
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)?
        .with_spin_control(false)?
        .with_flush_to_zero()?;
    let environment = ort::init_from(library)?.with_global_thread_pool(pool).with_telemetry(false).build()?;
    let folder = graphs()?;
    println!(
        "{threads} threads, batch {BATCH}, subnormals flushed; milliseconds, fastest of {TURNS} turns\n"
    );
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    for side in GRIDS {
        println!("{side}×{side} tokens\n{HEADER}");
        for window in WINDOWS {
            println!("{}", row(side, window, &mut open(&environment, &folder, side, window)?)?);
        }
        println!();
    }
    for side in GRIDS {
        let qkv = input(side);
        for window in WINDOWS {
            let mut sessions = open(&environment, &folder, side, window)?;
            let once = usize::from(window != WINDOWS[0]); // the global one is measured with the first window
            for (name, session) in &mut sessions[once..] {
                let mut group = criterion.benchmark_group("attention");
                group.bench_function(BenchmarkId::from_parameter(name), |bench| {
                    bench.iter(|| run(session, side, &qkv).expect("it ran in the table"));
                });
            }
        }
    }
    criterion.final_summary();
    Ok(())
}

/// The folder of graphs: the one named, or a fresh one written by the trainer.
fn graphs() -> Result<PathBuf, Error> {
    if let Some(folder) = std::env::var_os("WINDOWPANE_OPS") {
        return Ok(folder.into());
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ops");
    let trainer =
        ["run", "--release", "--package", "windowpane-trainer", "--bin", "windowpane-trainer", "--"];
    let status = Command::new(env!("CARGO")).args(trainer).arg("export-ops").arg(&folder).status()?;
    if !status.success() {
        return Err(format!(
            "the trainer could not write its graphs: {status}; WINDOWPANE_OPS names a folder"
        )
        .into());
    }
    Ok(folder)
}

/// The sessions of a window by name, the global one first: `32.global`, `32.3.dense`, `32.3.tiles2x2`, … Few at once,
/// since each keeps the memory of its largest run.
fn open(
    environment: &Environment,
    folder: &Path,
    side: usize,
    window: usize,
) -> Result<Vec<(String, Session)>, Error> {
    let local = PLANS.map(|plan| format!("{side}.{window}.{plan}"));
    let open = |name: String| {
        let path = folder.join(format!("{name}.onnx"));
        let session = Session::builder(environment)?
            .with_flush_to_zero()?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .commit_from_file(&path)
            .map_err(|error| format!("`{}`: {error}", path.display()))?;
        Ok((name, session))
    };
    std::iter::once(format!("{side}.global")).chain(local).map(open).collect()
}

/// Queries, keys and values of a batch, `[BATCH * side², WIDTH]`: a fixed sequence with mean 0 and variance 1.
fn input(side: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32 * 12f32.sqrt()
    };
    (0..BATCH * side * side * WIDTH).map(|_| next()).collect()
}

fn run(session: &mut Session, side: usize, qkv: &[f32]) -> ort::Result<f32> {
    let qkv = TensorRef::from_array_view(([BATCH * side * side, WIDTH], qkv))?;
    let outputs = session.run(ort::inputs!["qkv" => qkv])?;
    Ok(outputs[0].try_extract_tensor::<f32>()?.1[0])
}

const HEADER: &str = "\
| window | global | masked dense | tiles of 2×2 | 4×4 | 4×8 | 8×8 | best tiles against the mask | against global |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// Times a window's plans in turns: a row of the table.
fn row(side: usize, window: usize, sessions: &mut [(String, Session)]) -> Result<String, Error> {
    let qkv = input(side);
    let mut fastest = vec![f64::INFINITY; sessions.len()];
    for _ in 0..TURNS {
        for ((_, session), fastest) in sessions.iter_mut().zip(&mut fastest) {
            run(session, side, &qkv)?; // what ran before has emptied the caches
            let start = Instant::now();
            run(session, side, &qkv)?;
            *fastest = fastest.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [global, dense, tiles @ ..] = &fastest[..] else { return Err("six sessions are opened".into()) };
    let best = tiles.iter().copied().fold(f64::INFINITY, f64::min);
    let tiles: Vec<_> = tiles.iter().map(|ms| format!("{ms:.2}")).collect();
    let (mask, whole) = (dense / best, global / best);
    Ok(format!("| {window} | {global:.2} | {dense:.2} | {} | {mask:.1}× | {whole:.1}× |", tiles.join(" | ")))
}
