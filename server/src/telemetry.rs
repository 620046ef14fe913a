//! Logging: one subscriber, text or JSON, to standard error. A message is readable, its values are fields, and a
//! fault is logged once, where it is handled. Nobody waits for the log: a thread of its own writes it, and lines for
//! which there is no room, because whoever reads standard error has stopped, are lost and counted. Spans for other
//! services are in `telemetry/otlp.rs`.

pub mod otlp;

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::ParseError;

use crate::args::LogFormat;

/// Lines that may wait to be written: seconds of a busy server, and a few megabytes.
const LINES: usize = 4096;

/// Time that the last lines have to be written when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Counts the lines that were lost.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Ends the thread that writes, once what waits is written.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

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
    let filter = self::filter(filter)?;
    let (lines, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES)
        .thread_name("log")
        .finish(Stderr);
    let lost = lines.error_counter();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    // A subscriber that is already there, in a test or an embedding program, is left alone.
    if installed.is_ok() {
        let _ = LOST.set(lost);
        *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        // The hook that is there writes to standard error itself, and whoever panics would wait for its reader.
        std::panic::set_hook(Box::new(|info| {
            let backtrace = std::backtrace::Backtrace::capture();
            tracing::error!(panic = %info, %backtrace, "a thread panicked");
        }));
    }
    Ok(())
}

/// Lines of the log that were lost since the process began, because whoever reads it did not.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// Writes what waits of the log, for as long as that takes within bounds: before the process ends, after which nothing
/// more is logged.
pub fn flush() {
    let writer = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(writer) = writer {
        // It may have something to say of a reader that has stopped, which then waits for that reader.
        within(FLUSH, move || drop(writer));
    }
}

/// Says this on standard error. Where nobody can read it, because the disk or the pipe is full or the reader gone, it is
/// lost.
pub fn say(line: String) {
    within(FLUSH, move || _ = writeln!(io::stderr(), "{line}"));
}

/// Does what may never end, and waits for it no longer than that.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let work = move || {
        work();
        let _ = done.send(());
    };
    // Without a thread it is not done at all.
    if thread::Builder::new().name("last-words".to_owned()).spawn(work).is_ok() {
        let _ = is_done.recv_timeout(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_an_error() {
        assert!(init(LogFormat::Text, "info,windowpane_server=loud").is_err());
    }

    #[test]
    fn what_never_ends_is_not_waited_for() {
        let start = std::time::Instant::now();
        within(Duration::from_millis(20), || thread::sleep(Duration::from_secs(60)));
        within(Duration::from_secs(60), || ());
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
