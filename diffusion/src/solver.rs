//! How does noise become an image? Every sampler as a list of [`Evaluation`]s, one per network call, each a
//! handful of coefficients. Whoever samples needs no formula: call the network, then [`State::advance`].
//!
//! All samplers work on `x = alpha · x0 + sigma · eps` with `alpha² + sigma² = 1`. Papers that write
//! `x / alpha`, with noise level `sigma / alpha`, are rewritten; their algorithm numbers are in each file.
//! Coefficients are f64; [`State`] rounds them to f32 and applies them in one fixed order.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, number};
use crate::prediction::{Prediction, Variance};
use crate::schedule::{Level, Schedule};

mod ddim;
mod ddpm;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod grid;
mod heun;
mod state;

pub use grid::MAX_KARRAS_STEPS;
pub use state::State;

/// A sampling algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Sampler {
    /// The ancestral sampler of Ho et al. 2020.
    #[serde(rename = "ddpm")]
    Ddpm,
    /// Song et al. 2021, with `eta`.
    #[serde(rename = "ddim")]
    Ddim,
    /// Euler's method on the probability-flow ODE.
    #[serde(rename = "euler")]
    Euler,
    /// Euler's method with ancestral noise.
    #[serde(rename = "euler_a")]
    EulerAncestral,
    /// Heun's second-order method; two evaluations a step.
    #[serde(rename = "heun")]
    Heun,
    /// DPM-Solver++(2M), second order with one evaluation a step.
    #[serde(rename = "dpmpp_2m")]
    DpmppTwoM,
}

/// How the steps are spread over the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeGrid {
    /// Evenly over the timesteps, first and last kept (Nichol & Dhariwal 2021, section 4).
    Uniform,
    /// As the square: denser at little noise (Song et al. 2021, appendix D.2).
    Quadratic,
    /// Evenly in `(sigma / alpha)^(1/7)`, at fractional timesteps (Karras et al. 2022, equation 5).
    Karras,
}

/// Everything that decides a trajectory but the schedule, the seed and the network.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SolverConfig {
    /// The algorithm.
    pub sampler: Sampler,
    /// Where its steps lie.
    pub grid: TimeGrid,
    /// Solver steps: 1 to the schedule's timesteps, or to [`MAX_KARRAS_STEPS`] on the Karras grid.
    pub steps: usize,
    /// Share of ancestral noise, 0 to 1. DDIM only; 0 elsewhere.
    pub eta: f64,
    /// Whether every clean estimate is clipped to the data's range, -1 to 1.
    pub clip_x0: bool,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The variance of DDPM's steps; the other samplers do not read it.
    pub variance: Variance,
}

/// One network call and what becomes of its answer.
///
/// With `x0hat = to_x0.0 · input + to_x0.1 · prediction`, clipped to [-1, 1] if `clip_x0`:
/// `next = x · input + x0 · x0hat + x_prev · (input of the previous evaluation)
///  + x0_prev · (x0hat of the previous evaluation) + noise · n`, `n` standard normal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Solver step this call belongs to, from 0.
    pub step: usize,
    /// Timestep that the network is told; may be fractional.
    pub t: f32,
    /// Signal of the input.
    pub alpha: f64,
    /// Noise of the input.
    pub sigma: f64,
    /// From input and prediction to the clean estimate.
    pub to_x0: (f64, f64),
    /// Whether the clean estimate is clipped.
    pub clip_x0: bool,
    /// Coefficient of the input.
    pub x: f64,
    /// Coefficient of the clean estimate.
    pub x0: f64,
    /// Coefficient of the previous evaluation's input.
    pub x_prev: f64,
    /// Coefficient of the previous evaluation's clean estimate.
    pub x0_prev: f64,
    /// Scale of fresh noise.
    pub noise: NoiseScale,
}

/// How much fresh noise an evaluation adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NoiseScale {
    /// None: no noise is drawn.
    None,
    /// This standard deviation.
    Fixed(f64),
    /// A standard deviation per element, `exp(log_variance / 2)`, where the network's second output in [-1, 1]
    /// says where between the two log variances (Nichol & Dhariwal 2021, equation 15).
    LearnedRange {
        /// Logarithm of the smaller variance.
        log_min: f64,
        /// Logarithm of the larger variance.
        log_max: f64,
    },
}

/// What one solver file says about one network call: the level of its input and the coefficients.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Update {
    level: Level,
    x: f64,
    x0: f64,
    x_prev: f64,
    x0_prev: f64,
    noise: NoiseScale,
}

// === impl Sampler ===

impl Sampler {
    /// Every sampler.
    pub const ALL: [Self; 6] =
        [Self::Ddpm, Self::Ddim, Self::Euler, Self::EulerAncestral, Self::Heun, Self::DpmppTwoM];

    /// The name in requests, recipes and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_a",
            Self::Heun => "heun",
            Self::DpmppTwoM => "dpmpp_2m",
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| Error::unknown_name("sampler", text, Self::ALL.map(Self::as_str)))
    }
}

// === impl TimeGrid ===

impl TimeGrid {
    /// Every grid.
    pub const ALL: [Self; 3] = [Self::Uniform, Self::Quadratic, Self::Karras];

    /// The name in requests, recipes and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Quadratic => "quadratic",
            Self::Karras => "karras",
        }
    }
}

impl fmt::Display for TimeGrid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TimeGrid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|g| g.as_str() == text);
        found.ok_or_else(|| Error::unknown_name("time grid", text, Self::ALL.map(Self::as_str)))
    }
}

// === impl SolverConfig ===

impl SolverConfig {
    /// The network calls of a trajectory, in order. `step` of the last is `steps - 1`.
    ///
    /// Errors: `steps` outside what the grid allows, `eta` outside [0, 1] or given to a sampler without one.
    pub fn build(&self, schedule: &Schedule) -> Result<Vec<Evaluation>> {
        self.build_from(schedule, 0)
    }

    /// The network calls of a trajectory that begins at step `first`, at the noise level of that step: an image made
    /// noisy is taken from there to clean. Solvers that look back have nothing to look back to at their first step.
    ///
    /// Errors: those of [`SolverConfig::build`], and a `first` that leaves no step.
    pub fn build_from(&self, schedule: &Schedule, first: usize) -> Result<Vec<Evaluation>> {
        if !(0.0..=1.0).contains(&self.eta) {
            return Err(Error::bad_value("eta", number(self.eta), "a number from 0 to 1"));
        }
        if self.eta != 0.0 && self.sampler != Sampler::Ddim {
            let expected = format!("0: the sampler {} has no eta, only ddim has", self.sampler);
            return Err(Error::bad_value("eta", number(self.eta), expected));
        }
        let levels = grid::levels(self.grid, self.steps, schedule)?;
        if first >= self.steps {
            return Err(Error::bad_value("first step", first, format!("0 to {}", self.steps - 1)));
        }
        let mut evaluations = Vec::new();
        for (step, pair) in levels.windows(2).enumerate().skip(first) {
            let (from, to) = (pair[0], pair[1]);
            let before = (step > first).then(|| levels[step - 1]);
            let updates = match self.sampler {
                Sampler::Ddpm => vec![ddpm::step(from, to, self.variance)],
                Sampler::Ddim => vec![ddim::step(from, to, self.eta)],
                Sampler::Euler => vec![euler::step(from, to)],
                Sampler::EulerAncestral => vec![euler_ancestral::step(from, to)],
                Sampler::Heun => heun::step(from, to),
                Sampler::DpmppTwoM => vec![dpmpp_2m::step(before, from, to)],
            };
            evaluations.extend(updates.into_iter().map(|update| self.evaluation(step, update)));
        }
        Ok(evaluations)
    }

    /// The step at which an image-to-image trajectory of this `strength` begins: the last `floor(steps · strength)`
    /// steps are taken, the convention of the image-to-image pipelines of diffusers (`get_timesteps`). At 1 it begins
    /// with pure noise, or nearly; the smaller, the more of the image stays.
    ///
    /// Errors: a strength outside (0, 1], or so small that no step is left.
    pub fn first_step(&self, strength: f64) -> Result<usize> {
        let taken = if strength > 0.0 && strength <= 1.0 { self.steps as f64 * strength } else { 0.0 };
        if taken < 1.0 {
            let expected = format!("1/{} (one step) to 1", self.steps);
            return Err(Error::bad_value("strength", number(strength), expected));
        }
        // At most `steps`, and cut to a whole number as `int()` does.
        Ok(self.steps - taken as usize)
    }

    fn evaluation(&self, step: usize, update: Update) -> Evaluation {
        let Update { level, x, x0, x_prev, x0_prev, noise } = update;
        Evaluation {
            step,
            t: level.t as f32,
            alpha: level.alpha,
            sigma: level.sigma,
            to_x0: self.prediction.to_x0(level.alpha, level.sigma),
            clip_x0: self.clip_x0,
            x,
            x0,
            x_prev,
            x0_prev,
            noise,
        }
    }
}

// === impl NoiseScale ===

impl NoiseScale {
    /// `Fixed`, or `None` where there is nothing to add.
    fn fixed(scale: f64) -> Self {
        if scale > 0.0 { Self::Fixed(scale) } else { Self::None }
    }
}

// === impl Update ===

impl Update {
    /// An update of an input at `level`, all coefficients zero.
    const fn at(level: Level) -> Self {
        Self { level, x: 0.0, x0: 0.0, x_prev: 0.0, x0_prev: 0.0, noise: NoiseScale::None }
    }
}

#[cfg(test)]
mod tests;
