//! Does the network wait for its host? The time between the calls of the network while there is always work, as a share
//! of the time in them, from the readings of the saturation experiment. Gathering and applying are in that gap. What HTTP
//! takes from the calls themselves, as processor time, is in the distance to the bare loop.

use super::saturation::Pair;
use crate::load::bar::{Bar, Side, Unit};

/// The gap.
pub fn bars(pairs: &[Pair]) -> Vec<Bar> {
    vec![Bar {
        name: "gap between two ticks, of the tick",
        side: Side::AtMost,
        limit: 0.03,
        unit: Unit::Percent,
        turns: pairs.iter().map(|pair| pair.ticks.gap()).collect(),
    }]
}
