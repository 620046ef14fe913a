//! A Gather's transpose: cotangents of the rows that were collected, added up in the rows they came from.
//!
//! ONNX has operations that scatter; ONNX Runtime runs them row by row on one thread. Which rows come from where is
//! known at export, so the sum is written as Gathers again: first contributions of all rows, then second ones, and so on,
//! as many as the row that was collected most often has. A row that has fewer takes zeros, which lie behind the last.
//! Where contributions lie is written digit by digit, as `inverse` has it; the runtime adds it up once, at load.

use std::collections::HashMap;

use super::ExportError;
use super::derivative::Builder;
use super::graph::{Graph, GraphError, ValueId};
use super::inverse::{Inverse, Run};
use super::ops::Op;
use super::outer::OuterSum;
use super::shape::{Dim, Shape};

type Built<T> = Result<T, GraphError>;

/// Cotangents of rows that one Gather collected.
#[derive(Debug, Clone)]
pub(super) struct Collected {
    /// Along which axis.
    pub(super) axis: usize,
    /// Which rows: a value of indices known at export.
    pub(super) index: ValueId,
    /// `[k l, …]`, the indices' axes in the place of `axis`.
    pub(super) cotangent: ValueId,
    /// Prefix of the names of what is made of it.
    pub(super) name: String,
}

/// Places of contributions by the number of rows and the indices, which layers of one window share.
#[derive(Debug, Default)]
pub(super) struct Scatters(HashMap<(usize, Vec<ValueId>), Places>);

/// Where the contributions to each row are, among all that were collected.
#[derive(Debug, Clone)]
struct Places {
    /// By runs of the last digit's values: first contributions of all their rows, second ones, …, as values of indices,
    /// an axis a digit.
    runs: Vec<Vec<ValueId>>,
    /// Number of digits that tell a row.
    digits: usize,
    /// Whether some row has fewer than others.
    is_ragged: bool,
}

// === impl Scatters ===

impl Scatters {
    /// The cotangents of a value of shape `own`, from all that was collected from it along one axis. Errors: indices that
    /// are not known, or of a row that is not there.
    pub(super) fn give_back(
        &mut self,
        builder: &mut Builder<'_>,
        name: &str,
        own: &Shape,
        collected: &[Collected],
    ) -> Result<ValueId, ExportError> {
        let axis = collected.first().map_or(0, |part| part.axis);
        let rows = own.fixed().map_or(0, |dims| dims[axis]);
        let mut parts = Vec::new();
        for part in collected {
            parts.push(flat(builder, own, part)?);
        }
        let all = match parts[..] {
            [part] => part,
            _ => builder.add(name, "collected", Op::Concat { axis }, &parts)?,
        };
        let places = self.places(builder, rows, collected)?;
        let all = if places.is_ragged {
            builder.add(name, "collected.zero", Op::Pad { axis, before: 0, after: 1 }, &[all])?
        } else {
            all
        };
        let mut runs = Vec::new();
        for (r, turns) in places.runs.iter().enumerate() {
            let mut sum = None;
            for (i, &turn) in turns.iter().enumerate() {
                let part =
                    builder.add(name, &format!("run.{r}.turn.{i}"), Op::Gather { axis }, &[all, turn])?;
                sum = Some(match sum {
                    None => part,
                    Some(sum) => builder.add(name, &format!("run.{r}.turns.{i}"), Op::Add, &[sum, part])?,
                });
            }
            runs.extend(sum);
        }
        let all = match runs[..] {
            [run] => run,
            _ => builder.add(name, "runs", Op::Concat { axis: axis + places.digits - 1 }, &runs)?,
        };
        Ok(builder.gathered(all, own, name, "rows")?)
    }

    fn places(
        &mut self,
        builder: &mut Builder<'_>,
        rows: usize,
        collected: &[Collected],
    ) -> Result<Places, ExportError> {
        let key = (rows, collected.iter().map(|part| part.index).collect());
        if let Some(places) = self.0.get(&key) {
            return Ok(places.clone());
        }
        let refused = |op: String| ExportError::NoDerivative { node: collected[0].name.clone(), op };
        let sums = collected.iter().map(|part| OuterSum::of(builder.graph, part.index));
        let sums: Option<Vec<_>> = sums.collect();
        let sums =
            sums.ok_or_else(|| refused("a Gather whose indices are not known at export".to_owned()))?;
        let inverse = Inverse::of(rows, &sums)
            .map_err(|row| refused(format!("a Gather of row {row} of {rows}, counted from 0,")))?;
        // Layers share them: they are named after none.
        let name = format!("scatter.{}", self.0.len());
        let none = builder.graph.indices(&format!("{name}.none"), &[], vec![inverse.places])?;
        let mut places = Places { runs: Vec::new(), digits: inverse.upper.len() + 1, is_ragged: false };
        for (r, run) in inverse.runs.iter().enumerate() {
            let name = format!("{name}.run.{r}");
            let is_ragged = run.digits.iter().flatten().flatten().any(|&part| part == inverse.places);
            places.is_ragged |= is_ragged;
            let mut turns = sums_of(builder.graph, &name, run)?;
            if is_ragged {
                for (i, turn) in turns.iter_mut().enumerate() {
                    *turn = builder.add(&name, &format!("places.{i}"), Op::Min, &[*turn, none])?;
                }
            }
            places.runs.push(turns);
        }
        self.0.insert(key, places.clone());
        Ok(places)
    }
}

/// The places of a run's contributions, turn by turn: every part of a digit with every part of the others.
fn sums_of(graph: &mut Graph, name: &str, run: &Run) -> Built<Vec<ValueId>> {
    let mut sums: Vec<ValueId> = Vec::new();
    for (digit, turns) in run.digits.iter().enumerate() {
        let mut parts = Vec::new();
        for (i, turn) in turns.iter().enumerate() {
            let mut shape = vec![1; run.digits.len()];
            shape[digit] = turn.len();
            parts.push(graph.indices(&format!("{name}.digit.{digit}.{i}"), &shape, turn.clone())?);
        }
        if digit == 0 {
            sums = parts;
            continue;
        }
        let before = std::mem::take(&mut sums);
        for (i, (&sum, &part)) in
            before.iter().flat_map(|sum| parts.iter().map(move |part| (sum, part))).enumerate()
        {
            sums.push(graph.add(&format!("{name}.digits.{digit}.{i}"), Op::Add, &[sum, part])?);
        }
    }
    Ok(sums)
}

/// The cotangents of one Gather with the indices' axes as one.
fn flat(builder: &mut Builder<'_>, own: &Shape, part: &Collected) -> Built<ValueId> {
    let rows = builder.shape(part.index).volume().0;
    let shape = own.replaced(part.axis, &[Dim::Fixed(rows)]);
    let shape = shape.batched().expect("what has cotangents has a first axis: this is a bug");
    builder.reshaped(part.cotangent, shape, &part.name, "rows")
}
