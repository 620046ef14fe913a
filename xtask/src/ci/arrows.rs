//! Who may depend on whom. The same rules stand in `deny.toml`; these need nothing but cargo, so they are
//! checked everywhere.

use anyhow::{Result, bail};

use crate::process;
use crate::report::Outcome;

/// A package, and all that may depend on it directly, for whatever purpose.
struct Arrow {
    package: &'static str,
    from: &'static [&'static str],
    reason: &'static str,
}

const ARROWS: [Arrow; 8] = [
    Arrow { package: "tch", from: &["windowpane-trainer"], reason: "only the trainer needs libtorch" },
    Arrow { package: "torch-sys", from: &["tch"], reason: "only the trainer needs libtorch" },
    Arrow { package: "ort", from: &["windowpane-server"], reason: "the trainer proves itself with a golden" },
    Arrow { package: "ort-sys", from: &["ort"], reason: "the trainer proves itself with a golden" },
    Arrow {
        package: "sqlx",
        from: &["windowpane-server", "suite"],
        reason: "what is kept is the jobs of the server",
    },
    Arrow { package: "windowpane-trainer", from: &[], reason: "what leaves the trainer is a model package" },
    Arrow {
        package: "windowpane-server",
        from: &["suite"],
        reason: "what enters the server is a model package",
    },
    Arrow {
        package: "windowpane-diffusion",
        from: &["windowpane-trainer", "windowpane-server", "suite"],
        reason: "xtask is built before everything else",
    },
];

pub(crate) fn check() -> Result<Outcome> {
    let mut broken = Vec::new();
    for arrow in &ARROWS {
        let mut tree =
            process::cargo(["tree", "--workspace", "--depth", "1", "--prefix", "none", "--format", "{p}"]);
        tree.args(["--target", "all", "--edges", "normal,build,dev", "--invert", arrow.package]);
        let dependents = dependents(&process::capture(&mut tree)?);
        println!(
            "{} <- {}",
            arrow.package,
            if dependents.is_empty() { "nobody".to_owned() } else { dependents.join(", ") }
        );
        broken.extend(arrow.broken_by(&dependents));
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("; "));
    }
    Ok(Outcome::Passed(String::new()))
}

/// The names after the first line of an inverted `cargo tree`, which is the package itself.
fn dependents(tree: &str) -> Vec<String> {
    let lines = tree.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('['));
    let mut names: Vec<String> =
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

// === impl Arrow ===

impl Arrow {
    fn broken_by(&self, dependents: &[String]) -> Vec<String> {
        let strangers = dependents.iter().filter(|name| !self.from.contains(&name.as_str()));
        strangers.map(|name| format!("{name} depends on {}, but {}", self.package, self.reason)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_read() {
        let tree = "ort v2.0.0-rc.15\nwindowpane-server v0.1.0 (/home/me/windowpane/server)\n\
                    [dev-dependencies]\nsuite v0.1.0 (/x)\nsuite v0.1.0 (/x) (*)\n";
        assert_eq!(dependents(tree), ["suite", "windowpane-server"]);
        assert!(dependents("windowpane-trainer v0.1.0 (/x)\n").is_empty());
    }

    #[test]
    fn a_stranger_is_named_with_the_reason() {
        let arrow = &ARROWS[2];
        assert!(arrow.broken_by(&["windowpane-server".to_owned()]).is_empty());
        let broken = arrow.broken_by(&["suite".to_owned(), "windowpane-server".to_owned()]);
        assert_eq!(broken, ["suite depends on ort, but the trainer proves itself with a golden"]);
    }
}
