//! Programs of Debian and Ubuntu, fetched and verified by apt and laid out in the cache. Nothing is installed and nobody need
//! be root: apt is given lists and a cache of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::install::lock;
use crate::setup::space;

/// Written last, by which a folder is known to be whole.
const COMPLETE: &str = ".complete";

/// The folder of this name in the cache, made by `make` where it is not there, of a scratch folder and where it is to be.
pub(crate) fn ensure(
    cache: &Path,
    folder: &str,
    bytes_needed: u64,
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let place = cache.join(folder);
    if is_whole(&place) {
        return Ok(place);
    }
    let _lock = lock(cache)?;
    if is_whole(&place) {
        return Ok(place);
    }
    space::check(cache, bytes_needed)?;
    let scratch = cache.join(format!(".partial-{folder}"));
    let made = remove(&scratch).and_then(|()| remove(&place)).and_then(|()| make(&scratch, &place));
    // Left over at worst, and removed by the next set-up.
    let _ = remove(&scratch);
    made.map_err(space::explain)?;
    Ok(place)
}

/// Fetches the packages that `names` says, which may ask apt, and unpacks them into a folder in the scratch folder.
pub(crate) fn unpack(
    scratch: &Path,
    names: impl FnOnce(&dyn Fn(&str) -> Command) -> Result<Vec<String>>,
) -> Result<PathBuf> {
    for folder in ["lists/partial", "cache/archives/partial", "fresh"] {
        fs::create_dir_all(scratch.join(folder))
            .with_context(|| format!("cannot make {}", scratch.display()))?;
    }
    process::capture(apt("apt-get", scratch).arg("update"))?;
    let names = names(&|program| apt(program, scratch))?;
    process::capture(apt("apt-get", scratch).arg("download").args(names))?;
    let fresh = scratch.join("fresh");
    let paths = fs::read_dir(scratch)?.filter_map(|entry| Some(entry.ok()?.path()));
    let packages: Vec<PathBuf> = paths.filter(|path| path.extension() == Some(OsStr::new("deb"))).collect();
    anyhow::ensure!(!packages.is_empty(), "apt-get downloaded nothing");
    for package in packages {
        process::capture(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&fresh))?;
    }
    Ok(fresh)
}

/// Puts a folder in place, whole.
pub(crate) fn put(fresh: &Path, place: &Path) -> Result<()> {
    fs::write(fresh.join(COMPLETE), "").with_context(|| format!("cannot write in {}", fresh.display()))?;
    fs::rename(fresh, place).with_context(|| format!("cannot put {} in place", place.display()))
}

/// A program of apt in the scratch folder, with the system's sources and keys and nothing else of the system's.
fn apt(program: &str, scratch: &Path) -> Command {
    let mut command = Command::new(program);
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
    fn apt_is_kept_to_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let command = apt("apt-get", folder.path());
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        for option in ["Dir::State::Lists", "Dir::Cache"] {
            let expected = format!("{option}={}", folder.path().display());
            assert!(args.iter().any(|arg| arg.starts_with(&expected)), "{args:?}");
        }
    }
}
