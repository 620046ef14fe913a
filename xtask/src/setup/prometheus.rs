//! Prometheus and its `promtool`, with which the suite reads /metrics as an operator does: what is on PATH, or else
//! the package of Debian or Ubuntu (`debian.rs`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::debian;

/// What the suite runs.
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The package lists, the package and what is in it, with room to spare; measured at 230 MB.
const BYTES_NEEDED: u64 = 400_000_000;

/// Its folder in the cache. apt chooses the version: whatever the system's own release has.
const FOLDER: &str = "prometheus-debian";

/// The folder with both programs.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    if let Some(folder) = on_path(std::env::var_os("PATH").as_deref()) {
        return Ok(folder);
    }
    let place = debian::ensure(cache, FOLDER, BYTES_NEEDED, make).context(
        "Prometheus is neither on PATH nor to be had through apt; install it (Debian and Ubuntu: `apt-get install \
         prometheus`), or put `prometheus` and `promtool` on PATH",
    )?;
    Ok(place.join("usr/bin"))
}

fn make(scratch: &Path, place: &Path) -> Result<()> {
    eprintln!("fetching Prometheus, for the tests, into {}", place.display());
    let fresh = debian::unpack(scratch, |_| Ok(vec!["prometheus".to_owned()]))?;
    for name in PROGRAMS {
        process::capture(Command::new(fresh.join("usr/bin").join(name)).arg("--version"))?;
    }
    debian::put(&fresh, place)
}

/// The first folder of a PATH that has both.
fn on_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?).find(|folder| PROGRAMS.iter().all(|name| folder.join(name).is_file()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn both_programs_are_looked_for_on_path() {
        let folders = tempfile::tempdir().unwrap();
        let (half, whole) = (folders.path().join("half"), folders.path().join("whole"));
        for (folder, names) in [(&half, &PROGRAMS[..1]), (&whole, &PROGRAMS[..])] {
            fs::create_dir(folder).unwrap();
            names.iter().for_each(|name| fs::write(folder.join(name), "").unwrap());
        }
        let path = std::env::join_paths([&half, &whole]).unwrap();
        assert_eq!(on_path(Some(&path)), Some(whole));
        assert_eq!(on_path(Some(half.as_os_str())), None);
        assert_eq!(on_path(None), None);
    }
}
