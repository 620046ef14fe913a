//! The trainer as people run it: a process with flags, files, signals and exit codes, from a recipe to a package.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use windowpane_diffusion::manifest::{MANIFEST_FILE, Manifest};
use windowpane_trainer::checkpoint;

const RECIPE: &str = include_str!("small.toml");

/// The longest that anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(120);

fn trainer(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windowpane-trainer"));
    command.current_dir(dir).args(args).env("WINDOWPANE_DEVICE", "cpu").stdin(Stdio::null());
    command
}

/// Runs to the end; it must succeed. Returns what it printed.
fn succeed(dir: &Path, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = trainer(dir, args).output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{args:?}: {status}\n{stderr}");
    String::from_utf8(stdout).unwrap()
}

/// Runs to the end; it must fail with exit code `code`. Returns what it complained.
fn fail(dir: &Path, args: &[&str], code: i32) -> String {
    let Output { status, stderr, .. } = trainer(dir, args).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{args:?}: {stderr}");
    assert!(
        stderr.lines().any(|line| line.starts_with("error: ")) && !stderr.contains("panicked"),
        "{args:?}: {stderr}"
    );
    stderr
}

/// Steps of the checkpoints of the run.
fn steps(dir: &Path) -> Vec<u64> {
    let number = |path: &std::path::PathBuf| {
        path.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse().ok()).unwrap()
    };
    checkpoint::list(&dir.join("runs/small/checkpoints")).unwrap().iter().map(number).collect()
}

#[test]
fn from_a_recipe_to_a_package() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();

    // Prepare.
    let report = succeed(dir, &["prepare", "r.toml", "--out", "sheet.png"]);
    assert!(report.starts_with("40 images, grey, 16 × 16 pixels"), "{report}");
    assert_eq!(image::open(dir.join("sheet.png")).unwrap().color(), image::ColorType::L8);

    // Three steps, to the end; then a longer run that Ctrl-C interrupts, and one more that goes on from there.
    let said = succeed(dir, &["train", "r.toml", "--steps", "3"]);
    assert_eq!(said, "finished: runs/small\n");
    assert_eq!(steps(dir), [3]);
    let mut running = trainer(dir, &["train", "r.toml", "--resume"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (begun, log) = (Instant::now(), dir.join("runs/small/log.jsonl"));
    while std::fs::read_to_string(&log).unwrap().lines().count() < 5 {
        assert!(begun.elapsed() < PATIENCE && running.try_wait().unwrap().is_none(), "it does not train");
        std::thread::sleep(Duration::from_millis(5));
    }
    for second in [&["train", "r.toml", "--resume"][..], &["eval", "runs/small"]] {
        let second = fail(dir, second, 1);
        assert!(second.contains("runs/small: another process of this machine is writing here"), "{second}");
    }
    let interrupt = Command::new("sh").args(["-c", &format!("kill -INT {}", running.id())]).status().unwrap();
    assert!(interrupt.success());
    while running.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
    let Output { status, stdout, .. } = running.wait_with_output().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(String::from_utf8(stdout).unwrap(), "stopped: `--resume` goes on in runs/small\n");
    let stopped = *steps(dir).last().unwrap();
    assert!(stopped >= 5, "it stopped at step {stopped}");
    let end = (stopped + 2).to_string();
    succeed(dir, &["train", "r.toml", "--resume", "--steps", &end]);
    assert_eq!(steps(dir), [stopped, stopped + 2]);
    let beyond = fail(dir, &["train", "r.toml", "--resume", "--steps", "3"], 1);
    assert!(beyond.contains("already, expected at most 3"), "{beyond}");

    // Sample.
    succeed(
        dir,
        &["sample", "runs/small", "--per-class", "2", "--steps", "2", "--out", "o.png", "--each", "each"],
    );
    assert!(image::open(dir.join("o.png")).is_ok() && dir.join("each/curtain/3.png").is_file());

    // Measure: the files are new ones, not written over.
    let report = dir.join("runs/small/eval.json");
    std::fs::write(&report, "as it was").unwrap();
    let reader = std::fs::File::open(&report).unwrap();
    succeed(dir, &["eval", "runs/small", "--images", "4", "--timesteps", "2"]);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "as it was");
    assert!(std::fs::read_to_string(&report).unwrap().contains("psnr_gap"));

    // Export, once and again.
    succeed(dir, &["export", "runs/small"]);
    let package = dir.join("models/small");
    let manifest =
        Manifest::from_json(&std::fs::read_to_string(package.join(MANIFEST_FILE)).unwrap()).unwrap();
    assert_eq!(manifest.lineage.steps, stopped + 2);
    assert!(manifest.lineage.metrics.contains_key("psnr_gap_db"));
    for (name, file) in &manifest.files {
        assert_eq!(std::fs::metadata(package.join(name)).unwrap().len(), file.size, "{name}");
    }
    let card = std::fs::read_to_string(package.join("CARD.md")).unwrap();
    assert!(card.contains("Tests, and nothing else."), "{card}");
    assert!(fail(dir, &["export", "runs/small"], 1).contains("`--force` replaces it"));
    succeed(dir, &["export", "runs/small", "--force"]);
    assert_eq!(
        std::fs::read_dir(dir.join("models")).unwrap().count(),
        1,
        "nothing is left beside the package"
    );
}

#[test]
fn what_cannot_be_removed_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    // A folder deeper than files may be open can be removed by nobody, not even by root.
    let deepen = |folder: &str| std::fs::create_dir_all(dir.join(folder).join("d/".repeat(300))).unwrap();
    let warned = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -n 100 && exec "$0" "$@""#, env!("CARGO_BIN_EXE_windowpane-trainer")]);
        command.args(args).current_dir(dir).env("WINDOWPANE_DEVICE", "cpu").stdin(Stdio::null());
        let Output { status, stderr, .. } = command.output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{args:?}: {status}\n{stderr}");
        assert!(stderr.contains("it stays until the next one who writes here can remove it"), "{stderr}");
    };
    succeed(dir, &["train", "r.toml", "--steps", "1"]);
    deepen("runs/small/checkpoints/step-00000001");
    warned(&["train", "r.toml", "--resume", "--steps", "2", "--keep", "1"]);
    assert_eq!(steps(dir), [2], "its name is free all the same");
    warned(&["train", "r.toml", "--resume", "--steps", "3", "--keep", "1"]);
    assert_eq!(steps(dir), [3]);
    let package = dir.join("models/small");
    succeed(dir, &["export", "runs/small"]);
    deepen("models/small");
    warned(&["export", "runs/small", "--force"]);
    assert!(
        package.join(MANIFEST_FILE).is_file() && !package.join("d").exists(),
        "the new one has its place"
    );
}

#[test]
fn mistakes_are_one_line_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (from, to, says) in [
        ("batch = 4", "bacth = 4", "unknown field `bacth`"),
        ("batch = 4", "batch = 65537", "`train.batch` 65537"),
        ("name = \"small\"", "name = \"../../x\"", "`name` is \"../../x\""),
        ("prediction = \"eps\"", "prediction = eps", "r.toml: line 15"),
        ("count = 40", "count = 0", "data.toy.count"),
    ] {
        std::fs::write(dir.join("r.toml"), RECIPE.replace(from, to)).unwrap();
        let error = fail(dir, &["train", "r.toml"], 1);
        assert!(error.lines().count() == 1 && error.contains(says), "{to}: {error}");
    }
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    for (args, says) in [
        (&["train", "nowhere.toml"][..], "nowhere.toml: No such file or directory (os error 2)\n"),
        (&["train", "r.toml", "--device", "tpu"], "expected cpu, cuda, cuda:N or auto"),
        (&["sample", "/nope"], "/nope: no such run or file"),
        (&["export", "/nope"], "/nope: no such folder"),
        (&["eval", "r.toml"], "r.toml: no such folder"),
    ] {
        let error = fail(dir, args, 1);
        assert!(error.lines().count() == 1 && error.contains(says), "{args:?}: {error}");
    }
    // What cannot be a flag is clap's to refuse, with its own exit code.
    for args in [
        &["train", "r.toml", "--minutes", "1e300"][..],
        &["train", "r.toml", "--steps", "-3"],
        &["train", "nowhere.toml", "--steps", "0"],
        &["sample", "runs/small", "--out", "o.xyz"],
        &["smaple"],
    ] {
        fail(dir, args, 2);
    }
    let mut left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| name != "r.toml");
    assert!(left.is_empty(), "a mistake wrote {left:?}");
}
