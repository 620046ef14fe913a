//! What can go wrong in an export. Each variant names the weight, the node or the file.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::graph::GraphError;
use super::shape::Dtype;

/// The exporter's error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// An operation that is not defined on its inputs.
    #[error("graph: {0}")]
    Graph(#[from] GraphError),
    /// A configuration or manifest that the pure crate refuses.
    #[error(transparent)]
    Diffusion(#[from] windowpane_diffusion::Error),
    /// libtorch refused something.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A weight that the graph needs is not there.
    #[error("the weights have no `{name}`")]
    MissingWeight {
        /// Name in the checkpoint.
        name: String,
    },
    /// A weight of another shape than the model's.
    #[error("`{name}` has shape {got:?}, the model needs {expected}")]
    WeightShape {
        /// Name in the checkpoint.
        name: String,
        /// Shape of the weight.
        got: Vec<usize>,
        /// Shape in the graph.
        expected: String,
    },
    /// A weight that is not a number, or that the stored type cannot hold.
    #[error("`{name}`[{element}] is {value}, which {dtype} cannot store")]
    WeightValue {
        /// Name in the checkpoint.
        name: String,
        /// Flat index.
        element: usize,
        /// The value.
        value: f64,
        /// Stored type.
        dtype: Dtype,
    },
    /// Not one plan per layer.
    #[error("{got} window plans for a model of {depth} blocks, expected one each")]
    Plans {
        /// Plans given.
        got: usize,
        /// Blocks of the model.
        depth: usize,
    },
    /// The package's folder exists.
    #[error("{} exists; `--force` replaces it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file could not be made.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

// === impl ExportError ===

impl ExportError {
    /// An `Io` error at `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
