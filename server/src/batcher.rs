//! The handle of a model's worker: submit work, wait for it, cancel it, stop. What waits and who is admitted is
//! `queue.rs`, with the pure parts that it decides by: `admission.rs` (may it come in), `policy.rs` (who goes next),
//! `costs.rs` (what does a tick cost), `eta.rs` (how long will it take). What is admitted is a `job.rs`. The thread that owns the engine is `worker.rs`; workers of one device take turns
//! by `device.rs`. Beside the images studies have a lane of their own: `study.rs`, whose turns `studies.rs` decides.

pub mod admission;
pub mod baseline;
pub mod costs;
pub mod device;
pub mod eta;
pub mod job;
pub mod policy;
pub mod queue;
pub mod studies;
pub mod study;
pub mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::engine::insides::{Engine, Inside};
use crate::metrics::Metrics;
use crate::sampler::{Frame, Unit};
use costs::TickCosts;
use device::{Device, Seat};
use queue::{Queue, Standing};
use study::{Effort, StudyRequest, StudyTicket};
use worker::Worker;

/// Asks a model's worker for work. Cheap to share by reference; dropped, it lets the worker finish what it has.
#[derive(Debug)]
pub struct Batcher {
    queue: Arc<Queue>,
    elements: usize,
    thread: JoinHandle<()>,
    /// Whether the worker has died, rather than ended.
    died: Arc<AtomicBool>,
}

/// Whoever shares the engine fairly with others: the holder of an API key, or everybody who has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller(pub u32);

/// What is submitted: admitted whole or not at all.
#[derive(Debug)]
pub struct Request {
    /// Whose it is.
    pub caller: Caller,
    /// A hash of what was asked: by it a client is known again that was told when to come back.
    pub fingerprint: u64,
    /// A hash of its id and of what was asked: who comes back with both is known for certain.
    pub id: u64,
    /// When the results are worth nothing any more.
    pub deadline: Option<Instant>,
    /// Whether the rows must run in a bucket that always gives the same bits, where buckets differ.
    pub reproducible: bool,
    /// The pieces of work, independent of each other.
    pub units: Vec<Unit>,
}

/// How ticks are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// Step by step, fair, short ones first: `policy.rs`.
    Continuous,
    /// Whole batches of requests: `baseline.rs`.
    Request {
        /// How long a batch waits for company.
        delay: Duration,
    },
    /// One request at a time: `baseline.rs`.
    Serial,
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
    /// Rows that a tick may have.
    pub max_rows: usize,
    /// Rows of one call of the network; larger ticks run in pieces.
    pub piece: usize,
    /// Images that may wait or run.
    pub queue_limit: usize,
    /// Work that may wait or run, as the time it takes.
    pub max_backlog: Duration,
    /// Measured tick durations.
    pub costs: TickCosts,
    /// Whether ticks are filled up to the next measured size, since others are slower or differ.
    pub padded: bool,
    /// The size that gives the same bits whatever the company, where sizes differ.
    pub pinned: Option<usize>,
    /// How ticks are formed.
    pub scheduling: Scheduling,
    /// Studies that one caller may have under way.
    pub study_quota: usize,
    /// Graphs that the package has of the model's insides.
    pub insides: Vec<Inside>,
    /// For how long a graph of the insides that nobody asks for stays open.
    pub insides_idle: Duration,
}

/// What a request is told while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A watched step of one unit.
    Frame {
        /// Position of the unit in the request.
        unit: usize,
        /// The step.
        frame: Frame,
    },
    /// A unit is done.
    Done {
        /// Position of the unit in the request.
        unit: usize,
        /// Its result.
        sample: Sample,
    },
}

/// A finished piece of work.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its effective seed; 0 for a row that was only evaluated.
    pub seed: u64,
    /// `[channels, height, width]`, or the prediction `[out_channels, height, width]`; all finite.
    pub values: Vec<f32>,
    /// From admission to its first tick.
    pub queue: Duration,
    /// From its first tick to its last.
    pub denoise: Duration,
}

/// Work was not finished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The engine failed in a tick that the work took part in.
    #[error("{0}")]
    Engine(String),
    /// The result has values that are infinite or not numbers.
    #[error("the image has values that are not finite")]
    NotFinite,
    /// Somebody cancelled the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// The deadline passed.
    #[error("the deadline passed")]
    DeadlinePassed,
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The worker's thread has died.
    #[error("the worker has died")]
    Died,
}

/// A request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too much work is waiting or running, or too many images.
    #[error("too much work is waiting")]
    Overloaded {
        /// Seconds after which there will be room for it.
        retry_after: u64,
    },
    /// The caller has as many studies under way as it may.
    #[error("{quota} studies are under way")]
    Studying {
        /// How many that is.
        quota: usize,
        /// Seconds after which the first of them will be done.
        retry_after: u64,
    },
    /// It cannot be done by its deadline.
    #[error("it would take {needs:?}")]
    TooLate {
        /// Time it would take as things stand.
        needs: Duration,
        /// Time it would take with nothing else to do.
        alone: Duration,
        /// Seconds after which it could be done in time, if `alone` allows.
        retry_after: u64,
    },
    /// The worker has ended, or is about to.
    #[error("the worker has ended")]
    Ended,
    /// The worker's thread has died.
    #[error("the worker has died")]
    Died,
}

/// Work under way. Dropping it abandons what is left: the rows are free at the next tick.
#[derive(Debug)]
pub struct Ticket {
    events: mpsc::UnboundedReceiver<Result<Event, SampleError>>,
    cancelled: Arc<AtomicBool>,
    units: usize,
    left: usize,
    eta: Duration,
}

/// Cancels a request from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<AtomicBool>);

// === impl Caller ===

impl Caller {
    /// Everybody without a key.
    pub const ANONYMOUS: Self = Self(0);
}

// === impl Batcher ===

impl Batcher {
    /// Starts a worker through `spawn`, which must run the work on a thread of its own. On that thread `open` makes
    /// the engine and a report `R`, using the device only from the seat it is given; the handle and the report come
    /// back once it has.
    pub fn start<R: Send + 'static, E: Send + 'static>(
        spawn: impl FnOnce(&str, Box<dyn FnOnce() + Send>) -> std::io::Result<JoinHandle<()>>,
        open: impl FnOnce(&Seat<'_>) -> Result<(Engine, WorkerConfig, R), E> + Send + 'static,
        name: &str,
        device: Arc<Device>,
        metrics: Metrics,
    ) -> Result<(Self, R), StartError<E>> {
        let (opened, answer) = blocking::channel();
        let died = Arc::new(AtomicBool::new(false));
        let dies = Arc::clone(&died);
        let work = move || {
            let seat = device.join();
            let (engine, config, report) = match open(&seat) {
                Ok(opened) => opened,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let queue = Arc::new(Queue::new(&config, Arc::clone(&device), seat.id()));
            let elements = config.shape.iter().product();
            if opened.send(Ok((Arc::clone(&queue), elements, report))).is_ok() {
                let _end = Ended { queue: Arc::clone(&queue), died: dies };
                Worker::new(engine, config, queue, metrics).run(&seat);
            }
        };
        let thread = spawn(name, Box::new(work)).map_err(|error| StartError::Thread(error.to_string()))?;
        match answer.recv() {
            Ok(Ok((queue, elements, report))) => Ok((Self { queue, elements, thread, died }, report)),
            Ok(Err(error)) => Err(StartError::Open(error)),
            Err(_) => Err(StartError::Thread("it died while opening the model".to_owned())),
        }
    }

    /// Values in a row.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Admits a request, whole or not at all.
    pub fn submit(&self, request: Request) -> Result<Ticket, SubmitError> {
        self.submit_under(request, Canceller::default())
    }

    /// The same of one that can be cancelled before anybody knows that it is admitted.
    pub fn submit_under(&self, request: Request, canceller: Canceller) -> Result<Ticket, SubmitError> {
        let (units, Canceller(cancelled)) = (request.units.len(), canceller);
        let (events, eta) = self.queue.submit(request, &cancelled).map_err(|error| self.ended(error))?;
        Ok(Ticket { events, cancelled, units, left: units, eta })
    }

    /// Admits a study, which then asks for its units one by one.
    pub fn study(&self, request: StudyRequest) -> Result<StudyTicket, SubmitError> {
        self.study_under(request, Canceller::default())
    }

    /// The same of one that can be cancelled before anybody knows that it is admitted.
    pub fn study_under(
        &self,
        request: StudyRequest,
        canceller: Canceller,
    ) -> Result<StudyTicket, SubmitError> {
        let (id, eta) = self.queue.study(request).map_err(|error| self.ended(error))?;
        let ticket =
            StudyTicket::new(Arc::clone(&self.queue), Arc::clone(&self.died), id, request.deadline, eta);
        Ok(ticket.under(canceller))
    }

    /// Why nothing is admitted: a worker that has ended may have died.
    fn ended(&self, error: SubmitError) -> SubmitError {
        if error == SubmitError::Ended && self.died.load(Relaxed) { SubmitError::Died } else { error }
    }

    /// The time that a study would take from now, as things stand.
    pub fn expect_study(&self, caller: Caller, effort: Effort) -> Duration {
        self.queue.expect_study(caller, effort)
    }

    /// The time that these units would take from now, as things stand.
    pub fn expect(&self, caller: Caller, units: &[Unit]) -> Duration {
        self.queue.expect(caller, units)
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        self.queue.standing()
    }

    /// Images admitted and not finished.
    pub fn images(&self) -> usize {
        self.queue.standing().images
    }

    /// Rows of a full tick.
    pub fn room(&self) -> usize {
        self.queue.room()
    }

    /// Whether the worker's thread still runs.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// For how long its device has been in one piece of work, of whichever model; none between two. A call that does not
    /// return cannot be ended from within: whoever supervises the process is told by `/livez`.
    pub fn device_busy_for(&self) -> Option<Duration> {
        self.queue.device_busy_for()
    }

    /// Tells the worker to end after the tick it is in; work under way gets [`SampleError::ShuttingDown`].
    pub fn stop(&self) {
        self.queue.stop();
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.queue.retire();
    }
}

/// Whatever ended the worker, nobody waits for it: what has arrived is let go, and nothing more is admitted.
struct Ended {
    queue: Arc<Queue>,
    died: Arc<AtomicBool>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // Before anybody is refused or let go, who would ask why.
        self.died.store(std::thread::panicking(), Relaxed);
        self.queue.stop();
        drop(self.queue.take_arrivals());
        drop(self.queue.take_units());
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
    /// The time until all is done, as things stood at admission.
    pub fn eta(&self) -> Duration {
        self.eta
    }

    /// A handle that cancels it.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.cancelled))
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    /// What happens next; `None` after the last unit, or after an error.
    pub async fn next(&mut self) -> Option<Result<Event, SampleError>> {
        if self.left == 0 {
            return None;
        }
        // A sender that vanishes without a word belonged to a worker that died.
        let event = self.events.recv().await.unwrap_or(Err(SampleError::Died));
        match event {
            Ok(Event::Done { .. }) => self.left -= 1,
            Ok(Event::Frame { .. }) => {}
            // Nobody waits for the rest: their rows are free at the next tick.
            Err(_) => self.left = 0,
        }
        Some(event)
    }

    /// Waits for all units; the results are in their order. The first failure is the answer, and the rest is
    /// abandoned.
    pub async fn finish(mut self) -> Result<Vec<Sample>, SampleError> {
        let mut samples = vec![None; self.units];
        while let Some(event) = self.next().await {
            if let Event::Done { unit, sample } = event? {
                samples[unit] = Some(sample);
            }
        }
        Ok(samples.into_iter().flatten().collect())
    }
}

// === impl Canceller ===

impl Canceller {
    /// Ends the request at the next tick; whoever waits for it is told [`SampleError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    /// Whether that was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
