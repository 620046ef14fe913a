//! A study under way: whoever studies asks for one unit after another, and has time between two to compute. Nothing of it
//! runs on the worker's thread but the calls themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::job::Departure;
use super::queue::Queue;
use super::{Caller, Canceller, SampleError};
use crate::engine::StepBatch;
use crate::engine::insides::{Inside, Look};

/// One unit: a call of one of the model's graphs.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// The network's own prediction.
    Denoise(StepBatch),
    /// A look inside.
    Look(Look),
}

/// What a unit brought: the prediction, or what of the look was wanted, in its order.
pub type Findings = Vec<Vec<f32>>;

/// Units that take alike: calls of one graph, of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Like {
    /// The graph's name.
    pub graph: &'static str,
    /// Vectors that a call multiplies with, or rows where it multiplies with none.
    pub width: usize,
}

/// What a study has before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Units that it will ask for.
    pub units: usize,
    /// What most of them are like.
    pub like: Like,
    /// What it computes for once the last of them is done, about.
    pub end: Duration,
}

/// What is admitted.
#[derive(Debug, Clone, Copy)]
pub struct StudyRequest {
    /// Whose it is.
    pub caller: Caller,
    /// When it is worth nothing any more.
    pub deadline: Option<Instant>,
    /// What it has before it.
    pub effort: Effort,
}

/// A study that was admitted. Dropping it ends it, whatever it still waits for.
#[derive(Debug)]
pub struct StudyTicket {
    queue: Arc<Queue>,
    /// Whether the worker has.
    died: Arc<AtomicBool>,
    id: u64,
    deadline: Option<Instant>,
    eta: Duration,
    cancelled: Arc<AtomicBool>,
}

/// A unit on its way to the worker.
#[derive(Debug)]
pub struct StudyUnit {
    /// What is asked.
    pub ask: Ask,
    /// Whoever waits for it.
    pub reply: oneshot::Sender<Result<Findings, SampleError>>,
    deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
}

// === impl Ask ===

impl Ask {
    /// What it is like.
    pub fn like(&self) -> Like {
        match self {
            Self::Denoise(batch) => Like::denoiser(batch.rows()),
            Self::Look(look) => Like::look(look),
        }
    }
}

// === impl Like ===

impl Like {
    /// Calls of the network itself, of so many rows.
    pub const fn denoiser(rows: usize) -> Self {
        Self { graph: "denoiser", width: rows }
    }

    /// Calls of a graph of the insides, of so many rows or vectors.
    pub fn inside(inside: Inside, width: usize) -> Self {
        Self { graph: inside.as_str(), width }
    }

    /// Calls like this one.
    pub fn look(look: &Look) -> Self {
        let elements: usize = look.batch.shape.iter().product();
        let vectors = look.vectors.len() / elements.max(1);
        Self::inside(look.inside, if vectors == 0 { look.batch.rows() } else { vectors })
    }
}

// === impl Effort ===

impl Effort {
    /// So many units like this one, and nothing to compute at the end.
    pub const fn of(units: usize, like: Like) -> Self {
        Self { units, like, end: Duration::ZERO }
    }
}

// === impl StudyTicket ===

impl StudyTicket {
    pub(super) fn new(
        queue: Arc<Queue>,
        died: Arc<AtomicBool>,
        id: u64,
        deadline: Option<Instant>,
        eta: Duration,
    ) -> Self {
        Self { queue, died, id, deadline, eta, cancelled: Arc::default() }
    }

    /// The time until it is done, as things stood at admission.
    pub fn eta(&self) -> Duration {
        self.eta
    }

    /// Cancelled by whoever has this.
    pub(super) fn under(mut self, Canceller(cancelled): Canceller) -> Self {
        self.cancelled = cancelled;
        self
    }

    /// A handle that cancels it.
    pub fn canceller(&self) -> Canceller {
        Canceller(Arc::clone(&self.cancelled))
    }

    /// Asks for a unit, and waits for its turn and its answer.
    pub async fn ask(&mut self, ask: Ask) -> Result<Findings, SampleError> {
        let (reply, answer) = oneshot::channel();
        let (deadline, cancelled) = (self.deadline, Arc::clone(&self.cancelled));
        let unit = StudyUnit { ask, reply, deadline, cancelled };
        if let Some(error) = unit.ended(Instant::now()).and_then(Departure::error) {
            return Err(error);
        }
        if !self.queue.ask(self.id, unit) {
            let died = self.died.load(Relaxed);
            return Err(if died { SampleError::Died } else { SampleError::ShuttingDown });
        }
        // A sender that vanishes without a word belonged to a worker that died.
        let findings = answer.await.unwrap_or(Err(SampleError::Died))?;
        if self.cancelled.load(Relaxed) { Err(SampleError::Cancelled) } else { Ok(findings) }
    }
}

impl Drop for StudyTicket {
    fn drop(&mut self) {
        self.queue.end_study(self.id);
    }
}

// === impl StudyUnit ===

impl StudyUnit {
    /// Why it shall not have its turn, if it shall not.
    pub(super) fn ended(&self, now: Instant) -> Option<Departure> {
        if self.reply.is_closed() {
            Some(Departure::Gone)
        } else if self.cancelled.load(Relaxed) {
            Some(Departure::Cancelled)
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            Some(Departure::Late)
        } else {
            None
        }
    }
}

// === impl Departure ===

impl Departure {
    /// What whoever waits is told; nobody does who is gone.
    pub(super) fn error(self) -> Option<SampleError> {
        match self {
            Self::Gone => None,
            Self::Cancelled => Some(SampleError::Cancelled),
            Self::Late => Some(SampleError::DeadlinePassed),
        }
    }
}
