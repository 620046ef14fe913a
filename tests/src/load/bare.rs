//! The network without a server: full batches through ONNX Runtime in a loop, in this process, with the server's own
//! session and thread pool. Nothing that serves images can be faster.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use windowpane_diffusion::manifest::{Dtype, Graph, GraphDevice, Manifest, Role};
use windowpane_server::args::Device;
use windowpane_server::engine::ort::{OrtDenoiser, Runtime};
use windowpane_server::engine::package::Package;
use windowpane_server::engine::{Denoiser, Provider, StepBatch, dylib};

use crate::Random;

/// Calls before the clock starts: the first one plans its memory.
const WARM_UP: usize = 3;

/// A package, ready to be run.
#[derive(Debug)]
pub struct Bare {
    runtime: &'static Runtime,
    folder: PathBuf,
    /// What the package says of itself.
    pub manifest: Manifest,
}

// === impl Bare ===

impl Bare {
    /// Opens a package, and ONNX Runtime with one thread for each core, as the server does.
    pub fn open(folder: &Path) -> Result<Self> {
        let package = Package::open(folder)?;
        let cores = std::thread::available_parallelism()?.get();
        let runtime = Runtime::get(&dylib::locate(None, Device::Cpu)?, cores)?;
        Ok(Self { runtime, folder: package.folder, manifest: package.manifest })
    }

    /// ONNX Runtime's version.
    pub fn version(&self) -> &str {
        self.runtime.version()
    }

    /// Row evaluations a second in batches of `rows`, in pieces of `piece` as the server runs them, over `seconds`. The session is opened anew and gone afterwards,
    /// so that none lies in memory while the server is measured.
    pub fn measure(&self, rows: usize, piece: usize, seconds: f64) -> Result<f64> {
        let (folder, manifest, runtime) = (self.folder.clone(), self.manifest.clone(), self.runtime);
        let (send, receive) = std::sync::mpsc::channel();
        // The receiver waits for as long as the thread lives.
        let work = move || _ = send.send(run(runtime, &folder, &manifest, (rows, piece, seconds)));
        let thread = runtime.spawn("bare", work).context("no thread for the bare loop")?;
        let measured = receive.recv().context("the bare loop died")?;
        thread.join().ok().context("the bare loop died")?;
        measured
    }
}

fn run(
    runtime: &'static Runtime,
    folder: &Path,
    manifest: &Manifest,
    (rows, piece, seconds): (usize, usize, f64),
) -> Result<f64> {
    let fits = |graph: &&Graph| {
        (graph.role, graph.device, graph.dtype) == (Role::Denoiser, GraphDevice::Any, Dtype::F32)
    };
    let graph =
        manifest.graphs.iter().find(fits).context("the package has no f32 denoiser for any device")?;
    let config = &manifest.config;
    let mut engine = OrtDenoiser::open(runtime, folder, manifest, graph, Provider::Cpu)?;
    engine.split_at(piece);
    let mut batch = StepBatch::new([config.channels, config.height, config.width]);
    let mut random = Random::new(0);
    batch.x = (0..rows * batch.elements()).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
    batch.t = (0..rows).map(|_| (random.unit() * 999.0) as f32).collect();
    batch.y = (0..rows).map(|_| random.below(config.classes + 1) as i64).collect();
    let mut prediction = Vec::new();
    for _ in 0..WARM_UP {
        engine.denoise(&batch, &mut prediction)?;
    }
    let (start, mut calls) = (Instant::now(), 0.0);
    while start.elapsed().as_secs_f64() < seconds {
        engine.denoise(&batch, &mut prediction)?;
        calls += 1.0;
    }
    Ok(calls * rows as f64 / start.elapsed().as_secs_f64())
}
