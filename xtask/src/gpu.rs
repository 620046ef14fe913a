//! `cargo xtask gpu-check`: the programs that a GPU is measured with, built for release and laid out in one folder, and the
//! list of measurements run on them. The list is `tests/gpu/check.py`, which a machine with a GPU and without cargo runs by
//! itself on a folder that `--pack` made elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::setup::{self, Environment, Need};
use crate::{paths, process};

/// What is built, and where cargo puts it below `target/release`.
const PROGRAMS: [(&str, &str); 5] = [
    ("windowpane", "windowpane"),
    ("windowpane-trainer", "windowpane-trainer"),
    ("device", "examples/device"),
    ("throughput", "examples/throughput"),
    ("attention_plans", "examples/attention_plans"),
];

#[derive(Args)]
pub(crate) struct GpuArgs {
    /// Only lay the programs out in this folder, for a machine without cargo
    #[arg(long, value_name = "DIR")]
    pub(crate) pack: Option<PathBuf>,
    /// Handed on to the list of measurements
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    pub(crate) args: Vec<OsString>,
}

pub(crate) fn run(args: &GpuArgs) -> Result<()> {
    let cpu = args.args.windows(2).any(|pair| pair[0] == "--device" && pair[1] == "cpu")
        || args.args.iter().any(|word| word == "--device=cpu");
    if args.pack.is_none() && args.args.iter().any(|word| word == "--list") {
        return list(&target().join("gpu"), args, &Environment::default()); // needs no programs
    }
    // What is packed runs elsewhere, with the libraries that are there.
    let needs: &[Need] = match (&args.pack, cpu) {
        (Some(_), _) => &[Need::Libtorch],
        (None, true) => &[Need::Libtorch, Need::Ort],
        (None, false) => &[Need::Libtorch, Need::OrtCuda],
    };
    let environment = setup::ensure(needs)?;
    let mut build = process::cargo(["build", "--release", "--workspace"]);
    build.args(["--bin", "windowpane", "--bin", "windowpane-trainer"]);
    build.args(["--example", "device", "--example", "throughput", "--example", "attention_plans"]);
    process::run(environment.apply(&mut build))?;
    let folder = match &args.pack {
        Some(folder) => std::path::absolute(folder).context("the current folder is gone")?,
        None => target().join("gpu"),
    };
    pack(&folder)?;
    if args.pack.is_some() {
        eprintln!(
            "packed: {}\nOn the machine with the GPU, in this repository: python3 tests/gpu/check.py --binaries {}",
            folder.display(),
            folder.display()
        );
        return Ok(());
    }
    list(&folder, args, &environment)
}

/// Becomes the list of measurements, of the programs in this folder.
fn list(folder: &Path, args: &GpuArgs, environment: &Environment) -> Result<()> {
    let python = std::env::var_os("WINDOWPANE_PYTHON").unwrap_or_else(|| "python3".into());
    let mut list = Command::new(python);
    list.arg(paths::root().join("tests/gpu/check.py")).arg("--binaries").arg(folder).args(&args.args);
    process::become_it(environment.apply(&mut list))
}

/// Lays the programs out, without the symbols that nobody debugs there, and says which commit they are of.
fn pack(folder: &Path) -> Result<()> {
    let show = |path: &Path| path.display().to_string();
    std::fs::create_dir_all(folder).with_context(|| show(folder))?;
    for (name, built) in PROGRAMS {
        let (from, to) = (target().join("release").join(built), folder.join(name));
        // A program that runs is replaced, not written into.
        let fresh = folder.join(format!(".{name}"));
        std::fs::copy(&from, &fresh).with_context(|| show(&from))?;
        let stripped = Command::new("strip").arg(&fresh).status();
        if !stripped.is_ok_and(|status| status.success()) {
            eprintln!("note: {name} keeps its symbols, for want of `strip`");
        }
        std::fs::rename(&fresh, &to).with_context(|| show(&to))?;
    }
    let compiler = std::env::var_os("CC").filter(|value| !value.is_empty()).unwrap_or_else(|| "cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(folder.join("waits.so"));
    process::run(compile.arg(paths::root().join("tests/gpu/waits.c")).arg("-ldl"))?;
    let mut git = Command::new("git");
    let commit = process::capture(git.args(["rev-parse", "--short=12", "HEAD"]).current_dir(paths::root()));
    let Ok(commit) = commit else { bail!("the commit is not known: is this a clone?") };
    let changed = process::capture(
        Command::new("git")
            .args(["status", "--porcelain", "--untracked-files=no"])
            .current_dir(paths::root()),
    )?;
    let mark = if changed.is_empty() { "" } else { "+changes" };
    let path = folder.join("commit");
    std::fs::write(&path, format!("{}{mark}\n", commit.trim())).with_context(|| show(&path))
}

/// Cargo's folder of what it builds.
fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty());
    named.map_or_else(|| paths::root().join("target"), |named| paths::root().join(named))
}
