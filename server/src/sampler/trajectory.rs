//! One image on its way from noise: where it is, what it still wants, and nothing about its neighbours.

use std::sync::Arc;

use windowpane_diffusion::solver::State;
use windowpane_diffusion::{guidance, noise};

use crate::engine::StepBatch;
use crate::spec::SampleSpec;

/// An image being sampled. It depends on its spec, its seed and the network's answers for its own rows only.
#[derive(Debug)]
pub struct Trajectory {
    spec: Arc<SampleSpec>,
    seed: u64,
    elements: usize,
    /// Made at the first tick: a waiting image costs no memory.
    state: Option<State>,
    done: usize,
}

/// What a step led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More evaluations to come.
    Running,
    /// The image is finished.
    Finished,
    /// A value is infinite or not a number: the image is lost.
    NotFinite,
}

// === impl Trajectory ===

impl Trajectory {
    /// An image of `elements` values with this seed, before its first step.
    pub fn new(spec: Arc<SampleSpec>, seed: u64, elements: usize) -> Self {
        Self { spec, seed, elements, state: None, done: 0 }
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Rows it takes in a tick: two where guidance compares with the null class.
    pub fn rows(&self) -> usize {
        self.spec.rows()
    }

    /// Rows it still needs until it is finished.
    pub fn rows_left(&self) -> usize {
        (self.spec.evaluations.len() - self.done) * self.rows()
    }

    /// Puts its rows at the end of the batch: the conditional one, then the unconditional one where there is one.
    pub fn gather(&mut self, batch: &mut StepBatch) {
        let state = self.state.get_or_insert_with(|| State::start(self.seed, self.elements));
        let t = self.spec.evaluations[self.done].t;
        batch.push(&state.x, t, self.spec.label);
        if self.spec.rows() == 2 {
            batch.push(&state.x, t, self.spec.null_label);
        }
    }

    /// Takes one step with the network's answer for its rows, `[rows, out_channels, height, width]`. The answer is
    /// overwritten: guidance works in place.
    pub fn apply(&mut self, answer: &mut [f32]) -> Progress {
        let state =
            self.state.as_mut().expect("a trajectory is gathered before it is applied; this is a bug");
        let evaluation = &self.spec.evaluations[self.done];
        let (conditional, unconditional) = answer.split_at_mut(answer.len() / self.spec.rows());
        if self.spec.rows() == 2 {
            guidance::guide(conditional, unconditional, self.spec.guidance_scale as f32, self.elements);
        }
        if !finite(conditional) {
            return Progress::NotFinite;
        }
        let index = u32::try_from(self.done).expect("steps are limited far below 2^32; this is a bug");
        debug_assert_ne!(index, noise::INITIAL);
        state.advance(evaluation, index, self.seed, conditional);
        self.done += 1;
        match () {
            () if !finite(&state.x) => Progress::NotFinite,
            () if self.done == self.spec.evaluations.len() => Progress::Finished,
            () => Progress::Running,
        }
    }

    /// The image's values `[channels, height, width]`; empty before the first step.
    pub fn into_values(self) -> Vec<f32> {
        self.state.map_or_else(Vec::new, |state| state.x)
    }
}

/// Whether every value is a finite number.
fn finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}
