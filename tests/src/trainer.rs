//! The trainer as a process: it writes what no shipped package has. Without a libtorch there is none, and tests of what it
//! writes are passed over, and say so.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{REMEDY, process};

/// The name of package and executable.
const NAME: &str = "windowpane-trainer";

/// The trainer's executable.
#[derive(Debug)]
pub struct Trainer(PathBuf);

// === impl Trainer ===

impl Trainer {
    /// The one that `cargo xtask test` has built, or else the one cargo builds now; none where there is no libtorch to link it
    /// with, which has then been said.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Trainer>> = OnceLock::new();
        SHARED.get_or_init(Self::find).as_ref()
    }

    fn find() -> Option<Self> {
        if let Some(server) = process::built() {
            let path = server.with_file_name(format!("{NAME}{}", std::env::consts::EXE_SUFFIX));
            assert!(path.is_file(), "no `{}` beside the server; {REMEDY}", path.display());
            return Some(Self(path));
        }
        if std::env::var_os("LIBTORCH").is_none_or(|folder| folder.is_empty()) {
            // Past the capturing of the test: whoever reads the log shall know.
            let _ = writeln!(
                std::io::stderr(),
                "\nSKIPPED: tests of what the trainer writes: no LIBTORCH; {REMEDY}\n"
            );
            return None;
        }
        Some(Self(process::build(NAME, NAME)))
    }

    /// Runs it in a folder, to its end, and returns what it printed. Its failure is the test's, with all that it said.
    pub fn run(&self, folder: &Path, args: &[&str]) -> String {
        let mut command = Command::new(&self.0);
        command.current_dir(folder).args(args).env("WINDOWPANE_DEVICE", "cpu").stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
        out.into_owned()
    }
}
