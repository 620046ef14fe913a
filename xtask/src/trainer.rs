//! `cargo xtask prepare|train|sample|eval|export|refresh|export-ops`: libtorch into the cache, the trainer built for
//! release, and this process becomes the trainer, so that Ctrl-C reaches it and saves.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::setup::{self, Need};
use crate::{paths, process};

/// The trainer's commands, in the order of a model's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Prepare,
    Train,
    Sample,
    Eval,
    Export,
    Refresh,
    ExportOps,
}

pub(crate) fn run(verb: Verb, args: &[OsString]) -> Result<()> {
    let environment = setup::ensure(&[Need::Libtorch])?;
    let mut command = process::cargo([
        "run",
        "--release",
        "--package",
        "windowpane-trainer",
        "--bin",
        "windowpane-trainer",
    ]);
    command
        .arg("--manifest-path")
        .arg(paths::root().join("Cargo.toml"))
        .arg("--")
        .arg(verb.word())
        .args(args);
    // Relative paths among the arguments are meant from where they were typed.
    command.current_dir(std::env::current_dir().context("the current folder is gone")?);
    process::become_it(environment.apply(&mut command))
}

// === impl Verb ===

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
            Self::Sample => "sample",
            Self::Eval => "eval",
            Self::Export => "export",
            Self::Refresh => "refresh",
            Self::ExportOps => "export-ops",
        }
    }
}
