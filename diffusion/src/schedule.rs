//! How much noise is in `x_t`? The discrete forward process as a table of `alpha_bar`, built once, in f64.
//!
//! `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps` (Ho et al. 2020, equation 4). Between the table's
//! entries `t` is a real number: log sigma is interpolated linearly (Karras et al. 2022; k-diffusion's and
//! diffusers' `sigma_to_t`), which is why a timestep is f32 everywhere.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, number};

/// The name of a noise schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Betas from 1e-4 to 0.02 at 1000 steps, scaled by 1000/T at others (Ho et al. 2020; improved-diffusion).
    Linear,
    /// `alpha_bar = cos²((t/T + 0.008)/1.008 · π/2)`, betas capped at 0.999 (Nichol & Dhariwal 2021, eq. 17).
    Cosine,
}

/// What a model was trained with: enough to rebuild the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Which formula.
    pub kind: ScheduleKind,
    /// Training timesteps T.
    pub steps: usize,
}

/// The table: `alpha_bar[t]` for `t` in `0..T`, strictly decreasing from near 1 to near 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    alpha_bar: Vec<f64>,
}

/// Signal and noise level at one time: `x = alpha · x0 + sigma · eps`, `alpha² + sigma² = 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Timestep that the network is told.
    pub t: f64,
    /// `sqrt(alpha_bar)`.
    pub alpha: f64,
    /// `sqrt(1 - alpha_bar)`.
    pub sigma: f64,
}

// === impl ScheduleConfig ===

impl ScheduleConfig {
    /// Builds the table. Errors: a number of steps outside 1…100,000.
    pub fn build(self) -> Result<Schedule> {
        if !(1..=100_000).contains(&self.steps) {
            return Err(Error::bad_value("schedule.steps", self.steps, "1 to 100000"));
        }
        let n = self.steps as f64;
        let betas = (0..self.steps).map(|t| match self.kind {
            ScheduleKind::Linear => {
                let scale = 1000.0 / n;
                let at = if self.steps == 1 { 0.0 } else { t as f64 / (n - 1.0) };
                (scale * (1e-4 + at * (0.02 - 1e-4))).min(MAX_BETA)
            }
            ScheduleKind::Cosine => {
                let bar =
                    |u: f64| libm::pow(libm::cos((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2), 2.0);
                (1.0 - bar((t as f64 + 1.0) / n) / bar(t as f64 / n)).min(MAX_BETA)
            }
        });
        Schedule::from_betas(betas)
    }
}

/// Betas are capped here, so that the last step keeps a trace of signal (Nichol & Dhariwal 2021, section 3.2).
const MAX_BETA: f64 = 0.999;

// === impl Schedule ===

impl Schedule {
    /// From the variances of single steps. Errors: a beta outside (0, 1), or lost in f64.
    pub fn from_betas(betas: impl IntoIterator<Item = f64>) -> Result<Self> {
        let mut alpha_bar = Vec::new();
        let mut product = 1.0;
        for (t, beta) in betas.into_iter().enumerate() {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::bad_value(format!("betas[{t}]"), number(beta), "between 0 and 1"));
            }
            let before = product;
            product *= 1.0 - beta;
            // In f64 a beta can be too small to change alpha_bar, or the product too small to hold.
            if !(product < before && product > 0.0) {
                return Err(Error::bad_value(
                    format!("betas[{t}]"),
                    number(beta),
                    "a step that lowers alpha_bar above 0",
                ));
            }
            alpha_bar.push(product);
        }
        if alpha_bar.is_empty() {
            return Err(Error::bad_value("betas", "empty", "at least one step"));
        }
        Ok(Self { alpha_bar })
    }

    /// Number of timesteps T.
    pub fn len(&self) -> usize {
        self.alpha_bar.len()
    }

    /// Never true: a schedule has at least one step.
    pub fn is_empty(&self) -> bool {
        self.alpha_bar.is_empty()
    }

    /// `alpha_bar` at timestep `t`, counted from 0. Panics beyond the table: `t` comes from a grid of it.
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.alpha_bar[t]
    }

    /// `beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}`.
    pub fn beta(&self, t: usize) -> f64 {
        let before = if t == 0 { 1.0 } else { self.alpha_bar[t - 1] };
        1.0 - self.alpha_bar[t] / before
    }

    /// Signal and noise level at a table entry.
    pub fn level(&self, t: usize) -> Level {
        Level { t: t as f64, ..Level::from_alpha_bar(self.alpha_bar[t]) }
    }

    /// `sigma / alpha` at a table entry: the noise level in the variance-exploding view.
    pub fn karras_sigma(&self, t: usize) -> f64 {
        let level = self.level(t);
        level.sigma / level.alpha
    }

    /// The level whose `sigma / alpha` is `sigma`, at the real-valued timestep that log-linear interpolation
    /// gives; clamped to the ends of the table. `sigma = 0` is the clean image.
    pub fn level_at_sigma(&self, sigma: f64) -> Level {
        let root = libm::sqrt(1.0 + sigma * sigma);
        Level { t: self.sigma_to_t(sigma), alpha: 1.0 / root, sigma: sigma / root }
    }

    /// The level at a real-valued timestep, from 0 to the last: the inverse of [`Schedule::level_at_sigma`]. Clamped to the
    /// ends of the table.
    pub fn level_at(&self, t: f64) -> Level {
        let last = self.len() - 1;
        let t = t.clamp(0.0, last as f64);
        let low = t as usize;
        let part = t - low as f64;
        if part == 0.0 {
            return self.level(low);
        }
        let (a, b) = (libm::log(self.karras_sigma(low)), libm::log(self.karras_sigma(low + 1)));
        let sigma = libm::exp(a + part * (b - a));
        Level { t, ..self.level_at_sigma(sigma) }
    }

    /// Real-valued timestep of `sigma / alpha = sigma`.
    fn sigma_to_t(&self, sigma: f64) -> f64 {
        let last = self.len() - 1;
        if sigma <= self.karras_sigma(0) {
            return 0.0;
        }
        if sigma >= self.karras_sigma(last) {
            return last as f64;
        }
        let of = |alpha_bar: f64| libm::sqrt((1.0 - alpha_bar) / alpha_bar);
        let high = self.alpha_bar.partition_point(|&alpha_bar| of(alpha_bar) < sigma).clamp(1, last);
        let (a, b) = (libm::log(self.karras_sigma(high - 1)), libm::log(self.karras_sigma(high)));
        (high - 1) as f64 + (libm::log(sigma) - a) / (b - a)
    }

    /// `count` of the timesteps, first and last kept, evenly spread, ascending: improved-diffusion's
    /// `space_timesteps(T, "count")`; of a single step, though, the last is kept, since sampling begins there.
    /// Errors: a count of 0 or beyond T.
    pub fn respaced(&self, count: usize) -> Result<Vec<usize>> {
        if count == 0 || count > self.len() {
            return Err(Error::bad_value("steps", count, format!("1 to {}", self.len())));
        }
        if count == 1 {
            return Ok(vec![self.len() - 1]);
        }
        let stride = (self.len() - 1) as f64 / (count - 1) as f64;
        // Rounding half to even, as Python's round does.
        Ok((0..count).map(|i| libm::rint(i as f64 * stride) as usize).collect())
    }
}

// === impl Level ===

impl Level {
    /// The clean image: no noise.
    pub const CLEAN: Self = Self { t: 0.0, alpha: 1.0, sigma: 0.0 };

    fn from_alpha_bar(alpha_bar: f64) -> Self {
        Self { t: 0.0, alpha: libm::sqrt(alpha_bar), sigma: libm::sqrt(1.0 - alpha_bar) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_bar_falls_from_near_one_to_near_zero() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            for steps in [1, 2, 10, 50, 1000, 4000] {
                let schedule = ScheduleConfig { kind, steps }.build().unwrap();
                assert!(schedule.alpha_bar.windows(2).all(|w| w[0] > w[1]), "{kind:?} {steps}");
                assert!(schedule.alpha_bar.iter().all(|&a| a > 0.0 && a < 1.0));
                if steps >= 1000 {
                    assert!(schedule.alpha_bar(0) > 0.999 && schedule.alpha_bar(steps - 1) < 1e-4);
                }
            }
        }
        assert!(ScheduleConfig { kind: ScheduleKind::Linear, steps: 0 }.build().is_err());
    }

    #[test]
    fn betas_that_are_none_are_refused() {
        for bad in [0.0, 1.0, -0.1, 1.5, f64::NAN, f64::INFINITY, 1e-300] {
            let error = Schedule::from_betas([0.1, bad]).unwrap_err().to_string();
            assert!(error.contains("betas[1]"), "{error}");
        }
        assert!(Schedule::from_betas([0.9; 400]).unwrap_err().to_string().contains("betas[3"));
        assert!(Schedule::from_betas([]).is_err());
    }

    #[test]
    fn respacing_keeps_both_ends() {
        let schedule = ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap();
        let fifty = schedule.respaced(50).unwrap();
        assert_eq!((fifty[0], fifty[1], fifty[2], fifty[49]), (0, 20, 41, 999));
        assert_eq!(schedule.respaced(1000).unwrap(), (0..1000).collect::<Vec<_>>());
        assert_eq!(schedule.respaced(1).unwrap(), [999]);
        assert!(schedule.respaced(0).is_err() && schedule.respaced(1001).is_err());
    }

    #[test]
    fn interpolation_returns_the_table_at_its_entries() {
        let schedule = ScheduleConfig { kind: ScheduleKind::Cosine, steps: 1000 }.build().unwrap();
        for t in [0, 1, 17, 500, 998, 999] {
            let level = schedule.level_at_sigma(schedule.karras_sigma(t));
            assert!((level.t - t as f64).abs() < 1e-9, "{t}: {}", level.t);
            assert!((level.alpha - schedule.level(t).alpha).abs() < 1e-12);
            assert_eq!(schedule.level_at(t as f64), schedule.level(t));
        }
        for t in [0.25, 17.5, 500.125, 998.9] {
            let level = schedule.level_at(t);
            let back = schedule.level_at_sigma(level.sigma / level.alpha);
            assert!((back.t - t).abs() < 1e-6 && (back.alpha - level.alpha).abs() < 1e-9, "{t}: {back:?}");
            let (before, after) = (schedule.level(t as usize), schedule.level(t as usize + 1));
            assert!(before.sigma < level.sigma && level.sigma < after.sigma, "{t}");
        }
        assert_eq!(schedule.level_at(-1.0), schedule.level(0));
        assert_eq!(schedule.level_at(5000.0), schedule.level(999));
    }
}
