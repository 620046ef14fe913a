//! Other programs: cargo with a clean environment, output captured or handed through, and errors that say
//! what was run.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::paths;

/// Cargo, in the repository's root, without the variables that `cargo run` put here for us: some build
/// scripts watch them, and would build again each time that one command follows another.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(paths::root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// The command as one would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| {
            let word = word.to_string_lossy();
            if word.is_empty() || word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs it, its output where ours goes; an error unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs it and returns what it wrote to stdout; stderr becomes part of the error.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", shown(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not UTF-8", shown(command)))
}

/// Runs it with both of its streams on one pipe, so that their order is kept, and gives every line to `line`.
pub(crate) fn watch(command: &mut Command, mut line: impl FnMut(&str)) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot make a pipe")?;
    let mut child = command
        .stdout(writer)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The command still holds the writing ends; while it does, the reader never sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).context("cannot read from the pipe")? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    let status = child.wait().with_context(|| format!("lost `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Becomes the other program: its signals, terminal and exit status are its own from here on. Returns only
/// if it cannot start.
pub(crate) fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(anyhow!(error).context(format!("cannot start `{}`", shown(command))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn shown_quotes_what_has_spaces() {
        assert_eq!(shown(&sh("exit 3")), "sh -c 'exit 3'");
        assert_eq!(shown(&Command::new("/usr/bin/env")), "env");
    }

    #[test]
    fn failures_say_command_status_and_stderr() {
        let error = capture(&mut sh("echo out; echo bad news >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("bad news"), "{error}");
        let error = run(&mut Command::new("windowpane-no-such-program")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot start `windowpane-no-such-program`"), "{error:#}");
    }

    #[test]
    fn watch_sees_both_streams_in_order_and_the_status() {
        let mut lines = Vec::new();
        watch(&mut sh("echo one; echo two >&2; printf three"), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert!(watch(&mut sh("exit 7"), |_| ()).unwrap_err().to_string().contains("exit status: 7"));
    }

    #[test]
    fn cargo_is_freed_of_what_cargo_run_set() {
        let removed: Vec<_> = cargo(["build"])
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(k, _)| k.to_owned())
            .collect();
        assert!(removed.iter().any(|name| name == "CARGO_MANIFEST_DIR"), "{removed:?}");
    }
}
