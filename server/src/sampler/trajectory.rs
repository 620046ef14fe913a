//! One image on its way from noise: where it is, what it still wants, and nothing about its neighbours.

use std::fmt;
use std::sync::Arc;

use windowpane_diffusion::solver::State;
use windowpane_diffusion::{guidance, noise};

use super::{Frame, Progress, finite};
use crate::engine::StepBatch;
use crate::spec::SampleSpec;

/// An image being sampled. It depends on its spec, its seed, its beginning and the network's answers for its own rows
/// only.
#[derive(Debug)]
pub struct Trajectory {
    spec: Arc<SampleSpec>,
    seed: u64,
    elements: usize,
    state: Beginning,
    done: usize,
    watched: Arc<[usize]>,
}

/// Where a trajectory is. The state is made at the first tick: an image that waits costs no memory.
#[derive(Debug)]
enum Beginning {
    /// Not begun: from the noise of the seed.
    Noise,
    /// Under way, or not begun and from a given x.
    State(State),
}

// === impl Trajectory ===

impl Trajectory {
    /// An image of `elements` values with this seed, before its first step.
    pub fn new(spec: Arc<SampleSpec>, seed: u64, elements: usize) -> Self {
        Self { spec, seed, elements, state: Beginning::Noise, done: 0, watched: Arc::new([]) }
    }

    /// The same, from a given `x`, at the level of the spec's first evaluation.
    #[must_use]
    pub fn from_x(mut self, x: Vec<f32>) -> Self {
        assert_eq!(x.len(), self.elements, "a beginning has the image's size; this is a bug");
        self.state = Beginning::State(State::from_x(x));
        self
    }

    /// The same, leaving a [`Frame`] after each of these evaluations, ascending.
    #[must_use]
    pub fn watch(mut self, evaluations: Arc<[usize]>) -> Self {
        self.watched = evaluations;
        self
    }

    /// Its seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Rows it takes in a tick: two where guidance compares with the null class.
    pub fn rows(&self) -> usize {
        self.spec.rows()
    }

    /// Ticks it still needs.
    pub fn evaluations_left(&self) -> usize {
        self.spec.evaluations.len() - self.done
    }

    /// Puts its rows at the end of the batch: the conditional one, then the unconditional one where there is one.
    pub fn gather(&mut self, batch: &mut StepBatch) {
        if let Beginning::Noise = self.state {
            self.state = Beginning::State(State::start(self.seed, self.elements));
        }
        let Beginning::State(state) = &self.state else { unreachable!("it was made a line above") };
        let t = self.spec.evaluations[self.done].t;
        batch.push(&state.x, t, self.spec.label);
        if self.spec.rows() == 2 {
            batch.push(&state.x, t, self.spec.null_label);
        }
    }

    /// Takes one step with the network's answer for its rows, `[rows, out_channels, height, width]`. The answer is
    /// overwritten: guidance works in place.
    pub fn apply(&mut self, answer: &mut [f32]) -> Progress {
        let Beginning::State(state) = &mut self.state else {
            panic!("a trajectory is gathered before it is applied; this is a bug")
        };
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

    /// What the last evaluation led to, if it is one that is watched.
    pub fn frame(&self) -> Option<Frame> {
        let evaluation = self.done.checked_sub(1)?;
        let Beginning::State(state) = &self.state else { return None };
        self.watched.binary_search(&evaluation).ok()?;
        let at = &self.spec.evaluations[evaluation];
        Some(Frame { evaluation, step: at.step, t: at.t, x: state.x.clone(), x0: state.x0().to_vec() })
    }

    /// The image's values `[channels, height, width]`; empty before the first step.
    pub fn into_values(self) -> Vec<f32> {
        match self.state {
            Beginning::State(state) => state.x,
            Beginning::Noise => Vec::new(),
        }
    }
}

impl fmt::Display for Trajectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sampler, of) = (self.spec.solver.sampler, self.spec.evaluations.len());
        write!(f, "{sampler} {}/{of} x{}", self.done, self.rows())
    }
}
