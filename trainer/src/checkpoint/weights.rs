//! Files of weights: safetensors under the parameter names of facebookresearch/DiT `models.py`, which say of themselves
//! what they are. Nothing in them is believed before it is checked.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::manifest::Class;
use windowpane_diffusion::{ModelConfig, Prediction, ScheduleConfig, Variance};

use crate::error::{Error, Result};
use crate::json;
use crate::model::position_table;
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

/// Weights in memory: what they are, and the flat buffer `[parameters]`.
#[derive(Debug)]
pub struct Weights {
    /// What the file says of itself.
    pub meta: Meta,
    /// The parameters.
    pub flat: Tensor,
}

/// Where in the header a file says what it is.
pub(super) const META_KEY: &str = "windowpane";

// === impl Meta ===

impl Meta {
    /// Checks that its parts go together. Errors name the field.
    pub(crate) fn validate(&self) -> Result<()> {
        self.config.validate()?;
        self.schedule.build()?;
        let learned = self.variance == Variance::LearnedRange;
        if learned != self.config.learn_sigma {
            let (got, told) = (self.variance, self.config.learn_sigma);
            let expected = format!("what goes with `config.learn_sigma`, which is {told}");
            return Err(windowpane_diffusion::Error::bad_value("variance", got, expected).into());
        }
        if self.classes.len() != self.config.classes {
            let (got, expected) = (self.classes.len(), self.config.classes);
            let got = format!("{got} classes");
            return Err(windowpane_diffusion::Error::bad_value("classes", got, expected.to_string()).into());
        }
        Ok(())
    }

    /// Whether what lies at `path` is of the model that the recipe says. Errors: it tells of another; in words, of what.
    pub(crate) fn check_same(&self, path: &Path, recipe: &Self) -> Result<()> {
        let different = self.different(recipe);
        if different.is_empty() {
            return Ok(());
        }
        let reason = format!("was trained from another recipe, expected the same: {}", different.join(", "));
        Err(Error::file(path, reason))
    }

    /// In words, what decides the network and its noise and differs between two runs.
    pub(super) fn different(&self, other: &Self) -> Vec<&'static str> {
        let size = |meta: &Self| (meta.config.channels, meta.config.height, meta.config.width);
        let network =
            |meta: &Self| ModelConfig { channels: 0, height: 0, width: 0, classes: 0, ..meta.config.clone() };
        // Taken apart by name: who adds a field names it here.
        let Self { config, schedule, prediction, variance, classes, step: _ } = self;
        // What else a class is called decides nothing.
        let names = |classes: &'_ [Class]| -> Vec<String> {
            classes.iter().map(|class| class.name.clone()).collect()
        };
        let same_classes = (config.classes, names(classes)) == (other.config.classes, names(&other.classes));
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

// === Writing ===

/// Writes weights under DiT's names, and returns the file's sha256. `flat` is `[parameters]`.
pub fn save_weights(path: &Path, meta: &Meta, flat: &Tensor) -> Result<String> {
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

pub(super) fn write_safetensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, Vec<usize>, &'a [u8])>,
    metadata: Option<HashMap<String, String>>,
) -> Result<String> {
    let views: std::result::Result<Vec<_>, _> = tensors
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape, bytes)?)))
        .collect::<std::result::Result<_, safetensors::SafeTensorError>>();
    let views = views.map_err(|e| Error::file(path, e))?;
    // Not `serialize_to_file`, whose file only its owner may read.
    let bytes = safetensors::serialize(views, metadata).map_err(|e| Error::file(path, e))?;
    std::fs::write(path, &bytes).map_err(Error::io(path))?;
    Ok(digest(&bytes))
}

/// sha256 in hexadecimal digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The values of an f32 tensor as little-endian bytes.
pub(super) fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let values = Vec::<f32>::try_from(&flat.view([-1]))?;
    Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

// === Reading ===

/// Loads weights under DiT's names: a checkpoint's `model.safetensors` or `ema.safetensors`.
pub fn load_weights(path: &Path, device: Device) -> Result<Weights> {
    weights_in(path, &std::fs::read(path).map_err(Error::io(path))?, device)
}

/// The weights that the bytes of the file `path` hold.
pub(super) fn weights_in(path: &Path, bytes: &[u8], device: Device) -> Result<Weights> {
    let meta = told(path, bytes)?.ok_or_else(|| {
        let reason = format!("its header has no `{META_KEY}` entry: not a checkpoint of this trainer");
        Error::file(path, format!("{reason}; `sample --recipe` draws with another's weights"))
    })?;
    let flat = read_flat(path, bytes, &meta.config)?.to_device(device);
    Ok(Weights { meta, flat })
}

/// What the bytes of the file `path` say of themselves; nothing where they do not know this trainer.
fn told(path: &Path, bytes: &[u8]) -> Result<Option<Meta>> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| Error::file(path, e))?;
    let Some(text) = header.metadata().as_ref().and_then(|m| m.get(META_KEY)) else { return Ok(None) };
    let meta: Meta =
        json::object(text).map_err(|e| Error::file(path, format!("header `{META_KEY}`: {e}")))?;
    meta.validate().map_err(|e| Error::file(path, format!("header `{META_KEY}`: {e}")))?;
    Ok(Some(meta))
}

/// Loads bare weights, such as a PyTorch DiT's state dict saved as safetensors, as those of `meta`; their step is the one they
/// tell of, if they do. Errors: also weights that say of themselves that they are another model's, and a position table that is
/// not DiT's own, which this model computes.
pub fn load_foreign(path: &Path, meta: &Meta, device: Device) -> Result<Weights> {
    let (bytes, config) = (std::fs::read(path).map_err(Error::io(path))?, &meta.config);
    let mut step = 0;
    if let Some(mut own) = told(path, &bytes)? {
        let names = |meta: &Meta| meta.classes.iter().map(|class| class.name.clone()).collect::<Vec<_>>();
        if names(&own) == names(meta) {
            own.classes.clone_from(&meta.classes); // by which words else they are known draws nothing else
        }
        let different = own.different(meta);
        if !different.is_empty() {
            let reason =
                format!("its header tells of another model than the recipe: {} differ", different.join(", "));
            return Err(Error::file(path, reason));
        }
        step = own.step;
    }
    let flat = read_flat(path, &bytes, config)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, e))?;
    if file.names().contains(&"pos_embed") {
        let shape = [1, config.grid().tokens(), config.hidden];
        let theirs = read_f32(path, &file, "pos_embed", &shape)?;
        let ours = position_table(config.grid(), config.hidden);
        if theirs.iter().zip(&ours).any(|(a, b)| (a - b).abs() > 1e-4) {
            return Err(Error::file(path, "its `pos_embed` is not the sines and cosines of DiT's models.py"));
        }
    }
    Ok(Weights { meta: Meta { step, ..meta.clone() }, flat: flat.to_device(device) })
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

/// A tensor of this shape. Errors: it is not there, is another, or holds what is no number.
pub(super) fn read_f32(path: &Path, file: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let view = file.tensor(name).map_err(|_| Error::file(path, format!("lacks the tensor `{name}`")))?;
    if view.shape() != shape || view.dtype() != Dtype::F32 {
        let got = format!("{:?} {:?}", view.dtype(), view.shape());
        return Err(Error::file(path, format!("`{name}` is {got}, expected F32 {shape:?}")));
    }
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let values: Vec<f32> = values.collect();
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let reason = format!("`{name}`[{at}] is {}, expected a finite number", values[at]);
        return Err(Error::file(path, reason));
    }
    Ok(values)
}
