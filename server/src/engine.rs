//! What does the network say? The vocabulary between batcher and network: a batch of rows in, a prediction for each
//! out. Two implementations: ONNX Runtime (`engine/ort.rs`) and a closed form for tests (`engine/fake.rs`). Beside it the
//! graphs that show its insides (`engine/insides.rs`). Around them: finding the library, opening a package, and the checks that a model passes before it serves.

pub mod check;
pub mod dylib;
pub mod externals;
pub mod fake;
pub mod insides;
pub mod onnx;
pub mod ort;
pub mod package;
pub mod probe;

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Rows for one call of the network, at different timesteps and of different classes.
#[derive(Debug, Clone, PartialEq)]
pub struct StepBatch {
    /// Channels, height and width of a row.
    pub shape: [usize; 3],
    /// `[rows, channels, height, width]`: noisy images.
    pub x: Vec<f32>,
    /// `[rows]`: timesteps, fractional where the time grid is.
    pub t: Vec<f32>,
    /// `[rows]`: labels; the null class is the number of classes.
    pub y: Vec<i64>,
}

/// A network. `&mut self`, because a session is not safe to run twice at once; the worker thread owns it.
pub trait Denoiser {
    /// Runs the network on every row and leaves `[rows, out_channels, height, width]` in `prediction`, whatever was
    /// in it before. A row's values must not depend on the other rows beyond what the model's
    /// [`Determinism`](check::Determinism) says.
    fn denoise(&mut self, batch: &StepBatch, prediction: &mut Vec<f32>) -> Result<(), EngineError>;

    /// From now on runs a batch of more rows in pieces of at most so many: on a CPU, pieces whose activations stay in
    /// its cache are faster. An engine to which sizes are all one need not.
    fn split_at(&mut self, _rows: usize) {}

    /// After a call that failed: begins anew, with nothing left of whatever went wrong. The network stays the same, and an
    /// engine that could have become another shows that it has not before it is called again. Errors: it cannot; then it
    /// is what it was.
    fn rebuild(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A network could not be called, or did not answer as its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The runtime's own error.
    #[error("the runtime failed: {0}")]
    Runtime(String),
    /// The device has no memory for the call.
    #[error("the device has no memory for it: {0}")]
    OutOfMemory(String),
    /// The output has another number of values than the batch asks for.
    #[error("the network put out {got} values, expected {expected}")]
    OutputSize {
        /// Values that came.
        got: usize,
        /// Values expected.
        expected: usize,
    },
    /// The package has no such graph.
    #[error("the package has no `{0}` graph")]
    Missing(&'static str),
    /// A graph of the insides does not open, or is not what its golden says.
    #[error("`{file}` does not open: {reason}")]
    Unopened {
        /// The graph's file.
        file: String,
        /// Why.
        reason: String,
    },
    /// Built anew, it is another network than it was.
    #[error("built anew, it is not what it was: {0}")]
    Unproven(String),
    /// The engine panicked; the words of the panic.
    #[error("the engine panicked: {0}")]
    Panicked(String),
}

/// What a network runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ONNX Runtime's CPU provider.
    Cpu,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// The closed form of the tests.
    Fake,
}

// === impl StepBatch ===

impl StepBatch {
    /// An empty batch of rows of this shape.
    pub fn new(shape: [usize; 3]) -> Self {
        Self { shape, x: Vec::new(), t: Vec::new(), y: Vec::new() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.t.len()
    }

    /// Values in one row.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Takes all rows out, and keeps the memory for the next tick.
    pub fn clear(&mut self) {
        self.x.clear();
        self.t.clear();
        self.y.clear();
    }

    /// Adds a row. Panics on a row of another size, which would shift every row after it.
    pub fn push(&mut self, x: &[f32], t: f32, y: i64) {
        assert_eq!(x.len(), self.elements(), "a row has the batch's shape; this is a bug");
        self.x.extend_from_slice(x);
        self.t.push(t);
        self.y.push(y);
    }

    /// Repeats the last row until there are `rows`. An empty batch stays empty.
    pub fn pad(&mut self, rows: usize) {
        let (elements, now) = (self.elements(), self.rows());
        let (Some(&t), Some(&y)) = (self.t.last(), self.y.last()) else { return };
        for _ in now..rows {
            self.x.extend_from_within((now - 1) * elements..now * elements);
            self.t.push(t);
            self.y.push(y);
        }
    }
}

// === impl Provider ===

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Fake => "fake",
        })
    }
}
