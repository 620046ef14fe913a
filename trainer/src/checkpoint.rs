//! Everything needed to go on: weights, moving average, moments, step. A checkpoint is whole or absent; `folder` sees
//! to it.
//!
//! A checkpoint is a folder `step-00001000/` of `model.safetensors` (raw weights), `ema.safetensors` (their
//! moving average), `optimiser.safetensors` (both moments, flat) and `state.json`, which pins the three by their digests.
//! The first two carry the parameter names of facebookresearch/DiT `models.py`, its frozen `pos_embed` included, so a
//! PyTorch user can load them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;

use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::config::MAX_BATCH;
use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::folder::{self, NewFolder};
use crate::json;
use crate::optim::Optimiser;
use crate::params::Layout;

mod weights;

pub use weights::{Meta, Weights, load_foreign, load_weights, save_weights};
use weights::{digest, read_f32, to_bytes, weights_in, write_safetensors};

/// `state.json`: where the run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Steps that are known to be behind the weights that the run began with; nothing where they were random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_before: Option<u64>,
    /// Seed of the run.
    pub seed: u64,
    /// Digest of the training images; a run does not resume on others.
    pub data_sha256: String,
    /// Training images.
    pub images: usize,
    /// Images seen, repetitions counted.
    pub images_seen: u64,
    /// Seconds spent training, all sessions together.
    pub seconds: f64,
    /// sha256 of the files beside it, by name; none in a checkpoint of an earlier version.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// The raw weights, their moving average, and the moments.
const RAW_FILE: &str = "model.safetensors";
const AVERAGE_FILE: &str = "ema.safetensors";
const MOMENTS_FILE: &str = "optimiser.safetensors";

/// The file without which a folder is no checkpoint.
const STATE_FILE: &str = "state.json";

/// The most images that a step can see: the largest batch, accumulated as often as can be.
const MAX_IMAGES_PER_STEP: u64 = (MAX_BATCH * MAX_BATCH) as u64;

// === impl State ===

impl State {
    /// Whether the checkpoint or run at `path`, which stands here, was trained on `images`. Errors: on others; `told` is
    /// who says that it is to be these, with a verb.
    pub fn check_images(&self, path: &Path, images: &ImageSet, told: &str) -> Result<()> {
        if self.data_sha256 == images.sha256 {
            return Ok(());
        }
        let (then, now) = (self.images, images.len());
        Err(Error::file(path, format!("was trained on {then} other images, expected the {now} that {told}")))
    }
}

// === Writing ===

/// Writes a checkpoint of the weights `flat` and their `optimiser` into `dir`, keeps the newest `keep` checkpoints
/// there and returns its path. An old one that cannot be removed is a warning.
pub fn save(
    (dir, keep): (&Path, usize),
    (meta, state): (&Meta, &State),
    flat: &Tensor,
    optimiser: &Optimiser,
) -> Result<PathBuf> {
    let path = dir.join(format!("step-{:08}", state.step));
    let folder = NewFolder::begin(&path)?;
    let partial = folder.path();
    let raw = save_weights(&partial.join(RAW_FILE), meta, flat)?;
    let average = save_weights(&partial.join(AVERAGE_FILE), meta, &optimiser.ema)?;
    let moments = [("m", to_bytes(&optimiser.m)?), ("v", to_bytes(&optimiser.v)?)];
    let shape = vec![flat.size()[0] as usize];
    let moments = write_safetensors(
        &partial.join(MOMENTS_FILE),
        moments.iter().map(|(name, bytes)| (name.to_string(), shape.clone(), bytes.as_slice())),
        None,
    )?;
    let files = [(RAW_FILE, raw), (AVERAGE_FILE, average), (MOMENTS_FILE, moments)];
    let files = files.into_iter().map(|(name, digest)| (name.to_owned(), digest)).collect();
    let state = State { files, ..state.clone() };
    let text = serde_json::to_string_pretty(&state).expect("a state is plain data: this is a bug");
    let state_path = partial.join(STATE_FILE);
    std::fs::write(&state_path, text).map_err(Error::io(&state_path))?;
    folder.commit()?;
    let (all, _) = scan(dir)?;
    for old in &all[..all.len().saturating_sub(keep.max(1))] {
        folder::warn(folder::remove(old));
    }
    Ok(path)
}

/// Removes from `dir` what a killed process left of checkpoints it was writing or removing; what cannot be removed is a
/// warning. The caller has the run to itself.
pub fn clear(dir: &Path) -> Result<()> {
    for path in folder::entries(dir)? {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(folder::left_behind);
        if name.is_some_and(|name| step_of(name).is_some()) {
            folder::warn(folder::erase(&path));
        }
    }
    Ok(())
}

// === Reading ===

/// The checkpoints in `dir`, oldest first. A missing folder has none. What is named like a checkpoint but has no
/// `state.json` is left out, with a warning.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let (whole, others) = scan(dir)?;
    for path in others {
        eprintln!("warning: {} is left out: it has no {STATE_FILE}, so it is no checkpoint", path.display());
    }
    Ok(whole)
}

/// The newest checkpoint in `dir`, if there is one. Errors: a folder that is named like a later one and has no
/// `state.json`; a run that begins or goes on here would come to that step and write over the weights in it.
pub fn newest(dir: &Path) -> Result<Option<PathBuf>> {
    let newest = list(dir)?.pop();
    let (_, mut others) = scan(dir)?;
    match others.pop() {
        Some(other) if newest.as_deref().and_then(step_at) < step_at(&other) => {
            let reason =
                format!("has no {STATE_FILE}, so it is no checkpoint, and a run would write over it");
            Err(Error::file(&other, format!("{reason}: move it away first")))
        }
        _ => Ok(newest),
    }
}

/// What is named like a checkpoint in `dir`, by step: those that are one, and those that are not.
fn scan(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut found: Vec<_> =
        folder::entries(dir)?.into_iter().filter_map(|path| Some((step_at(&path)?, path))).collect();
    found.sort();
    let (mut whole, mut others) = (Vec::new(), Vec::new());
    for (_, path) in found {
        let state = path.join(STATE_FILE);
        // What cannot be looked at is not missing.
        let is_file =
            folder::there(&state)? && std::fs::metadata(&state).map_err(Error::io(&state))?.is_file();
        if is_file { whole.push(path) } else { others.push(path) }
    }
    Ok((whole, others))
}

/// The step of what is named like a checkpoint.
fn step_at(path: &Path) -> Option<u64> {
    step_of(path.file_name()?.to_str()?)
}

/// The step of a checkpoint's name.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Loads the state, raw weights and optimiser of the checkpoint folder `path` for a run of `meta`'s model.
pub fn load(path: &Path, meta: &Meta, optimiser: &mut Optimiser, device: Device) -> Result<(State, Tensor)> {
    let (state, weights) = open(path, true, device)?;
    weights.meta.check_same(path, meta)?;
    let average = open(path, false, device)?.1;
    if average.meta != weights.meta {
        let reason = format!("is of another run than {RAW_FILE} beside it: not one checkpoint");
        return Err(Error::file(&path.join(AVERAGE_FILE), reason));
    }
    optimiser.ema = average.flat;
    let moments_path = path.join(MOMENTS_FILE);
    let bytes = read_pinned(path, &state, MOMENTS_FILE)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(&moments_path, e))?;
    let total = Layout::of(&meta.config).total();
    let moment = |name: &str| read_f32(&moments_path, &file, name, &[total]);
    optimiser.m = Tensor::from_slice(&moment("m")?).to_device(device);
    optimiser.v = Tensor::from_slice(&moment("v")?).to_device(device);
    Ok((state, weights.flat))
}

/// Where the run of the checkpoint folder `path` stood, and its weights: raw, or their moving average. Errors: a file
/// that is missing or damaged, weights of another step than the state.
pub fn open(path: &Path, raw: bool, device: Device) -> Result<(State, Weights)> {
    let state_path = path.join(STATE_FILE);
    let text = std::fs::read_to_string(&state_path).map_err(Error::io(&state_path))?;
    let state: State = json::object(&text).map_err(|e| Error::file(&state_path, e))?;
    let most = state.step.saturating_mul(MAX_IMAGES_PER_STEP);
    if state.images_seen > most {
        let (step, seen) = (state.step, state.images_seen);
        let reason = format!("`images_seen` is {seen}, expected at most {most} after {step} steps");
        return Err(Error::file(&state_path, reason));
    }
    if state.files.is_empty() {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            eprintln!("{}: an earlier version wrote it, without digests of its files", path.display());
        });
    }
    let file = if raw { RAW_FILE } else { AVERAGE_FILE };
    let weights = weights_in(&path.join(file), &read_pinned(path, &state, file)?, device)?;
    if weights.meta.step != state.step {
        let (a, b) = (state.step, weights.meta.step);
        let reason =
            format!("`step` is {a}, but {file} beside it holds the weights of step {b}: not one checkpoint");
        return Err(Error::file(&state_path, reason));
    }
    Ok((state, weights))
}

/// The bytes of a checkpoint's file, compared with the digest that its state tells, if it tells any.
fn read_pinned(dir: &Path, state: &State, name: &str) -> Result<Vec<u8>> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    match state.files.get(name) {
        Some(told) if *told != digest(&bytes) => {
            let reason = format!("its sha256 is {}, {STATE_FILE} beside it says {told}", digest(&bytes));
            Err(Error::file(&path, reason))
        }
        None if !state.files.is_empty() => {
            Err(Error::file(&path, format!("{STATE_FILE} beside it does not list it")))
        }
        _ => Ok(bytes),
    }
}

#[cfg(test)]
pub(crate) mod tests;
