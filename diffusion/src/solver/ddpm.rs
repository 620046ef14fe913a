//! DDPM, the ancestral sampler: Ho, Jain & Abbeel 2020, algorithm 2 with the posterior of equations 6 and 7.
//! Learned variances: Nichol & Dhariwal 2021, equation 15; on a subset of the timesteps, beta is recomputed from
//! alpha_bar (their section 4).

use crate::prediction::Variance;
use crate::schedule::Level;

use super::{NoiseScale, Update};

/// From one level to the next. The step to the clean image adds no noise (algorithm 2, line 3).
pub(super) fn step(from: Level, to: Level, variance: Variance) -> Update {
    let (from_var, to_var) = (from.sigma * from.sigma, to.sigma * to.sigma);
    let ratio = (from.alpha * from.alpha) / (to.alpha * to.alpha);
    let beta = 1.0 - ratio;
    let posterior = beta * to_var / from_var;
    let noise = match variance {
        _ if to.sigma == 0.0 => NoiseScale::None,
        Variance::FixedSmall => NoiseScale::fixed(libm::sqrt(posterior)),
        Variance::FixedLarge => NoiseScale::fixed(libm::sqrt(beta)),
        Variance::LearnedRange => {
            NoiseScale::LearnedRange { log_min: libm::log(posterior), log_max: libm::log(beta) }
        }
    };
    Update {
        x: libm::sqrt(ratio) * to_var / from_var,
        x0: to.alpha * beta / from_var,
        noise,
        ..Update::at(from)
    }
}
