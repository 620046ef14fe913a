//! The Python that foreign clients run in: the one `cargo xtask test` names, or else the newest that it has made.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use crate::{REMEDY, root};

/// Runs a script of `tests/clients/` and returns what it printed. Its failure is the test's, with all that it said.
pub fn python<'a>(script: &str, args: impl IntoIterator<Item = &'a str>) -> String {
    let mut command = command(script, args);
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{script} failed ({})\n{out}{err}", output.status);
    out.into_owned()
}

/// Starts a script of `tests/clients/` and leaves it running, its output piped to the caller.
pub fn python_start<'a>(script: &str, args: impl IntoIterator<Item = &'a str>) -> Child {
    let mut command = command(script, args);
    command.stdout(Stdio::piped()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Installs a package of this repository into a folder, as pip does for its users. It is built by what is listed for the foreign
/// clients, and no registry is asked.
pub fn pip_install(package: &Path, into: &Path) {
    let mut command = Command::new("python3");
    command
        .args(["-I", "-m", "pip", "--disable-pip-version-check", "--no-input", "--python"])
        .arg(interpreter());
    command.args(["install", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target"]);
    command.arg(into).arg(package).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed ({})\n{said}", output.status);
}

fn command<'a>(script: &str, args: impl IntoIterator<Item = &'a str>) -> Command {
    let script = root().join("tests/clients").join(script);
    let mut command = Command::new(interpreter());
    // Nobody's packages but the listed ones, no proxy between a client and this machine, no files left behind.
    command.arg("-I").arg("-B").arg(script).args(args).env("NO_PROXY", "*").stdin(Stdio::null());
    command
}

fn interpreter() -> PathBuf {
    if let Some(named) = std::env::var_os("WINDOWPANE_TEST_PYTHON").filter(|path| !path.is_empty()) {
        return named.into();
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    cache.and_then(|cache| newest(&cache.join("windowpane"))).unwrap_or_else(|| {
        panic!("no Python with the packages of tests/clients/requirements.txt; {REMEDY}, or name one by WINDOWPANE_TEST_PYTHON")
    })
}

/// The newest environment that is marked whole.
fn newest(cache: &Path) -> Option<PathBuf> {
    let whole = |folder: PathBuf| -> Option<(SystemTime, PathBuf)> {
        folder.file_name()?.to_str()?.strip_prefix("clients-")?;
        Some((folder.join(".complete").metadata().ok()?.modified().ok()?, folder.join("bin/python")))
    };
    let environments = std::fs::read_dir(cache).ok()?.filter_map(|entry| whole(entry.ok()?.path()));
    environments.max().map(|(_, python)| python)
}
