//! The experiments, in the order they run. Each is one function from the laboratory to its numbers, and each says what
//! its bars mean.

pub mod curve;
pub mod gap;
pub mod overload;
pub mod saturation;
pub mod short_jobs;
pub mod studies;
