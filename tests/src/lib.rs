//! What the suite stands on: a real server on a free port, its answers, our own binaries as processes, model packages to
//! break, a PostgreSQL, the Python of the foreign clients, a reader of ONNX files and of PNGs' notes, and the load laboratory of `benches/serve.rs`. The
//! tests themselves are in `suite/`.
//!
//! Tests are plain functions: the one async runtime of the process is in here. So is the one ONNX Runtime, which the
//! server itself loads; every test of the binary shares both.

mod answer;
pub mod fuzz;
pub mod load;
pub mod onnx;
mod package;
pub mod png;
mod postgres;
mod process;
mod prometheus;
mod python;
mod random;
mod server;
pub mod soak;
mod trainer;
pub mod wire;

use std::path::{Path, PathBuf};

pub use answer::{Answer, decode};
pub use package::{Package, keys, sha256};
pub use postgres::Postgres;
pub use process::{Exit, Process};
pub use prometheus::{Prometheus, promtool};
pub use python::{pip_install, python, python_start};
pub use random::Random;
pub use server::TestServer;
pub use trainer::Trainer;

/// The one line of help for whatever a test needs and the machine lacks.
const REMEDY: &str = "`cargo xtask test` sets everything up and runs the tests";

/// Where images are asked for.
pub const IMAGES: &str = "/v1/images/generations";

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository, anything else is a bug")
}

/// The shipped package of this name. A test that needs it fails without it.
pub fn shipped(name: &str) -> PathBuf {
    let folder = root().join("models").join(name);
    assert!(
        folder.join("manifest.json").is_file(),
        "the package models/{name} is part of the repository and missing"
    );
    folder
}

/// The folders of all shipped packages, in order of name.
pub fn all_shipped() -> Vec<PathBuf> {
    windowpane_server::engine::package::find(&root().join("models")).unwrap_or_else(|error| panic!("{error}"))
}
