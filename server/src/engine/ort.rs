//! ONNX Runtime. One environment a process, with one thread pool that does not spin; one session a model, owned by
//! the model's worker thread.
//!
//! Flushing subnormals to zero is a flag of each thread. The pool's threads get it from the environment's options;
//! the thread that calls `run` works too and must have it as well. ONNX Runtime sets it on the thread that makes the
//! *first* session of the process, and a new thread inherits it from the one that starts it. So a thread of our own,
//! the nursery, makes the first session and then starts every worker: it works whatever other threads the process
//! already has, and no other thread's arithmetic changes. A worker's own arithmetic, the solver's, runs with the flag
//! too; it tells only in numbers below 1.2e-38, which no picture shows.
//!
//! There is no `IoBinding`: `run` reads from and writes into tensors of ours that are kept from tick to tick, which is what a
//! binding would do on the host. On another device x and the prediction cross once a tick with it as well, since the solver's
//! arithmetic is the host's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use ::ort::environment::{Environment, GlobalThreadPoolOptions};
use ::ort::ep;
use ::ort::logging::LogLevel;
use ::ort::memory::Allocator;
use ::ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ::ort::session::{HasSelectedOutputs, OutputSelector, RunOptions, Session};
use ::ort::value::{Tensor, TensorElementType, TensorRef};
use windowpane_diffusion::manifest::{Dim, Graph, Manifest, TensorType, WEIGHTS_FILE};

use super::check::Case;
use super::{Denoiser, EngineError, Provider, StepBatch, package, probe};

/// ONNX Runtime, loaded once for the whole process.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    version: String,
    nursery: mpsc::Sender<Birth>,
}

/// ONNX Runtime could not be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The library does not load, or is too old.
    #[error("loading ONNX Runtime from `{}`: {reason}", library.display())]
    Load {
        /// The file.
        library: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The environment could not be made.
    #[error("starting ONNX Runtime: {0}")]
    Start(String),
    /// A process holds one runtime, and it has another already.
    #[error("ONNX Runtime is already loaded from `{}`, not from `{}`", loaded.display(), asked.display())]
    Other {
        /// The file in use.
        loaded: PathBuf,
        /// The file asked for.
        asked: PathBuf,
    },
    /// Subnormals are computed exactly, which makes every windowed layer several times slower.
    #[error(
        "ONNX Runtime does not flush subnormals to zero here; another library made a session before this server"
    )]
    Subnormals,
}

/// A session does not open, or is not what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The runtime refuses the graph, or the device.
    #[error("`{file}` on {provider}: {reason}")]
    Open {
        /// The graph's file.
        file: String,
        /// The device.
        provider: Provider,
        /// The runtime's words.
        reason: String,
    },
    /// An input or output differs from the manifest.
    #[error("`{file}`: {what}")]
    Mismatch {
        /// The graph's file.
        file: String,
        /// What differs.
        what: String,
    },
}

/// A thread to start: its name, its work, and whom to give the handle.
type Birth = (String, Box<dyn FnOnce() + Send>, mpsc::Sender<std::io::Result<JoinHandle<()>>>);

/// The process's runtime. ONNX Runtime allows one environment and never unloads, so neither do we.
static RUNTIME: Mutex<Option<&'static Runtime>> = Mutex::new(None);

// === impl Runtime ===

impl Runtime {
    /// The process's runtime, made at the first call from `library` (an absolute path) with `threads` threads in its
    /// pool. Later calls get the same one, threads included; asking for another library then is an error.
    pub fn get(library: &Path, threads: usize) -> Result<&'static Self, RuntimeError> {
        let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = *slot {
            return if runtime.library == library {
                Ok(runtime)
            } else {
                Err(RuntimeError::Other { loaded: runtime.library.clone(), asked: library.to_owned() })
            };
        }
        let runtime = Self::start(library.to_owned(), threads)?;
        *slot = Some(runtime);
        Ok(runtime)
    }

    /// Starts the nursery and waits until it has made the environment and the first session.
    fn start(library: PathBuf, threads: usize) -> Result<&'static Self, RuntimeError> {
        let (answer, made) = mpsc::channel();
        let work = move || {
            let (birth, births) = mpsc::channel::<Birth>();
            let runtime = match Self::make(library, threads, birth) {
                Ok(runtime) => runtime,
                Err(error) => return drop(answer.send(Err(error))),
            };
            // Leaked on purpose: see `RUNTIME`.
            let runtime: &'static Self = Box::leak(Box::new(runtime));
            let flushed = probe::subnormals_are_flushed(runtime);
            let ready = match flushed {
                Ok(true) => Ok(runtime),
                Ok(false) => Err(RuntimeError::Subnormals),
                Err(error) => Err(RuntimeError::Start(error.to_string())),
            };
            let _ = answer.send(ready);
            while let Ok((name, work, handle)) = births.recv() {
                let _ = handle.send(std::thread::Builder::new().name(name).spawn(work));
            }
        };
        let nursery = std::thread::Builder::new().name("windowpane-ort".to_owned());
        nursery.spawn(work).map_err(|error| RuntimeError::Start(error.to_string()))?;
        made.recv().unwrap_or_else(|_| Err(RuntimeError::Start("the thread that starts it died".to_owned())))
    }

    fn make(library: PathBuf, threads: usize, birth: mpsc::Sender<Birth>) -> Result<Self, RuntimeError> {
        let load = |error: ::ort::LoadDynamicError| RuntimeError::Load {
            library: library.clone(),
            reason: error.to_string(),
        };
        let builder = ::ort::init_from(&library).map_err(load)?;
        let start = |error: ::ort::Error| RuntimeError::Start(error.to_string());
        let pool = GlobalThreadPoolOptions::default()
            .with_intra_threads(threads)
            .and_then(|pool| pool.with_inter_threads(1))
            // A spinning pool burns the cores between requests and fights with the other models' ticks.
            .and_then(|pool| pool.with_spin_control(false))
            .and_then(GlobalThreadPoolOptions::with_flush_to_zero)
            .map_err(start)?;
        let environment = builder
            .with_name("windowpane")
            .with_telemetry(false)
            .with_global_thread_pool(pool)
            .build()
            .map_err(start)?;
        environment.set_log_level(LogLevel::Warning);
        let version = version(&library, ::ort::info());
        Ok(Self { environment, library, version, nursery: birth })
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The library's version, e.g. `1.30.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Starts a thread that may run sessions: one that flushes subnormals.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        let gone = || std::io::Error::other("the thread that starts workers is gone");
        let (reply, handle) = mpsc::channel();
        self.nursery.send((name.to_owned(), Box::new(work), reply)).map_err(|_| gone())?;
        handle.recv().map_err(|_| gone())?
    }

    /// A session builder with what every session of ours has.
    pub(super) fn builder(&self) -> ::ort::Result<SessionBuilder> {
        Ok(Session::builder(&self.environment)?
            .with_flush_to_zero()?
            .with_deterministic_compute(true)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_log_level(LogLevel::Warning)?)
    }
}

/// The library's version: the end of its file name (`libonnxruntime.so.1.30.0`), or where the name has none, the
/// commit in its build information (`… git-commit-id=31f46a0b1c, …`).
fn version(library: &Path, info: &str) -> String {
    let name = library.file_name().and_then(|name| name.to_str()).unwrap_or("");
    if let Some((_, version)) = name.split_once(".so.") {
        return version.to_owned();
    }
    let commit = info.split("git-commit-id=").nth(1).and_then(|rest| rest.split(',').next());
    commit.map_or_else(|| "unknown".to_owned(), |commit| format!("commit {commit}"))
}

/// The runtime's error in our words. Its message may name files: it is logged, not shown to clients.
pub(super) fn runtime_error(error: &::ort::Error) -> EngineError {
    of_words(error.to_string())
}

/// The runtime has one code for most of what goes wrong: that there was no memory is in its words, which are those of its
/// arena, of C++, of CUDA and of cuBLAS.
fn of_words(words: String) -> EngineError {
    const NO_MEMORY: [&str; 4] = ["failed to allocate memory", "bad_alloc", "out of memory", "alloc_failed"];
    let small = words.to_lowercase();
    if NO_MEMORY.iter().any(|said| small.contains(said)) {
        EngineError::OutOfMemory(words)
    } else {
        EngineError::Runtime(words)
    }
}

/// Values that the buffers of all sizes may hold together: 64 MiB. What `piece` allows fits but for large images.
const MOST_BUFFERED: usize = 16 << 20;

/// The denoiser's output.
const OUTPUT: &str = "prediction";

/// A denoiser graph in a session.
#[derive(Debug)]
pub struct OrtDenoiser {
    session: Session,
    source: Source,
    out_channels: usize,
    /// Rows of one call of the session.
    piece: usize,
    /// Where a prediction of so many rows is put out: a buffer for each number of rows up to `piece`, as long as they are
    /// small.
    buffers: BTreeMap<usize, Buffer>,
    /// What a session that is built anew has to answer rightly before it serves.
    proof: Option<Arc<Case>>,
}

/// Options by which a session puts its prediction into a tensor that stays.
struct Buffer(RunOptions<HasSelectedOutputs>);

/// What a session is made of, as it was verified: a package that somebody replaces meanwhile is another model.
#[derive(Debug, Clone)]
pub(super) struct Source {
    runtime: &'static Runtime,
    graph: Arc<[u8]>,
    weights: Arc<[u8]>,
    provider: Provider,
}

// === impl Source ===

impl Source {
    /// A session. On CUDA every node must run there: a part that falls back to the CPU is a refusal, not a slow surprise.
    pub(super) fn session(&self) -> ::ort::Result<Session> {
        let mut builder = self.runtime.builder()?;
        if self.provider == Provider::Cuda {
            // TF32 would take ten of the 23 bits of every product.
            let cuda = ep::CUDA::default().with_tf32(false).build().error_on_failure();
            builder = builder.with_execution_providers([cuda])?.with_disable_cpu_fallback()?;
        }
        builder
            .with_external_initializer_file_in_memory(WEIGHTS_FILE, Arc::clone(&self.weights))?
            .commit_from_memory(&self.graph)
    }

    /// Another graph over the same weights.
    pub(super) fn of(&self, graph: Vec<u8>) -> Self {
        Self { graph: graph.into(), ..self.clone() }
    }
}

// === impl OrtDenoiser ===

impl OrtDenoiser {
    /// Opens `folder/graph.file`. It and the weights beside it are read, not mapped: a mapped file that somebody cuts or
    /// overwrites ends the process, or worse, changes what it computes. What was read is what the manifest pins.
    pub fn open(
        runtime: &'static Runtime,
        folder: &Path,
        manifest: &Manifest,
        graph: &Graph,
        provider: Provider,
    ) -> Result<Self, SessionError> {
        let unopened =
            |file: &str, reason: String| SessionError::Open { file: file.to_owned(), provider, reason };
        let read = |file: &str| {
            package::read(folder, manifest, file).map_err(|error| unopened(file, error.to_string()))
        };
        let source = Source {
            runtime,
            graph: read(&graph.file)?.into(),
            weights: read(WEIGHTS_FILE)?.into(),
            provider,
        };
        let session = source.session().map_err(|error| unopened(&graph.file, error.to_string()))?;
        ports_match(&session, graph)?;
        let out_channels = manifest.config.out_channels();
        Ok(Self { session, source, out_channels, piece: usize::MAX, buffers: BTreeMap::new(), proof: None })
    }

    /// What its session is made of.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// From now on a session that is built anew has to answer this case of the golden before it serves.
    pub fn prove_by(&mut self, case: Option<Case>) {
        self.proof = case.map(Arc::new);
    }
}

impl Denoiser for OrtDenoiser {
    fn denoise(&mut self, batch: &StepBatch, prediction: &mut Vec<f32>) -> Result<(), EngineError> {
        prediction.clear();
        // As even as they can be: 9 rows in pieces of at most 8 are 5 and 4.
        let pieces = batch.rows().div_ceil(self.piece).max(1);
        for piece in 0..pieces {
            let rows = |i: usize| batch.rows() * i / pieces;
            self.piece(batch, rows(piece)..rows(piece + 1), prediction)?;
        }
        Ok(())
    }

    fn split_at(&mut self, rows: usize) {
        self.piece = rows.max(1);
        // Those of the measurement's sizes are not needed again.
        self.buffers.clear();
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        let mut anew = Self {
            session: self.source.session().map_err(|error| runtime_error(&error))?,
            source: self.source.clone(),
            out_channels: self.out_channels,
            piece: self.piece,
            buffers: BTreeMap::new(),
            proof: self.proof.clone(),
        };
        if let Some(proof) = &self.proof {
            proof.replay(&mut anew).map_err(|error| EngineError::Unproven(error.to_string()))?;
        }
        *self = anew;
        Ok(())
    }
}

impl OrtDenoiser {
    /// One call of the session for these rows; their prediction goes to the end of `prediction`.
    fn piece(
        &mut self,
        batch: &StepBatch,
        rows: Range<usize>,
        prediction: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let (n, [c, h, w], row) = (rows.len(), batch.shape, batch.elements());
        let error = |error: ::ort::Error| runtime_error(&error);
        let x = &batch.x[rows.start * row..rows.end * row];
        let x = TensorRef::from_array_view(([n, c, h, w], x)).map_err(error)?;
        let t = TensorRef::from_array_view(([n], &batch.t[rows.clone()])).map_err(error)?;
        let y = TensorRef::from_array_view(([n], &batch.y[rows])).map_err(error)?;
        let inputs = ::ort::inputs!["x" => x, "t" => t, "y" => y];
        let values = self.out_channels * h * w;
        let buffered = || self.buffers.keys().sum::<usize>() + n;
        if !self.buffers.contains_key(&n) && buffered().saturating_mul(values) > MOST_BUFFERED {
            self.buffers.clear();
        }
        let buffer = match self.buffers.entry(n) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Buffer::new([n, self.out_channels, h, w]).map_err(error)?),
        };
        let outputs = self.session.run_with_options(inputs, &buffer.0).map_err(error)?;
        let output = outputs.get(OUTPUT).ok_or(EngineError::OutputSize { got: 0, expected: 1 })?;
        let (_, found) = output.try_extract_tensor::<f32>().map_err(error)?;
        let expected = n * values;
        if found.len() != expected {
            return Err(EngineError::OutputSize { got: found.len(), expected });
        }
        prediction.extend_from_slice(found);
        Ok(())
    }
}

// === impl Buffer ===

impl Buffer {
    /// For predictions of this shape.
    fn new(shape: [usize; 4]) -> ::ort::Result<Self> {
        let tensor = Tensor::<f32>::new(&Allocator::default(), shape)?;
        let outputs = OutputSelector::default().preallocate(OUTPUT, tensor);
        Ok(Self(RunOptions::new()?.with_outputs(outputs)))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buffer")
    }
}

/// Names and types of the session's ports against the manifest's.
pub(super) fn ports_match(session: &Session, graph: &Graph) -> Result<(), SessionError> {
    let mismatch = |what: String| Err(SessionError::Mismatch { file: graph.file.clone(), what });
    let sides = [("input", session.inputs(), &graph.inputs), ("output", session.outputs(), &graph.outputs)];
    for (side, ports, specs) in sides {
        if ports.len() != specs.len() {
            return mismatch(format!("{} {side}s, the manifest lists {}", ports.len(), specs.len()));
        }
        for spec in specs {
            let Some(port) = ports.iter().find(|port| port.name() == spec.name) else {
                return mismatch(format!("no {side} `{}`, which the manifest lists", spec.name));
            };
            let expected = match spec.dtype {
                TensorType::F32 => TensorElementType::Float32,
                TensorType::F16 => TensorElementType::Float16,
                TensorType::I64 => TensorElementType::Int64,
            };
            let same_shape = port.dtype().tensor_shape().is_some_and(|shape| {
                let dims: &[i64] = shape;
                dims.len() == spec.shape.len()
                    && dims.iter().zip(&spec.shape).all(|(&got, dim)| fits(got, dim))
            });
            if port.dtype().tensor_type() != Some(expected) || !same_shape {
                return mismatch(format!(
                    "{side} `{}` is {}, the manifest says {spec}",
                    spec.name,
                    port.dtype()
                ));
            }
        }
    }
    Ok(())
}

/// A graph's dimension (-1 where it is free) against the manifest's.
fn fits(got: i64, dim: &Dim) -> bool {
    match dim {
        Dim::Fixed(size) => i64::try_from(*size) == Ok(got),
        Dim::Named(_) => got == -1,
    }
}

#[cfg(test)]
mod tests;
