//! One image being sampled, and one tick over many of them. What a step does to an image is `diffusion`'s business
//! (its solvers are coefficients); here the rows are gathered, and the answers given back.

pub mod tick;
pub mod trajectory;

pub use tick::{apply, gather};
pub use trajectory::{Progress, Trajectory};
