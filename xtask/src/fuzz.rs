//! `cargo xtask fuzz`: every fuzz target for a bounded time, from what the corpus holds and back into it. libFuzzer,
//! cargo-fuzz and a nightly compiler are the developer's own: nothing else here needs them.

use std::ffi::OsString;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::setup::{self, Environment, Need};
use crate::{paths, process};

/// A single input may take so long, and the process hold so much, before that is a finding too.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Minutes for each target
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,

    /// Targets at a time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    jobs: u64,

    /// Keep a record of the run in fuzz/README.md
    #[arg(long)]
    record: bool,

    /// Targets; all of them without
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// What libFuzzer says of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    executions: u64,
    /// Edges of the program that were reached.
    coverage: u64,
    corpus: usize,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let known = targets()?;
    let wanted = if args.targets.is_empty() { known.clone() } else { args.targets.clone() };
    for target in &wanted {
        ensure!(known.contains(target), "no fuzz target `{target}`; there are {}", known.join(", "));
    }
    process::capture(&mut cargo_fuzz(&["--version"])).context(
        "fuzzing needs a nightly compiler and cargo-fuzz: `rustup toolchain install nightly`, `cargo install cargo-fuzz`",
    )?;
    let environment = setup::ensure(&[Need::Ort])?;
    // Once for all: what runs side by side builds nothing.
    process::run(environment.apply(&mut cargo_fuzz(&["build"])))?;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        while let Some(target) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push((target.as_str(), one(target, args, &environment)));
        }
        found
    };
    let mut found = Vec::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.jobs).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            found.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        }
        anyhow::Ok(())
    })?;
    found.sort_by_key(|(target, _)| *target);
    let mut rows = String::new();
    let mut broken = Vec::new();
    for (target, found) in found {
        match found {
            Ok(Found { executions, coverage, corpus }) => {
                rows += &format!("| {target} | {} | {executions} | {coverage} | {corpus} |\n", args.minutes);
            }
            Err(error) => broken.push(format!("{error:#}")),
        }
    }
    let table = format!(
        "| target | minutes | executions | edges covered | corpus |\n| --- | --- | --- | --- | --- |\n{rows}"
    );
    println!("\n{table}");
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    if args.record {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let date = process::capture(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        let how = format!("{}, {} at a time on {cores} cores.\n\n", date.trim(), args.jobs);
        write(&paths::root().join("fuzz/README.md"), &(how + &table))?;
    }
    Ok(())
}

fn cargo_fuzz(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz"]).args(args).current_dir(paths::root());
    command
}

/// Runs one target for its time.
fn one(target: &str, args: &FuzzArgs, environment: &Environment) -> Result<Found> {
    let corpus = paths::root().join("fuzz/corpus").join(target);
    let time = format!("-max_total_time={}", args.minutes * 60);
    let mut command = cargo_fuzz(&["run", target, "--", &time, "-print_final_stats=1"]);
    command.args(LIMITS).args(dictionary(target));
    let mut found = Found::default();
    process::watch(environment.apply(&mut command), |line| {
        println!("{target}: {line}");
        found.read(line);
    })
    .with_context(|| {
        format!("`{target}` broke: keep the input that is named above in fuzz/crashes/{target}, and mend it")
    })?;
    distil(target, &corpus, environment)?;
    found.corpus = fs::read_dir(&corpus).with_context(|| format!("reading {}", corpus.display()))?.count();
    Ok(found)
}

// === impl Found ===

impl Found {
    /// `#1234 NEW cov: 56 ft: 78 …` and `stat::number_of_executed_units: 1234`.
    fn read(&mut self, line: &str) {
        if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = count.trim().parse().unwrap_or(self.executions);
        }
        let mut words = line.split_whitespace();
        if words.by_ref().any(|word| word == "cov:")
            && let Some(edges) = words.next().and_then(|word| word.parse().ok())
        {
            self.coverage = edges;
        }
    }
}

/// Keeps of a corpus as few inputs as reach all that it reaches: they lie in the repository, and the suite replays each. Of
/// those that reach the same edges more or less often one is enough, else there would be thousands.
fn distil(target: &str, corpus: &Path, environment: &Environment) -> Result<()> {
    let beside = |name: &str| paths::root().join("fuzz/artifacts").join(format!("{name}-{target}"));
    let (kept, old) = (beside("kept"), beside("old"));
    for folder in [&kept, &old] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    let mut merge = cargo_fuzz(&["run", target]);
    merge.args([kept.as_path(), corpus]).args(["--", "-set_cover_merge=1", "-use_counters=0"]);
    process::capture(environment.apply(&mut merge))?;
    for (from, to) in [(corpus, old.as_path()), (kept.as_path(), corpus)] {
        fs::rename(from, to).with_context(|| format!("moving {} to {}", from.display(), to.display()))?;
    }
    fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))
}

/// The targets, by their files.
fn targets() -> Result<Vec<String>> {
    let folder = paths::root().join("fuzz/targets");
    let files = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// The words of a target's language, where somebody wrote them down.
fn dictionary(target: &str) -> Option<OsString> {
    let file = paths::root().join("fuzz/dictionaries").join(target);
    file.is_file().then(|| {
        let mut flag = OsString::from("-dict=");
        flag.push(file);
        flag
    })
}

/// Puts the table between the marks of the page.
fn write(page: &Path, table: &str) -> Result<()> {
    const MARKS: [&str; 2] = ["<!-- the newest run -->\n", "<!-- the end of the newest run -->"];
    let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let parts =
        text.split_once(MARKS[0]).and_then(|(before, rest)| Some((before, rest.split_once(MARKS[1])?.1)));
    let Some((before, after)) = parts else {
        bail!("{} lacks the marks between which the table goes", page.display());
    };
    fs::write(page, format!("{before}{}\n{table}\n{}{after}", MARKS[0], MARKS[1]))
        .with_context(|| format!("writing {}", page.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libfuzzers_words_are_read() {
        let mut found = Found::default();
        found.read("#2097152\tpulse  cov: 511 ft: 1203 corp: 210/9kb lim: 4096 exec/s: 699050 rss: 480Mb");
        found.read("#2100000\tREDUCE cov: 512 ft: 1204 corp: 211/9kb");
        found.read("stat::number_of_executed_units: 2100001");
        found.read("stat::average_exec_per_sec:     700000");
        assert_eq!(found, Found { executions: 2_100_001, coverage: 512, corpus: 0 });
    }

    #[test]
    fn the_targets_are_those_in_the_folder() {
        let targets = targets().unwrap();
        assert!(targets.contains(&"npy".to_owned()) && targets.is_sorted(), "{targets:?}");
    }

    #[test]
    fn the_table_goes_between_the_marks() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("README.md");
        fs::write(&page, "a\n<!-- the newest run -->\nold\n<!-- the end of the newest run -->\nb\n").unwrap();
        write(&page, "| new |\n").unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert_eq!(text, "a\n<!-- the newest run -->\n\n| new |\n\n<!-- the end of the newest run -->\nb\n");
        fs::write(&page, "no marks").unwrap();
        assert!(write(&page, "x").is_err());
    }
}
