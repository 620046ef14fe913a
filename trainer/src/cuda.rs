//! Where is libtorch's part for GPUs? The trainer is linked with the part for CPUs alone, so that one program runs on every
//! machine; the other part has to be in the process before libtorch is first asked for a device. Where it lies beside the
//! first, the process begins anew with it preloaded: the loader does that without a line of unsafe code, and the process
//! keeps its number, so that its signals still find it.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The part for CPUs, which is always there.
const CPU: &str = "libtorch_cpu.so";

/// The part for GPUs.
const CUDA: &str = "libtorch_cuda.so";

/// The loader's variable.
const PRELOAD: &str = "LD_PRELOAD";

/// Set in the process that has begun anew: it does so once, whatever came of it.
const MARK: &str = "WINDOWPANE_TRAINER_BEGAN_ANEW";

/// Brings libtorch's part for GPUs into the process, if it lies beside the one for CPUs. Call it before libtorch is asked for
/// a device, and before other threads start: the process may begin anew. Without such a part nothing happens, and libtorch
/// sees no GPU.
pub fn load() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let preloaded = std::env::var_os(PRELOAD).unwrap_or_default();
    if std::env::var_os(MARK).is_some() {
        return;
    }
    let Some(library) = missing(&maps, |path| path.is_file()) else { return };
    let Ok(program) = std::env::current_exe() else { return };
    let mut all = library.into_os_string();
    if !preloaded.is_empty() {
        all.push(":");
        all.push(&preloaded);
    }
    // A library whose own libraries are missing would end the process before its first line.
    let trial = Command::new("true").env(PRELOAD, &all).output();
    if !trial.is_ok_and(|trial| trial.status.success()) {
        return eprintln!("warning: {CUDA} lies beside libtorch and does not load");
    }
    let args = std::env::args_os().skip(1);
    let error = Command::new(program).args(args).env(PRELOAD, all).env(MARK, "1").exec();
    eprintln!("warning: cannot begin anew with {CUDA}: {error}");
}

/// The words for a GPU that was asked for and is not there.
pub fn none_seen(asked: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let count = tch::Cuda::device_count();
    let folder =
        folder(&maps).map_or_else(|| "libtorch".to_owned(), |at| format!("the libtorch in {}", at.display()));
    if mapped(&maps, CUDA).is_some() {
        format!(
            "`--device {asked}`: {folder} sees {count} CUDA devices; `nvidia-smi` shows those that the driver has"
        )
    } else {
        format!(
            "`--device {asked}`: {folder} has no {CUDA}, or it does not load; LD_LIBRARY_PATH names the folder of one \
             with it, such as that of the Python package torch"
        )
    }
}

/// The part for GPUs, where it is there and not in the process.
fn missing(maps: &str, is_there: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let library = folder(maps)?.join(CUDA);
    (mapped(maps, CUDA).is_none() && is_there(&library)).then_some(library)
}

/// The folder that libtorch was loaded from.
fn folder(maps: &str) -> Option<PathBuf> {
    mapped(maps, CPU)?.parent().map(Path::to_owned)
}

/// The path of a library in the process, by its name, as `/proc/self/maps` tells it: five columns before the path.
fn mapped(maps: &str, name: &str) -> Option<PathBuf> {
    let path = |line: &str| line.find('/').map(|at| PathBuf::from(OsString::from(&line[at..])));
    maps.lines().filter_map(path).find(|path| path.file_name() == Some(OsStr::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000001000 r-xp 00000000 fe:00 1 /opt/torch/lib/libtorch_cpu.so
7f0000002000-7f0000003000 rw-p 00000000 00:00 0 
7f0000004000-7f0000005000 r-xp 00000000 fe:00 2 /lib/libc.so.6
";

    #[test]
    fn what_lies_beside_libtorch_is_missing_until_it_is_in_the_process() {
        let library = Path::new("/opt/torch/lib/libtorch_cuda.so");
        let there = |path: &Path| path == library;
        assert_eq!(missing(MAPS, there).as_deref(), Some(library));
        assert_eq!(missing(MAPS, |_| false), None);
        assert_eq!(missing("", |_| true), None);
        let with = format!("{MAPS}7f00-7f01 r-xp 00000000 fe:00 3 {}\n", library.display());
        assert_eq!(missing(&with, there), None);
    }
}
