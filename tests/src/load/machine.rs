//! Where and with what it was measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::root;

/// The machine, the versions and the command.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Today in UTC, `2025-01-31`.
    pub date: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// `rustc --version`.
    pub rustc: String,
    /// The version of ONNX Runtime.
    pub onnxruntime: String,
    /// The commit, with `+changes` where the tree has some.
    pub commit: String,
    /// What was typed.
    pub command: String,
}

// === impl Machine ===

impl Machine {
    /// This one, now.
    pub fn look(onnxruntime: &str) -> Result<Self> {
        let changes = said("git", &["status", "--porcelain", "--untracked-files=no"])?;
        let commit = said("git", &["rev-parse", "--short=12", "HEAD"])?;
        let typed = std::env::args().skip(1).filter(|arg| arg != "--bench");
        let info = std::fs::read_to_string("/proc/cpuinfo").context("cannot read `/proc/cpuinfo`")?;
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        Ok(Self {
            date: said("date", &["-u", "+%Y-%m-%d"])?,
            processor: processor(&info).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            rustc: said(&rustc, &["--version"])?,
            onnxruntime: onnxruntime.to_owned(),
            commit: if changes.is_empty() { commit } else { commit + "+changes" },
            command: std::iter::once("cargo xtask bench serve".to_owned())
                .chain(typed)
                .collect::<Vec<_>>()
                .join(" "),
        })
    }

    /// A folder for this run among those of others: date and hardware, and a number from the second run of a day on.
    pub fn folder(&self, runs: &Path) -> PathBuf {
        let name = format!("{}-{}-{}-cores", self.date, slug(&self.processor), self.cores);
        let numbered = (2..).map(|number| runs.join(format!("{name}-{number}")));
        let mut folders = std::iter::once(runs.join(&name)).chain(numbered);
        folders.find(|folder| !folder.exists()).expect("there are more numbers than folders")
    }

    /// For the raw data.
    pub fn to_json(&self) -> Value {
        let Self { date, processor, cores, rustc, onnxruntime, commit, command } = self;
        json!({
            "date": date, "processor": processor, "cores": cores, "rustc": rustc, "onnxruntime": onnxruntime,
            "commit": commit, "command": command,
        })
    }
}

/// What a program says, on one line.
fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.with_context(|| format!("cannot start `{program}`"))?;
    ensure!(output.status.success(), "`{program} {}` ended with {}", args.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn processor(info: &str) -> &str {
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown processor", |(_, name)| name.trim())
}

/// Letters and digits, hyphens between them.
fn slug(name: &str) -> String {
    let word = |c: char| !c.is_ascii_alphanumeric();
    let words = name.split(word).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_by_date_and_hardware() {
        let info = "processor : 0\nmodel name\t: Some(R) CPU @ 2.10GHz\n";
        assert_eq!(processor(info), "Some(R) CPU @ 2.10GHz");
        assert_eq!(processor(""), "unknown processor");
        assert_eq!(slug(processor(info)), "some-r-cpu-2-10ghz");
    }

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::look("1.30.0").unwrap();
        assert!(machine.rustc.starts_with("rustc 1.") && machine.cores > 0 && machine.commit.len() >= 12);
        assert_eq!(machine.date.len(), 10, "{}", machine.date);
        let runs = tempfile::tempdir().unwrap();
        let first = machine.folder(runs.path());
        std::fs::create_dir(&first).unwrap();
        let second = machine.folder(runs.path());
        assert_eq!(second.to_str().unwrap(), format!("{}-2", first.display()));
    }
}
