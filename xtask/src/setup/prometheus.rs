//! Prometheus and its `promtool`, with which the suite reads /metrics as an operator does: what is on PATH, or else
//! the package of Debian or Ubuntu, fetched and verified by apt and laid out in the cache. Nothing is installed and
//! nobody need be root: apt is given lists and a cache of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::install::lock;
use crate::setup::space;

/// What the suite runs.
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// The package lists, the package and what is in it, with room to spare; measured at 230 MB.
const BYTES_NEEDED: u64 = 400_000_000;

/// Its folder in the cache. apt chooses the version: whatever the system's own release has.
const FOLDER: &str = "prometheus-debian";

/// Written last, by which the folder is known to be whole.
const COMPLETE: &str = ".complete";

/// The folder with both programs.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    if let Some(folder) = on_path(std::env::var_os("PATH").as_deref()) {
        return Ok(folder);
    }
    let place = cache.join(FOLDER);
    if is_whole(&place) {
        return Ok(place.join("usr/bin"));
    }
    let _lock = lock(cache)?;
    if is_whole(&place) {
        return Ok(place.join("usr/bin"));
    }
    space::check(cache, BYTES_NEEDED)?;
    let scratch = cache.join(format!(".partial-{FOLDER}"));
    let made = remove(&scratch).and_then(|()| remove(&place)).and_then(|()| make(&scratch, &place));
    // Left over at worst, and removed by the next set-up.
    let _ = remove(&scratch);
    made.map_err(space::explain).context(
        "Prometheus is neither on PATH nor to be had through apt; install it (Debian and Ubuntu: `apt-get install \
         prometheus`), or put `prometheus` and `promtool` on PATH",
    )?;
    Ok(place.join("usr/bin"))
}

fn make(scratch: &Path, place: &Path) -> Result<()> {
    eprintln!("fetching Prometheus, for the tests, into {}", place.display());
    for folder in ["lists/partial", "cache/archives/partial", "fresh"] {
        fs::create_dir_all(scratch.join(folder))
            .with_context(|| format!("cannot make {}", scratch.display()))?;
    }
    process::capture(apt(scratch).arg("update"))?;
    process::capture(apt(scratch).args(["download", "prometheus"]))?;
    let package = fs::read_dir(scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new("deb")))
        .context("apt-get downloaded nothing")?;
    let fresh = scratch.join("fresh");
    process::capture(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&fresh))?;
    for name in PROGRAMS {
        process::capture(Command::new(fresh.join("usr/bin").join(name)).arg("--version"))?;
    }
    fs::write(fresh.join(COMPLETE), "").with_context(|| format!("cannot write in {}", fresh.display()))?;
    fs::rename(&fresh, place).with_context(|| format!("cannot put {} in place", place.display()))
}

/// apt-get in the scratch folder, with the system's sources and keys and nothing else of the system's.
fn apt(scratch: &Path) -> Command {
    let mut command = Command::new("apt-get");
    let option = |name: &str, value: &OsStr| {
        let mut text = std::ffi::OsString::from(format!("{name}="));
        text.push(value);
        text
    };
    for (name, value) in [
        ("Dir::State::Lists", scratch.join("lists").as_os_str()),
        ("Dir::Cache", scratch.join("cache").as_os_str()),
        ("Debug::NoLocking", OsStr::new("1")),
        // Where we are root, apt would become a user that cannot write here.
        ("APT::Sandbox::User", OsStr::new("root")),
        ("Acquire::Languages", OsStr::new("none")),
    ] {
        command.arg("-o").arg(option(name, value));
    }
    command.arg("--quiet").current_dir(scratch);
    command
}

/// The first folder of a PATH that has both.
fn on_path(path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?).find(|folder| PROGRAMS.iter().all(|name| folder.join(name).is_file()))
}

fn is_whole(folder: &Path) -> bool {
    folder.join(COMPLETE).is_file()
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn apt_is_kept_to_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let command = apt(folder.path());
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        for option in ["Dir::State::Lists", "Dir::Cache"] {
            let expected = format!("{option}={}", folder.path().display());
            assert!(args.iter().any(|arg| arg.starts_with(&expected)), "{args:?}");
        }
    }
}
