//! Our own binary as a process: what only a process has, signals, exit codes and what it says on its way out.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{REMEDY, root};

/// Time that the binary has to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running `windowpane`; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

/// How a process ended.
#[derive(Debug)]
pub struct Exit {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it said on standard error; empty where that was sent elsewhere.
    pub errors: String,
    /// The lines that it printed, but for those that were looked through for an address.
    pub lines: Vec<String>,
}

// === impl Process ===

impl Process {
    /// Starts it with these arguments and no configuration from this process's environment but where ONNX Runtime is.
    pub fn windowpane(args: &[&str]) -> Self {
        Self::spawn(args, |_| {})
    }

    /// The same, with these variables.
    pub fn with_variables(args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(args, |command| _ = command.envs(variables.iter().copied()))
    }

    /// The same with something else about it: another place for its standard error.
    pub fn spawn(args: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WINDOWPANE_"))
        {
            command.env_remove(name);
        }
        // No server of the tests takes up what another has in the home of whoever runs them.
        command.env("WINDOWPANE_JOBS", "off");
        change(&mut command);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (send, lines) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            let out = BufReader::new(out);
            // Ends with the pipe, or with the receiver.
            std::thread::spawn(move || {
                out.lines().map_while(Result::ok).try_for_each(|line| send.send(line))
            });
        }
        let errors = child.stderr.take().map(|mut err| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = err.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        Self { child, lines, errors }
    }

    /// The address it serves at, once it does.
    pub fn url(&mut self) -> String {
        self.url_or_end().unwrap_or_else(|| {
            let _ = self.child.kill();
            panic!("it did not say that it serves; it said: {}", self.end().errors)
        })
    }

    /// The same, or `None` if it says no such thing and closes its output, as it does when it ends.
    pub fn url_or_end(&mut self) -> Option<String> {
        let start = Instant::now();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            if let Some((_, url)) = line.split_once(" is serving at ") {
                return Some(url.trim().to_owned());
            }
        }
        None
    }

    /// Where its metrics are, once it has said where it serves.
    pub fn metrics_url(&mut self) -> String {
        let start = Instant::now();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE.saturating_sub(start.elapsed())) {
            if let Some((_, rest)) = line.split_once("metrics at ") {
                return rest.split(';').next().unwrap_or(rest).to_owned();
            }
        }
        panic!("it did not say where its metrics are")
    }

    /// Its resident memory.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that its resident memory has been since it was last forgotten.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Forgets how large its resident memory was: from now on the peak is what it is.
    pub fn forget_peak(&self) {
        // proc(5): 5 resets the peak.
        let path = format!("/proc/{}/clear_refs", self.child.id());
        std::fs::write(&path, "5").unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    fn memory(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a process has memory");
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of kB");
        kilobytes * 1024
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal. The shell's own `kill` is always there.
    pub fn signal(&self, signal: &str) {
        let command = format!("kill -{signal} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("there is a shell");
        assert!(status.success(), "{command}: {status}");
    }

    /// Waits for its end.
    pub fn end(&mut self) -> Exit {
        let start = Instant::now();
        let status: ExitStatus = loop {
            match self.child.try_wait().expect("our own child can be waited for") {
                Some(status) => break status,
                None if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
                None => {
                    let _ = self.child.kill();
                    panic!("it did not end in {PATIENCE:?}; it said: {}", self.said())
                }
            }
        };
        Exit { code: status.code(), errors: self.said(), lines: self.lines.iter().collect() }
    }

    fn said(&mut self) -> String {
        self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's executable: the one `cargo xtask test` has built, or else the one cargo builds now.
fn binary() -> &'static PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built().unwrap_or_else(|| build("windowpane-server", "windowpane")))
}

/// The server's executable that `cargo xtask test` has built, all others beside it; none where that is not what runs us.
pub(crate) fn built() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("WINDOWPANE_TEST_SERVER").filter(|path| !path.is_empty())?);
    assert!(
        path.is_file(),
        "WINDOWPANE_TEST_SERVER names `{}`, which is not there; {REMEDY}",
        path.display()
    );
    Some(path)
}

/// An executable of a package, which cargo builds now, in the profile of this test: it makes none of other packages for a test
/// by itself.
pub(crate) fn build(package: &str, name: &str) -> PathBuf {
    // target/<profile>/deps/suite-<hash>
    let own = std::env::current_exe().expect("a running test has a path");
    let profile = own.ancestors().nth(2).expect("a test lies in target/<profile>/deps");
    let path = profile.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", package, "--bin", name]).current_dir(root());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("{cargo:?}: {error}"));
    assert!(status.success() && path.is_file(), "{name} is not built: {cargo:?}: {status}; {REMEDY}");
    path
}
