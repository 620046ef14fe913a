//! One file per noun: request and response types, and handlers that read as a sentence. Arithmetic lives elsewhere.

pub mod analysis;
pub mod fallback;
pub mod health;
pub mod images;
pub mod jobs;
pub mod metrics;
pub mod models;
pub mod replay;
pub mod requests;
pub mod v2;
