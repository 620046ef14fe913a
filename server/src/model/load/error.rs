//! Why a package is not served: words for whoever started the server, and for its log. A client is told less.

use std::path::PathBuf;

use windowpane_diffusion::manifest::GOLDEN_FILE;

use crate::engine::Provider;
use crate::engine::check::CheckError;
use crate::engine::dylib::DylibError;
use crate::engine::ort::{RuntimeError, SessionError};
use crate::engine::package::PackageError;
use crate::error::{ApiError, Cause};
use crate::model::CardError;

/// Why models do not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The library is not there.
    #[error(transparent)]
    Dylib(#[from] DylibError),
    /// The library does not start.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A package is not what its manifest says.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A package is valid and cannot be served.
    #[error("`{}`: {cause}", folder.display())]
    Model {
        /// The package.
        folder: PathBuf,
        /// What is wrong.
        cause: ModelError,
    },
    /// Two packages have one name.
    #[error("`{}` is named `{name}`, as another package is", folder.display())]
    Twice {
        /// The second package.
        folder: PathBuf,
        /// The name.
        name: String,
    },
    /// No package has this name.
    #[error("no package is named `{name}`; there are: {}", known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// Names of the packages in the folder.
        known: Vec<String>,
    },
    /// Several packages failed.
    #[error("{} packages do not load:\n{}", .0.len(), .0.iter().map(|e| format!("- {e}")).collect::<Vec<_>>().join("\n"))]
    Several(Vec<LoadError>),
}

impl From<LoadError> for ApiError {
    /// A package that is not there is the client's mistake. Of one that does not load only the log tells: its words are
    /// full of paths.
    fn from(error: LoadError) -> Self {
        if let LoadError::Unknown { name, known } = &error {
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            return Self::model_not_found(&name.chars().take(64).collect::<String>(), &known);
        }
        let message = "the package does not load; the log says why, under this request's id";
        Self { detail: Some(error.to_string()), ..Self::new(Cause::LoadFailed, message) }
    }
}

/// Why one model does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Its manifest describes what cannot be shown.
    #[error(transparent)]
    Card(#[from] CardError),
    /// Its graph does not open.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It fails its checks.
    #[error("`{graph}` on {provider}: {cause}")]
    Check {
        /// The graph.
        graph: String,
        /// The device.
        provider: Provider,
        /// What failed.
        cause: CheckError,
    },
    /// Its golden file does not open.
    #[error("`{GOLDEN_FILE}`: {0}")]
    Golden(std::io::Error),
    /// Its thread does not flush subnormals.
    #[error("the worker thread does not flush subnormals to zero, which makes windows several times slower")]
    Subnormals,
    /// It has no thread.
    #[error("{0}")]
    Thread(String),
    /// CUDA was asked for and the model does not run there.
    #[error("CUDA was asked for by `--device cuda` and is not available: {0}")]
    Cuda(Box<ModelError>),
}
