//! A piece of work that takes part in ticks: an image being sampled, or one row that is only evaluated. The batcher
//! knows nothing else of what it serves.

use std::fmt;

use super::{Frame, Progress, Trajectory, finite};
use crate::engine::StepBatch;

/// A piece of work.
#[derive(Debug)]
pub enum Unit {
    /// An image.
    Sample(Trajectory),
    /// A row.
    Evaluate(Evaluate),
}

/// One row through the network, as it is: no solver, no guidance.
#[derive(Debug)]
pub struct Evaluate {
    /// `[channels, height, width]`; the prediction afterwards.
    values: Vec<f32>,
    t: f32,
    y: i64,
    done: bool,
}

// === impl Unit ===

impl Unit {
    /// The seed of an image; 0 for a row, which has none.
    pub fn seed(&self) -> u64 {
        match self {
            Self::Sample(trajectory) => trajectory.seed(),
            Self::Evaluate(_) => 0,
        }
    }

    /// Rows it takes in a tick: 1, or 2 for a guided image.
    pub fn rows(&self) -> usize {
        match self {
            Self::Sample(trajectory) => trajectory.rows(),
            Self::Evaluate(_) => 1,
        }
    }

    /// Ticks it still needs.
    pub fn evaluations_left(&self) -> usize {
        match self {
            Self::Sample(trajectory) => trajectory.evaluations_left(),
            Self::Evaluate(row) => usize::from(!row.done),
        }
    }

    /// Row evaluations it still needs.
    pub fn work(&self) -> u64 {
        (self.rows() * self.evaluations_left()) as u64
    }

    /// Puts its rows at the end of the batch.
    pub fn gather(&mut self, batch: &mut StepBatch) {
        match self {
            Self::Sample(trajectory) => trajectory.gather(batch),
            Self::Evaluate(row) => batch.push(&row.values, row.t, row.y),
        }
    }

    /// Takes the network's answer for its rows, `[rows, out_channels, height, width]`, which may be overwritten.
    pub fn apply(&mut self, answer: &mut [f32]) -> Progress {
        match self {
            Self::Sample(trajectory) => trajectory.apply(answer),
            Self::Evaluate(row) => row.apply(answer),
        }
    }

    /// What the last tick led to, if somebody watches.
    pub fn frame(&self) -> Option<Frame> {
        match self {
            Self::Sample(trajectory) => trajectory.frame(),
            Self::Evaluate(_) => None,
        }
    }

    /// The image `[channels, height, width]`, or the row's prediction `[out_channels, height, width]`.
    pub fn into_values(self) -> Vec<f32> {
        match self {
            Self::Sample(trajectory) => trajectory.into_values(),
            Self::Evaluate(row) => row.values,
        }
    }
}

/// For traces: `ddim 3/10 x2` is a guided image before its fourth of ten evaluations.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sample(trajectory) => trajectory.fmt(f),
            Self::Evaluate(_) => f.write_str("row"),
        }
    }
}

// === impl Evaluate ===

impl Evaluate {
    /// The row `x`, `[channels, height, width]`, at timestep `t` with label `y`.
    pub fn new(x: Vec<f32>, t: f32, y: i64) -> Self {
        Self { values: x, t, y, done: false }
    }

    fn apply(&mut self, answer: &[f32]) -> Progress {
        self.values.clear();
        self.values.extend_from_slice(answer);
        self.done = true;
        if finite(answer) { Progress::Finished } else { Progress::NotFinite }
    }
}
