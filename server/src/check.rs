//! `windowpane check DIR`: everything that is looked at when a model is loaded, without serving it. Files against the
//! manifest, graphs against the files, then the network itself: its golden replayed, its bits compared between batches,
//! its ticks timed. A report for people, or a JSON object a package for scripts.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::Config;
use crate::engine::check::DeterminismClass;
use crate::engine::package::{Package, find};
use crate::metrics::Metrics;
use crate::model::load::{LoadError, Loader, dtype_name};
use crate::model::{Model, Served};

/// Verifies model packages and says what was found; needs no network and starts no server.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
#[command(after_help = "Exits with 0 if every package may be served, with 1 otherwise.")]
pub struct CheckArgs {
    /// Packages, or folders of packages
    #[arg(required = true, value_name = "DIR")]
    pub folders: Vec<PathBuf>,

    /// Only the files: manifest, sizes, digests, graphs and the places of their weights. Takes no ONNX Runtime, and as long
    /// as reading the files takes
    #[arg(long)]
    pub files_only: bool,

    /// One JSON object a package instead of a report
    #[arg(long)]
    pub json: bool,
}

/// Checks every package of these folders, and writes what it finds. `true` if all may be served. Errors: the output cannot be
/// written.
pub fn run(args: &CheckArgs, config: &Config, out: &mut impl Write) -> io::Result<bool> {
    let loader = Loader::new(config.clone(), Metrics::new());
    let mut whole = true;
    for folder in &args.folders {
        let packages = match find(folder) {
            Ok(packages) => packages,
            Err(error) => {
                whole = false;
                say(out, args.json, folder, &Err(error.into()))?;
                continue;
            }
        };
        for package in packages {
            let found = look(&loader, &package, args.files_only);
            whole &= found.is_ok();
            say(out, args.json, &package, &found)?;
        }
    }
    Ok(whole)
}

/// What was found of a good package.
#[derive(Debug)]
struct Found {
    package: Package,
    /// `None` where only the files were looked at.
    model: Option<Model>,
}

fn look(loader: &Loader, folder: &Path, files_only: bool) -> Result<Found, LoadError> {
    let package = Package::open(folder)?;
    let model = if files_only { None } else { Some(loader.folder(folder)?) };
    Ok(Found { package, model })
}

fn say(out: &mut impl Write, json: bool, folder: &Path, found: &Result<Found, LoadError>) -> io::Result<()> {
    let folder = folder.display().to_string();
    match found {
        Ok(found) if json => writeln!(out, "{}", object(&folder, found)),
        Err(error) if json => {
            writeln!(out, "{}", json!({"folder": folder, "ok": false, "error": error.to_string()}))
        }
        Ok(found) => report(out, &folder, found),
        Err(error) => writeln!(out, "{folder}: NOT TO BE SERVED\n  {error}"),
    }?;
    out.flush()
}

fn report(out: &mut impl Write, folder: &str, Found { package, model }: &Found) -> io::Result<()> {
    let megabytes = package.size() as f64 / 1e6;
    let files = package.manifest.files.len();
    writeln!(out, "{folder}: good")?;
    writeln!(out, "  model   {}, digest {}", package.manifest.name, package.digest)?;
    writeln!(out, "  files   {files}, {megabytes:.1} MB, all as the manifest pins them")?;
    let Some(Served { provider, dtype, graph, runtime, golden, determinism, costs, piece }) =
        model.as_ref().map(|model| &model.served)
    else {
        return Ok(());
    };
    writeln!(out, "  graph   {graph} in {} on {provider}, ONNX Runtime {runtime}", dtype_name(*dtype))?;
    let (error, allowed) = (golden.relative_error, golden.tolerance);
    writeln!(out, "  golden  {} cases, off by {error:.1e} at most; {allowed:.0e} is allowed", golden.cases)?;
    let sizes = determinism.batch_sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match determinism.class {
        DeterminismClass::Bitwise => writeln!(out, "  bits    the same in batches of {sizes}"),
        DeterminismClass::Tolerance => {
            let difference = determinism.relative_difference;
            writeln!(out, "  bits    depend on the batch, by {difference:.1e} at most in {sizes}")
        }
    }?;
    let ticks: Vec<String> =
        costs.buckets().map(|(rows, time)| format!("{rows}: {:.1}", time.as_secs_f64() * 1e3)).collect();
    writeln!(out, "  ticks   rows: ms {}; {piece} rows a call at most", ticks.join(", "))
}

fn object(folder: &str, Found { package, model }: &Found) -> Value {
    let mut value = json!({
        "folder": folder,
        "ok": true,
        "model": package.manifest.name,
        "digest": package.digest,
        "files": package.manifest.files.len(),
        "bytes": package.size(),
    });
    if let Some(Served { provider, dtype, graph, runtime, golden, determinism, costs, piece }) =
        model.as_ref().map(|model| &model.served)
    {
        let ticks: Vec<Value> = costs
            .buckets()
            .map(|(rows, time)| json!({"rows": rows, "seconds": time.as_secs_f64()}))
            .collect();
        value["engine"] = json!({
            "graph": graph,
            "dtype": dtype_name(*dtype),
            "provider": provider.to_string(),
            "runtime": runtime,
            "golden": {
                "cases": golden.cases,
                "relative_error": golden.relative_error,
                "tolerance": golden.tolerance,
            },
            "determinism": determinism,
            "ticks": ticks,
            "rows_a_call": piece,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use std::fs;

    use windowpane_diffusion::manifest::WEIGHTS_FILE;

    use super::*;
    use crate::args::Device;
    use crate::testing::{package, runtime};

    fn check(folders: &[&Path], files_only: bool, json: bool) -> (bool, String) {
        let config = Config {
            device: Device::Cpu,
            ort_dylib: Some(runtime().library().to_owned()),
            max_rows: 4,
            ..Config::default()
        };
        let folders = folders.iter().map(|&folder| folder.to_owned()).collect();
        let mut out = Vec::new();
        let whole = run(&CheckArgs { folders, files_only, json }, &config, &mut out).unwrap();
        (whole, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_good_package_is_told_with_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let shoes = package(folder.path(), "shoes");
        let (whole, said) = check(&[&shoes], false, false);
        assert!(whole, "{said}");
        for words in
            [": good", "model   shoes", "on cpu", "2 cases, off by 0.0e0", "the same in batches of 1"]
        {
            assert!(said.contains(words), "no `{words}` in {said}");
        }
        let (whole, said) = check(&[&shoes], false, true);
        let value: Value = serde_json::from_str(&said).unwrap();
        assert!(
            whole && value["ok"] == true && value["engine"]["determinism"]["class"] == "bitwise",
            "{said}"
        );
    }

    #[test]
    fn every_package_is_looked_at_though_one_is_bad() {
        let folder = tempfile::tempdir().unwrap();
        let (hats, shoes) = (package(folder.path(), "hats"), package(folder.path(), "shoes"));
        fs::write(hats.join(WEIGHTS_FILE), [1, 2]).unwrap();
        let missing = folder.path().join("missing");
        let (whole, said) = check(&[folder.path(), &missing], true, true);
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!whole);
        let ok: Vec<_> = lines.iter().map(|line| line["ok"].as_bool().unwrap()).collect();
        assert_eq!(ok, [false, true, false], "{said}");
        assert!(lines[0]["error"].as_str().unwrap().contains("weights.bin"), "{said}");
        assert!(lines[1]["folder"].as_str().unwrap() == shoes.display().to_string(), "{said}");
        assert!(lines[1].get("engine").is_none(), "{said}");
    }

    #[test]
    fn a_network_that_is_not_its_goldens_is_found_unless_only_files_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let shoes = package(folder.path(), "shoes");
        let mut manifest = Package::open(&shoes).unwrap().manifest;
        fs::write(shoes.join(WEIGHTS_FILE), 0.51_f32.to_le_bytes()).unwrap();
        crate::testing::pin(&shoes, &mut manifest);
        assert!(check(&[&shoes], true, false).0);
        let (whole, said) = check(&[&shoes], false, false);
        assert!(
            !whole && said.contains("NOT TO BE SERVED") && said.contains("golden case `a` differs"),
            "{said}"
        );
    }
}
