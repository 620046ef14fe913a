//! DDIM: Song, Meng & Ermon 2021, "Denoising diffusion implicit models", equation 12, with sigma by equation 16.

use crate::schedule::Level;

use super::{NoiseScale, Update};

/// From one level to the next. `eta` 0 is deterministic, 1 is the ancestral sampler.
pub(super) fn step(from: Level, to: Level, eta: f64) -> Update {
    let ratio = (from.alpha * from.alpha) / (to.alpha * to.alpha);
    let noise = eta * to.sigma / from.sigma * libm::sqrt((1.0 - ratio).max(0.0));
    // What is left of the direction pointing to x_t, as a factor on eps = (x - alpha x0) / sigma.
    let direction = libm::sqrt((to.sigma * to.sigma - noise * noise).max(0.0));
    Update {
        x: direction / from.sigma,
        x0: to.alpha - direction * from.alpha / from.sigma,
        noise: NoiseScale::fixed(noise),
        ..Update::at(from)
    }
}
