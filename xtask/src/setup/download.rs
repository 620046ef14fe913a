//! Fetches one wheel with pip, showing how far it is. pip knows the user's index, proxy and certificates; we
//! know what has to arrive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::setup::pins::{WHEELS_FOR, Wheel};
use crate::setup::python::Python;
use crate::setup::space;

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);

/// Downloads the wheel into an empty folder under `scratch` and returns its path; the caller compares it
/// with its pin.
pub(crate) fn wheel(python: &Python, wheel: &Wheel, scratch: &Path) -> Result<PathBuf> {
    let (temporary, done) = (scratch.join("tmp"), scratch.join("wheel"));
    for folder in [&temporary, &done] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = scratch.join("pip.log");
    let log_file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut pip = python.pip(["download", "--no-deps", "--only-binary=:all:"], &temporary);
    pip.args(WHEELS_FOR).arg("--dest").arg(&done).arg(wheel.requirement);
    pip.stderr(log_file.try_clone().context("cannot share pip's log")?).stdout(log_file);

    let bar = bar("downloading", wheel.requirement, wheel.digest.size);
    let mut child = pip.spawn().context("cannot start python3")?;
    let status = loop {
        if let Some(status) = child.try_wait().context("lost pip")? {
            break status;
        }
        bar.set_position(bytes_under(&temporary).max(bytes_under(&done)).min(wheel.digest.size));
        if let Some(trouble) = fs::read_to_string(&log).ok().as_deref().and_then(trouble) {
            bar.set_message(format!("{} ({trouble})", wheel.requirement));
        }
        std::thread::sleep(TICK);
    };
    bar.finish_and_clear();
    if !status.success() {
        let log = fs::read_to_string(&log).unwrap_or_default();
        return Err(anyhow!(diagnosis(&log)).context(format!("pip could not download {}", wheel.requirement)));
    }
    only_file(&done)
}

/// A progress bar over bytes; on a terminal it moves, elsewhere it is a line said once.
pub(crate) fn bar(verb: &'static str, what: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(what.to_owned()).with_prefix(verb);
    if bar.is_hidden() {
        eprintln!("{verb} {what} ({} MB)", bytes.div_ceil(1_000_000));
    }
    let style = ProgressStyle::with_template(
        "{prefix:>11} {msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
    );
    bar.set_style(style.expect("a fixed template that does not parse is a bug"));
    bar.enable_steady_tick(TICK);
    bar
}

/// What pip is doing other than downloading, if it said so last.
fn trouble(log: &str) -> Option<&'static str> {
    log.lines().last().filter(|line| line.contains("Retrying")).map(|_| "no connection, trying again")
}

/// Says in a line what went wrong, from all that pip wrote: its last error, or its last line.
pub(crate) fn diagnosis(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.last().copied().unwrap_or("it said nothing");
    // Where pip itself broke, its last error is "Exception:", and the last line says which.
    let error = lines.iter().rev().find_map(|line| line.strip_prefix("ERROR:")).map(str::trim);
    let error = error.filter(|error| *error != "Exception:").unwrap_or(last);
    let has = |needles: &[&str]| needles.iter().any(|needle| log.contains(needle));
    if let Some(full) = lines.iter().rev().find(|line| line.contains("Errno 28")) {
        // Not the last line: pip's log lies on that disk, and may have been cut by it.
        format!("{}: {}", space::FULL, full.trim_start_matches("ERROR:").trim_start())
    } else if has(&[
        "Retrying",
        "Connection",
        "connection",
        "NewConnectionError",
        "Name or service",
        "ProxyError",
        "ReadTimeout",
    ]) {
        format!(
            "no network, or pip's index cannot be reached from here (`python3 -m pip config list` shows which \
             index and proxy it was told to use): {}",
            broken_connection(&lines).unwrap_or(error)
        )
    } else if has(&["from versions: none"]) {
        // Without retries pip keeps a broken connection to itself.
        format!("pip's index cannot be reached from here, or does not offer it: {error}")
    } else if has(&["No matching distribution"]) {
        format!("pip's index does not offer it: {error}")
    } else {
        error.to_owned()
    }
}

/// Why pip tried again: the innermost of the causes that it nests in one line.
fn broken_connection<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let cause = lines
        .iter()
        .rev()
        .find_map(|line| line.split_once("connection broken by '").map(|(_, rest)| rest))?;
    let nested = cause.rsplit_once("': /").map_or(cause, |(nested, _)| nested);
    let innermost = nested.rsplit_once(": ").map_or(nested, |(_, innermost)| innermost);
    Some(innermost.trim_end_matches(['\'', '"', ')']))
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => bail!("pip was to leave one file in {}, and did not", folder.display()),
    }
}

/// pip may move files while we look: what is gone counts nothing.
fn bytes_under(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_network_is_told_from_no_such_wheel() {
        let offline = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by \
                       'NewConnectionError('<urllib3.HTTPSConnection object at 0x7f43>: Failed to establish a \
                       new connection: [Errno -3] Temporary failure in name resolution')': /simple/torch/\n\
                       ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
                       ERROR: No matching distribution found for torch==2.11.0\n\n";
        let said = diagnosis(offline);
        assert!(said.starts_with("no network") && said.contains("pip config list"), "{said}");
        assert!(said.ends_with(": [Errno -3] Temporary failure in name resolution"), "{said}");
        let proxy = "WARNING: Retrying (Retry(total=0)) after connection broken by \
                     'ProxyError('Cannot connect to proxy.', NewConnectionError('<o>: Failed: [Errno 111] \
                     Connection refused'))': /simple/torch/\nERROR: No matching distribution found for torch\n";
        assert!(diagnosis(proxy).ends_with(": [Errno 111] Connection refused"), "{}", diagnosis(proxy));
        let unsaid = "ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
                      ERROR: No matching distribution found for torch==2.11.0\n";
        assert!(diagnosis(unsaid).contains("cannot be reached from here, or does not offer it"));
        let absent = "Looking in links\nERROR: No matching distribution found for torch==9\n";
        assert_eq!(
            diagnosis(absent),
            "pip's index does not offer it: No matching distribution found for torch==9"
        );
    }

    #[test]
    fn a_full_disk_and_the_unforeseen() {
        for full in [
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n",
            "ERROR: Exception:\nTraceback (most recent call last):\n  File \"x.py\", line 1\n\
             OSError: [Errno 28] No space left on device\nDuring handling of that, another",
        ] {
            let said = diagnosis(full);
            assert!(said.starts_with("the disk is full; set XDG_CACHE_HOME"), "{said}");
            assert!(said.ends_with("OSError: [Errno 28] No space left on device"), "{said}");
        }
        assert_eq!(diagnosis("something\n  odd \n"), "odd");
        assert_eq!(diagnosis(""), "it said nothing");
    }

    #[test]
    fn trouble_is_the_last_line_only() {
        assert_eq!(trouble("WARNING: Retrying (Retry(total=4))"), Some("no connection, trying again"));
        assert_eq!(trouble("WARNING: Retrying (Retry(total=4))\nCollecting torch==2.11.0"), None);
    }

    #[test]
    fn bytes_and_the_only_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("in")).unwrap();
        assert!(only_file(&folder.path().join("in")).is_err());
        fs::write(folder.path().join("in/a.whl"), "12345").unwrap();
        assert_eq!(bytes_under(folder.path()), 5);
        assert_eq!(only_file(&folder.path().join("in")).unwrap(), folder.path().join("in/a.whl"));
        fs::write(folder.path().join("in/b.whl"), "1").unwrap();
        assert!(only_file(&folder.path().join("in")).is_err());
        assert_eq!(bytes_under(&folder.path().join("nowhere")), 0);
    }
}
