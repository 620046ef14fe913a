//! A run's life from outside the loop: interrupted equals uninterrupted, a lost loss stops it, and what it leaves
//! behind can be sampled.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use tch::Device;
use windowpane_diffusion::{Prediction, Variance};
use windowpane_trainer::Error;
use windowpane_trainer::attention::trainer_plan;
use windowpane_trainer::checkpoint;
use windowpane_trainer::config::{Recipe, TrainConfig};
use windowpane_trainer::data;
use windowpane_trainer::folder;
use windowpane_trainer::memory;
use windowpane_trainer::train::{Ended, Precision, RunOptions, train};

/// The recipe for nine steps, then changed.
fn config(change: impl Fn(&mut Recipe)) -> (TrainConfig, data::ImageSet) {
    let mut recipe = Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/small.toml")).unwrap();
    let table = &mut recipe.train;
    (table.steps, table.log_every, table.checkpoint_every) = (9, 2, 3);
    change(&mut recipe);
    let images = data::load(&recipe.data).unwrap();
    (TrainConfig::new(recipe, &images).unwrap(), images)
}

fn options(dir: &Path, resume: bool) -> RunOptions {
    RunOptions {
        dir: dir.to_owned(),
        device: Device::Cpu,
        precision: Precision::F32,
        plan: trainer_plan,
        resume,
        from: None,
        time_limit: None,
        keep: 9,
    }
}

/// Every file of the newest checkpoint but the wall clock's.
fn newest(dir: &Path) -> Vec<Vec<u8>> {
    let path = checkpoint::list(&dir.join("checkpoints")).unwrap().pop().unwrap();
    ["model", "ema", "optimiser"]
        .map(|f| std::fs::read(path.join(format!("{f}.safetensors"))).unwrap())
        .into()
}

#[test]
fn a_resumed_run_is_the_run_that_was_not_interrupted() {
    let (config, images) = config(|_| ());
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let go = AtomicBool::new(false);
    assert_eq!(train(&config, &images, &options(whole.path(), false), &go).unwrap(), Ended::Finished);
    // Asked to stop at once, it does one step, saves and leaves; then goes on, twice.
    let stop = AtomicBool::new(true);
    assert_eq!(train(&config, &images, &options(parts.path(), false), &stop).unwrap(), Ended::Interrupted);
    assert_eq!(train(&config, &images, &options(parts.path(), true), &stop).unwrap(), Ended::Interrupted);
    assert_eq!(checkpoint::list(&parts.path().join("checkpoints")).unwrap().len(), 2);
    assert_eq!(train(&config, &images, &options(parts.path(), true), &go).unwrap(), Ended::Finished);
    assert!(newest(whole.path()) == newest(parts.path()), "weights, average or moments differ");
    // Another seed gives other weights, so the comparison can fail.
    let (other, images) = self::config(|r| r.train.seed = 4);
    let elsewhere = tempfile::tempdir().unwrap();
    train(&other, &images, &options(elsewhere.path(), false), &go).unwrap();
    assert!(newest(whole.path()) != newest(elsewhere.path()));
}

#[test]
fn a_run_begins_with_the_weights_of_another() {
    let (config, images) = config(|_| ());
    let (first, go) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    train(&config, &images, &options(first.path(), false), &go).unwrap();
    let newest = checkpoint::list(&first.path().join("checkpoints")).unwrap().pop().unwrap();
    let (_, learnt) = checkpoint::open(&newest, false, Device::Cpu).unwrap();
    // With next to no rate, what it has after a step is what it began with.
    let from = |path: &Path, change: fn(&mut Recipe)| {
        let (config, images) = self::config(|recipe| {
            (recipe.train.steps, recipe.optim.warmup, recipe.optim.cooldown) = (1, 0, 0);
            (recipe.optim.lr, recipe.optim.weight_decay) = (1e-12, 0.0);
            change(recipe);
        });
        let dir = tempfile::tempdir().unwrap();
        let options = RunOptions { from: Some(path.to_owned()), ..options(dir.path(), false) };
        train(&config, &images, &options, &go)?;
        checkpoint::open(&dir.path().join("checkpoints/step-00000001"), false, Device::Cpu)
    };
    for path in [first.path(), &newest.join("ema.safetensors")] {
        let (state, weights) = from(path, |_| ()).unwrap();
        assert_eq!((state.step, state.steps_before), (1, Some(9)), "{}", path.display());
        let apart = (&weights.flat - &learnt.flat).abs().max().double_value(&[]);
        assert!(apart < 1e-6, "{}: other weights, by {apart}", path.display());
    }
    // What one began with that began with another has the steps of both behind it.
    let second = tempfile::tempdir().unwrap();
    let again = RunOptions { from: Some(first.path().to_owned()), ..options(second.path(), false) };
    train(&config, &images, &again, &go).unwrap();
    assert_eq!(from(second.path(), |_| ()).unwrap().0.steps_before, Some(18));

    let refused = |path: &Path, change| from(path, change).unwrap_err().to_string();
    let empty = tempfile::tempdir().unwrap();
    let nowhere = empty.path().join("run");
    let options = RunOptions { from: Some(empty.path().to_owned()), ..options(&nowhere, false) };
    assert!(train(&config, &images, &options, &go).is_err() && !nowhere.exists(), "a folder without a run");
    assert!(
        refused(empty.path(), |_| ()).contains("expected that of a run with a checkpoint, or of a package")
    );
    assert!(refused(&empty.path().join("none"), |_| ()).contains("none"));
    let other = refused(first.path(), |recipe| recipe.diffusion.prediction = Prediction::V);
    assert!(other.contains("expected the same: `diffusion.prediction`"), "{other}");
}

#[test]
fn a_run_is_not_overwritten_and_not_resumed_on_other_images() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    train(&config, &images, &options(dir.path(), false), &stop).unwrap();
    let refused = train(&config, &images, &options(dir.path(), false), &stop).unwrap_err().to_string();
    assert!(refused.contains("--resume"), "{refused}");
    let recipe = || std::fs::read(dir.path().join("recipe.toml")).unwrap();
    let before = recipe();
    train(&config, &images, &options(dir.path(), true), &stop).unwrap();
    let shorter = |steps: u64| {
        let mut shorter = config.clone();
        shorter.recipe.train.steps = steps;
        shorter
    };
    let fewer = images.first(20).unwrap();
    let refused = train(&shorter(5), &fewer, &options(dir.path(), true), &stop).unwrap_err().to_string();
    assert!(
        refused.contains("on 40 other images, expected the 20 that `--data` and `--images` or else"),
        "{refused}"
    );
    let mut reseeded = shorter(5);
    reseeded.recipe.train.seed = 4;
    let refused = train(&reseeded, &images, &options(dir.path(), true), &stop).unwrap_err().to_string();
    assert!(refused.contains("with seed 3, expected `train.seed`, which is 4"), "{refused}");
    let refused = train(&shorter(1), &images, &options(dir.path(), true), &stop).unwrap_err().to_string();
    assert!(
        refused.contains("step-00000002: is at step 2 already, expected at most 1, the steps that `--steps`"),
        "{refused}"
    );
    assert!(recipe() == before, "a refused run rewrote the recipe");
    let ended = train(&shorter(2), &images, &options(dir.path(), true), &stop).unwrap();
    assert_eq!(ended, Ended::Finished, "nothing is left to do");
}

#[test]
fn a_run_goes_on_as_it_began() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let resume = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = config.recipe.clone();
        change(&mut recipe);
        let now = TrainConfig::new(recipe, &images)?;
        train(&now, &images, &options(dir.path(), true), &stop)
    };
    train(&config, &images, &options(dir.path(), false), &stop).unwrap();
    let path = dir.path().join("recipe.toml");
    let before = std::fs::read(&path).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Recipe);
    let renamed = |r: &mut Recipe| {
        let old = std::mem::replace(&mut r.classes[1].name, "veil".into());
        r.classes[1].aliases.push(old);
    };
    let refused: [(Change<'_>, &str); 12] = [
        (&|r| r.train.batch = 8, "recipe.toml: the run began with `train.batch` 4, expected 8"),
        (&|r| r.train.accumulate = 3, "`train.accumulate` 2, expected 3"),
        (&|r| r.train.flip = false, "`train.flip` true, expected false"),
        (&|r| r.train.label_drop = 0.1, "`train.label_drop` 0.5, expected 0.1"),
        (&|r| r.optim.lr = 1e-4, "`optim.lr` 0.001, expected 0.0001"),
        (&|r| r.optim.cooldown = 4, "`optim.cooldown` 3, expected 4"),
        (&|r| r.optim.ema = 0.5, "`optim.ema` 0.9999, expected 0.5"),
        (&|r| r.diffusion.prediction = Prediction::V, "expected the same: `diffusion.prediction`"),
        (&|r| r.diffusion.variance = Variance::FixedLarge, "expected the same: `diffusion.variance`"),
        (&|r| r.diffusion.schedule.steps = 50, "expected the same: `diffusion.schedule`"),
        (&renamed, "expected the same: `classes`"),
        (&|r| r.model.windows = "5".into(), "expected the same: `model`"),
    ];
    for (change, expected) in refused {
        let error = resume(change).unwrap_err().to_string();
        assert!(error.ends_with(expected) || error.contains(&format!("{expected}, as the")), "{error}");
        assert!(std::fs::read(&path).unwrap() == before, "a refused run rewrote the recipe");
    }
    // Nothing of this decides what is learnt.
    resume(&|r| {
        (r.description, r.purpose) = ("told anew".into(), None);
        (r.train.steps, r.train.log_every, r.train.checkpoint_every, r.train.sample_every) = (20, 5, 5, 5);
        r.sample.steps = 2;
        r.classes[1].aliases.push("veil".into());
    })
    .unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("told anew"));
    // Who means it says so in both places; and a recipe that is gone is nothing to compare with.
    let changed = |r: &mut Recipe| r.optim.lr = 5e-4;
    let mut there = Recipe::read(&path).unwrap();
    changed(&mut there);
    there.write(&path).unwrap();
    resume(&changed).unwrap();
    std::fs::remove_file(&path).unwrap();
    resume(&|_| ()).unwrap();
}

#[test]
fn a_run_has_its_folder_to_itself_and_clears_it() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let left = [".step-00000007.partial", ".step-00000001.old"]
        .map(|name| dir.path().join("checkpoints").join(name));
    for path in &left {
        std::fs::create_dir_all(path.join("half")).unwrap();
    }
    let stop = AtomicBool::new(true);
    let other = folder::lock(dir.path()).unwrap();
    let refused = train(&config, &images, &options(dir.path(), false), &stop).unwrap_err().to_string();
    let taken = "another process of this machine is writing here, expected one at a time";
    assert_eq!(refused, format!("{}: {taken}", dir.path().display()));
    assert!(left.iter().all(|path| path.exists()), "what lies there may be the other's");
    drop(other);
    train(&config, &images, &options(dir.path(), true), &stop).unwrap_err();
    assert!(left.iter().all(|path| path.exists()), "a refused run removed something");
    train(&config, &images, &options(dir.path(), false), &stop).unwrap();
    assert!(!left.iter().any(|path| path.exists()));
}

#[test]
fn a_run_may_lie_behind_a_link() {
    let (config, images) = config(|_| ());
    let (dir, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = dir.path().join("small");
    symlink(disk.path(), &link).unwrap();
    let stop = AtomicBool::new(true);
    train(&config, &images, &options(&link, false), &stop).unwrap();
    let other = folder::lock(disk.path()).unwrap();
    let refused = train(&config, &images, &options(&link, true), &stop).unwrap_err().to_string();
    assert!(refused.contains("another process of this machine"), "{refused}");
    drop(other);
    train(&config, &images, &options(&link, true), &stop).unwrap();
    assert_eq!(checkpoint::list(&disk.path().join("checkpoints")).unwrap().len(), 2);
    let file = dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let refused = train(&config, &images, &options(&file, false), &stop).unwrap_err().to_string();
    assert!(refused.contains("file: is in the way, expected a folder or nothing"), "{refused}");
}

#[test]
fn a_run_does_not_begin_anew_where_it_should_go_on() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(true);
    let refused = |dir: &Path, resume: bool| {
        train(&config, &images, &options(dir, resume), &stop).unwrap_err().to_string()
    };
    // Nothing to resume from, and nothing is written.
    let nowhere = dir.path().join("nowhere");
    for dir in [dir.path(), &nowhere] {
        let error = refused(dir, true);
        assert!(error.contains("has no checkpoint for `--resume` to go on from"), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // The only checkpoint has lost its state: its weights are not written over.
    train(&config, &images, &options(dir.path(), false), &stop).unwrap();
    let path = checkpoint::list(&dir.path().join("checkpoints")).unwrap().pop().unwrap();
    std::fs::remove_file(path.join("state.json")).unwrap();
    let recipe = || std::fs::metadata(dir.path().join("recipe.toml")).unwrap().modified().unwrap();
    let before = recipe();
    for resume in [false, true] {
        let error = refused(dir.path(), resume);
        assert!(error.contains("step-00000001: has no state.json, so it is no checkpoint"), "{error}");
    }
    assert!(path.join("model.safetensors").is_file() && recipe() == before);
}

#[test]
fn samples_that_cannot_be_written_do_not_end_a_run() {
    let (config, images) = config(|r| r.train.sample_every = 2); // checkpoints are every 3 steps
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("samples"), "a file in the way").unwrap();
    let ended = train(&config, &images, &options(dir.path(), false), &AtomicBool::new(false)).unwrap();
    assert_eq!(ended, Ended::Finished);
    assert_eq!(checkpoint::list(&dir.path().join("checkpoints")).unwrap().len(), 3);
}

#[test]
fn a_log_that_cannot_be_written_does_not_end_a_run() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    // A disk without room.
    symlink("/dev/full", dir.path().join("log.jsonl")).unwrap();
    let ended = train(&config, &images, &options(dir.path(), false), &AtomicBool::new(false)).unwrap();
    assert_eq!(ended, Ended::Finished);
    assert_eq!(checkpoint::list(&dir.path().join("checkpoints")).unwrap().len(), 3);
}

#[test]
fn samples_are_whole_and_drawn_when_they_are_missing() {
    let (config, images) = config(|r| r.train.sample_every = 9);
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("samples/step-00000009.png");
    std::fs::create_dir(dir.path().join("samples")).unwrap();
    std::fs::write(&picture, "as it was").unwrap();
    let reader = std::fs::File::open(&picture).unwrap();
    let go = |resume| train(&config, &images, &options(dir.path(), resume), &AtomicBool::new(false)).unwrap();
    go(false);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "as it was", "it is written over");
    // Killed between its last checkpoint and the picture.
    let drawn = std::fs::read(&picture).unwrap();
    std::fs::remove_file(&picture).unwrap();
    assert_eq!(go(true), Ended::Finished);
    assert!(std::fs::read(&picture).unwrap() == drawn, "it is another picture");
    std::fs::write(&picture, "there already").unwrap();
    go(true);
    assert_eq!(std::fs::read(&picture).unwrap(), b"there already");
    assert_eq!(std::fs::read_dir(dir.path().join("samples")).unwrap().count(), 1);
}

#[test]
fn drawing_makes_the_training_no_faster() {
    // The samples of the last step but one, in the midst of the steps that one record tells of.
    let steps = 60;
    let (config, images) = config(|r| {
        (r.train.steps, r.train.log_every, r.train.checkpoint_every) = (steps, 1000, 1000);
        r.train.sample_every = steps - 1;
    });
    let dir = tempfile::tempdir().unwrap();
    train(&config, &images, &options(dir.path(), false), &AtomicBool::new(false)).unwrap();
    let log = std::fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    let record: serde_json::Value = serde_json::from_str(&log).unwrap();
    let field = |name: &str| record[name].as_f64().unwrap();
    // Eight images a step. One step takes a sixtieth of the time, drawing a few; the bar is a quarter.
    let told = (8 * steps) as f64 / field("images_per_second");
    assert!(told > field("seconds") / 4.0, "{told} s of training in {} s", field("seconds"));
}

#[test]
fn a_folder_of_checkpoints_that_cannot_be_is_told_before_the_work() {
    let (config, images) = config(|_| ());
    let dir = tempfile::tempdir().unwrap();
    symlink("nowhere", dir.path().join("checkpoints")).unwrap();
    let stop = AtomicBool::new(true);
    for resume in [false, true] {
        let refused = train(&config, &images, &options(dir.path(), resume), &stop).unwrap_err().to_string();
        assert!(
            refused.contains("checkpoints: is a link that cannot be followed (No such file"),
            "{refused}"
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "it began all the same");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint() {
    let (config, images) = config(|r| {
        r.optim.lr = 10.0;
        r.optim.clip = 0.0;
        r.optim.warmup = 0;
        r.train.checkpoint_every = 1;
        r.train.steps = 5000;
        r.train.log_every = 1;
    });
    let dir = tempfile::tempdir().unwrap();
    // Weights of 1e30 overflow in the first forward pass after the checkpoint.
    let stop = AtomicBool::new(true);
    train(&config, &images, &options(dir.path(), false), &stop).unwrap();
    let path = checkpoint::list(&dir.path().join("checkpoints")).unwrap().pop().unwrap();
    let file = path.join("model.safetensors");
    let weights = checkpoint::load_weights(&file, Device::Cpu).unwrap();
    let digest = checkpoint::save_weights(&file, &weights.meta, &(weights.flat * 1e30)).unwrap();
    let state_path = path.join("state.json");
    let mut state: checkpoint::State =
        serde_json::from_str(&std::fs::read_to_string(&state_path).unwrap()).unwrap();
    state.files.insert("model.safetensors".into(), digest);
    std::fs::write(&state_path, serde_json::to_string(&state).unwrap()).unwrap();
    let error = train(&config, &images, &options(dir.path(), true), &AtomicBool::new(false)).unwrap_err();
    let Error::NotFinite { last_good: Some(last_good), .. } = &error else { panic!("{error}") };
    assert_eq!(last_good, &path);
    assert!(last_good.join("model.safetensors").exists());
}

#[test]
fn a_batch_that_does_not_fit_is_refused_with_the_largest_that_does() {
    let gib = |n: f64| Some(n * 1024.0 * 1024.0 * 1024.0);
    let (large, images) = config(|r| {
        r.model.name = "DiT-XL/1".into();
        (r.model.depth, r.model.hidden) = (None, None);
        (r.data.toy, r.data.images) = (r.data.toy.map(|toy| data::Toy { size: 64, ..toy }), Some(4));
        r.train.batch = 65_536;
    });
    let dir = tempfile::tempdir().unwrap();
    // No machine has the 200 TiB, so the run itself refuses; nothing is written.
    let error =
        train(&large, &images, &options(dir.path(), false), &AtomicBool::new(true)).unwrap_err().to_string();
    assert!(error.contains("`train.batch` is 65536: a step needs about"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let (mut small, _) = config(|r| r.train.batch = 65_536);
    let error = memory::check_batch(&small, gib(1.0)).unwrap_err().to_string();
    assert!(error.contains("1.0 GiB are available") && error.contains("`train.accumulate`"), "{error}");
    let most = error.split("at most ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    small.recipe.train.batch = most.parse().unwrap();
    memory::check_batch(&small, gib(1.0)).unwrap();
    small.recipe.train.batch += 1;
    memory::check_batch(&small, gib(1.0)).unwrap_err();
    let error = memory::check_batch(&large, gib(1.0)).unwrap_err().to_string();
    assert!(error.contains("not one image would fit"), "{error}");
}
