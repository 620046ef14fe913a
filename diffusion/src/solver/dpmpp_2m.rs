//! DPM-Solver++(2M): Lu et al. 2022, "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
//! models", algorithm 2. Second order with one evaluation a step, from the clean estimate of the step before.

use crate::schedule::Level;

use super::Update;

/// From one level to the next, given the level `before` of the previous step.
///
/// First order at the first step, where nothing came before, and at the last, where the step `h` in
/// `lambda = log(alpha / sigma)` is infinite and the result is the clean estimate itself.
pub(super) fn step(before: Option<Level>, from: Level, to: Level) -> Update {
    let decay = (to.sigma * from.alpha) / (to.alpha * from.sigma); // exp(-h)
    let weight = to.alpha * (1.0 - decay);
    let extrapolation = match before {
        Some(before) if to.sigma > 0.0 => {
            let (h, h_before) = (lambda(to) - lambda(from), lambda(from) - lambda(before));
            0.5 * h / h_before // 1 / 2r
        }
        _ => 0.0,
    };
    Update {
        x: to.sigma / from.sigma,
        x0: weight * (1.0 + extrapolation),
        x0_prev: -weight * extrapolation,
        ..Update::at(from)
    }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(level: Level) -> f64 {
    libm::log(level.alpha / level.sigma)
}
