//! `cargo xtask openapi`: the suite's own test writes the document that it otherwise compares, so there is
//! one way to make it.

use anyhow::Result;

use crate::setup::{self, Need};
use crate::{paths, process};

pub(crate) fn run() -> Result<()> {
    let environment = setup::ensure(&[Need::Ort])?;
    // The examples first, as the running code answers; then the document, which the code is built with them in it to write.
    for test in ["openapi::examples", "openapi::openapi_document"] {
        let mut command = process::cargo(["test", "--package", "suite", "--test", "suite", test]);
        process::run(environment.apply(command.env("UPDATE_OPENAPI", "1")))?;
    }
    eprintln!(
        "wrote {}; read its diff before committing",
        paths::root().join("openapi/openapi.json").display()
    );
    Ok(())
}
