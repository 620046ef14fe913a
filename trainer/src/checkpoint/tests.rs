//! Checkpoints written, read and damaged.

use std::collections::HashMap;

use windowpane_diffusion::manifest::Class;
use windowpane_diffusion::{ModelConfig, Prediction, ScheduleConfig, ScheduleKind, Variance};

use super::weights::META_KEY;
use super::*;
use crate::optim::OptimConfig;

pub(crate) fn small_meta() -> Meta {
    Meta {
        config: ModelConfig {
            channels: 1,
            height: 4,
            width: 6,
            patch: 2,
            hidden: 8,
            depth: 1,
            heads: 2,
            mlp_ratio: 4,
            classes: 0,
            learn_sigma: false,
            windows: vec![windowpane_diffusion::Window::Global],
        },
        schedule: ScheduleConfig { kind: ScheduleKind::Linear, steps: 10 },
        prediction: Prediction::Eps,
        variance: Variance::FixedSmall,
        classes: Vec::new(),
        step: 0,
    }
}

fn state(step: u64) -> State {
    State {
        steps_before: None,
        step,
        seed: 1,
        data_sha256: "d".into(),
        images: 1,
        images_seen: 0,
        seconds: 0.0,
        files: BTreeMap::new(),
    }
}

/// Makes a checkpoint one of those that tell no digests.
fn forget_digests(path: &Path) {
    let text = std::fs::read_to_string(path.join(STATE_FILE)).unwrap();
    let state = State { files: BTreeMap::new(), ..serde_json::from_str(&text).unwrap() };
    let text = serde_json::to_string(&state).unwrap();
    assert!(!text.contains("files"), "{text}");
    std::fs::write(path.join(STATE_FILE), text).unwrap();
}

#[test]
fn what_is_written_is_read_and_only_the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let meta = small_meta();
    let flat = Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let mut optimiser = Optimiser::new(OptimConfig::default(), &flat);
    optimiser.m += 0.5;
    for step in [1, 2, 30] {
        let meta = Meta { step, ..meta.clone() };
        save((dir.path(), 2), (&meta, &state(step)), &flat, &optimiser).unwrap();
    }
    let all = list(dir.path()).unwrap();
    assert_eq!(all.len(), 2);
    let mut fresh = Optimiser::new(OptimConfig::default(), &flat.zeros_like());
    let (state, back) = load(&all[1], &meta, &mut fresh, Device::Cpu).unwrap();
    assert_eq!((state.step, back.equal(&flat)), (30, true));
    assert!(fresh.m.equal(&optimiser.m) && fresh.v.equal(&optimiser.v) && fresh.ema.equal(&flat));
}

#[test]
fn a_folder_that_is_no_checkpoint_is_left_out_and_steps_are_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, step) = (small_meta(), |n: u64| dir.path().join(format!("step-{n:08}")));
    let flat = Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let optimiser = Optimiser::new(OptimConfig::default(), &flat);
    let save = |n| save((dir.path(), 2), (&meta, &state(n)), &flat, &optimiser).unwrap();
    std::fs::create_dir(step(7)).unwrap();
    std::fs::write(step(8), "not even a folder").unwrap();
    std::fs::create_dir_all(dir.path().join(".step-00000006.partial")).unwrap();
    for n in [5, 99_999_999, 100_000_000] {
        save(n);
    }
    assert_eq!(list(dir.path()).unwrap(), [step(99_999_999), step(100_000_000)]);
    assert!(step(7).exists() && step(8).exists(), "what is no checkpoint is not ours to remove");
    save(7);
    assert_eq!(list(dir.path()).unwrap(), [step(99_999_999), step(100_000_000)], "the oldest goes");
}

#[test]
fn weights_of_another_step_and_a_state_that_is_no_object_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = Meta { step: 4, ..small_meta() };
    let flat = Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let mut optimiser = Optimiser::new(OptimConfig::default(), &flat);
    let path = save((dir.path(), 2), (&meta, &state(4)), &flat, &optimiser).unwrap();
    forget_digests(&path);
    for (raw, file) in [(true, "model.safetensors"), (false, "ema.safetensors")] {
        let good = std::fs::read(path.join(file)).unwrap();
        open(&path, raw, Device::Cpu).unwrap();
        save_weights(&path.join(file), &Meta { step: 3, ..meta.clone() }, &flat).unwrap();
        let expected = format!("`step` is 4, but {file} beside it holds the weights of step 3");
        let errors = [
            open(&path, raw, Device::Cpu).unwrap_err().to_string(),
            load(&path, &meta, &mut optimiser, Device::Cpu).unwrap_err().to_string(),
        ];
        assert!(errors.iter().all(|error| error.contains(&expected)), "{errors:?}");
        std::fs::write(path.join(file), good).unwrap();
    }
    std::fs::write(path.join(STATE_FILE), r#"[4, 1, "d", 1, 0, 0.0]"#).unwrap();
    let error = open(&path, true, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("sequence, expected a map"), "{error}");
}

#[test]
fn a_checkpoint_is_one_run_and_one_step() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let meta = Meta { step: 4, ..small_meta() };
    // Two runs of one recipe that differ in nothing but their seed.
    let [one, other] = [0, 1].map(|run| {
        let flat = Layout::of(&meta.config).initial_tensor(run, Device::Cpu);
        let mut optimiser = Optimiser::new(OptimConfig::default(), &flat);
        optimiser.m += run as f64;
        save((dirs[run as usize].path(), 2), (&meta, &state(4)), &flat, &optimiser).unwrap()
    });
    let mut optimiser = Optimiser::new(OptimConfig::default(), &Tensor::from_slice(&[0f32]));
    let mut load_one = || load(&one, &meta, &mut optimiser, Device::Cpu).map(|_| ());
    load_one().unwrap();
    for file in [RAW_FILE, AVERAGE_FILE, MOMENTS_FILE] {
        let own = std::fs::read(one.join(file)).unwrap();
        std::fs::copy(other.join(file), one.join(file)).unwrap();
        let error = load_one().unwrap_err().to_string();
        assert!(
            error.contains(&format!("{file}: its sha256 is ")) && error.contains("state.json"),
            "{error}"
        );
        std::fs::write(one.join(file), own).unwrap();
    }
    // Those that tell no digests are opened; what their files say of themselves has to agree.
    forget_digests(&one);
    load_one().unwrap();
    let flat = Layout::of(&meta.config).initial_tensor(1, Device::Cpu);
    save_weights(&one.join(AVERAGE_FILE), &Meta { prediction: Prediction::V, ..meta.clone() }, &flat)
        .unwrap();
    let error = load_one().unwrap_err().to_string();
    assert!(error.contains("ema.safetensors: is of another run than model.safetensors beside it"), "{error}");
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = small_meta();
    let good = || Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let bad = |value: f64| {
        let flat = good();
        let _ = flat.get(9).fill_(value);
        flat
    };
    type Damage<'a> = &'a dyn Fn(&mut Tensor, &mut Optimiser);
    let cases: [(Damage<'_>, &str); 4] = [
        (&|flat, _| *flat = bad(f64::NAN), "model.safetensors: `x_embedder.proj.weight`[9] is NaN"),
        (
            &|_, optimiser| optimiser.ema = bad(f64::INFINITY),
            "ema.safetensors: `x_embedder.proj.weight`[9] is inf",
        ),
        (&|_, optimiser| optimiser.m = bad(f64::NAN), "optimiser.safetensors: `m`[9] is NaN"),
        (&|_, optimiser| optimiser.v = bad(f64::NEG_INFINITY), "optimiser.safetensors: `v`[9] is -inf"),
    ];
    for (damage, expected) in cases {
        let (mut flat, mut optimiser) = (good(), Optimiser::new(OptimConfig::default(), &good()));
        damage(&mut flat, &mut optimiser);
        let path = save((dir.path(), 2), (&meta, &state(0)), &flat, &optimiser).unwrap();
        let error = load(&path, &meta, &mut optimiser, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains(&format!("{expected}, expected a finite number")), "{error}");
    }
}

#[test]
fn what_lies_beyond_the_newest_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let (meta, step) = (small_meta(), |n: u64| dir.path().join(format!("step-{n:08}")));
    let flat = Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let optimiser = Optimiser::new(OptimConfig::default(), &flat);
    save((dir.path(), 2), (&meta, &state(5)), &flat, &optimiser).unwrap();
    std::fs::create_dir(step(4)).unwrap(); // no run comes here any more
    assert_eq!(newest(dir.path()).unwrap(), Some(step(5)));
    std::fs::create_dir(step(6)).unwrap();
    let error = newest(dir.path()).unwrap_err().to_string();
    assert!(error.contains("step-00000006: has no state.json, so it is no checkpoint"), "{error}");
    // What cannot be looked at is not missing.
    std::os::unix::fs::symlink(STATE_FILE, step(6).join(STATE_FILE)).unwrap();
    let error = list(dir.path()).unwrap_err().to_string();
    assert!(error.contains("step-00000006/state.json: Too many levels of symbolic links"), "{error}");
}

#[test]
fn numbers_that_no_run_comes_to_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let meta = Meta { step: 4, ..small_meta() };
    let flat = Layout::of(&meta.config).initial_tensor(3, Device::Cpu);
    let optimiser = Optimiser::new(OptimConfig::default(), &flat);
    let save = |images_seen| {
        let state = State { images_seen, ..state(4) };
        save((dir.path(), 2), (&meta, &state), &flat, &optimiser).unwrap()
    };
    open(&save(4 << 32), true, Device::Cpu).unwrap();
    let error = open(&save(u64::MAX), true, Device::Cpu).unwrap_err().to_string();
    let expected = "`images_seen` is 18446744073709551615, expected at most 17179869184 after 4 steps";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_header_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let write = |text: String| {
        let header = Some(HashMap::from([(META_KEY.to_owned(), text)]));
        write_safetensors(&path, [("none".to_owned(), vec![1], &[0; 4][..])].into_iter(), header).unwrap();
        load_weights(&path, Device::Cpu).unwrap_err().to_string()
    };
    let mut meta = small_meta();
    let fields = serde_json::to_value(&meta).unwrap();
    let array: Vec<_> =
        ["config", "schedule", "prediction", "variance", "classes", "step"].map(|f| &fields[f]).into();
    let error = write(serde_json::to_string(&array).unwrap());
    assert!(error.contains("header `windowpane`: invalid type: sequence, expected a map"), "{error}");
    type Change<'a> = &'a dyn Fn(&mut Meta);
    let changes: [(Change<'_>, &str); 3] = [
        (&|m| m.schedule.steps = 0, "header `windowpane`: `schedule.steps` is 0, expected 1 to"),
        (&|m| m.variance = Variance::LearnedRange, "`variance` is learned_range, expected what goes with"),
        (&|m| m.config.classes = 3, "`classes` is 0 classes, expected 3"),
    ];
    for (change, expected) in changes {
        let mut meta = meta.clone();
        change(&mut meta);
        let error = write(serde_json::to_string(&meta).unwrap());
        assert!(error.contains(expected), "{error}");
    }
    // Parameters of terabytes in a file of bytes: a process that set the memory aside would end here.
    (meta.config.hidden, meta.config.depth, meta.config.mlp_ratio) = (8192, 256, 16);
    meta.config.windows = vec![windowpane_diffusion::Window::Global; 256];
    let text = serde_json::to_string(&meta).unwrap();
    write_safetensors(&path, std::iter::empty(), Some(HashMap::from([(META_KEY.to_owned(), text)]))).unwrap();
    let error = load_weights(&path, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("lacks the tensor `x_embedder.proj.weight`"), "{error}");
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut meta = small_meta();
    save_weights(&path, &meta, &Layout::of(&meta.config).initial_tensor(3, Device::Cpu)).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let message = load_weights(&path, Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("model.safetensors"), "{message}");
    }
    std::fs::write(&path, &bytes).unwrap();
    let _ = load_foreign(&path, &meta, Device::Cpu).unwrap();
    // Positions that were learnt are another model.
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let begin = bytes.len() - header.data_len() + header.info("pos_embed").unwrap().data_offsets.0;
    let mut learnt = bytes.clone();
    learnt[begin..begin + 4].copy_from_slice(&0.5f32.to_le_bytes());
    std::fs::write(&path, &learnt).unwrap();
    let message = load_foreign(&path, &meta, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("its `pos_embed` is not the sines and cosines"), "{message}");
    // Another's, under names of this model.
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    std::fs::write(&path, safetensors::serialize(tensors.iter(), None).unwrap()).unwrap();
    meta.config.hidden = 16;
    let message = load_foreign(&path, &meta, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("x_embedder.proj.weight"), "{message}");
}

#[test]
fn weights_that_say_what_they_are_are_drawn_as_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let class = |aliases: &[&str]| Class {
        name: "ring".into(),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
    };
    let mut own = Meta { step: 9, classes: vec![class(&[])], ..small_meta() };
    own.config.classes = 1;
    save_weights(&path, &own, &Layout::of(&own.config).initial_tensor(3, Device::Cpu)).unwrap();
    let load = |change: &dyn Fn(&mut Meta)| {
        let mut meta = Meta { step: 0, ..own.clone() };
        change(&mut meta);
        load_foreign(&path, &meta, Device::Cpu).map(|_| ()).map_err(|error| error.to_string())
    };
    load(&|_| ()).unwrap();
    load(&|meta| meta.classes[0] = class(&["circle"])).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Meta);
    let changes: [(Change<'_>, &str); 5] = [
        (&|meta| meta.prediction = Prediction::V, "`diffusion.prediction`"),
        (&|meta| meta.schedule.steps = 20, "`diffusion.schedule`"),
        (&|meta| meta.config.heads = 1, "`model`"),
        (&|meta| meta.classes[0].name = "blob".into(), "`classes`"),
        (
            &|meta| (meta.prediction, meta.variance) = (Prediction::X0, Variance::FixedLarge),
            "`diffusion.prediction`, `diffusion.variance`",
        ),
    ];
    for (change, what) in changes {
        let expected = format!("its header tells of another model than the recipe: {what} differ");
        let error = load(change).unwrap_err();
        assert!(error.ends_with(&expected), "{error}");
    }
}
