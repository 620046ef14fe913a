//! One tick: the rows of the chosen units into a batch, and the network's answers back to their owners.

use super::{Progress, Unit};
use crate::engine::StepBatch;

/// Gathers the rows of `units`, in order, into an emptied `batch`.
pub fn gather<'a>(units: impl IntoIterator<Item = &'a mut Unit>, batch: &mut StepBatch) {
    batch.clear();
    units.into_iter().for_each(|unit| unit.gather(batch));
}

/// Gives each of `units`, in the order they were gathered, its rows of `prediction` (`[rows, row]` flat).
/// The answer is what each step led to, in the same order.
pub fn apply<'a>(
    units: impl IntoIterator<Item = &'a mut Unit>,
    prediction: &mut [f32],
    row: usize,
) -> Vec<Progress> {
    let mut rest = prediction;
    let mut step = |unit: &'a mut Unit| {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(unit.rows() * row);
        rest = others;
        unit.apply(own)
    };
    units.into_iter().map(&mut step).collect()
}
