//! Euler's method with ancestral noise: step below the target level, then add noise up to it. The sampler of
//! k-diffusion (`sample_euler_ancestral`); the split is the posterior of Song et al. 2021 (score SDE), appendix
//! F, equation 47, for `x / alpha` with noise level `s = sigma / alpha`.

use crate::schedule::Level;

use super::{NoiseScale, Update, euler};

/// From one level to the next.
pub(super) fn step(from: Level, to: Level) -> Update {
    let (s, target) = (from.sigma / from.alpha, to.sigma / to.alpha);
    let up = (target / s) * libm::sqrt((s * s - target * target).max(0.0));
    let down = target * target / s; // = sqrt(target² - up²)
    Update { noise: NoiseScale::fixed(to.alpha * up), ..euler::toward(from, to.alpha, down) }
}
