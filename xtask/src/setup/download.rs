//! Fetches one wheel with pip, showing how far it is. pip knows the user's index, proxy and certificates; we
//! know what has to arrive.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::setup::pins::{WHEELS_FOR, Wheel};
use crate::setup::python::Python;

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
        "{prefix:>11} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
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
    let error = lines.iter().rev().find_map(|line| line.strip_prefix("ERROR:")).or(lines.last().copied());
    let error = error.unwrap_or("it said nothing").trim();
    let has = |needles: &[&str]| needles.iter().any(|needle| log.contains(needle));
    if has(&["No space left on device", "Errno 28"]) {
        format!("the disk is full: {error}")
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
            "no network, or pip's index cannot be reached from here (its own proxy and index settings are the \
             ones used): {error}"
        )
    } else if has(&["No matching distribution"]) {
        format!("pip's index does not offer it: {error}")
    } else {
        error.to_owned()
    }
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
        let offline = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n\
                       ERROR: Could not find a version that satisfies the requirement torch==2.11.0 (from versions: none)\n\
                       ERROR: No matching distribution found for torch==2.11.0\n\n";
        let said = diagnosis(offline);
        assert!(
            said.starts_with("no network")
                && said.ends_with("No matching distribution found for torch==2.11.0"),
            "{said}"
        );
        let absent = "Looking in links\nERROR: No matching distribution found for torch==9\n";
        assert_eq!(
            diagnosis(absent),
            "pip's index does not offer it: No matching distribution found for torch==9"
        );
    }

    #[test]
    fn a_full_disk_and_the_unforeseen() {
        let full =
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(diagnosis(full).starts_with("the disk is full"), "{}", diagnosis(full));
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
