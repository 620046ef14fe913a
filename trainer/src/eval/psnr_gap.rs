//! The PSNR gap: how much better does a network denoise the images it has seen than images it has not?
//!
//! After Kadkhodaie et al. 2024 and An et al. 2024 (arXiv 2410.21273, equation 4). For K training and K held-out
//! images and each of 50 respaced timesteps, `x_t = alpha x0 + sigma eps` is denoised in one step, and
//!
//! ```text
//! PSNR(t) = mean over images of 10 log10(4 / mean((x0 - x0_hat)²))     [dB]
//! Gap(t)  = max(0, PSNR_train(t) - PSNR_test(t)),   gap = mean of Gap(t) over t
//! ```
//!
//! Choices where the paper is silent: the average is of dB, not of errors; `x0_hat` is clipped to [-1, 1]; 4 is the
//! squared range of that interval. Each Gap(t) is clipped at 0 *before* it is averaged, which the paper's printed
//! numbers imply; so the gap may exceed the difference of the average PSNRs, and noise alone makes it positive.

mod plot;

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::noise::{self, Domain};
use windowpane_diffusion::{Prediction, Schedule};

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

/// The gap and what it is made of. Curves have one entry a timestep; everything is in dB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PsnrGap {
    /// The mean of [`PsnrGap::curve`].
    pub gap: f64,
    /// 95 % interval of the gap by bootstrap over the images (percentiles). It knows nothing of other training runs.
    pub interval: [f64; 2],
    /// Mean over timesteps of the training images' PSNR.
    pub train: f64,
    /// Mean over timesteps of the held-out images' PSNR.
    pub test: f64,
    /// Training and held-out images measured.
    pub images: [usize; 2],
    /// Timesteps of the schedule, ascending: the more noise, the later.
    pub timesteps: Vec<usize>,
    /// PSNR of the training images at each.
    pub train_curve: Vec<f64>,
    /// PSNR of the held-out images at each.
    pub test_curve: Vec<f64>,
    /// Gap at each, clipped at 0.
    pub curve: Vec<f64>,
    /// How it was measured.
    pub config: GapConfig,
}

/// PSNR of every image at every timestep: `[timesteps][images]`.
type Table = Vec<Vec<f64>>;

/// Squared range of the data.
const RANGE_SQUARED: f64 = 4.0;

/// Errors below this count as this: a perfect estimate has 106 dB, not infinitely many.
const FLOOR: f64 = 1e-10;

/// Noise steps from here on draw resamples instead of noise; timesteps lie far below.
const RESAMPLE: u32 = 1 << 31;

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
    let timesteps = schedule.respaced(config.timesteps)?;
    let side = |set: &ImageSet| -> Result<Table> {
        let row = |&t: &usize| {
            let (a, b) = prediction.to_x0(schedule.level(t).alpha, schedule.level(t).sigma);
            let step = Step { t, alpha: schedule.level(t).alpha, sigma: schedule.level(t).sigma, a, b };
            step.psnr(denoise, set, config, progress)
        };
        timesteps.iter().map(row).collect()
    };
    let (train, test) = (side(train)?, side(test)?);
    Ok(PsnrGap::of(&train, &test, timesteps, config))
}

/// One timestep: `x = alpha x0 + sigma eps`, `x0_hat = a x + b prediction`.
struct Step {
    t: usize,
    alpha: f64,
    sigma: f64,
    a: f64,
    b: f64,
}

// === impl GapConfig ===

impl Default for GapConfig {
    fn default() -> Self {
        Self { images: 300, timesteps: 50, seed: 0, batch: 100, resamples: 1000, classes: 0 }
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

// === impl Step ===

impl Step {
    /// PSNR of the first images of a set.
    fn psnr(
        &self,
        denoise: &Denoise<'_>,
        set: &ImageSet,
        config: &GapConfig,
        progress: &dyn Fn(usize),
    ) -> Result<Vec<f64>> {
        let size = set.image_len();
        let images: Vec<usize> = (0..set.len().min(config.images)).collect();
        let mut psnr = Vec::with_capacity(images.len());
        for chunk in images.chunks(config.batch) {
            let mut clean = Vec::with_capacity(chunk.len() * size);
            let mut noisy = Vec::with_capacity(chunk.len() * size);
            let mut eps = vec![0.0; size];
            for &i in chunk {
                noise::fill_normal_in(
                    Domain::Eval,
                    config.seed.wrapping_add(i as u64),
                    self.t as u32,
                    &mut eps,
                );
                for (&byte, &e) in set.image(i).iter().zip(&eps) {
                    let x0 = f32::from(byte) / 127.5 - 1.0;
                    clean.push(x0);
                    noisy.push(self.alpha as f32 * x0 + self.sigma as f32 * e);
                }
            }
            let y: Vec<i64> =
                chunk.iter().map(|&i| if config.classes == 0 { 0 } else { set.labels[i] }).collect();
            let predicted = self.predict(denoise, &noisy, &y, set)?;
            for image in 0..chunk.len() {
                let at = image * size..(image + 1) * size;
                let (clean, noisy, predicted) = (&clean[at.clone()], &noisy[at.clone()], &predicted[at]);
                let squares = clean.iter().zip(noisy).zip(predicted).map(|((&x0, &x), &p)| {
                    let estimate = (self.a * f64::from(x) + self.b * f64::from(p)).clamp(-1.0, 1.0);
                    (estimate - f64::from(x0)).powi(2)
                });
                let error = squares.sum::<f64>() / size as f64;
                psnr.push(10.0 * (RANGE_SQUARED / error.max(FLOOR)).log10());
            }
            progress(chunk.len());
        }
        Ok(psnr)
    }

    /// The network's prediction, `[n, c, h, w]` flat.
    fn predict(&self, denoise: &Denoise<'_>, noisy: &[f32], y: &[i64], set: &ImageSet) -> Result<Vec<f32>> {
        let _guard = tch::no_grad_guard();
        let shape = [y.len(), set.channels, set.height, set.width].map(|side| side as i64);
        let x = Tensor::from_slice(noisy).view(shape);
        let output = denoise(&x, &vec![self.t as f32; y.len()], y);
        let got = output.size();
        if got.len() != 4 || got[0] != shape[0] || got[1] < shape[1] || got[2..] != shape[2..] {
            return Err(Error::Config(format!("PSNR gap: the network made {got:?} of {shape:?}")));
        }
        let first = output.narrow(1, 0, shape[1]).to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let values = Vec::<f32>::try_from(&first.view([-1]))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::Config(format!(
                "PSNR gap: the network's output at timestep {} is not finite",
                self.t
            )));
        }
        Ok(values)
    }
}

// === impl PsnrGap ===

impl PsnrGap {
    fn of(train: &Table, test: &Table, timesteps: Vec<usize>, config: &GapConfig) -> Self {
        let images = [train[0].len(), test[0].len()];
        let whole: [Vec<usize>; 2] = images.map(|n| (0..n).collect());
        let (train_curve, test_curve) = (means(train, &whole[0]), means(test, &whole[1]));
        let curve: Vec<f64> = clipped(&train_curve, &test_curve).collect();
        let mut resampled: Vec<f64> = (0..config.resamples as u32)
            .map(|r| {
                let uniform =
                    |i| f64::from(noise::uniform(Domain::Eval, config.seed, RESAMPLE + r, i as u64));
                // The held-out images draw behind the training images, of the same counter.
                let pick = |n: usize, skip: usize| -> Vec<usize> {
                    (0..n).map(|i| ((uniform(skip + i) * n as f64) as usize).min(n - 1)).collect()
                };
                let (a, b) = (pick(images[0], 0), pick(images[1], images[0]));
                mean(clipped(&means(train, &a), &means(test, &b)))
            })
            .collect();
        resampled.sort_by(f64::total_cmp);
        let at = |share: f64| resampled[(share * (resampled.len() - 1) as f64).round() as usize];
        Self {
            gap: mean(curve.iter().copied()),
            interval: [at(0.025), at(0.975)],
            train: mean(train_curve.iter().copied()),
            test: mean(test_curve.iter().copied()),
            images,
            timesteps,
            train_curve,
            test_curve,
            curve,
            config: *config,
        }
    }

    /// The curves as CSV: `timestep,train_db,test_db,gap_db`.
    pub fn csv(&self) -> String {
        let mut text = "timestep,train_db,test_db,gap_db\n".to_owned();
        for (i, t) in self.timesteps.iter().enumerate() {
            let (train, test, gap) = (self.train_curve[i], self.test_curve[i], self.curve[i]);
            writeln!(text, "{t},{train:.6},{test:.6},{gap:.6}")
                .expect("a string takes every line: this is a bug");
        }
        text
    }

    /// The curves as an SVG picture.
    pub fn svg(&self) -> String {
        plot::svg(self)
    }
}

impl fmt::Display for PsnrGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gap, interval: [low, high], train, test, images: [k_train, k_test], .. } = self;
        write!(f, "PSNR gap {gap:.2} dB (95 % interval {low:.2} to {high:.2}): ")?;
        write!(f, "{train:.2} dB on {k_train} training images, {test:.2} dB on {k_test} held-out images")
    }
}

/// Mean of each row over the given images.
fn means(table: &Table, images: &[usize]) -> Vec<f64> {
    table.iter().map(|row| mean(images.iter().map(|&i| row[i]))).collect()
}

fn clipped<'a>(train: &'a [f64], test: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    train.iter().zip(test).map(|(train, test)| (train - test).max(0.0))
}

/// Mean of at least one value.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests;
