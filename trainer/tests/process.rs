//! The trainer as people run it: a process with flags, files, signals and exit codes, from a recipe to a package.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use safetensors::SafeTensors;
use tch::Device;
use windowpane_diffusion::manifest::{MANIFEST_FILE, Manifest};
use windowpane_trainer::params::Layout;
use windowpane_trainer::{checkpoint, folder};

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
    let told = Instant::now();
    while running.try_wait().unwrap().is_none() {
        assert!(told.elapsed() < PATIENCE, "it does not stop");
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

    // Another run, which begins with what the package holds, and tells of it.
    succeed(dir, &["train", "r.toml", "--from", "models/small", "--run", "runs/onward", "--steps", "3"]);
    succeed(dir, &["export", "runs/onward", "--out", "models/onward"]);
    let text = std::fs::read_to_string(dir.join("models/onward/manifest.json")).unwrap();
    let lineage = Manifest::from_json(&text).unwrap().lineage;
    assert_eq!((lineage.steps, lineage.metrics["steps_before"]), (3, (stopped + 2) as f64));
    let card = std::fs::read_to_string(dir.join("models/onward/CARD.md")).unwrap();
    assert!(
        card.contains(&format!("| steps | 3; it began with trained weights, {end} known steps")),
        "{card}"
    );
    // With next to no rate, what it has after a step is what the package stores, and not what another seed begins with.
    let still = RECIPE.replace("lr = 1e-3", "lr = 1e-12").replace("seed = 3", "seed = 4");
    std::fs::write(dir.join("still.toml"), still).unwrap();
    succeed(dir, &["train", "still.toml", "--from", "models/small", "--run", "runs/still", "--steps", "1"]);
    let average = |run: &str| {
        let newest = checkpoint::list(&dir.join(run).join("checkpoints")).unwrap().pop().unwrap();
        checkpoint::open(&newest, false, Device::Cpu).unwrap().1.flat
    };
    let apart = (average("runs/still") - average("runs/small")).abs().max().double_value(&[]);
    assert!(apart < 1e-3, "the weights are others, by {apart}");
    fail(dir, &["train", "r.toml", "--from", "models/small", "--resume"], 2);
}

#[test]
fn a_package_tells_only_of_its_own_weights_and_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Grey images, the smaller ones of another size, the others only other images.
    let draw = |folder: &str, side: u32, first: u8| {
        std::fs::create_dir(dir.join(folder)).unwrap();
        for i in 0..6 {
            let image = image::GrayImage::from_pixel(side, side, image::Luma([first + i]));
            image.save(dir.join(folder).join(format!("{i}.png"))).unwrap();
        }
    };
    for (folder, side, first) in [("mine", 16, 0), ("smaller", 12, 0), ("others", 16, 100)] {
        draw(folder, side, first);
    }
    let toy = "{ kind = \"toy\", toy = { size = 16, count = 40, classes = 2 } }";
    let images = "{ kind = \"folder\", path = \"mine\", hold_out = 2 }";
    let recipe = RECIPE
        .replace(toy, images)
        .replace("classes = [{ name = \"ground\" }, { name = \"curtain\" }]\n", "")
        .replace("guidance_scale = 2.0", "guidance_scale = 1.0")
        .replace("label_drop = 0.5", "label_drop = 0.5\nsample_every = 1");
    std::fs::write(dir.join("r.toml"), recipe).unwrap();
    succeed(dir, &["train", "r.toml", "--steps", "1"]);

    // Only the run's own images are measured.
    let eval =
        |more: &[&'static str]| [&["eval", "runs/small", "--images", "2", "--timesteps", "2"], more].concat();
    let smaller = fail(dir, &eval(&["--data", "smaller"]), 1);
    assert!(
        smaller.contains("are 1 × 12 × 12, expected 1 × 16 × 16 (channels × height × width)"),
        "{smaller}"
    );
    let others = fail(dir, &eval(&["--data", "others"]), 1);
    let expected =
        "runs/small: was trained on 4 other images, expected the 4 that `--data` or else `[data]` says";
    assert!(others.contains(expected), "{others}");
    let resumed = fail(dir, &["train", "r.toml", "--steps", "1", "--resume", "--data", "smaller"], 1);
    assert!(resumed.contains("from another recipe, expected the same: the size of the images"), "{resumed}");
    let many = fail(dir, &["eval", "runs/small", "--timesteps", "101"], 1);
    assert!(many.contains("`--timesteps` is 101, expected 1 to 100, the timesteps"), "{many}");
    let report = dir.join("runs/small/eval.json");
    assert!(!report.exists());
    std::fs::rename(dir.join("mine"), dir.join("moved")).unwrap();
    succeed(dir, &eval(&["--data", "moved"]));

    // What the package says of itself.
    let package = || {
        let text = std::fs::read_to_string(dir.join("models/small").join(MANIFEST_FILE)).unwrap();
        let manifest = Manifest::from_json(&text).unwrap();
        (manifest.files.contains_key("samples.png"), manifest.lineage.metrics.contains_key("psnr_gap_db"))
    };
    let export = |more: &[&'static str]| succeed(dir, &[&["export", "runs/small", "--force"], more].concat());
    export(&[]);
    assert_eq!(package(), (true, true));
    // Samples and numbers are those of the averaged weights.
    export(&["--raw"]);
    assert_eq!(package(), (false, false));
    // The numbers of another run, or of one that did not say: the step is the same.
    let measured = std::fs::read_to_string(&report).unwrap();
    let (_, rest) = measured.split_once("\"data_sha256\": \"").unwrap();
    let digest = rest.split('"').next().unwrap();
    let line = format!("  \"data_sha256\": \"{digest}\",\n");
    for text in [measured.replace(digest, &"0".repeat(64)), measured.replace(&line, "")] {
        assert_ne!(text, measured);
        std::fs::write(&report, text).unwrap();
        export(&[]);
        assert_eq!(package(), (true, false));
    }
    std::fs::write(&report, "[1, false, \"\", {}]").unwrap();
    let error = fail(dir, &["export", "runs/small", "--force"], 1);
    assert!(error.contains("runs/small/eval.json: invalid type: sequence, expected a map"), "{error}");
}

#[test]
fn eval_has_the_run_to_itself_before_it_reads() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let other = folder::lock(&run).unwrap();
    // A checkpoint that it read now could be another one, or gone, once the other is done.
    let error = fail(dir.path(), &["eval", "run"], 1);
    assert!(error.contains("run: another process of this machine is writing here"), "{error}");
    drop(other);
    assert!(fail(dir.path(), &["eval", "run"], 1).contains("run has no checkpoint yet"));
}

#[test]
fn no_class_leads_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let recipe = RECIPE.replace("curtain", "..").replace("ground", "a/../../b");
    let recipe = recipe.replace(
        "count = 40, classes = 2 } }",
        "count = 40, classes = 2 }, classes = [\"a/../../b\", \"..\"] }",
    );
    std::fs::write(dir.join("r.toml"), recipe).unwrap();
    succeed(dir, &["train", "r.toml", "--steps", "1"]);
    let sample = ["sample", "runs/small", "--per-class", "1", "--steps", "1", "--out", "o.png"];
    succeed(dir, &[&sample[..], &["--each", "each"]].concat());
    assert!(dir.join("each/-./1.png").is_file() && dir.join("each/a-..-..-b/0.png").is_file());
    assert!(!dir.join("1.png").exists());
}

#[test]
fn what_is_drawn_is_what_the_weights_say() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    succeed(dir, &["train", "r.toml", "--steps", "2"]);
    let draw = |from: &str, out: &str, more: &[&str]| {
        let all = ["sample", from, "--per-class", "2", "--steps", "3", "--guidance", "2", "--out", out];
        succeed(dir, &[&all[..], more].concat());
        std::fs::read(dir.join(out)).unwrap()
    };
    let raw = draw("runs/small", "raw.png", &["--raw"]);
    let average = draw("runs/small", "average.png", &[]);
    // Somebody changes the recipe beside the weights: they are what they were.
    let path = dir.join("runs/small/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"eps\"", "\"v\""), ("\"fixed_small\"", "\"learned_range\"")] {
        assert!(recipe.contains(from), "{recipe}");
        std::fs::write(&path, recipe.replace(from, to)).unwrap();
        assert!(draw("runs/small", "again.png", &[]) == average, "{to}");
    }
    // The state dict of somebody else, who knows nothing of this trainer: its values under DiT's names.
    let file = dir.join("runs/small/checkpoints/step-00000002/model.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    std::fs::write(dir.join("theirs.safetensors"), safetensors::serialize(tensors.iter(), None).unwrap())
        .unwrap();
    assert!(draw("theirs.safetensors", "theirs.png", &["--recipe", "r.toml"]) == raw);
    let alone = fail(dir, &["sample", "theirs.safetensors"], 1);
    assert!(alone.contains("no `windowpane` entry") && alone.contains("`sample --recipe`"), "{alone}");
    std::fs::write(dir.join("r.toml"), RECIPE.replace("hidden = 16", "hidden = 32")).unwrap();
    let other = fail(dir, &["sample", "theirs.safetensors", "--recipe", "r.toml"], 1);
    assert!(
        other.contains(
            "theirs.safetensors: `x_embedder.proj.weight` is F32 [16, 1, 4, 4], expected F32 [32, 1, 4, 4]"
        ),
        "{other}"
    );
    // Our own weights as those of a recipe that is another by now.
    let own = "runs/small/checkpoints/step-00000002/model.safetensors";
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    assert!(draw(own, "own.png", &["--recipe", "r.toml"]) == raw);
    std::fs::write(dir.join("r.toml"), RECIPE.replace("\"eps\"", "\"v\"")).unwrap();
    let other = fail(dir, &["sample", own, "--recipe", "r.toml"], 1);
    assert!(other.contains("another model than the recipe: `diffusion.prediction` differ"), "{other}");
    // What no picture can show is not drawn first.
    let mut meta = checkpoint::load_weights(&dir.join(own), Device::Cpu).unwrap().meta;
    meta.config.channels = 2;
    let flat = Layout::of(&meta.config).initial_tensor(1, Device::Cpu);
    let file = "runs/small/checkpoints/step-00000002/two.safetensors";
    checkpoint::save_weights(&dir.join(file), &meta, &flat).unwrap();
    let two = fail(dir, &["sample", file], 1);
    assert!(two.contains("images have 2 channels, expected 1 or 3"), "{two}");
    let images = "{ kind = \"folder\", path = \"mine\" }";
    let toy = "{ kind = \"toy\", toy = { size = 16, count = 40, classes = 2 } }";
    std::fs::write(dir.join("r.toml"), RECIPE.replace(toy, images)).unwrap();
    let unsized_ = fail(dir, &["sample", "theirs.safetensors", "--recipe", "r.toml"], 1);
    assert!(unsized_.contains("`data.channels`, `data.height` and `data.width` are needed"), "{unsized_}");
}

#[test]
fn what_cannot_be_removed_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    // A folder deeper than files may be open can be removed by nobody, not even by root.
    let deepen = |folder: &str| std::fs::create_dir_all(dir.join(folder).join("d/".repeat(300))).unwrap();
    let with_few_files = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -n 100 && exec "$0" "$@""#, env!("CARGO_BIN_EXE_windowpane-trainer")]);
        command.args(args).current_dir(dir).env("WINDOWPANE_DEVICE", "cpu").stdin(Stdio::null());
        let Output { status, stderr, .. } = command.output().unwrap();
        (status, String::from_utf8(stderr).unwrap())
    };
    let warned = |args: &[&str]| {
        let (status, stderr) = with_few_files(args);
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
    // The next one cannot write where that lies, and says what to do.
    let (status, refused) = with_few_files(&["export", "runs/small", "--force"]);
    assert!(
        !status.success() && refused.contains("models/.small.partial: holds what an earlier writer left"),
        "{refused}"
    );
    succeed(dir, &["export", "runs/small", "--force"]);
}

#[test]
fn a_disk_that_fills_up_leaves_whole_lines() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("r.toml"), RECIPE).unwrap();
    // No file may have more than 1 MiB, and the log has so many bytes already that not one record has room.
    let log = dir.join("runs/small/log.jsonl");
    let most = 1 << 20;
    let line = format!("{{\"step\":0,\"pad\":\"{}\"}}\n", "x".repeat(most - 40 - 20));
    std::fs::create_dir_all(dir.join("runs/small")).unwrap();
    std::fs::write(&log, &line).unwrap();
    assert_eq!(line.len(), most - 40);
    let limited = r#"trap '' XFSZ && ulimit -f 2048 && exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.args([
        "-c",
        limited,
        env!("CARGO_BIN_EXE_windowpane-trainer"),
        "train",
        "r.toml",
        "--steps",
        "2",
    ]);
    command.current_dir(dir).env("WINDOWPANE_DEVICE", "cpu").stdin(Stdio::null());
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(status.success() && stderr.contains("warning: no record of step 1: "), "{status}: {stderr}");
    assert!(std::fs::read_to_string(&log).unwrap() == line, "it ends in half a record");
    // There is room again.
    succeed(dir, &["train", "r.toml", "--resume", "--steps", "3"]);
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 2);
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
