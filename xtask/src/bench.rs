//! `cargo xtask bench`: the libraries, then `cargo bench` with whatever else was said.

use std::ffi::OsString;

use anyhow::Result;

use crate::process;
use crate::setup::{self, Need};

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let environment = setup::ensure(&[Need::Ort, Need::Libtorch])?;
    process::become_it(environment.apply(process::cargo(["bench"]).args(args)))
}
