//! The table at the end of `cargo xtask ci`: every check, what became of it, and how long it took. A check
//! that was not run says so and why; it never looks like one that passed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What became of a check.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With a remark, or an empty one.
    Passed(String),
    Failed(String),
    /// With the reason.
    NotRun(String),
}

struct Row {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

// === impl Report ===

impl Report {
    /// Runs a check and goes on whatever comes of it. Returns whether it passed.
    pub(crate) fn check(&mut self, name: &'static str, check: impl FnOnce() -> Result<Outcome>) -> bool {
        println!("\n=== {name} ===");
        let start = Instant::now();
        let outcome = check().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        if let Outcome::Failed(reason) | Outcome::NotRun(reason) = &outcome {
            println!("{reason}");
        }
        let passed = matches!(outcome, Outcome::Passed(_));
        self.rows.push(Row { name, outcome, took: start.elapsed() });
        passed
    }

    /// Prints the table; an error if any check failed.
    pub(crate) fn finish(&self) -> Result<()> {
        println!("\n{}", self.table());
        let failed: Vec<&str> = self
            .rows
            .iter()
            .filter(|row| matches!(row.outcome, Outcome::Failed(_)))
            .map(|row| row.name)
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }

    fn table(&self) -> String {
        let total: Duration = self.rows.iter().map(|row| row.took).sum();
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut lines: Vec<String> = self.rows.iter().map(|row| row.line(width)).collect();
        lines.push(format!("{:width$}  {:8}  {:>7}", "total", "", duration(total)));
        lines.join("\n")
    }
}

// === impl Row ===

impl Row {
    fn line(&self, width: usize) -> String {
        let (word, remark) = match &self.outcome {
            Outcome::Passed(remark) => ("passed", remark),
            Outcome::Failed(reason) => ("FAILED", reason),
            Outcome::NotRun(reason) => ("not run", reason),
        };
        // A reason of many lines was printed in full where it happened.
        let remark = remark.lines().next().unwrap_or("");
        format!("{:width$}  {word:8}  {:>7}  {remark}", self.name, duration(self.took)).trim_end().to_owned()
    }
}

/// Seconds below a minute, minutes and seconds above.
fn duration(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let seconds = took.as_secs();
    format!("{}m{:02}s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn one_failure_fails_all_and_is_named_but_stops_nothing() {
        let mut report = Report::default();
        assert!(report.check("formatting", || Ok(Outcome::Passed(String::new()))));
        assert!(
            !report.check("lints", || Err(anyhow!("`cargo clippy` ended with 101").context("two\nlines")))
        );
        assert!(!report.check("cargo-deny", || Ok(Outcome::NotRun("not installed".to_owned()))));
        assert!(report.check("tests", || Ok(Outcome::Passed("12 tests passed".to_owned()))));
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: lints");
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[1].starts_with("lints       FAILED") && lines[1].ends_with("two"), "{table}");
        assert!(lines[2].contains("not run") && lines[2].ends_with("not installed"), "{table}");
        assert!(lines[3].ends_with("12 tests passed"), "{table}");
    }

    #[test]
    fn what_was_not_run_does_not_fail() {
        let mut report = Report::default();
        report.check("cargo-deny", || Ok(Outcome::NotRun("not installed".to_owned())));
        report.finish().unwrap();
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(605)), "10m05s");
    }
}
