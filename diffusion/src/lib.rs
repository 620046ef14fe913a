//! The pure mathematics of windowed diffusion transformers.
//!
//! What is here: configurations, windows and their tiles, noise schedules, solvers, counter-based noise, and the
//! manifest of a model package. What must never be here: a tensor type, a file, a clock, a thread. Trainer and
//! server both read these definitions, so the two cannot drift apart.

pub mod config;
pub mod error;
pub mod guidance;
pub mod harmonicity;
pub mod locality;
pub mod manifest;
pub mod noise;
pub mod patch;
pub mod prediction;
pub mod psnr_gap;
pub mod schedule;
pub mod solver;
pub mod spectrum;
pub mod window;

pub use config::{ModelConfig, Placement};
pub use error::{Error, Result};
pub use manifest::Manifest;
pub use patch::Grid;
pub use prediction::{Prediction, Variance};
pub use schedule::{Level, Schedule, ScheduleConfig, ScheduleKind};
pub use solver::{Evaluation, NoiseScale, Sampler, SolverConfig, State, TimeGrid};
pub use window::{Plan, Tile, TilePlan, Window};
