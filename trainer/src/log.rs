//! What a run writes down: a progress bar (plain lines where there is no terminal), `log.jsonl`, and a TensorBoard
//! event file, all fed from one record.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One line of the log: means over the steps since the last one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// Training loss.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Images per second.
    pub images_per_second: f64,
    /// Seconds of training so far, all sessions together.
    pub seconds: f64,
}

/// The open logs of a run.
pub struct Log {
    bar: ProgressBar,
    plain: bool,
    printed: Option<Instant>,
    jsonl: (PathBuf, File),
    events: (PathBuf, File),
    /// Whether the last record could be written.
    writes: bool,
}

/// Seconds between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

// === impl Log ===

impl Log {
    /// Opens (or goes on with) the logs in `dir`, for a run of `steps` steps of which `done` are done: what a session that
    /// was killed wrote of later ones is done again, and does not stand there twice.
    pub fn open(dir: &Path, done: u64, steps: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        cut_back(&dir.join("log.jsonl"), done)?;
        let open = |name: String| {
            let path = dir.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
            Ok::<_, Error>((path, file))
        };
        let jsonl = open("log.jsonl".into())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut events = open(format!("events.out.tfevents.{now}.windowpane"))?;
        let version = Event { file_version: Some("brain.Event:2".into()), ..Event::now() };
        append(&mut events, &version.record())?;
        let plain = !std::io::stderr().is_terminal();
        let bar = bar(done, steps);
        if !plain {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Ok(Self { bar, plain, printed: None, jsonl, events, writes: true })
    }

    /// Shows that a step is done.
    pub fn tick(&self) {
        self.bar.inc(1);
    }

    /// Writes a record everywhere. A run does not end for want of it: what cannot be written is a warning, once until
    /// something can.
    pub fn record(&mut self, record: &Record, steps: u64) {
        let text = format!("loss {:.4}  {:.1} images/s", record.loss, record.images_per_second);
        self.bar.set_message(text.clone());
        let due = self.printed.is_none_or(|at| at.elapsed() > PLAIN_EVERY) || record.step == steps;
        if self.plain && due {
            self.printed = Some(Instant::now());
            eprintln!("step {}/{steps}  {text}  {} left", record.step, FormattedDuration(self.bar.eta()));
        }
        let written = self.write(record);
        if let Err(error) = &written
            && self.writes
        {
            self.say(&format!("warning: no record of step {}: {error}", record.step));
        }
        self.writes = written.is_ok();
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        let line = serde_json::to_string(record).expect("a record is plain data: this is a bug") + "\n";
        let scalars = [
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/lr", record.lr),
            ("train/images_per_second", record.images_per_second),
        ];
        let value = scalars.map(|(tag, v)| Value { tag: tag.into(), simple_value: Some(v as f32) });
        let event = Event {
            step: record.step as i64,
            summary: Some(Summary { value: value.into() }),
            ..Event::now()
        };
        // Each of them, whatever becomes of the other.
        let line = append(&mut self.jsonl, line.as_bytes());
        line.and(append(&mut self.events, &event.record()))
    }

    /// Prints a line without tearing the bar.
    pub fn say(&self, text: &str) {
        if self.plain {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}

/// Adds a record to a file, or takes back what of it was written before the disk was full: the next one begins where a
/// whole one ended.
fn append((path, file): &mut (PathBuf, File), record: &[u8]) -> Result<()> {
    let before = file.metadata().map_err(Error::io(path))?;
    file.write_all(record).map_err(|error| {
        if before.is_file() {
            let _ = file.set_len(before.len()); // where this fails too, the first error is the one to tell
        }
        Error::io(path)(error)
    })
}

/// Cuts a log of lines off where it tells of a step after `done`, or was itself cut off in the midst of a line.
fn cut_back(path: &Path, done: u64) -> Result<()> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    // A log may lie behind a link, on what is no file.
    if !std::fs::metadata(path).is_ok_and(|there| there.is_file()) {
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let goes_on = |line: &&[u8]| {
        line.ends_with(b"\n") && serde_json::from_slice::<Line>(line).map_or(true, |line| line.step <= done)
    };
    let kept: usize = bytes.split_inclusive(|&byte| byte == b'\n').take_while(goes_on).map(<[u8]>::len).sum();
    if kept < bytes.len() {
        let file = OpenOptions::new().write(true).open(path).map_err(Error::io(path))?;
        file.set_len(kept as u64).map_err(Error::io(path))?;
    }
    Ok(())
}

/// A bar of `steps` that nobody sees yet. The steps that an earlier session did are no measure of this one's speed.
fn bar(done: u64, steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden()).with_position(done);
    // It gives way to the text, which is some 65 columns.
    let style = "{wide_bar} {pos}/{len} steps  {msg}  {eta_precise} left";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid: this is a bug"));
    bar.tick();
    bar.reset_eta();
    bar
}

// === TensorBoard's event file: the few fields we write of tensorflow's event.proto and summary.proto ===

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

impl Event {
    fn now() -> Self {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Self { wall_time, ..Self::default() }
    }

    /// Framed as a TFRecord: length, its masked CRC-32C, the message, its masked CRC-32C.
    fn record(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        let masked =
            |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
        [&length[..], &masked(&length), &message, &masked(&message)].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record { step, loss: 0.5, grad_norm: 1.0, lr: 1e-3, images_per_second: 9.0, seconds: 1.0 }
    }

    #[test]
    fn steps_that_are_done_again_stand_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let steps = || {
            let text = std::fs::read_to_string(&path).unwrap();
            let step = |line: &str| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap()
            };
            text.lines().map(step).collect::<Vec<_>>()
        };
        let write = |done: u64, then: &[u64]| {
            let mut log = Log::open(dir.path(), done, 10).unwrap();
            then.iter().for_each(|&step| log.record(&record(step), 10));
        };
        write(0, &[1, 2, 3, 4, 5]);
        // Killed in the midst of a line, after the checkpoint of step 3.
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"step\":6,\"lo").unwrap();
        write(3, &[4, 5]);
        assert_eq!(steps(), [1, 2, 3, 4, 5]);
        write(5, &[6]);
        assert_eq!(steps(), [1, 2, 3, 4, 5, 6]);
        write(0, &[1]);
        assert_eq!(steps(), [1]);
    }

    #[test]
    fn what_an_earlier_session_did_shortens_no_estimate() {
        let bar = bar(900, 1000);
        std::thread::sleep(Duration::from_millis(50));
        bar.inc(1);
        // 99 steps of 50 ms; counted from the start of the run, it would be 901 steps in that time: 5 ms.
        assert_eq!(bar.position(), 901);
        assert!(bar.eta() > Duration::from_secs(2), "{:?}", bar.eta());
    }

    #[test]
    fn both_files_hold_the_record() {
        let dir = tempfile::tempdir().unwrap();
        Log::open(dir.path(), 0, 10).unwrap().record(&record(3), 10);
        let line = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["loss"], 0.5);
        check_events(dir.path());
    }

    #[test]
    fn the_events_are_written_where_lines_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("log.jsonl")).unwrap();
        Log::open(dir.path(), 0, 10).unwrap().record(&record(3), 10);
        check_events(dir.path());
    }

    /// The event file in `dir` tells its version and of step 3.
    fn check_events(dir: &Path) {
        let events = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
        let events = events.into_iter().find(|p| p.to_string_lossy().contains("tfevents")).unwrap();
        let bytes = std::fs::read(events).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(Event::decode(&bytes[12..12 + length]).unwrap().file_version.unwrap(), "brain.Event:2");
        let rest = &bytes[16 + length..];
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = Event::decode(&rest[12..12 + length]).unwrap();
        assert_eq!((event.step, event.summary.unwrap().value[0].simple_value), (3, Some(0.5)));
    }
}
