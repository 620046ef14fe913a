//! The diffusion crate computes and does nothing else. Three looks at it: its dependencies are on a short
//! list, its sources name no part of the standard library that meets the world, and, where the wasm32 target
//! is installed, it compiles for a machine that has no world. (It would compile there even if it opened
//! files, which then fail at run time; hence the second look.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::report::Outcome;
use crate::{paths, process};

const CRATE: &str = "windowpane-diffusion";
const WASM: &str = "wasm32-unknown-unknown";

/// Mathematics, words for data and errors. A crate is added here only after seeing that it does no input or
/// output.
const ALLOWED: [&str; 9] =
    [CRATE, "itoa", "libm", "memchr", "serde", "serde_core", "serde_json", "thiserror", "zmij"];

/// Files, sockets, clocks, variables, threads, processes, terminals.
const FORBIDDEN: [&str; 9] = ["fs", "net", "time", "env", "thread", "process", "io", "os", "random"];

pub(crate) fn check() -> Result<Outcome> {
    let edges = "normal,no-proc-macro";
    let mut tree =
        process::cargo(["tree", "--package", CRATE, "--edges", edges, "--target", "all", "--prefix", "none"]);
    let tree = process::capture(tree.args(["--format", "{p}"]))?;
    let strangers = strangers(&tree);
    if !strangers.is_empty() {
        bail!("{CRATE} depends on {}, which xtask/src/ci/pure.rs does not list", strangers.join(", "));
    }
    let source = paths::root().join("diffusion/src");
    let mut offences = Vec::new();
    for file in rust_files(&source)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(paths::root()).unwrap_or(&file).display().to_string();
        offences.extend(worldly_lines(&text).into_iter().map(|line| format!("{name}:{line}")));
    }
    if !offences.is_empty() {
        bail!("{CRATE} meets the world at {}", offences.join(", "));
    }
    if !has_wasm()? {
        return Ok(Outcome::Passed(format!("dependencies and sources; the {WASM} target is not installed")));
    }
    process::run(&mut process::cargo(["check", "--package", CRATE, "--lib", "--target", WASM]))?;
    Ok(Outcome::Passed(format!("dependencies, sources and a build for {WASM}")))
}

fn strangers(tree: &str) -> Vec<&str> {
    let names = tree.lines().filter_map(|line| line.split_whitespace().next());
    let mut strangers: Vec<&str> = names.filter(|name| !ALLOWED.contains(name)).collect();
    strangers.sort_unstable();
    strangers.dedup();
    strangers
}

/// The numbers, from 1, of lines of code that name a forbidden module. Comments may.
fn worldly_lines(text: &str) -> Vec<usize> {
    let is_worldly = |line: &str| {
        let code = line.split("//").next().unwrap_or("");
        FORBIDDEN.iter().any(|module| {
            let path = format!("std::{module}");
            code.match_indices(&path).any(|(at, _)| !code[at + path.len()..].starts_with(is_word))
        })
    };
    text.lines().enumerate().filter(|(_, line)| is_worldly(line)).map(|(i, _)| i + 1).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn has_wasm() -> Result<bool> {
    let sysroot =
        process::capture(Command::new("rustc").args(["--print", "sysroot"]).current_dir(paths::root()))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib").join(WASM).join("lib").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_named_once() {
        let tree = "windowpane-diffusion v0.1.0 (/x)\nlibm v0.2\nrand v0.9\nserde v1 (*)\nrand v0.9 (*)\n";
        assert_eq!(strangers(tree), ["rand"]);
        assert!(strangers("windowpane-diffusion v0.1.0 (/x)\nlibm v0.2\n").is_empty());
    }

    #[test]
    fn worldly_code_is_found_and_comments_are_not() {
        let text = "//! no std::fs here\nuse std::fmt;\nlet t = std::time::Instant::now(); // late\nuse std::iter;\n\
                    let x = 1; // std::env\nuse std::fs;\nuse std::ops::Range;\n";
        assert_eq!(worldly_lines(text), [3, 6]);
    }

    #[test]
    fn the_crates_files_are_found() {
        let files = rust_files(&paths::root().join("diffusion/src")).unwrap();
        assert!(files.iter().any(|file| file.ends_with("lib.rs")), "{files:?}");
        assert!(rust_files(Path::new("/windowpane/nowhere")).is_err());
    }
}
