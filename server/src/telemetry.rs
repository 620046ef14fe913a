//! Logging: one subscriber, text or JSON, to standard error. A message is readable, its values are fields, and a
//! fault is logged once, where it is handled. Spans for other services are in `telemetry/otlp.rs`.

pub mod otlp;

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::ParseError;

use crate::args::LogFormat;

/// What a filter lets through. ONNX Runtime's own lines show from warnings up unless the filter names `ort`. Errors: a
/// filter that is not one.
pub fn filter(filter: &str) -> Result<EnvFilter, ParseError> {
    let filter = if filter.contains("ort=") { filter.to_owned() } else { format!("{filter},ort=warn") };
    EnvFilter::try_new(filter)
}

/// Standard error, where a line that cannot be written is lost: the disk may be full, or the reader gone, and neither is
/// a reason not to serve.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Installs the subscriber for the whole process. Errors: a [`filter`] that is not one.
pub fn init(format: LogFormat, filter: &str) -> Result<(), ParseError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(self::filter(filter)?)
        .with_writer(|| Stderr)
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    // A subscriber that is already there, in a test or an embedding program, is left alone.
    let _ = match format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(init(LogFormat::Text, "info,windowpane_server=loud").is_err());
    }
}
