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
    /// A file is whole, and in the form of an earlier version of this program.
    #[error("{}: of an older version of this program, which this one does not read; {remedy}", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// What makes a new one.
        remedy: &'static str,
    },
    /// The system starts no thread.
    #[error("no thread to make batches on: {0}")]
    Thread(std::io::Error),
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
    /// The weights cannot become a package.
    #[error(transparent)]
    Export(#[from] crate::export::ExportError),
    /// An operation of the exported graph that is not defined on its inputs: a bug of the exporter.
    #[error("graph: {0}")]
    Graph(#[from] crate::export::graph::GraphError),
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

/// An error and its causes as one sentence. A cause that the words before it already tell is not told again.
pub fn sentence<'a>(chain: impl IntoIterator<Item = &'a (dyn std::error::Error + 'static)>) -> String {
    chain.into_iter().fold(String::new(), |said, error| {
        let words = error.to_string();
        match said {
            said if said.contains(&words) => said,
            said if said.is_empty() => words,
            said => format!("{said}: {words}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let io = || std::io::Error::other("the disk is full");
        let told: anyhow::Error = Error::io(Path::new("a"))(io()).into();
        assert_eq!(sentence(told.chain()), "a: the disk is full");
        let untold =
            Err::<(), _>(crate::data::DataError::io(Path::new("a"), io())).context("here").unwrap_err();
        assert_eq!(sentence(untold.chain()), "here: cannot read `a`: the disk is full");
    }
}
