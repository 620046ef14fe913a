//! Everything that a build or a run needs and cargo does not bring: ONNX Runtime, libtorch, a C++ compiler,
//! the foreign programs of the tests. A command says what it needs with [`ensure`] and gets back the variables
//! to give its children; nothing is ever set in the user's own environment, and the same folder is told
//! every time, so that cargo does not build torch-sys again.

mod clients;
mod compiler;
mod debian;
mod download;
mod install;
pub(crate) mod pins;
mod postgres;
mod prometheus;
mod python;
mod space;
mod stamp;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::paths;
use crate::setup::stamp::Trust;

#[derive(Args)]
pub(crate) struct SetupArgs {
    /// Also set up ONNX Runtime for CUDA 13 (another 247 MB), which `serve --device cuda` uses
    #[arg(long)]
    cuda: bool,
    /// Leave out libtorch, which only the trainer needs
    #[arg(long)]
    no_libtorch: bool,
    /// Also set up the foreign programs of the tests: a Python environment with clients, Prometheus, PostgreSQL
    #[arg(long)]
    clients: bool,
    /// Read every library again and compare its digest, instead of its size and time
    #[arg(long)]
    verify: bool,
}

/// Something that a command cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// ONNX Runtime that computes on the CPU.
    Ort,
    /// ONNX Runtime that computes on CUDA devices as well.
    OrtCuda,
    /// libtorch, and a C++ compiler for the bindings.
    Libtorch,
    /// A Python with the packages that the suite drives the server with.
    Clients,
    /// Prometheus and `promtool`.
    Prometheus,
    /// PostgreSQL.
    Postgres,
}

/// Variables for child processes, and only for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment(Vec<(&'static str, OsString)>);

pub(crate) fn run(args: &SetupArgs) -> Result<()> {
    let trust = if args.verify { Trust::Nothing } else { Trust::Stamp };
    let mut needs = vec![Need::Ort];
    if args.cuda {
        needs.push(Need::OrtCuda);
    }
    if !args.no_libtorch {
        needs.push(Need::Libtorch);
    }
    if args.clients {
        needs.extend([Need::Clients, Need::Prometheus, Need::Postgres]);
    }
    let environment = ensure_trusting(&needs, trust)?;
    if args.cuda {
        report_missing_cuda_libraries(&environment);
    }
    eprintln!("set up:");
    for (name, value) in &environment.0 {
        eprintln!("  {name}={}", value.display());
    }
    Ok(())
}

pub(crate) fn print_env() -> Result<()> {
    for (name, value) in &ensure(&[Need::Ort, Need::Libtorch])?.0 {
        println!("export {name}='{}'", value.to_string_lossy().replace('\'', r"'\''"));
    }
    Ok(())
}

/// Brings about what is needed, or says what is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<Environment> {
    ensure_trusting(needs, Trust::Stamp)
}

fn ensure_trusting(needs: &[Need], trust: Trust) -> Result<Environment> {
    check_platform(std::env::consts::OS, std::env::consts::ARCH)?;
    if needs.contains(&Need::Libtorch) {
        // Asked first: half a gigabyte is a long way to go to hear that there is no compiler.
        compiler::check(&compiler::name(std::env::var_os("CXX")))?;
    }
    let mut environment = Environment::default();
    for need in needs {
        let (name, value) = match need {
            Need::Ort => ("ORT_DYLIB_PATH", ort(&pins::ONNXRUNTIME, trust)?),
            Need::OrtCuda => ("ORT_DYLIB_PATH", ort(&pins::ONNXRUNTIME_CUDA, trust)?),
            Need::Libtorch => ("LIBTORCH", libtorch(trust)?),
            Need::Clients => ("WINDOWPANE_TEST_PYTHON", clients::ensure(&paths::cache()?)?),
            Need::Prometheus => match prometheus::ensure(&paths::cache()?) {
                Ok(folder) => ("WINDOWPANE_TEST_PROMETHEUS", folder),
                // It comes from the system's packages, which not every Linux has. All other tests run without; those
                // that need it fail, and say so.
                Err(error) => {
                    eprintln!("note: the tests that need Prometheus will fail: {error:#}");
                    continue;
                }
            },
            // The same; but those that need it are passed over, and say so.
            Need::Postgres => match postgres::ensure(&paths::cache()?) {
                Ok(folder) => ("WINDOWPANE_TEST_POSTGRES", folder),
                Err(error) => {
                    eprintln!("note: the tests that need PostgreSQL will be skipped: {error:#}");
                    continue;
                }
            },
        };
        environment.set(name, value.into_os_string());
    }
    Ok(environment)
}

/// Whether ONNX Runtime for CUDA was set up here before. Its folder is looked at, not into; that is for
/// [`ensure`].
pub(crate) fn has_ort_cuda() -> Result<bool> {
    Ok(paths::cache()?.join(pins::ONNXRUNTIME_CUDA.folder()).is_dir())
}

fn check_platform(os: &str, arch: &str) -> Result<()> {
    if (os, arch) != ("linux", "x86_64") {
        bail!("this is {os} on {arch}; the libraries are set up for Linux on x86-64 only");
    }
    Ok(())
}

fn ort(package: &pins::Package, trust: Trust) -> Result<PathBuf> {
    if let Some(path) = chosen("ORT_DYLIB_PATH", "", std::env::var_os("ORT_DYLIB_PATH").as_deref())? {
        return Ok(path);
    }
    Ok(install::ensure(&paths::cache()?, package, trust)?.join(pins::ORT_LIBRARY))
}

fn libtorch(trust: Trust) -> Result<PathBuf> {
    if let Some(path) = chosen("LIBTORCH", "lib/libtorch_cpu.so", std::env::var_os("LIBTORCH").as_deref())? {
        return Ok(path);
    }
    install::ensure(&paths::cache()?, &pins::LIBTORCH, trust)
}

/// A variable that the user has set wins over our pinned libraries, is said, and must point at something.
fn chosen(variable: &str, inside: &str, value: Option<&OsStr>) -> Result<Option<PathBuf>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let path = Path::new(value);
    let file = if inside.is_empty() { path.to_owned() } else { path.join(inside) };
    if !path.is_absolute() {
        bail!(
            "{variable} is set to the relative path {}; give an absolute one, or unset it to use the pinned \
             library",
            path.display()
        );
    }
    if !file.is_file() {
        bail!(
            "{variable} is set to {}, but there is no file {}; unset it to use the pinned library",
            path.display(),
            file.display()
        );
    }
    eprintln!("using {variable}={} as set, instead of the pinned library", path.display());
    Ok(Some(path.to_owned()))
}

/// The CUDA build of ONNX Runtime finds CUDA's own libraries on the system, where the user put them; say
/// which ones it will miss.
fn report_missing_cuda_libraries(environment: &Environment) {
    let Some(library) = environment.get("ORT_DYLIB_PATH") else { return };
    let provider = Path::new(library).with_file_name("libonnxruntime_providers_cuda.so");
    let Ok(output) = Command::new("ldd").arg(&provider).output() else { return };
    let found = String::from_utf8_lossy(&output.stdout);
    let missing = missing_libraries(&found);
    if !missing.is_empty() {
        eprintln!(
            "note: ONNX Runtime for CUDA is in place, but this system lacks {}; install the NVIDIA driver, \
             CUDA 13 and cuDNN 9 before `cargo xtask serve --device cuda`",
            missing.join(", ")
        );
    }
}

/// What `ldd` could not find.
fn missing_libraries(ldd: &str) -> Vec<&str> {
    ldd.lines().filter_map(|line| line.trim().strip_suffix("=> not found")).map(str::trim).collect()
}

// === impl Environment ===

impl Environment {
    /// The last word about a variable counts.
    fn set(&mut self, name: &'static str, value: OsString) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str())
    }

    pub(crate) fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_platforms_are_named() {
        check_platform("linux", "x86_64").unwrap();
        let error = check_platform("macos", "aarch64").unwrap_err().to_string();
        assert!(error.contains("macos on aarch64") && error.contains("Linux on x86-64"), "{error}");
    }

    #[test]
    fn what_the_user_set_wins_if_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        let value = Some(folder.path().as_os_str());
        let error = chosen("LIBTORCH", "lib/libtorch_cpu.so", value).unwrap_err().to_string();
        assert!(error.contains("LIBTORCH") && error.contains("lib/libtorch_cpu.so"), "{error}");
        std::fs::write(folder.path().join("lib/libtorch_cpu.so"), "").unwrap();
        assert_eq!(chosen("LIBTORCH", "lib/libtorch_cpu.so", value).unwrap().as_deref(), Some(folder.path()));
        assert_eq!(chosen("LIBTORCH", "lib/libtorch_cpu.so", None).unwrap(), None);
        assert_eq!(chosen("LIBTORCH", "lib/libtorch_cpu.so", Some(OsStr::new(""))).unwrap(), None);
        assert!(
            chosen("LIBTORCH", "", Some(OsStr::new("here"))).unwrap_err().to_string().contains("relative")
        );
    }

    #[test]
    fn the_last_word_about_a_variable_counts() {
        let mut environment = Environment::default();
        environment.set("ORT_DYLIB_PATH", "cpu".into());
        environment.set("LIBTORCH", "torch".into());
        environment.set("ORT_DYLIB_PATH", "cuda".into());
        assert_eq!(environment.get("ORT_DYLIB_PATH"), Some(OsStr::new("cuda")));
        assert_eq!(environment.0.len(), 2);
        let mut command = Command::new("true");
        environment.apply(&mut command);
        assert!(command.get_envs().any(|(k, v)| k == "LIBTORCH" && v == Some(OsStr::new("torch"))));
    }

    #[test]
    fn ldd_is_read() {
        let ldd = "\tlinux-vdso.so.1 (0x1)\n\tlibcublas.so.13 => not found\n\
                   \tlibc.so.6 => /lib/libc.so.6 (0x2)\n\tlibcuda.so.1 => not found\n";
        assert_eq!(missing_libraries(ldd), ["libcublas.so.13", "libcuda.so.1"]);
    }
}
