//! What does the network look like inside? The vocabulary of the package's other graphs, which show what its layers attend
//! to and multiply with its Jacobian. They are opened at first use, each behind its golden, and let go when nobody has
//! asked for a while. Two implementations: ONNX Runtime (`insides/ort.rs`) and a closed form for tests
//! (`insides/fake.rs`).

pub mod fake;
pub mod ort;
pub mod proof;

use std::fmt;
use std::ops::Range;

use windowpane_diffusion::manifest::{Dim, Dtype, Graph, GraphDevice, Manifest, Role, TensorSpec};

use super::{Denoiser, EngineError, Provider, StepBatch};

/// A graph of the insides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inside {
    /// The prediction and every layer's attention.
    Attention,
    /// Jacobian times vectors.
    Jvp,
    /// Transposed Jacobian times vectors.
    Vjp,
}

/// One call of such a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The graph.
    pub inside: Inside,
    /// Its images: any number for attention, one for products.
    pub batch: StepBatch,
    /// `[k, channels, height, width]`: what is multiplied; empty for attention.
    pub vectors: Vec<f32>,
    /// What of the outputs is given back.
    pub wanted: Vec<Wanted>,
}

/// A part of an output: all of it may be far more than anybody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The output.
    pub output: String,
    /// Elements, flat, one range behind another; all of it where there is none.
    pub ranges: Option<Vec<Range<usize>>>,
}

/// The graphs of one model. Only the worker's thread touches them.
pub trait Insides {
    /// Opens a graph and replays its golden, if it is not open. Errors: the package has none, it does not open, or it does
    /// not answer as its golden says; then it stays closed.
    fn open(&mut self, inside: Inside) -> Result<(), EngineError>;

    /// Lets go of a graph, and of the memory that its session takes.
    fn close(&mut self, inside: Inside);

    /// Runs an open graph, and gives back what is wanted, in that order.
    fn look(&mut self, look: &Look) -> Result<Vec<Vec<f32>>, EngineError>;
}

/// All that a worker runs of a model.
pub struct Engine {
    /// The network.
    pub denoiser: Box<dyn Denoiser>,
    /// The graphs of its insides.
    pub insides: Box<dyn Insides>,
}

// === impl Inside ===

impl Inside {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Attention, Self::Jvp, Self::Vjp];

    /// Its role in a manifest.
    pub fn role(self) -> Role {
        match self {
            Self::Attention => Role::Attention,
            Self::Jvp => Role::Jvp,
            Self::Vjp => Role::Vjp,
        }
    }

    /// Its name, as in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Jvp => "jvp",
            Self::Vjp => "vjp",
        }
    }

    /// The graph that a package has of it for a provider; f32 alone, since it is looked at and not sampled with.
    pub fn graph(self, manifest: &Manifest, provider: Provider) -> Option<&Graph> {
        let fits = |graph: &&Graph| {
            graph.role == self.role()
                && graph.dtype == Dtype::F32
                && (graph.device == GraphDevice::Any || provider == Provider::Cuda)
        };
        manifest.graphs.iter().filter(fits).max_by_key(|graph| graph.device == GraphDevice::Cuda)
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Look ===

impl Look {
    /// Vectors of a product.
    pub fn vectors(&self) -> usize {
        self.vectors.len() / self.batch.elements().max(1)
    }

    /// Elements of an output of this call.
    fn elements(&self, output: &TensorSpec) -> usize {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => *size,
            Dim::Named(name) if name == "k" => self.vectors(),
            Dim::Named(_) => self.batch.rows(),
        };
        output.shape.iter().map(size).product()
    }
}

// === impl Wanted ===

impl Wanted {
    /// All of an output.
    pub fn all(output: &str) -> Self {
        Self { output: output.to_owned(), ranges: None }
    }

    /// The part of `values`, all of which are `expected` many.
    fn of(&self, values: &[f32], expected: usize) -> Result<Vec<f32>, EngineError> {
        let size = |got: usize| EngineError::OutputSize { got, expected };
        if values.len() != expected {
            return Err(size(values.len()));
        }
        let Some(ranges) = &self.ranges else { return Ok(values.to_vec()) };
        let mut part = Vec::with_capacity(ranges.iter().map(ExactSizeIterator::len).sum());
        for range in ranges {
            part.extend_from_slice(values.get(range.clone()).ok_or_else(|| size(range.end))?);
        }
        Ok(part)
    }
}

// === impl Engine ===

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}
