//! Measures of a trained model. Each works on the network as a closure, so it knows neither the model's form nor its
//! device, and hands back a plain struct that can be written as JSON.

use tch::Tensor;

pub mod psnr_gap;

pub use psnr_gap::{GapConfig, psnr_gap};

/// The network as a measure sees it: `(x, t, y) -> prediction`.
///
/// # Shapes
/// `x` is `[n, c, h, w]` f32 on the CPU, `t` and `y` have n entries; the result is `[n, c or 2c, h, w]` of any kind on
/// any device. A second half of the channels (a learned variance) is not looked at.
pub type Denoise<'a> = dyn Fn(&Tensor, &[f32], &[i64]) -> Tensor + 'a;
