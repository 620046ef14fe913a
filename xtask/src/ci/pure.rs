//! The diffusion crate computes, and computes the same everywhere. Three looks at it: its dependencies are
//! on a short list; its sources name no part of the standard library that meets the world, and no function
//! whose last bit depends on the machine; and, where the wasm32 target is installed, it compiles for a
//! machine that has no world. (It would compile there even if it opened files, which then fail at run time;
//! hence the second look.)

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

/// The standard library takes these from the machine's C library; `libm`'s are the same on all. (A square
/// root is exact wherever it is computed.)
const UNSTEADY: [&str; 22] = [
    "exp", "exp2", "exp_m1", "ln", "ln_1p", "log", "log2", "log10", "sin", "cos", "tan", "sin_cos", "asin",
    "acos", "atan", "atan2", "sinh", "cosh", "tanh", "powf", "cbrt", "hypot",
];

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
        let whole = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = product(&whole);
        let name = file.strip_prefix(paths::root()).unwrap_or(&file).display().to_string();
        offences.extend(lines(text, is_worldly).map(|line| format!("{name}:{line} meets the world")));
        offences.extend(lines(text, is_unsteady).map(|line| format!("{name}:{line} computes without libm")));
    }
    if !offences.is_empty() {
        bail!("{}", offences.join(", "));
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

/// The file without the tests at its foot, which may do as they like.
fn product(text: &str) -> &str {
    text.split_once("\n#[cfg(test)]\nmod tests {").map_or(text, |(product, _)| product)
}

/// The numbers, from 1, of lines whose code, comments left off, is found guilty.
fn lines(text: &str, guilty: fn(&str) -> bool) -> impl Iterator<Item = usize> {
    let code = |line: &str| line.split("//").next().unwrap_or("").to_owned();
    text.lines().enumerate().filter(move |(_, line)| guilty(&code(line))).map(|(i, _)| i + 1)
}

/// Names a module that meets the world.
fn is_worldly(code: &str) -> bool {
    FORBIDDEN.iter().any(|module| names(code, &["std::"], module))
}

/// Calls a float's method that differs between machines.
fn is_unsteady(code: &str) -> bool {
    UNSTEADY.iter().any(|method| names(code, &[".", "f64::", "f32::"], method))
}

/// Whether a whole word stands in the code right behind one of the prefixes.
fn names(code: &str, prefixes: &[&str], word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        prefixes.iter().any(|prefix| before.ends_with(prefix)) && !after.starts_with(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All sources but `tests.rs`, the form of a foot too long for its file.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
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
        let text = "//! no std::fs here\nuse std::fmt;\nlet t = std::time::Instant::now(); // late\n\
                    use std::iter;\nlet x = 1; // std::env\nuse std::fs;\nuse std::ops::Range;\n";
        assert_eq!(lines(text, is_worldly).collect::<Vec<_>>(), [3, 6]);
    }

    #[test]
    fn unsteady_code_is_found_and_libm_is_not() {
        let text = "let a = x.sin();\nlet a = libm::sin(x);\nlet b = f64::exp(x);\nlet c = v.expect();\n\
                    let d = x.sqrt() + self.log_min;\nlet e = x.map(f32::tanh);\n";
        assert_eq!(lines(text, is_unsteady).collect::<Vec<_>>(), [1, 3, 6]);
    }

    #[test]
    fn tests_are_let_be() {
        assert_eq!(product("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    std::fs\n}\n"), "fn f() {}\n");
        let declared = "#[cfg(test)]\nmod tests;\n\nfn f() { std::fs }\n";
        assert_eq!(product(declared), declared);
    }

    #[test]
    fn the_crates_files_are_found() {
        let files = rust_files(&paths::root().join("diffusion/src")).unwrap();
        assert!(files.iter().any(|file| file.ends_with("lib.rs")), "{files:?}");
        assert!(!files.iter().any(|file| file.ends_with("tests.rs")), "{files:?}");
        assert!(rust_files(Path::new("/windowpane/nowhere")).is_err());
    }
}
