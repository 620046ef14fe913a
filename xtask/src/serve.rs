//! `cargo xtask serve`: ONNX Runtime into the cache, the server built for release, and this process becomes
//! the server, so that signals and the exit status are its own.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result};

use crate::setup::{self, Need};
use crate::{paths, process};

pub(crate) fn run(args: &[OsString]) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let device = value_of("--device", args).map(str::to_owned).or_else(|| variable("WINDOWPANE_DEVICE"));
    // A library named on the command line is the server's to look at; then nothing is to be set up.
    let needs = match value_of("--ort-dylib", args) {
        Some(_) => Vec::new(),
        None => vec![need(device.as_deref(), setup::has_ort_cuda()?)],
    };
    let environment = setup::ensure(&needs)?;
    let here = std::env::current_dir().context("the current folder is gone")?;
    let mut command =
        process::cargo(["run", "--release", "--package", "windowpane-server", "--bin", "windowpane"]);
    command.arg("--manifest-path").arg(paths::root().join("Cargo.toml")).arg("--");
    // Relative paths among the arguments are meant from where they were typed.
    if variable("WINDOWPANE_MODELS").is_none() {
        command.args(default_models(args, &here, paths::root()));
    }
    command.current_dir(&here).args(args);
    process::become_it(environment.apply(&mut command))
}

/// Which build of ONNX Runtime a device asks for. `auto` takes the CUDA build where `setup --cuda`
/// brought it; a download of 247 MB is not begun for a maybe.
fn need(device: Option<&str>, has_cuda: bool) -> Need {
    match device {
        Some("cuda") => Need::OrtCuda,
        Some("auto") if has_cuda => Need::OrtCuda,
        _ => Need::Ort,
    }
}

/// The server's default folder is `models` in the current folder; from elsewhere in the repository, it is
/// said where that is.
fn default_models(args: &[OsString], here: &Path, root: &Path) -> Vec<OsString> {
    let told = |flag| value_of(flag, args).is_some();
    if here == root || here.join("models").is_dir() || told("--models") || told("--config") {
        return Vec::new();
    }
    vec!["--models".into(), root.join("models").into()]
}

/// The value of a flag, given as `--flag value` or `--flag=value`; the last one counts.
fn value_of<'a>(flag: &str, args: &'a [OsString]) -> Option<&'a str> {
    let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or("")).collect();
    let mut value = None;
    for (i, word) in words.iter().enumerate() {
        match word.strip_prefix(flag) {
            Some("") => value = words.get(i + 1).copied(),
            Some(rest) if rest.starts_with('=') => value = Some(&rest[1..]),
            _ => {}
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_device_chooses_the_library() {
        for (args, has_cuda, expected) in [
            ("", true, Need::Ort),
            ("--device cpu", true, Need::Ort),
            ("--port 1 --device cuda", false, Need::OrtCuda),
            ("--device=cuda", false, Need::OrtCuda),
            ("--device auto", false, Need::Ort),
            ("--device auto", true, Need::OrtCuda),
            ("--device cuda --device cpu", true, Need::Ort),
            ("--device", true, Need::Ort),
            ("--devices cuda", false, Need::Ort),
        ] {
            assert_eq!(need(value_of("--device", &words(args)), has_cuda), expected, "{args}");
        }
    }

    #[test]
    fn models_are_the_repositorys_unless_told() {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join("trainer");
        std::fs::create_dir_all(root.path().join("models")).unwrap();
        std::fs::create_dir_all(&below).unwrap();
        let expected = vec![OsString::from("--models"), root.path().join("models").into()];
        assert_eq!(default_models(&[], &below, root.path()), expected);
        assert!(default_models(&[], root.path(), root.path()).is_empty());
        assert!(default_models(&words("--models /m"), &below, root.path()).is_empty());
        assert!(default_models(&words("--models=/m"), &below, root.path()).is_empty());
        std::fs::create_dir_all(below.join("models")).unwrap();
        assert!(default_models(&[], &below, root.path()).is_empty());
    }
}
