//! One piece of work being done, and one tick over many of them. What a step does to an image is `diffusion`'s business
//! (its solvers are coefficients); here the rows are gathered, and the answers given back.

pub mod tick;
pub mod trajectory;
pub mod unit;

pub use tick::{apply, gather};
pub use trajectory::Trajectory;
pub use unit::{Evaluate, Unit};

/// What a step led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More evaluations to come.
    Running,
    /// The work is done.
    Finished,
    /// A value is infinite or not a number: the work is lost.
    NotFinite,
}

/// An image under way, for those who watch.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The evaluation that led here, from 0.
    pub evaluation: usize,
    /// The solver step it belongs to, from 0.
    pub step: usize,
    /// The timestep that the network was told.
    pub t: f32,
    /// The noisy image after it, `[channels, height, width]`.
    pub x: Vec<f32>,
    /// The estimate of the clean image, `[channels, height, width]`.
    pub x0: Vec<f32>,
}

/// Whether every value is a finite number.
fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}
