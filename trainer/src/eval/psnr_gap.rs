//! The PSNR gap of a network on tch: `windowpane_diffusion::psnr_gap` says what it is, and this file runs the network
//! over two sets of images, in batches.

mod plot;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::psnr_gap::{self as measure, Denoising, PsnrGap, Table};
use windowpane_diffusion::{Prediction, Schedule};

pub(crate) use plot::svg;

use super::Denoise;
use crate::data::ImageSet;
use crate::error::{Error, Result};

/// How the gap is measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GapConfig {
    /// Images of each side, K; fewer where a side has fewer.
    pub images: usize,
    /// Respaced timesteps.
    pub timesteps: usize,
    /// Decides the noise and the resamples.
    pub seed: u64,
    /// Images in one pass of the network.
    pub batch: usize,
    /// Bootstrap resamples for the confidence interval.
    pub resamples: usize,
    /// Classes of the model; 0 for an unconditional one. Images are denoised under their own labels.
    pub classes: usize,
}

/// Measures the gap of `denoise`, a network that predicts `prediction` under `schedule`, on the first images of each
/// side. `progress` is told how many images were denoised, `timesteps · (K_train + K_test)` in all.
///
/// The noise of image k at timestep t is a function of (seed + k, t): both sides see the same, and a larger K only
/// adds images. Errors: an empty side, images of two shapes, missing labels, a setting out of range, a network whose
/// output has another shape or is not finite.
pub fn psnr_gap(
    denoise: &Denoise<'_>,
    (train, test): (&ImageSet, &ImageSet),
    (schedule, prediction): (&Schedule, Prediction),
    config: &GapConfig,
    progress: &dyn Fn(usize),
) -> Result<PsnrGap> {
    config.check(train, test)?;
    let all = Denoising::respaced(schedule, prediction, config.timesteps)?;
    let side = |set: &ImageSet| -> Result<Table> {
        all.iter().map(|one| psnr(one, denoise, set, config, progress)).collect()
    };
    let tables = [side(train)?, side(test)?];
    let timesteps = all.iter().map(Denoising::t).collect();
    Ok(PsnrGap::of([&tables[0], &tables[1]], timesteps, config.seed, config.resamples))
}

// === impl GapConfig ===

impl Default for GapConfig {
    fn default() -> Self {
        Self {
            images: measure::IMAGES,
            timesteps: measure::TIMESTEPS,
            seed: 0,
            batch: 100,
            resamples: measure::RESAMPLES,
            classes: 0,
        }
    }
}

impl GapConfig {
    fn check(&self, train: &ImageSet, test: &ImageSet) -> Result<()> {
        let fail = |what: String| Err(Error::Config(format!("PSNR gap: {what}")));
        if self.images == 0 || self.batch == 0 || !(1..=100_000).contains(&self.resamples) {
            return fail("images and batch are at least 1, resamples 1 to 100000".to_owned());
        }
        if train.is_empty() || test.is_empty() {
            return fail(format!("{} training and {} held-out images", train.len(), test.len()));
        }
        let shape = |set: &ImageSet| (set.channels, set.height, set.width);
        if shape(train) != shape(test) {
            return fail(format!(
                "training images are {:?}, held-out images {:?}",
                shape(train),
                shape(test)
            ));
        }
        for set in [train, test] {
            let fits = set.labels.iter().all(|&label| (0..self.classes as i64).contains(&label));
            if self.classes > 0 && (set.labels.is_empty() || !fits) {
                return fail(format!("the model has {} classes, the images have other labels", self.classes));
            }
        }
        Ok(())
    }
}

/// PSNR of the first images of a set.
fn psnr(
    one: &Denoising,
    denoise: &Denoise<'_>,
    set: &ImageSet,
    config: &GapConfig,
    progress: &dyn Fn(usize),
) -> Result<Vec<f64>> {
    let size = set.image_len();
    let images: Vec<usize> = (0..set.len().min(config.images)).collect();
    let mut psnr = Vec::with_capacity(images.len());
    for chunk in images.chunks(config.batch) {
        let scaled =
            |&i: &usize| -> Vec<f32> { set.image(i).iter().map(|&pixel| measure::value(pixel)).collect() };
        let clean: Vec<Vec<f32>> = chunk.iter().map(scaled).collect();
        let noisy: Vec<Vec<f32>> =
            chunk.iter().zip(&clean).map(|(&i, clean)| one.noisy(clean, config.seed, i)).collect();
        let y: Vec<i64> =
            chunk.iter().map(|&i| if config.classes == 0 { 0 } else { set.labels[i] }).collect();
        let predicted = predict(one.t(), denoise, &noisy.concat(), &y, set)?;
        let each = clean.iter().zip(&noisy).zip(predicted.chunks_exact(size));
        psnr.extend(each.map(|((clean, noisy), predicted)| one.psnr(clean, noisy, predicted)));
        progress(chunk.len());
    }
    Ok(psnr)
}

/// The network's prediction, `[n, c, h, w]` flat.
fn predict(t: usize, denoise: &Denoise<'_>, noisy: &[f32], y: &[i64], set: &ImageSet) -> Result<Vec<f32>> {
    let _guard = tch::no_grad_guard();
    let shape = [y.len(), set.channels, set.height, set.width].map(|side| side as i64);
    let x = Tensor::from_slice(noisy).view(shape);
    let output = denoise(&x, &vec![t as f32; y.len()], y);
    let got = output.size();
    if got.len() != 4 || got[0] != shape[0] || got[1] < shape[1] || got[2..] != shape[2..] {
        return Err(Error::Config(format!("PSNR gap: the network made {got:?} of {shape:?}")));
    }
    let first = output.narrow(1, 0, shape[1]).to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let values = Vec::<f32>::try_from(&first.view([-1]))?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(Error::Config(format!("PSNR gap: the network's output at timestep {t} is not finite")));
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
