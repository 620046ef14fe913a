//! `cargo xtask test`: sets up, builds what the suite starts as processes, runs every test of every crate,
//! and repeats cargo's own summary lines at the end, where a reader looks.

use std::ffi::OsString;
use std::io::Write;

use anyhow::Result;

use crate::setup::{self, Environment, Need};
use crate::{paths, process};

/// All that a test may need.
pub(crate) const NEEDS: [Need; 5] =
    [Need::Ort, Need::Libtorch, Need::Clients, Need::Prometheus, Need::Postgres];

/// What cargo and the test binaries said that is worth reading twice.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lines: Vec<String>,
    passed: u64,
    failed: u64,
    ignored: u64,
}

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let environment = setup::ensure(&NEEDS)?;
    let mut tally = Tally::default();
    let result = run_all(&environment, args, &mut tally);
    tally.print();
    result
}

/// Builds, then tests. Everything is built in one go first: a test binary is given the path of our
/// server, and cargo builds programs for the tests of their own package only. The same selection both
/// times, so that nothing is built twice.
pub(crate) fn run_all(environment: &Environment, args: &[OsString], tally: &mut Tally) -> Result<()> {
    let mut build = process::cargo(["build", "--workspace", "--lib", "--bins", "--tests"]);
    process::run(environment.apply(&mut build))?;
    let mut test = process::cargo(["test", "--no-fail-fast"]);
    if !selects_packages(args) {
        test.arg("--workspace");
    }
    test.args(args);
    test.env("WINDOWPANE_TEST_SERVER", paths::dev_binary("windowpane")?);
    process::watch(environment.apply(&mut test), |line| {
        // Nobody left to read us is no reason to stop the tests.
        let _ = writeln!(std::io::stdout(), "{line}");
        tally.note(line);
    })
}

fn selects_packages(args: &[OsString]) -> bool {
    let ours = args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    ours.into_iter().any(|arg| arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package="))
}

// === impl Tally ===

impl Tally {
    fn note(&mut self, line: &str) {
        let text = line.trim_start();
        if let Some(result) = text.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.ignored += count(result, "ignored");
            self.lines.push(format!("    {text}"));
        } else if text.starts_with("Running ") || text.starts_with("Doc-tests ") {
            self.lines.push(text.to_owned());
        } else if text.starts_with("test ") && text.ends_with(" FAILED") || text.starts_with("error") {
            self.lines.push(format!("    {text}"));
        }
    }

    pub(crate) fn print(&self) {
        println!("\nwhat cargo test said:");
        for line in &self.lines {
            println!("  {line}");
        }
        println!("  {}", self.total());
    }

    pub(crate) fn total(&self) -> String {
        format!("{} tests passed, {} failed, {} ignored", self.passed, self.failed, self.ignored)
    }
}

/// The number before a word in "ok. 12 passed; 0 failed; 1 ignored; …".
fn count(result: &str, word: &str) -> u64 {
    let words: Vec<&str> = result.split_whitespace().map(|w| w.trim_end_matches([';', '.'])).collect();
    let place = words.iter().position(|w| *w == word).and_then(|i| i.checked_sub(1));
    place.and_then(|i| words[i].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "   Compiling windowpane-diffusion v0.1.0",
            "     Running unittests src/lib.rs (target/debug/deps/a-1)",
            "test window::tests::symmetric ... ok",
            "test window::tests::border ... FAILED",
            "test result: FAILED. 11 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.50s",
            "   Doc-tests windowpane_diffusion",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
            "error: 1 target failed:",
        ] {
            tally.note(line);
        }
        assert_eq!(tally.total(), "14 tests passed, 1 failed, 2 ignored");
        assert_eq!(tally.lines.len(), 6, "{:?}", tally.lines);
        assert!(tally.lines[1].contains("window::tests::border ... FAILED"));
    }

    #[test]
    fn a_line_that_only_looks_like_a_summary_counts_nothing() {
        assert_eq!(count("ok. passed; failed", "passed"), 0);
        assert_eq!(count("", "passed"), 0);
    }

    #[test]
    fn naming_a_package_replaces_the_workspace() {
        let words = |text: &str| text.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        assert!(!selects_packages(&[]));
        assert!(selects_packages(&words("-p suite")) && selects_packages(&words("--package=suite")));
        assert!(!selects_packages(&words("--test suite -- -p")));
    }
}
