//! What is looked at inside a model, and what comes of it: a study asks the worker for one call after another and computes
//! between them, away from the worker's thread. One kind of study a file; what a client may ask for and how it is told is
//! in `routes/analysis.rs`.

pub mod attention;
mod canvas;
pub mod decomposition;
pub mod image_set;
pub mod jacobian;
pub mod picture;
pub mod plot;
pub mod psnr_gap;
pub mod reference;
pub mod selection;
pub mod sheet;
pub mod subject;
mod upload;

use std::time::Duration;

use bytes::Bytes;

use crate::batcher::study::{Ask, Effort, Findings, Like};

/// A study: a state machine that asks for calls of the model's graphs. Each call lasts about one tick, so that images are
/// never kept waiting for longer.
pub trait Study: Send + 'static {
    /// The word for its kind, in metrics.
    const KIND: &'static str;

    /// What it comes to.
    type Findings: Send + 'static;

    /// Calls that are still to come.
    fn left(&self) -> usize;

    /// What most of these calls are like.
    fn like(&self) -> Like;

    /// What [`Self::finish`] computes for, about.
    fn end(&self) -> Duration {
        Duration::ZERO
    }

    /// All that is before it.
    fn effort(&self) -> Effort {
        Effort { units: self.left(), like: self.like(), end: self.end() }
    }

    /// Bytes of all its pieces, at most.
    fn kept(&self) -> usize {
        0
    }

    /// The next call; `None`: that was the last.
    fn next(&mut self) -> Option<Ask>;

    /// Takes what the latest call brought.
    fn take(&mut self, findings: Findings) -> Result<(), StudyError>;

    /// What has been done since the last piece, where that is enough to be worth keeping: whoever begins anew with all
    /// pieces so far goes on from there.
    fn piece(&mut self) -> Option<Bytes> {
        None
    }

    /// Takes the pieces of a study like this one, in their order, before its first call.
    fn resume(&mut self, pieces: &[Bytes]) -> Result<(), StudyError> {
        if pieces.is_empty() { Ok(()) } else { Err(StudyError::Shape("it is not done in pieces".to_owned())) }
    }

    /// What it comes to, once there is no further call.
    fn finish(self) -> Self::Findings;
}

/// A study came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StudyError {
    /// The model put out values that are infinite or not numbers.
    #[error("values are not finite")]
    NotFinite,
    /// The engine's answer has another form than was asked for.
    #[error("{0}")]
    Shape(String),
}
