//! `cargo xtask sbom`: what is in a program, as a CycloneDX 1.5 bill of materials on standard output. The crates are those
//! that `cargo tree` resolves as the build does, with their digests from `Cargo.lock`; the native library beside them is
//! that of [`pins`]. The same sources give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::setup::pins::{self, Package, Take};
use crate::{paths, process};

#[derive(Args)]
pub(crate) struct SbomArgs {
    /// Whose
    #[arg(value_enum, default_value_t = Target::Server)]
    target: Target,
}

/// A program with its native library, as `docker/build.sh` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    Server,
    ServerCuda,
    Trainer,
}

/// What is built upon.
#[derive(Debug, PartialEq, Eq)]
struct Component {
    name: String,
    version: String,
    /// Its package URL, by which others know it.
    purl: String,
    /// An SPDX expression.
    licence: String,
    sha256: Option<String>,
}

/// The program, and by package URL all that is in it and what each of that builds upon.
#[derive(Debug)]
struct Bill {
    program: Component,
    components: BTreeMap<String, Component>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

pub(crate) fn run(args: &SbomArgs) -> Result<()> {
    print!("{}", Bill::of(args.target)?.json());
    Ok(())
}

// === impl Target ===

impl Target {
    /// The package, its program, and the native library with its licence.
    fn parts(self) -> (&'static str, &'static str, &'static Package, &'static str) {
        match self {
            Self::Server => ("windowpane-server", "windowpane", &pins::ONNXRUNTIME, "MIT"),
            Self::ServerCuda => ("windowpane-server", "windowpane", &pins::ONNXRUNTIME_CUDA, "MIT"),
            Self::Trainer => ("windowpane-trainer", "windowpane-trainer", &pins::LIBTORCH, "BSD-3-Clause"),
        }
    }
}

// === impl Bill ===

impl Bill {
    fn of(target: Target) -> Result<Self> {
        let (package, program, library, licence) = target.parts();
        let mut tree = process::cargo(["tree", "--locked", "--package", package, "--prefix", "depth"]);
        // What ends up in the program: neither tests nor what runs while it is built.
        tree.args(["--edges", "normal,no-proc-macro", "--target", "x86_64-unknown-linux-gnu"]);
        tree.args(["--format", "\t{p}\t{l}"]);
        let lock = paths::root().join("Cargo.lock");
        let lock = fs::read_to_string(&lock).with_context(|| format!("reading {}", lock.display()))?;
        let mut bill = Self::read(&process::capture(&mut tree)?, &digests(&lock))?;
        program.clone_into(&mut bill.program.name);
        let library = native(library, licence);
        bill.edges.entry(bill.program.purl.clone()).or_default().insert(library.purl.clone());
        bill.components.insert(library.purl.clone(), library);
        Ok(bill)
    }

    /// From the lines of `cargo tree`, the program's first, each with its depth.
    fn read(tree: &str, digests: &BTreeMap<(String, String), String>) -> Result<Self> {
        let (mut components, mut edges) = (BTreeMap::new(), BTreeMap::<_, BTreeSet<_>>::new());
        // The way from the program to the line above.
        let mut above: Vec<String> = Vec::new();
        for line in tree.lines() {
            let unread = || format!("`cargo tree` wrote a line that does not read: {line}");
            let (depth, rest) = line.split_once('\t').with_context(unread)?;
            let (package, licence) = rest.split_once('\t').with_context(unread)?;
            let depth: usize = depth.parse().with_context(unread)?;
            let mut words = package.split(' ');
            let (name, version) = words.next().zip(words.next()).with_context(unread)?;
            let version = version.strip_prefix('v').with_context(unread)?;
            ensure!(depth <= above.len(), "{}", unread());
            // What was shown before is not shown again, which is said at the end of the line. A slash was a choice once.
            let licence = licence.trim_end_matches(" (*)").split('/').map(str::trim);
            let licence = licence.collect::<Vec<_>>().join(" OR ");
            ensure!(!licence.is_empty(), "`{name}` {version} does not say under which licence it is");
            let purl = format!("pkg:cargo/{name}@{version}");
            above.truncate(depth);
            if let Some(parent) = above.last() {
                edges.entry(parent.clone()).or_default().insert(purl.clone());
            }
            above.push(purl.clone());
            let (name, version) = (name.to_owned(), version.to_owned());
            let sha256 = digests.get(&(name.clone(), version.clone())).cloned();
            components.insert(purl.clone(), Component { name, version, purl, licence, sha256 });
        }
        let program = above.first().and_then(|purl| components.remove(purl));
        Ok(Self { program: program.context("`cargo tree` wrote nothing")?, components, edges })
    }

    fn json(&self) -> String {
        let all = || self.components.keys().chain([&self.program.purl]);
        let components: Vec<_> =
            self.components.values().map(|component| component.json("library")).collect();
        let none = BTreeSet::new();
        let dependencies = all().map(|purl| {
            let on = self.edges.get(purl).unwrap_or(&none);
            let on: Vec<_> = on.iter().map(|purl| text(purl)).collect();
            format!("{{\"ref\": {}, \"dependsOn\": [{}]}}", text(purl), on.join(", "))
        });
        let dependencies: Vec<_> = dependencies.collect();
        format!(
            "{{\n\"bomFormat\": \"CycloneDX\",\n\"specVersion\": \"1.5\",\n\"version\": 1,\n\"metadata\": {{\"component\": {}}},\n\
             \"components\": [\n{}\n],\n\"dependencies\": [\n{}\n]\n}}\n",
            self.program.json("application"),
            components.join(",\n"),
            dependencies.join(",\n")
        )
    }
}

// === impl Component ===

impl Component {
    fn json(&self, kind: &str) -> String {
        let Self { name, version, purl, licence, sha256 } = self;
        let mut json = format!(
            "{{\"type\": {}, \"bom-ref\": {}, \"name\": {}, \"version\": {}, \"purl\": {}, \"licenses\": [{{\"expression\": {}}}]",
            text(kind),
            text(purl),
            text(name),
            text(version),
            text(purl),
            text(licence)
        );
        if let Some(sha256) = sha256 {
            let _ = write!(json, ", \"hashes\": [{{\"alg\": \"SHA-256\", \"content\": {}}}]", text(sha256));
        }
        json.push('}');
        json
    }
}

/// A library that comes in a wheel, by the digest of its largest file.
fn native(package: &Package, licence: &str) -> Component {
    let files = package.wheels.iter().flat_map(|wheel| wheel.takes).filter_map(|take| match take {
        Take::File { digest, .. } => Some(digest),
        Take::Tree { .. } => None,
    });
    let (name, version) = (package.name.to_owned(), package.version.to_owned());
    let requirement = package.wheels.first().map_or("", |wheel| wheel.requirement);
    Component {
        purl: format!("pkg:pypi/{}", requirement.replace("==", "@")),
        name,
        version,
        licence: licence.to_owned(),
        sha256: files.max_by_key(|digest| digest.size).map(|digest| digest.sha256.to_owned()),
    }
}

/// The digest of each crate, by name and version, from the text of `Cargo.lock`. Our own have none.
fn digests(lock: &str) -> BTreeMap<(String, String), String> {
    let package = |block: &str| {
        let value = |name: &str| {
            let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
            Some(line.strip_suffix('"')?.to_owned())
        };
        Some(((value("name")?, value("version")?), value("checksum")?))
    };
    lock.split("[[package]]").filter_map(package).collect()
}

/// A text as JSON.
fn text(text: &str) -> String {
    let mut json = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c.is_control() => _ = write!(json, "\\u{:04x}", u32::from(c)),
            c => json.push(c),
        }
    }
    json + "\""
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const TREE: &str = "0\twindow v0.1.0 (/home/me/a b)\tMIT OR Apache-2.0\n\
                        1\ta v1.0.0\tMIT/Apache-2.0\n\
                        2\tb v2.0.0+x\tISC\n\
                        1\tb v2.0.0+x\tISC (*)\n\
                        1\tc v0.1.0 (/c)\tMIT / ISC\n";

    #[test]
    fn the_tree_is_read_with_its_edges() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"00ff\"\n\n[[package]]\nname = \"c\"\nversion = \"0.1.0\"\n";
        let bill = Bill::read(TREE, &digests(lock)).unwrap();
        assert_eq!(bill.program.purl, "pkg:cargo/window@0.1.0");
        let json: Value = serde_json::from_str(&bill.json()).unwrap();
        let a = &json["components"][0];
        assert_eq!(
            (&a["name"], &a["version"], &a["purl"]),
            (&"a".into(), &"1.0.0".into(), &"pkg:cargo/a@1.0.0".into())
        );
        assert_eq!(a["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(a["hashes"][0]["content"], "00ff");
        assert_eq!(json["components"][1]["licenses"][0]["expression"], "ISC");
        assert_eq!(json["components"].as_array().unwrap().len(), 3);
        let c = &json["components"][2];
        assert!(c.get("hashes").is_none() && c["licenses"][0]["expression"] == "MIT OR ISC", "{c}");
        let on = |purl: &str| {
            let all = json["dependencies"].as_array().unwrap();
            all.iter().find(|entry| entry["ref"] == purl).unwrap()["dependsOn"].clone()
        };
        assert_eq!(
            on("pkg:cargo/window@0.1.0"),
            serde_json::json!(["pkg:cargo/a@1.0.0", "pkg:cargo/b@2.0.0+x", "pkg:cargo/c@0.1.0"])
        );
        assert_eq!(on("pkg:cargo/a@1.0.0"), serde_json::json!(["pkg:cargo/b@2.0.0+x"]));
        assert_eq!(on("pkg:cargo/b@2.0.0+x"), serde_json::json!([]));
    }

    #[test]
    fn what_does_not_say_its_licence_is_an_error() {
        for tree in ["", "0\ta v1.0.0\t\n", "0\ta\tMIT\n", "1\ta v1.0.0\tMIT\n", "a v1.0.0 MIT\n"] {
            assert!(Bill::read(tree, &BTreeMap::new()).is_err(), "{tree:?}");
        }
        assert_eq!(text("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }

    #[test]
    fn the_programs_have_their_crates_and_their_libraries() {
        for (target, has, has_not) in [
            (Target::Server, ["tokio", "onnxruntime"], "tch"),
            (Target::ServerCuda, ["ort", "onnxruntime-gpu"], "tch"),
            (Target::Trainer, ["tch", "libtorch"], "ort"),
        ] {
            let json = Bill::of(target).unwrap().json();
            let json: Value = serde_json::from_str(&json).unwrap();
            let components = json["components"].as_array().unwrap();
            let find = |name: &str| components.iter().find(|component| component["name"] == name);
            assert!(has.iter().all(|name| find(name).is_some()) && find(has_not).is_none(), "{target:?}");
            // Neither what tests alone need nor what runs while it is built.
            assert!(find("criterion").is_none() && find("serde_derive").is_none(), "{target:?}");
            for component in components {
                let ours = component["name"].as_str().unwrap().starts_with("windowpane-");
                assert_eq!(component.get("hashes").is_some(), !ours, "{component}");
            }
            let refs: BTreeSet<_> =
                components.iter().map(|component| component["bom-ref"].as_str()).collect();
            for entry in json["dependencies"].as_array().unwrap() {
                let on = entry["dependsOn"].as_array().unwrap();
                assert!(on.iter().all(|on| refs.contains(&on.as_str())), "{entry}");
            }
        }
    }
}
