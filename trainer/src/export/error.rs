//! What only an export can find wrong. Each variant names the weight, the case or the folder.

use std::path::PathBuf;

use thiserror::Error;
use windowpane_diffusion::error::number;
use windowpane_diffusion::manifest::MANIFEST_FILE;

use super::shape::Dtype;

/// Why these weights do not become a package.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
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
    #[error("`{name}`[{element}] is {}, which {dtype} cannot store", number(*value))]
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
    /// An operation whose derivative is not known here.
    #[error("{node}: {op} has no derivative with respect to what changes here")]
    NoDerivative {
        /// Name of the value.
        node: String,
        /// The operation.
        op: String,
    },
    /// An operation of the graph that is not defined on its inputs: a bug of the exporter.
    #[error("graph: {0}")]
    Graph(#[from] super::graph::GraphError),
    /// There is nothing to differentiate.
    #[error("`{output}` does not depend on `{input}`")]
    Constant {
        /// The value that was to be differentiated.
        output: String,
        /// With respect to what.
        input: String,
    },
    /// The package exists.
    #[error("{} exists; `--force` replaces it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is no package has the name.
    #[error(
        "{} exists and is no package, for it has no `{MANIFEST_FILE}`: nothing replaces it; `--out DIR` writes \
         elsewhere", path.display()
    )]
    NoPackage {
        /// The folder.
        path: PathBuf,
    },
    /// A file that comes along has the name of one that is made here.
    #[error(
        "`{name}` is the name of a file that an export writes itself: the package has another one, which would go"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// The network says what no runtime could be held against.
    #[error("golden case `{case}`: the network's output is not finite: these weights cannot be served")]
    NotFinite {
        /// The case.
        case: String,
    },
}
