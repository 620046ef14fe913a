//! The server: model packages in, images over HTTP out. Modules in the order a request meets them.
//!
//! ```text
//! ImageRequest ─validate─> SampleSpec ─admit─> Trajectory ─gather─> StepBatch ─denoise─> prediction ─apply─> Trajectory
//! …until finished… ─> Sample ─encode─> response
//! routes/images           spec        batcher     sampler/tick   engine/ort           sampler/tick       encode
//! ```
//!
//! Each arrow is one function in one file; its failure is one error, its duration one histogram and one entry of
//! `server-timing`. To run a server inside a program or a test, see [`app`].

pub mod args;
pub mod config;
pub mod health;
pub mod shutdown;
pub mod telemetry;

pub mod access;
pub mod app;
pub mod call;
pub mod check;
pub mod keys;
pub mod model;
pub mod reload;
pub mod serve;

pub mod error;
pub mod extract;
pub mod middleware;
pub mod openapi;
mod pieces;
pub mod router;
pub mod routes;

pub mod analysis;
pub mod batcher;
pub mod decode;
pub mod encode;
pub mod engine;
pub mod jobs;
pub mod metrics;
pub mod provenance;
pub mod sampler;
pub mod spec;
pub mod v2;

#[cfg(test)]
pub(crate) mod testing;

pub use app::App;
pub use args::Args;
pub use config::Config;
pub use serve::{Listeners, serve};
