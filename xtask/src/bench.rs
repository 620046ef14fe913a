//! `cargo xtask bench`: the libraries that a benchmark needs, then `cargo bench` of it with whatever else was said.

use std::ffi::OsString;

use anyhow::Result;

use crate::process;
use crate::setup::{self, Need};

pub(crate) fn serve(args: &[OsString]) -> Result<()> {
    run(&[Need::Ort], ["bench", "--package", "suite", "--bench", "serve", "--"], args)
}

/// Not a benchmark, but as long, and in the same place.
pub(crate) fn soak(args: &[OsString]) -> Result<()> {
    run(&[Need::Ort], ["bench", "--package", "suite", "--bench", "soak", "--"], args)
}

pub(crate) fn window(args: &[OsString]) -> Result<()> {
    let needs = [Need::Ort, Need::Libtorch];
    run(&needs, ["bench", "--package", "windowpane-server", "--bench", "window", "--"], args)
}

fn run(needs: &[Need], target: [&str; 6], args: &[OsString]) -> Result<()> {
    let environment = setup::ensure(needs)?;
    process::become_it(environment.apply(process::cargo(target).args(args)))
}
