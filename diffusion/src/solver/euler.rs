//! Euler's method on the probability-flow ODE: Karras et al. 2022, "Elucidating the design space of
//! diffusion-based generative models", algorithm 1 without its correction and without churn.
//!
//! Written there for `x / alpha`, whose noise level is `s = sigma / alpha`. It is DDIM with eta 0 by another name
//! (a test holds them equal); people ask for it by both.

use crate::schedule::Level;

use super::Update;

/// From one level to the next: `x' = x + (s' - s) (x - x0) / s`, in variance-preserving coordinates.
pub(super) fn step(from: Level, to: Level) -> Update {
    toward(from, to.alpha, to.sigma / to.alpha)
}

/// Euler's step from `from` to the level `s`, with the result scaled by `alpha`.
pub(super) fn toward(from: Level, alpha: f64, s: f64) -> Update {
    let ratio = s * from.alpha / from.sigma;
    Update { x: alpha * ratio / from.alpha, x0: alpha * (1.0 - ratio), ..Update::at(from) }
}
