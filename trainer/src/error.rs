//! What can go wrong in the trainer. A variant names the file, field or step, and what would have been accepted.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// The trainer library's error.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file is there, but does not hold what it should.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it and where, and what was expected.
        reason: String,
    },
    /// A recipe, flag or configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// A value in a configuration that the pure crate refuses.
    #[error(transparent)]
    Diffusion(#[from] windowpane_diffusion::Error),
    /// The images could not be read.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// The loss is no longer a number.
    #[error(
        "the loss became {loss} at step {step}; the last good checkpoint is {}. Try a lower learning rate, \
         more warm-up or `optim.clip`", last_good.as_ref().map_or("none".into(), |p| p.display().to_string())
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// The loss.
        loss: f64,
        /// Where training can resume.
        last_good: Option<PathBuf>,
    },
    /// libtorch refused something.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// The trainer's result.
pub type Result<T> = std::result::Result<T, Error>;

// === impl Error ===

impl Error {
    /// An `Io` error at `path`, for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// A `File` error at `path`.
    pub fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}
