//! Where things are: the repository, the user's cache folder, the binaries cargo built.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The repository's root: the folder that holds `xtask/`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask/ lies in the repository, anything else is a bug")
}

/// `$XDG_CACHE_HOME/windowpane`, or `~/.cache/windowpane`. It outlives every clone, so that a fresh one
/// downloads nothing again.
pub(crate) fn cache() -> Result<PathBuf> {
    cache_from(std::env::var_os("XDG_CACHE_HOME").as_deref(), std::env::var_os("HOME").as_deref())
}

/// The XDG base directory specification says that a relative `XDG_CACHE_HOME` is to be ignored.
fn cache_from(xdg: Option<&OsStr>, home: Option<&OsStr>) -> Result<PathBuf> {
    let absolute = |value: Option<&OsStr>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(xdg)
        .or_else(|| absolute(home).map(|home| home.join(".cache")))
        .map(|base| base.join("windowpane"))
        .context("no folder to download into: neither HOME nor XDG_CACHE_HOME is set to an absolute path")
}

/// A binary of the workspace in the dev profile, beside this one.
pub(crate) fn dev_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of the running xtask is unknown")?;
    Ok(own.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_prefers_xdg_then_home() {
        let cache =
            |xdg: Option<&str>, home: Option<&str>| cache_from(xdg.map(OsStr::new), home.map(OsStr::new));
        assert_eq!(cache(Some("/x"), Some("/h")).unwrap(), Path::new("/x/windowpane"));
        assert_eq!(cache(Some("relative"), Some("/h")).unwrap(), Path::new("/h/.cache/windowpane"));
        assert_eq!(cache(Some(""), Some("/h")).unwrap(), Path::new("/h/.cache/windowpane"));
        assert_eq!(cache(None, Some("/h")).unwrap(), Path::new("/h/.cache/windowpane"));
        assert!(cache(None, None).unwrap_err().to_string().contains("HOME"));
    }

    #[test]
    fn root_holds_the_workspace() {
        assert!(root().join("Cargo.toml").is_file() && root().join("xtask").is_dir());
    }
}
