//! Heun's second-order method on the probability-flow ODE: Karras et al. 2022, algorithm 1 without churn.
//! Two evaluations a step, except for the last, which is Euler's: at the clean image there is no slope.
//!
//! The corrector trusts the slope at the far end, so steps must not be too long in `sigma / alpha`. The cosine
//! schedule begins at about 20,000 there: on it, the uniform and quadratic grids overshoot in their first step,
//! and the Karras grid is the one to choose.

use crate::schedule::Level;

use super::{Update, euler};

/// From one level to the next, for `x / alpha` with noise level `s = sigma / alpha`:
/// first `x2 = x + (s' - s) d`, then from `x` again with the mean of the slopes at both ends.
pub(super) fn step(from: Level, to: Level) -> Vec<Update> {
    let predictor = euler::step(from, to);
    if to.sigma == 0.0 {
        return vec![predictor];
    }
    let (s, target) = (from.sigma / from.alpha, to.sigma / to.alpha);
    let (here, there) = (0.5 * (target - s) / s, 0.5 * (target - s) / target);
    // Slopes are (x - x0) / s. The corrector's input is x2, at level `to`; x is the previous input.
    let corrector = Update {
        x: there,
        x0: -to.alpha * there,
        x_prev: to.alpha * (1.0 + here) / from.alpha,
        x0_prev: -to.alpha * here,
        ..Update::at(to)
    };
    vec![predictor, corrector]
}
