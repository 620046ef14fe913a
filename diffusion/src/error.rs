//! The one error type of this crate. Every variant says what was wrong, where, and what is accepted; callers
//! that know a file's name or a request's field add it on the way up.

use std::fmt::{Display, LowerExp};

use thiserror::Error;

/// What can be wrong with a configuration, a window, a schedule, a sampling plan or a manifest.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Error {
    /// A field holds a value outside what is accepted.
    #[error("`{field}` is {got}, expected {expected}")]
    BadValue {
        /// Dotted path of the field, e.g. `config.windows[3]`.
        field: String,
        /// The value as the user wrote it.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A name is not one of the names known.
    #[error("unknown {what} `{got}`, expected one of: {}", known.join(", "))]
    UnknownName {
        /// The kind of thing named: `model`, `sampler`, `window preset`, …
        what: &'static str,
        /// The name as written.
        got: String,
        /// All names that exist.
        known: Vec<String>,
    },
    /// A text is not the JSON it should be.
    #[error("not a valid {what}: {reason}")]
    Malformed {
        /// What was being read, e.g. `manifest`.
        what: &'static str,
        /// The parser's words, with line and column.
        reason: String,
    },
}

/// A number, f32 or f64, as a message shows it: with an exponent where it would otherwise be a row of zeros (1e308 has 309
/// digits).
pub fn number(value: impl Copy + Display + LowerExp + Into<f64>) -> String {
    let size = value.into().abs();
    if size == 0.0 || (1e-5..1e15).contains(&size) { value.to_string() } else { format!("{value:e}") }
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

// === impl Error ===

impl Error {
    /// A `BadValue`, from anything that can be shown.
    pub fn bad_value(field: impl Into<String>, got: impl Display, expected: impl Into<String>) -> Self {
        Self::BadValue { field: field.into(), got: got.to_string(), expected: expected.into() }
    }

    /// An `UnknownName`, with the names that exist.
    pub fn unknown_name<'a>(what: &'static str, got: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self::UnknownName { what, got: got.to_owned(), known: known.into_iter().map(str::to_owned).collect() }
    }

    /// The same error seen from outside: the field's path gets `outer` in front.
    #[must_use]
    pub fn within(self, outer: &str) -> Self {
        match self {
            Self::BadValue { field, got, expected } => {
                Self::BadValue { field: format!("{outer}.{field}"), got, expected }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_read_back() {
        for (value, shown) in [
            (1e308, "1e308"),
            (-1e-300, "-1e-300"),
            (5e-324, "5e-324"),
            (-0.5, "-0.5"),
            (100.00001, "100.00001"),
            (1e9, "1000000000"),
            (0.0, "0"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), shown);
        }
        assert_eq!([0.1f32, 1e30].map(number), ["0.1", "1e30"]);
        assert_eq!(number(f64::MAX).parse(), Ok(f64::MAX));
        assert!(number(-f64::MAX).len() < 30);
    }
}
