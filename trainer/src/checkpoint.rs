//! Everything needed to go on: weights, moving average, moments, step. A checkpoint is whole or absent; `folder` sees
//! to it.
//!
//! A checkpoint is a folder `step-00001000/` of `model.safetensors` (raw weights), `ema.safetensors` (their
//! moving average), `optimiser.safetensors` (both moments, flat) and `state.json`. The first two carry the parameter names
//! of facebookresearch/DiT `models.py`, its frozen `pos_embed` included, so a PyTorch user can load them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::manifest::Class;
use windowpane_diffusion::{ModelConfig, Prediction, ScheduleConfig, Variance};

use crate::config::MAX_BATCH;
use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::folder::{self, NewFolder};
use crate::json;
use crate::model::position_table;
use crate::optim::Optimiser;
use crate::params::Layout;

/// What a file of weights says about itself, in the safetensors header under the key `windowpane`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The network's shape.
    pub config: ModelConfig,
    /// The noise it was trained under.
    pub schedule: ScheduleConfig,
    /// What it predicts.
    pub prediction: Prediction,
    /// Which variance its reverse process has.
    pub variance: Variance,
    /// Its classes.
    pub classes: Vec<Class>,
    /// Steps trained.
    pub step: u64,
}

/// `state.json`: where the run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
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
}

/// Weights in memory: what they are, and the flat buffer `[parameters]`.
#[derive(Debug)]
pub struct Weights {
    /// What the file says of itself.
    pub meta: Meta,
    /// The parameters.
    pub flat: Tensor,
}

const META_KEY: &str = "windowpane";

/// The file without which a folder is no checkpoint.
const STATE_FILE: &str = "state.json";

/// The most images that a step can see: the largest batch, accumulated as often as can be.
const MAX_IMAGES_PER_STEP: u64 = (MAX_BATCH * MAX_BATCH) as u64;

// === impl Meta ===

impl Meta {
    /// In words, what decides the network and its noise and differs between two runs.
    fn different(&self, other: &Self) -> Vec<&'static str> {
        let size = |meta: &Self| (meta.config.channels, meta.config.height, meta.config.width);
        let network =
            |meta: &Self| ModelConfig { channels: 0, height: 0, width: 0, classes: 0, ..meta.config.clone() };
        // Taken apart by name: who adds a field names it here.
        let Self { config, schedule, prediction, variance, classes, step: _ } = self;
        let same_classes = (config.classes, classes) == (other.config.classes, &other.classes);
        [
            ("the size of the images", size(self) == size(other)),
            ("`model`", network(self) == network(other)),
            ("`diffusion.schedule`", *schedule == other.schedule),
            ("`diffusion.prediction`", *prediction == other.prediction),
            ("`diffusion.variance`", *variance == other.variance),
            ("`classes`", same_classes),
        ]
        .into_iter()
        .filter_map(|(what, same)| (!same).then_some(what))
        .collect()
    }
}

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
    save_weights(&partial.join("model.safetensors"), meta, flat)?;
    save_weights(&partial.join("ema.safetensors"), meta, &optimiser.ema)?;
    let moments = [("m", to_bytes(&optimiser.m)?), ("v", to_bytes(&optimiser.v)?)];
    let shape = vec![flat.size()[0] as usize];
    write_safetensors(
        &partial.join("optimiser.safetensors"),
        moments.iter().map(|(name, bytes)| (name.to_string(), shape.clone(), bytes.as_slice())),
        None,
    )?;
    let text = serde_json::to_string_pretty(state).expect("a state is plain data: this is a bug");
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

/// Writes weights under DiT's names. `flat` is `[parameters]`.
pub fn save_weights(path: &Path, meta: &Meta, flat: &Tensor) -> Result<()> {
    let layout = Layout::of(&meta.config);
    let bytes = to_bytes(flat)?;
    let table = position_table(meta.config.grid(), meta.config.hidden);
    let table: Vec<u8> = table.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut tensors =
        vec![("pos_embed".to_owned(), vec![1, meta.config.grid().tokens(), meta.config.hidden], &table[..])];
    let mut at = 0;
    for entry in &layout.entries {
        let shape = entry.shape.iter().map(|&n| n as usize).collect();
        tensors.push((entry.name.clone(), shape, &bytes[at..at + 4 * entry.len()]));
        at += 4 * entry.len();
    }
    let text = serde_json::to_string(meta).expect("a meta is plain data: this is a bug");
    write_safetensors(path, tensors.into_iter(), Some(HashMap::from([(META_KEY.to_owned(), text)])))
}

fn write_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, Vec<usize>, &'a [u8])>,
    metadata: Option<HashMap<String, String>>,
) -> Result<()> {
    let views: std::result::Result<Vec<_>, _> = tensors
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape, bytes)?)))
        .collect::<std::result::Result<_, safetensors::SafeTensorError>>();
    let views = views.map_err(|e| Error::file(path, e))?;
    // Not `serialize_to_file`, whose file only its owner may read.
    let bytes = safetensors::serialize(views, metadata).map_err(|e| Error::file(path, e))?;
    std::fs::write(path, bytes).map_err(Error::io(path))
}

/// The values of an f32 tensor as little-endian bytes.
fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let values = Vec::<f32>::try_from(&flat.view([-1]))?;
    Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
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
    let different = weights.meta.different(meta);
    if !different.is_empty() {
        let reason = format!("was trained from another recipe, expected the same: {}", different.join(", "));
        return Err(Error::file(path, reason));
    }
    optimiser.ema = open(path, false, device)?.1.flat;
    let moments_path = path.join("optimiser.safetensors");
    let bytes = std::fs::read(&moments_path).map_err(Error::io(&moments_path))?;
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
    let file = if raw { "model.safetensors" } else { "ema.safetensors" };
    let weights = load_weights(&path.join(file), device)?;
    if weights.meta.step != state.step {
        let (a, b) = (state.step, weights.meta.step);
        let reason =
            format!("`step` is {a}, but {file} beside it holds the weights of step {b}: not one checkpoint");
        return Err(Error::file(&state_path, reason));
    }
    Ok((state, weights))
}

/// Loads weights under DiT's names: a checkpoint's `model.safetensors` or `ema.safetensors`.
pub fn load_weights(path: &Path, device: Device) -> Result<Weights> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| Error::file(path, e))?;
    let text = header.metadata().as_ref().and_then(|m| m.get(META_KEY)).ok_or_else(|| {
        Error::file(path, format!("its header has no `{META_KEY}` entry: not a checkpoint of this trainer"))
    })?;
    let meta: Meta =
        json::object(text).map_err(|e| Error::file(path, format!("header `{META_KEY}`: {e}")))?;
    meta.config.validate()?;
    let flat = read_flat(path, &bytes, &meta.config)?.to_device(device);
    Ok(Weights { meta, flat })
}

/// Loads bare weights, such as a PyTorch DiT's state dict saved as safetensors, for a known configuration.
pub fn load_foreign(path: &Path, config: &ModelConfig, device: Device) -> Result<Tensor> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    Ok(read_flat(path, &bytes, config)?.to_device(device))
}

fn read_flat(path: &Path, bytes: &[u8], config: &ModelConfig) -> Result<Tensor> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| Error::file(path, e))?;
    let layout = Layout::of(config);
    let known = |name: &str| name == "pos_embed" || layout.entries.iter().any(|e| e.name == name);
    if let Some(stranger) = file.names().into_iter().find(|name| !known(name)) {
        return Err(Error::file(path, format!("holds `{stranger}`, which the model does not have")));
    }
    // No more than the file can hold, whatever its header tells of.
    let mut flat = Vec::with_capacity(layout.total().min(bytes.len() / 4));
    for entry in &layout.entries {
        let shape: Vec<usize> = entry.shape.iter().map(|&n| n as usize).collect();
        flat.extend(read_f32(path, &file, &entry.name, &shape)?);
    }
    Ok(Tensor::from_slice(&flat))
}

fn read_f32(path: &Path, file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = file.tensor(name).map_err(|_| Error::file(path, format!("lacks the tensor `{name}`")))?;
    if view.shape() != shape || view.dtype() != Dtype::F32 {
        let got = format!("{:?} {:?}", view.dtype(), view.shape());
        return Err(Error::file(path, format!("`{name}` is {got}, expected F32 {shape:?}")));
    }
    let values = view.data().chunks_exact(4);
    Ok(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[cfg(test)]
pub(crate) mod tests;
