//! One tick: the rows of the chosen trajectories into a batch, and the network's answers back to their owners.

use super::{Progress, Trajectory};
use crate::engine::StepBatch;

/// Gathers the rows of `trajectories`, in order, into an emptied `batch`.
pub fn gather<'a>(trajectories: impl IntoIterator<Item = &'a mut Trajectory>, batch: &mut StepBatch) {
    batch.clear();
    trajectories.into_iter().for_each(|trajectory| trajectory.gather(batch));
}

/// Gives each of `trajectories`, in the order they were gathered, its rows of `prediction` (`[rows, row]` flat).
/// The answer is what each step led to, in the same order.
pub fn apply<'a>(
    trajectories: impl IntoIterator<Item = &'a mut Trajectory>,
    prediction: &mut [f32],
    row: usize,
) -> Vec<Progress> {
    let mut rest = prediction;
    let mut step = |trajectory: &'a mut Trajectory| {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(trajectory.rows() * row);
        rest = others;
        trajectory.apply(own)
    };
    trajectories.into_iter().map(&mut step).collect()
}
