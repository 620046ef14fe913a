//! The handle of a model's worker: submit images, wait for them, stop. Admission happens here, before any work; who
//! goes next is `policy.rs`, what waits is `queue.rs`, and the thread that owns the engine is `worker.rs`.

pub mod policy;
pub mod queue;
pub mod worker;

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::metrics::Metrics;
use crate::sampler::Trajectory;
use crate::spec::SampleSpec;
use queue::{Job, Load};
use worker::{Command, Worker};

/// Asks a model's worker for images. Cheap to share by reference; the worker ends with the handle.
#[derive(Debug)]
pub struct Batcher {
    commands: mpsc::Sender<Command>,
    load: Arc<Load>,
    elements: usize,
    thread: JoinHandle<()>,
}

/// What a worker needs to know of its model.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the model, for metrics and log.
    pub model: String,
    /// Channels, height and width.
    pub shape: [usize; 3],
    /// Channels of the network's output.
    pub out_channels: usize,
    /// Rows in one tick.
    pub max_rows: usize,
    /// Images that may wait or run.
    pub queue_limit: usize,
    /// Measured time of one row, the first guess of the backlog.
    pub row_time: Duration,
}

/// A finished image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its effective seed.
    pub seed: u64,
    /// `[channels, height, width]`, all finite.
    pub values: Vec<f32>,
    /// From admission to its first tick.
    pub queue: Duration,
    /// From its first tick to its last.
    pub denoise: Duration,
}

/// An image was not finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The engine failed in a tick that the image took part in.
    #[error("{0}")]
    Engine(String),
    /// The image has values that are infinite or not numbers.
    #[error("the image has values that are not finite")]
    NotFinite,
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// A request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue has no room for all images of the request.
    #[error("{waiting} of {limit} images are waiting or running")]
    Overloaded {
        /// Images admitted.
        waiting: usize,
        /// The bound.
        limit: usize,
        /// Time that those still take.
        backlog: Duration,
    },
    /// The worker has ended.
    #[error("the worker has ended")]
    Ended,
}

/// Images under way. Dropping it abandons them: their rows are free at the next tick.
#[derive(Debug)]
pub struct Ticket(Vec<oneshot::Receiver<Result<Sample, SampleError>>>);

// === impl Batcher ===

impl Batcher {
    /// Starts a worker through `spawn`, which must run the work on a thread of its own. On that thread `open` makes
    /// the engine and a report `R`; the handle and the report come back once it has.
    pub fn start<R: Send + 'static, E: Send + 'static>(
        spawn: impl FnOnce(&str, Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>>,
        open: impl FnOnce() -> Result<(Box<dyn crate::engine::Denoiser>, WorkerConfig, R), E> + Send + 'static,
        name: &str,
        metrics: Metrics,
    ) -> Result<(Self, R), StartError<E>> {
        let (commands, received) = mpsc::channel();
        let (opened, answer) = mpsc::channel();
        let work = move || {
            let (engine, config, report) = match open() {
                Ok(opened) => opened,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let load = Arc::new(Load::new(config.queue_limit, config.row_time));
            let elements = config.shape.iter().product();
            let worker = Worker {
                model: config.model,
                engine,
                commands: received,
                load: Arc::clone(&load),
                metrics,
                max_rows: config.max_rows,
                shape: config.shape,
                row: config.out_channels * config.shape[1] * config.shape[2],
            };
            if opened.send(Ok((load, elements, report))).is_ok() {
                worker.run();
            }
        };
        let thread = spawn(name, Box::new(work)).map_err(|error| StartError::Thread(error.to_string()))?;
        match answer.recv() {
            Ok(Ok((load, elements, report))) => Ok((Self { commands, load, elements, thread }, report)),
            Ok(Err(error)) => Err(StartError::Open(error)),
            Err(_) => Err(StartError::Thread("it died while opening the model".to_owned())),
        }
    }

    /// Admits one image for each seed, all or none.
    pub fn submit(&self, spec: &Arc<SampleSpec>, seeds: &[u64]) -> Result<Ticket, SubmitError> {
        let trajectory = |&seed| Trajectory::new(Arc::clone(spec), seed, self.elements);
        let trajectories: Vec<_> = seeds.iter().map(trajectory).collect();
        let rows = trajectories.first().map_or(0, Trajectory::rows_left);
        let Some(places) = self.load.admit(seeds.len(), rows) else {
            let (waiting, limit, backlog) = (self.load.images(), self.load.limit(), self.load.backlog());
            return Err(SubmitError::Overloaded { waiting, limit, backlog });
        };
        let admitted = Instant::now();
        let (jobs, replies) = trajectories
            .into_iter()
            .zip(places)
            .map(|(trajectory, place)| {
                let (reply, receiver) = oneshot::channel();
                (Job { trajectory, place, reply, admitted }, receiver)
            })
            .unzip();
        self.commands.send(Command::Run(jobs)).map_err(|_| SubmitError::Ended)?;
        Ok(Ticket(replies))
    }

    /// Images admitted and not finished.
    pub fn images(&self) -> usize {
        self.load.images()
    }

    /// Whether the worker's thread still runs.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Tells the worker to end after the tick it is in; images under way get [`SampleError::ShuttingDown`].
    pub fn stop(&self) {
        // A worker that has ended already needs no telling.
        let _ = self.commands.send(Command::Stop);
    }
}

/// A worker could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError<E> {
    /// No thread.
    #[error("starting the worker thread: {0}")]
    Thread(String),
    /// The engine did not open.
    #[error(transparent)]
    Open(E),
}

// === impl Ticket ===

impl Ticket {
    /// Waits for all images, in the order of their seeds. The first failure is the answer, and the rest are
    /// abandoned.
    pub async fn finish(self) -> Result<Vec<Sample>, SampleError> {
        let mut samples = Vec::with_capacity(self.0.len());
        for reply in self.0 {
            // A sender that vanishes without a word belonged to a worker that ended.
            samples.push(reply.await.unwrap_or(Err(SampleError::ShuttingDown))?);
        }
        Ok(samples)
    }
}

#[cfg(test)]
mod tests;
