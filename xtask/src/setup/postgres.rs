//! PostgreSQL, on which the tests run what several servers share: what is on PATH or installed, or else the package of Debian
//! or Ubuntu (`debian.rs`).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::debian;

/// What the tests run.
const PROGRAMS: [&str; 2] = ["initdb", "postgres"];

/// The package lists, the packages and what is in them, with room to spare.
const BYTES_NEEDED: u64 = 500_000_000;

/// Its folder in the cache. apt chooses the version: whatever the system's own release has.
const FOLDER: &str = "postgresql-debian";

/// Where Debian puts every version, each in a folder of its own.
const VERSIONS: &str = "usr/lib/postgresql";

/// The folder with the programs.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH");
    if let Some(folder) = path.as_deref().and_then(on_path).or_else(|| below(Path::new("/"))) {
        return Ok(folder);
    }
    let place = debian::ensure(cache, FOLDER, BYTES_NEEDED, make).context(
        "PostgreSQL is neither on PATH nor to be had through apt; install it (Debian and Ubuntu: `apt-get install \
         postgresql`)",
    )?;
    below(&place).context("the package holds no programs")
}

fn make(scratch: &Path, place: &Path) -> Result<()> {
    eprintln!("fetching PostgreSQL, for the tests, into {}", place.display());
    let fresh = debian::unpack(scratch, |apt| {
        let depends = process::capture(apt("apt-cache").args(["depends", "postgresql"]))?;
        let name = newest(&depends).context("`apt-cache depends postgresql` names no version of it")?;
        Ok(vec![name])
    })?;
    let folder = below(&fresh).context("the package holds no programs")?;
    // Its libraries are the system's; where they are not there, that is said here.
    for name in PROGRAMS {
        process::capture(Command::new(folder.join(name)).arg("--version"))?;
    }
    debian::put(&fresh, place)
}

/// The package that the one without a version stands for.
fn newest(depends: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let is_version = |name: &&str| {
        name.strip_prefix("postgresql-").is_some_and(|version| version.bytes().all(|b| b.is_ascii_digit()))
    };
    names.filter(is_version).map(str::to_owned).next()
}

/// The first folder of a PATH that has them.
fn on_path(path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).find(|folder| has_programs(folder))
}

/// The folder of some version below a root.
fn below(root: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(root.join(VERSIONS)).ok()?;
    let folders = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    folders.filter(|folder| has_programs(folder)).max()
}

fn has_programs(folder: &Path) -> bool {
    PROGRAMS.iter().all(|name| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_looked_for_where_debian_puts_them() {
        let root = tempfile::tempdir().unwrap();
        let folder = |version: &str| root.path().join(VERSIONS).join(version).join("bin");
        assert_eq!(below(root.path()), None);
        for (version, names) in [("15", &PROGRAMS[..]), ("17", &PROGRAMS[..1])] {
            fs::create_dir_all(folder(version)).unwrap();
            names.iter().for_each(|name| fs::write(folder(version).join(name), "").unwrap());
        }
        assert_eq!(below(root.path()), Some(folder("15")));
        assert_eq!(on_path(folder("15").as_os_str()), Some(folder("15")));
        assert_eq!(on_path(folder("17").as_os_str()), None);
    }

    #[test]
    fn the_version_is_that_of_the_dependency() {
        let said = "postgresql\n  Depends: postgresql-common\n  Depends: postgresql-15\n  Suggests: postgresql-doc\n";
        assert_eq!(newest(said).as_deref(), Some("postgresql-15"));
        assert_eq!(newest("postgresql\n"), None);
    }
}
