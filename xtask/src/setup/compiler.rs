//! torch-sys compiles C++; without a compiler it fails late and at length, so it is looked for first.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// The compiler that build scripts will call: `$CXX`, or `c++`.
pub(crate) fn name(cxx: Option<OsString>) -> OsString {
    cxx.filter(|value| !value.is_empty()).unwrap_or_else(|| "c++".into())
}

pub(crate) fn check(compiler: &OsStr) -> Result<()> {
    // `CXX="ccache g++"` is a command with its first argument, to build scripts as to us.
    let text = compiler.to_string_lossy();
    let mut words = text.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !command.status().is_ok_and(|status| status.success()) {
        bail!(
            "no C++ compiler: `{} --version` does not run, and the trainer's bindings to libtorch need one; \
             on Debian and Ubuntu: apt-get install g++",
            compiler.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_wins() {
        assert_eq!(name(Some("clang++".into())), "clang++");
        assert_eq!(name(Some("".into())), "c++");
        assert_eq!(name(None), "c++");
    }

    #[test]
    fn a_missing_compiler_is_named_with_its_remedy() {
        let error = check(OsStr::new("windowpane-no-compiler")).unwrap_err().to_string();
        assert!(error.contains("windowpane-no-compiler") && error.contains("apt-get install g++"), "{error}");
        assert!(check(OsStr::new("false")).is_err(), "one that fails is none");
        check(OsStr::new("env true")).unwrap();
        assert!(check(OsStr::new("env false")).is_err(), "a wrapper without a compiler is none");
    }
}
