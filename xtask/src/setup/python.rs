//! The Python that runs pip. Nothing of ours is Python; it is how the wheels come, and what the suite's
//! foreign clients are.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A Python that was seen to run.
#[derive(Debug)]
pub(crate) struct Python {
    program: OsString,
    /// As `sys.version` says it, in one line: tells one installation from another.
    pub version: String,
}

impl Python {
    pub(crate) fn find() -> Result<Self> {
        Self::at(OsStr::new("python3"))
    }

    fn at(program: &OsStr) -> Result<Self> {
        const REMEDY: &str = "on Debian and Ubuntu: apt-get install python3 python3-pip";
        let mut command = Command::new(program);
        command.args(["-c", "import sys; print(sys.version.replace('\\n', ' '), sys.base_prefix)"]);
        let output = match command.stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("no python3 on the PATH, which is needed to download libraries; {REMEDY}")
            }
            Err(error) => return Err(error).context("cannot start python3"),
        };
        if !output.status.success() {
            let said = last_line(&output.stderr);
            bail!("python3 is on the PATH but does not run ({}: {said}); {REMEDY}", output.status);
        }
        Ok(Self {
            program: program.to_owned(),
            version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        })
    }

    /// Makes sure that it is 3.`minor` or newer.
    pub(crate) fn check_version(&self, minor: u32) -> Result<()> {
        let mut numbers =
            self.version.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        let own = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if own < (3, minor) {
            bail!("python3 is version {}.{}, and the tests' clients need 3.{minor} or newer", own.0, own.1);
        }
        Ok(())
    }

    /// Makes sure that it has pip.
    pub(crate) fn check_pip(&self) -> Result<()> {
        let output = self.command(["-m", "pip", "--version"]).output().context("cannot start python3")?;
        if !output.status.success() {
            bail!(
                "pip is needed to download libraries, but `python3 -m pip --version` says: {}; \
                 on Debian and Ubuntu: apt-get install python3-pip",
                last_line(&output.stderr)
            );
        }
        Ok(())
    }

    /// pip, quiet and without questions, its settings (index, proxy, certificates) being the user's own. Its
    /// temporary files go to `scratch`, on the file system whose space was looked at. It keeps no cache:
    /// half a gigabyte twice is enough.
    pub(crate) fn pip<'a>(&self, args: impl IntoIterator<Item = &'a str>, scratch: &Path) -> Command {
        let mut command = self.command(["-m", "pip"]);
        command.args(args).env("TMPDIR", scratch);
        command.args([
            "--disable-pip-version-check",
            "--no-input",
            "--no-cache-dir",
            "--progress-bar",
            "off",
        ]);
        command
    }

    pub(crate) fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null()).env_remove("PYTHONPATH").env_remove("PYTHONHOME");
        command
    }
}

fn last_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("nothing")
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_python_is_said_with_its_remedy() {
        let error = Python::at(OsStr::new("windowpane-no-python")).unwrap_err();
        assert!(format!("{error:#}").contains("apt-get install python3 python3-pip"), "{error:#}");
        let error = Python::at(OsStr::new("false")).unwrap_err();
        assert!(format!("{error:#}").contains("does not run (exit status: 1: nothing)"), "{error:#}");
    }

    #[test]
    fn an_old_python_is_told_from_a_new_one() {
        let python = |version: &str| Python { program: "python3".into(), version: version.to_owned() };
        python("3.11.7 (main, Apr  2 2024) [GCC 12.2.0] /usr").check_version(11).unwrap();
        python("3.13.0rc1 (main)").check_version(11).unwrap();
        python("4.0.0").check_version(11).unwrap();
        let error = python("3.9.2 (default)").check_version(11).unwrap_err().to_string();
        assert!(error.contains("version 3.9") && error.contains("3.11 or newer"), "{error}");
        assert!(python("").check_version(11).is_err());
    }

    #[test]
    fn no_pip_is_said_with_its_remedy() {
        let python = Python { program: "false".into(), version: String::new() };
        let error = python.check_pip().unwrap_err().to_string();
        assert!(error.contains("apt-get install python3-pip"), "{error}");
    }

    #[test]
    fn the_last_line_with_words_is_the_one_that_counts() {
        assert_eq!(last_line(b"Traceback\n  ModuleNotFoundError: pip\n\n"), "ModuleNotFoundError: pip");
        assert_eq!(last_line(b""), "nothing");
    }
}
