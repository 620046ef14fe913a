//! Trains diffusion transformers with windowed attention, and exports them as model packages.
//!
//! In the order of a model's life: `config` (a recipe and what it means), `data`, `model` with its `params` and
//! `attention`, `loss`, `memory` (does it fit?), `optim`, `train` with its `checkpoint` and `log`, `folder` (how both a
//! checkpoint and a package come to be whole or absent) and `json` (how their texts are read), `cuda` (the GPU's part of
//! libtorch), `sample`, `eval`, `export`.

pub mod args;
pub mod attention;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod cuda;
pub mod data;
pub mod error;
pub mod eval;
pub mod export;
pub mod folder;
pub mod json;
pub mod log;
pub mod loss;
pub mod memory;
pub mod model;
pub mod optim;
pub mod params;
pub mod picture;
pub mod sample;
#[cfg(test)]
mod testing;
pub mod train;

pub use error::{Error, Result};
