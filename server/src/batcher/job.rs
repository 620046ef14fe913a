//! One admitted piece of work, from the queue to the worker and until it ends; and why it may end early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Event, SampleError};
use crate::sampler::Unit;

/// An admitted piece of work, on its way to the worker and with it until it ends.
#[derive(Debug)]
pub struct Job {
    /// Its number in the queue.
    pub id: u64,
    /// The work.
    pub unit: Unit,
    /// Its position in the request.
    pub position: usize,
    /// The client's end; closed when nobody waits any more.
    pub reply: mpsc::UnboundedSender<Result<Event, SampleError>>,
    /// Set when somebody cancelled the request.
    pub cancelled: Arc<AtomicBool>,
    /// When it was admitted.
    pub admitted: Instant,
    /// When its result is worth nothing any more.
    pub deadline: Option<Instant>,
}

// === impl Job ===

impl Job {
    /// Why it shall not go on, if it shall not.
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

/// Why a job is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// Nobody waits for it any more.
    Gone,
    /// Somebody cancelled it.
    Cancelled,
    /// Its deadline has passed.
    Late,
}
