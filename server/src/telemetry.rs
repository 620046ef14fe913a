//! Logging: one subscriber, text or JSON, to standard error. A message is readable, its values are fields, and a
//! fault is logged once, where it is handled. Nobody waits for the log: a thread of its own writes it, and lines for
//! which there is no room, because whoever reads standard error has stopped, are lost and counted. Spans for other
//! services are in `telemetry/otlp.rs`.

mod lines;
pub mod otlp;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
pub use tracing_subscriber::filter::ParseError;

use crate::args::LogFormat;
use crate::middleware::rescue::message_of;
use lines::Lines;

/// Lines that may wait to be written: seconds of a busy server, and a few megabytes.
const LINES: usize = 4096;

/// Time that the last lines have to be written when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

/// The lines of the whole process.
static LOG: OnceLock<Arc<Lines>> = OnceLock::new();

/// When those that wait are waited for no longer: from when the process first said that it ends.
static LAST: OnceLock<Instant> = OnceLock::new();

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

/// Installs the subscriber for the whole process. Errors: a [`filter`] that is not one, or no thread to write.
pub fn init(format: LogFormat, filter: &str) -> io::Result<()> {
    let filter = self::filter(filter).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let lines = Arc::new(Lines::written_to(Stderr, LINES)?);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Arc::clone(&lines))
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => subscriber.with_target(false).try_init(),
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    };
    // A subscriber that is already there, in a test or an embedding program, is left alone.
    if installed.is_ok() {
        let _ = LOG.set(lines);
        // The hook that is there writes to standard error itself, and whoever panics would wait for its reader.
        std::panic::set_hook(Box::new(tell_of_panic));
    }
    Ok(())
}

/// A panic's line in the log. Its backtrace is there where `RUST_BACKTRACE` asks for one.
fn tell_of_panic(info: &PanicHookInfo<'_>) {
    let (thread, backtrace) = (thread::current(), Backtrace::capture());
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        panic = message_of(info.payload()),
        at = info.location().map(ToString::to_string),
        thread = thread.name(),
        backtrace,
        "a thread panicked"
    );
}

/// Lines of the log that were lost since the process began, because whoever reads it did not.
pub fn lost_lines() -> u64 {
    LOG.get().map_or(0, |lines| lines.lost())
}

/// Waits until what was logged is written, for two seconds at most: before the process ends. Whoever asks again has what is
/// left of them.
pub fn flush() {
    let until = *LAST.get_or_init(|| Instant::now() + FLUSH);
    LOG.get().iter().for_each(|lines| _ = lines.flush(until));
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

    /// Run by the test below, in a process of its own: what it installs is the whole process's.
    #[test]
    #[ignore = "another test's child"]
    fn a_process_whose_thread_panics() {
        init(LogFormat::Json, "error").unwrap();
        let thread = thread::Builder::new().name("odd".to_owned());
        let thread = thread.spawn(|| panic!("two\nlines and a \"quote\"")).unwrap();
        assert!(thread.join().is_err());
        flush();
    }

    #[test]
    fn a_panic_is_a_line_of_the_log() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "telemetry::tests::a_process_whose_thread_panics",
            "--ignored",
            "--nocapture",
        ]);
        let said = child.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE").output().unwrap();
        let said = String::from_utf8(said.stderr).unwrap();
        let lines: Vec<serde_json::Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{said}")))
            .collect();
        let [line] = lines.as_slice() else { panic!("one line: {said}") };
        assert_eq!(line["panic"], "two\nlines and a \"quote\"");
        assert_eq!((&line["thread"], &line["message"]), (&"odd".into(), &"a thread panicked".into()));
        assert!(line["at"].as_str().unwrap().contains("telemetry.rs:") && line.get("backtrace").is_none());
    }
}
