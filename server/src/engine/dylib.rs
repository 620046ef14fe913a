//! Where is ONNX Runtime? The user's word first, then the cache folder that `cargo xtask setup` fills.

use std::path::{Path, PathBuf};

use crate::args::Device;

/// The version this server is built and tested with.
pub const VERSION: &str = "1.30.0";

/// The library was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DylibError {
    /// The user named a file that is not there.
    #[error("no ONNX Runtime library at `{0}`, which `--ort-dylib` or ORT_DYLIB_PATH names")]
    Named(PathBuf),
    /// The cache folder has none.
    #[error(
        "no ONNX Runtime library: run `cargo xtask setup`, or name one by `--ort-dylib` or ORT_DYLIB_PATH; looked at {}",
        .0.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
    )]
    Missing(Vec<PathBuf>),
}

/// Finds the library as an absolute path. A path is made absolute here, since the runtime's loader would take a
/// relative one from the folder of the executable.
pub fn locate(named: Option<&Path>, device: Device) -> Result<PathBuf, DylibError> {
    let env = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_owned).or(env) {
        return path.canonicalize().ok().filter(|p| p.is_file()).ok_or(DylibError::Named(path));
    }
    let candidates = candidates(&cache(), device);
    candidates
        .iter()
        .find_map(|path| path.canonicalize().ok().filter(|p| p.is_file()))
        .ok_or(DylibError::Missing(candidates))
}

/// What may be used for a device, best first. The CUDA build, named after its wheel, also runs on the CPU.
fn candidates(cache: &Path, device: Device) -> Vec<PathBuf> {
    let builds = match device {
        Device::Cpu => ["onnxruntime", "onnxruntime-gpu"],
        Device::Auto | Device::Cuda => ["onnxruntime-gpu", "onnxruntime"],
    };
    builds.map(|build| cache.join(format!("windowpane/{build}-{VERSION}/libonnxruntime.so.{VERSION}"))).into()
}

/// The user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`.
fn cache() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from(".cache"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_that_is_missing_is_an_error_that_names_it() {
        let error = locate(Some(Path::new("/nonexistent/libonnxruntime.so")), Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/libonnxruntime.so"), "{error}");
    }

    #[test]
    fn a_named_file_becomes_absolute() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("lib.so");
        std::fs::write(&file, b"").unwrap();
        assert_eq!(locate(Some(&file), Device::Cpu).unwrap(), file.canonicalize().unwrap());
    }

    #[test]
    fn the_device_decides_which_build_comes_first() {
        let first = |device| candidates(Path::new("/c"), device)[0].display().to_string();
        assert_eq!(first(Device::Cpu), "/c/windowpane/onnxruntime-1.30.0/libonnxruntime.so.1.30.0");
        assert_eq!(first(Device::Auto), "/c/windowpane/onnxruntime-gpu-1.30.0/libonnxruntime.so.1.30.0");
    }

    #[test]
    fn a_missing_library_says_how_to_get_one() {
        let error = DylibError::Missing(candidates(Path::new("/c"), Device::Cpu)).to_string();
        assert!(error.contains("cargo xtask setup") && error.contains("/c/windowpane/"), "{error}");
    }
}
