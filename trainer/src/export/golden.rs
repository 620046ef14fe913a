//! The proof that a package travels with: inputs, and what libtorch's f32 forward pass makes of them with the
//! weights as they are stored. The reference is `model.rs` with dense attention; it shares neither the graph nor
//! the tiles with what it checks.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::noise::{self, Domain};
use windowpane_diffusion::{ModelConfig, Plan};

use super::ExportError;
use crate::error::{Error, Result};
use crate::model::Geometry;

/// Seed of the inputs. Any will do; it never changes, so that two exports of one checkpoint are equal.
const SEED: u64 = 2;

/// Batch sizes of the cases: alone, a pair, and a number that no vector width divides.
const BATCHES: [usize; 3] = [1, 2, 5];

/// One stored example.
#[derive(Debug)]
pub struct Case {
    /// Prefix of its tensors in the file.
    pub name: String,
    /// Noisy images, `[n, c, h, w]` f32.
    pub x: Tensor,
    /// Timesteps, `[n]` f32, fractional ones among them.
    pub t: Tensor,
    /// Labels, `[n]` i64, the null class among them.
    pub y: Tensor,
    /// What libtorch predicts, `[n, out, h, w]` f32.
    pub prediction: Tensor,
}

/// The cases of a model with parameters `flat` (`[parameters]`, rounded as stored), trained with `steps` timesteps.
/// Errors: a prediction that is not finite proves nothing.
pub fn cases(config: &ModelConfig, steps: usize, flat: &Tensor) -> Result<Vec<Case>> {
    let _guard = tch::no_grad_guard();
    let net = Geometry::planned(config, |_, _| Plan::Dense, Kind::Float, Device::Cpu).bind(flat);
    let (times, labels) = (times(steps), labels(config));
    let image = [config.channels, config.height, config.width].map(|n| n as i64);
    let mut row = 0;
    let mut cases = Vec::new();
    for n in BATCHES {
        let rows = row..row + n;
        row += n;
        let mut x = Vec::with_capacity(n * config.elements());
        for step in rows.clone() {
            let mut noise = vec![0.0; config.elements()];
            noise::fill_normal_in(Domain::Eval, SEED, step as u32, &mut noise);
            x.extend(noise);
        }
        let x = Tensor::from_slice(&x).f_reshape([n as i64, image[0], image[1], image[2]])?;
        let t = Tensor::from_slice(&rows.clone().map(|i| times[i % times.len()]).collect::<Vec<_>>());
        let y = Tensor::from_slice(&rows.map(|i| labels[i % labels.len()]).collect::<Vec<_>>());
        let prediction = net.forward(&x, &t, &y);
        let name = format!("batch{n}");
        if !prediction.isfinite().all().f_int64_value(&[]).is_ok_and(|all| all == 1) {
            return Err(ExportError::NotFinite { case: name }.into());
        }
        cases.push(Case { name, x, t, y, prediction });
    }
    Ok(cases)
}

/// Timesteps from clean to noise; every other one lies between two entries of the table.
fn times(steps: usize) -> [f32; 7] {
    let last = (steps - 1) as f64;
    [0.5, 0.0, 0.031, 1.0, 0.25, 0.77, 0.004].map(|share| {
        let t = share * last;
        (if share == 0.5 || share == 0.25 { t.floor() } else { t }) as f32
    })
}

/// Labels in an order that meets the null class early and then walks the classes.
fn labels(config: &ModelConfig) -> Vec<i64> {
    let null = config.null_class() as i64;
    let spread = (0..7).filter(|_| null > 0).map(|i| i * 3 % null);
    std::iter::once(0).chain([null]).chain(spread).collect()
}

/// Writes the cases as `NAME.x`, `NAME.t`, `NAME.y` and `NAME.prediction`.
pub fn write(path: &Path, cases: &[Case]) -> Result<()> {
    let mut tensors = Vec::new();
    for case in cases {
        for (part, tensor) in [("x", &case.x), ("t", &case.t), ("prediction", &case.prediction)] {
            let values = Vec::<f32>::try_from(&tensor.f_reshape([-1])?)?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((format!("{}.{part}", case.name), Dtype::F32, shape(tensor), bytes));
        }
        let labels = Vec::<i64>::try_from(&case.y)?;
        let bytes = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((format!("{}.y", case.name), Dtype::I64, shape(&case.y), bytes));
    }
    let failed = |e: safetensors::SafeTensorError| Error::file(path, e);
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    // Not `serialize_to_file`, whose file only its owner may read: a package is for whoever may read its folder.
    let bytes = safetensors::serialize(views, None).map_err(failed)?;
    std::fs::write(path, bytes).map_err(Error::io(path))
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&n| n as usize).collect()
}
