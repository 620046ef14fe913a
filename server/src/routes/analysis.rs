//! What a model looks like inside: one look a file. What is computed is in [`crate::analysis`].

mod about;
pub(crate) mod analyse;
pub mod attention;
pub mod jacobian;
mod output;
pub mod psnr_gap;
