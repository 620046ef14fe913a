//! What can be wrong with training data. Every message names the file, and the row or image inside it.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// The result of this module.
pub type Result<T> = std::result::Result<T, DataError>;

/// Why a set of images could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A key of the `[data]` table is missing, superfluous or out of range.
    #[error("`data.{field}` {problem}")]
    Source {
        /// The key.
        field: &'static str,
        /// What is wrong and what is accepted.
        problem: String,
    },
    /// Nothing is at the path.
    #[error("no data at `{}`: {hint}", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
        /// Where to get data, or what was looked for.
        hint: String,
    },
    /// The operating system refused to read a file.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A container (Parquet, idx) is damaged or is something else.
    #[error("`{}` is not a readable {what} file: {reason}", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// The format expected.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// One image cannot be decoded.
    #[error("{at}: not a readable image: {reason}")]
    Image {
        /// File, and row where there is one.
        at: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One image has another shape than demanded, or than the images before it.
    #[error("{at}: image is {got}, expected {expected}")]
    Shape {
        /// File, and row where there is one.
        at: String,
        /// Channels × height × width of this image.
        got: String,
        /// What was expected and by whom.
        expected: String,
    },
    /// One label is missing, negative or beyond the classes.
    #[error("{at}: label is {got}, expected {expected}")]
    Label {
        /// File and row.
        at: String,
        /// The label.
        got: String,
        /// What is accepted.
        expected: String,
    },
    /// The contact sheet cannot be written.
    #[error("cannot write the contact sheet `{}`: {reason}", path.display())]
    Sheet {
        /// The file.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// The set is smaller than asked for.
    #[error("{wanted} images were asked for, expected 1 to {found}, the number there are")]
    TooFew {
        /// Images asked for.
        wanted: usize,
        /// Images there are.
        found: usize,
    },
}

// === impl DataError ===

impl DataError {
    /// A `Source`, for a key of the `[data]` table.
    pub fn source(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Source { field, problem: problem.into() }
    }

    /// An `Io`, or, where nothing is at the path, a `Missing` that says where to get data.
    pub fn io(path: &Path, source: std::io::Error) -> Self {
        match source.kind() {
            std::io::ErrorKind::NotFound => {
                Self::Missing { path: path.to_owned(), hint: super::source::WHERE_TO_GET_DATA.to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    /// A `Container`, from anything that can be shown.
    pub fn container(path: &Path, what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Container { path: path.to_owned(), what, reason: reason.to_string() }
    }
}
