//! The Python environment of the suite's foreign clients: `tests/clients/requirements.txt` installed into
//! the cache, under a name that changes with that file and with the Python, so that every clone with the
//! same list shares it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

use crate::paths;
use crate::process;
use crate::setup::install::lock;
use crate::setup::python::Python;
use crate::setup::stamp::hex;
use crate::setup::{download, space};

/// What the packages take with some room to spare; measured at 440 MB.
const BYTES_NEEDED: u64 = 600_000_000;

/// The oldest Python 3 that the listed packages run on.
const OLDEST: u32 = 11;

/// Written last, by which an environment is known to be whole.
const COMPLETE: &str = ".complete";

/// The environment's Python.
pub(crate) fn ensure(cache: &Path) -> Result<PathBuf> {
    let list = paths::root().join("tests/clients/requirements.txt");
    let wanted = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let python = Python::find()?;
    let folder = cache.join(folder_name(&wanted, &python.version));
    let inner = folder.join("bin/python");
    if is_whole(&folder) {
        return Ok(inner);
    }
    let _lock = lock(cache)?;
    if is_whole(&folder) {
        return Ok(inner);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove the half-made {}", folder.display()))?;
    }
    python.check_version(OLDEST)?;
    python.check_pip()?;
    space::check(cache, BYTES_NEEDED)?;
    make(&python, &folder, &inner, &list).map_err(space::explain)?;
    Ok(inner)
}

/// pip is not put inside (Debian has it as a package of its own); the outer one installs into it, by
/// `--python`.
fn make(python: &Python, folder: &Path, inner: &Path, list: &Path) -> Result<()> {
    eprintln!("making the Python environment of the tests in {}", folder.display());
    process::capture(python.command(["-m", "venv", "--without-pip"]).arg(folder)).context(
        "python3 cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv",
    )?;
    let scratch = folder.join("tmp");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let inner = inner.to_str().context("the cache folder's path is not UTF-8, and pip needs it to be")?;
    let mut pip = python.pip(["--python", inner, "install", "--only-binary=:all:"], &scratch);
    let output = pip.arg("--requirement").arg(list).output().context("cannot start python3")?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let packages = format!("pip (22.3 or newer is needed) could not install {}", list.display());
        return Err(anyhow!(download::diagnosis(&log)).context(packages));
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    fs::write(folder.join(COMPLETE), "").with_context(|| format!("cannot write in {}", folder.display()))
}

/// The link to the outer Python breaks when that one is removed.
fn is_whole(folder: &Path) -> bool {
    folder.join(COMPLETE).is_file() && folder.join("bin/python").exists()
}

fn folder_name(requirements: &[u8], python: &str) -> String {
    let digest = Sha256::new().chain_update(requirements).chain_update([0]).chain_update(python).finalize();
    format!("clients-{}", &hex(&digest)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_the_list_and_the_python() {
        let name = folder_name(b"onnx==1\n", "3.11.2");
        assert_eq!(name.len(), "clients-".len() + 16);
        assert_eq!(name, folder_name(b"onnx==1\n", "3.11.2"));
        assert_ne!(name, folder_name(b"onnx==2\n", "3.11.2"));
        assert_ne!(name, folder_name(b"onnx==1\n", "3.12.0"));
    }

    #[test]
    fn half_made_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_whole(folder.path()));
        fs::write(folder.path().join(COMPLETE), "").unwrap();
        assert!(!is_whole(folder.path()), "no python");
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/python"), "").unwrap();
        assert!(is_whole(folder.path()));
    }
}
