//! One image being sampled: the state of a trajectory and the arithmetic that advances it. Coefficients come in
//! f64, are rounded once, and are applied per element in f32 in one fixed order, so that whoever advances the
//! same trajectory gets the same bits.

use crate::noise;

use super::{Evaluation, NoiseScale};

/// A trajectory between two network calls. All buffers are flat, `[c * h * w]`.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What the network is shown next; after the last evaluation, the image.
    pub x: Vec<f32>,
    /// The previous evaluation's input. Empty before the first.
    x_prev: Vec<f32>,
    /// The previous evaluation's clean estimate. Empty before the first.
    x0: Vec<f32>,
    /// Room for the noise of a step.
    noise: Vec<f32>,
}

// === impl State ===

impl State {
    /// Pure noise: `x_T` of the image with this seed.
    pub fn start(seed: u64, elements: usize) -> Self {
        Self::from_x(noise::normal(seed, noise::INITIAL, elements))
    }

    /// From a given `x`, at the level of the first evaluation that will be applied.
    pub fn from_x(x: Vec<f32>) -> Self {
        Self { x, x_prev: Vec::new(), x0: Vec::new(), noise: Vec::new() }
    }

    /// The latest estimate of the clean image. Empty before the first evaluation.
    pub fn x0(&self) -> &[f32] {
        &self.x0
    }

    /// Applies what the network said at evaluation number `index` of the trajectory with this seed.
    ///
    /// `prediction` holds one value per element of `x`, and behind them, if the network learned its variance,
    /// as many again. Panics where it is shorter than that.
    pub fn advance(&mut self, evaluation: &Evaluation, index: u32, seed: u64, prediction: &[f32]) {
        let mut noise = std::mem::take(&mut self.noise);
        if evaluation.noise != NoiseScale::None {
            noise.resize(self.x.len(), 0.0);
            noise::fill_normal(seed, index, &mut noise);
        }
        self.advance_with(evaluation, &noise, prediction);
        self.noise = noise;
    }

    /// [`State::advance`] with the noise given: `[c * h * w]`, read only where the evaluation asks for noise.
    pub fn advance_with(&mut self, evaluation: &Evaluation, noise: &[f32], prediction: &[f32]) {
        let elements = self.x.len();
        let (prediction, variance) = prediction.split_at(elements);
        self.x_prev.resize(elements, 0.0);
        self.x0.resize(elements, 0.0);
        let (a, b) = (evaluation.to_x0.0 as f32, evaluation.to_x0.1 as f32);
        let (of_x, of_x0) = (evaluation.x as f32, evaluation.x0 as f32);
        let (of_x_prev, of_x0_prev) = (evaluation.x_prev as f32, evaluation.x0_prev as f32);
        let bound = if evaluation.clip_x0 { 1.0 } else { f32::INFINITY };
        for i in 0..elements {
            let x = self.x[i];
            let x0 = (a * x + b * prediction[i]).clamp(-bound, bound);
            let next = of_x * x + of_x0 * x0 + of_x_prev * self.x_prev[i] + of_x0_prev * self.x0[i];
            self.x[i] = match evaluation.noise {
                NoiseScale::None => next,
                NoiseScale::Fixed(scale) => next + scale as f32 * noise[i],
                NoiseScale::LearnedRange { log_min, log_max } => {
                    next + learned_scale(log_min as f32, log_max as f32, variance[i]) * noise[i]
                }
            };
            self.x_prev[i] = x;
            self.x0[i] = x0;
        }
    }
}

/// Standard deviation where the network said `v`, -1 for the smaller variance and 1 for the larger one:
/// Nichol & Dhariwal 2021, equation 15.
fn learned_scale(log_min: f32, log_max: f32, v: f32) -> f32 {
    let fraction = (v + 1.0) / 2.0;
    libm::expf(0.5 * (fraction * log_max + (1.0 - fraction) * log_min))
}
