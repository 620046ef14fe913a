//! Checkpoints written, read and damaged.

use windowpane_diffusion::ScheduleKind;

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
    State { step, seed: 1, data_sha256: "d".into(), images: 1, images_seen: 0, seconds: 0.0 }
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
    meta.config.hidden = 16;
    let message = load_foreign(&path, &meta.config, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("x_embedder.proj.weight"), "{message}");
}
