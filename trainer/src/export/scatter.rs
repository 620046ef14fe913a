//! A Gather's transpose: cotangents of the rows that were collected, added up in the rows they came from.
//!
//! ONNX has operations that scatter; ONNX Runtime runs them row by row on one thread. Which rows come from where is
//! known at export, so the sum is written as Gathers again: first contributions of all rows, then second ones, and so on,
//! as many as the row that was collected most often has. A row that has fewer takes zeros, which lie behind the last.

use std::collections::HashMap;

use super::ExportError;
use super::derivative::Builder;
use super::graph::{GraphError, ValueId};
use super::ops::Op;
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

/// Places of contributions, which layers of one window share.
#[derive(Debug, Default)]
pub(super) struct Scatters(HashMap<Vec<ValueId>, Places>);

/// Where the contributions to each row are, among all that were collected.
#[derive(Debug, Clone)]
struct Places {
    /// First contributions of all rows, second ones, …: values of indices, `[rows]`.
    turns: Vec<ValueId>,
    /// Whether some row has fewer than others.
    is_ragged: bool,
}

// === impl Scatters ===

impl Scatters {
    /// The cotangents of a value of shape `own`, from all that was collected from it along one axis.
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
        let places = self.places(builder, name, rows, collected)?;
        let all = if places.is_ragged {
            builder.add(name, "collected.zero", Op::Pad { axis, before: 0, after: 1 }, &[all])?
        } else {
            all
        };
        let mut sum = None;
        for (i, &turn) in places.turns.iter().enumerate() {
            let part = builder.add(name, &format!("turn.{i}"), Op::Gather { axis }, &[all, turn])?;
            sum = Some(match sum {
                None => part,
                Some(sum) => builder.add(name, &format!("turns.{i}"), Op::Add, &[sum, part])?,
            });
        }
        Ok(sum.expect("somebody collected something: this is a bug"))
    }

    fn places(
        &mut self,
        builder: &mut Builder<'_>,
        name: &str,
        rows: usize,
        collected: &[Collected],
    ) -> Result<Places, ExportError> {
        let key: Vec<_> = collected.iter().map(|part| part.index).collect();
        if let Some(places) = self.0.get(&key) {
            return Ok(places.clone());
        }
        let mut contributions: Vec<Vec<i64>> = vec![Vec::new(); rows];
        let mut place = 0;
        for part in collected {
            let index = builder.graph.known_indices(part.index).ok_or_else(|| ExportError::NoDerivative {
                node: part.name.clone(),
                op: "a Gather whose indices are not known at export".to_owned(),
            })?;
            for row in index {
                contributions[row as usize].push(place);
                place += 1;
            }
        }
        let most = contributions.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let is_ragged = contributions.iter().any(|row| row.len() < most);
        let mut turns = Vec::new();
        for i in 0..most {
            let turn = contributions.iter().map(|row| row.get(i).copied().unwrap_or(place)).collect();
            turns.push(builder.graph.indices(&format!("{name}.rows.{i}"), &[rows], turn)?);
        }
        let places = Places { turns, is_ragged };
        self.0.insert(key, places.clone());
        Ok(places)
    }
}

/// The cotangents of one Gather with the indices' axes as one.
fn flat(builder: &mut Builder<'_>, own: &Shape, part: &Collected) -> Built<ValueId> {
    let rows = builder.shape(part.index).volume().0;
    let shape = own.replaced(part.axis, &[Dim::Fixed(rows)]);
    let shape = shape.batched().expect("what has cotangents has a first axis: this is a bug");
    builder.reshaped(part.cotangent, shape, &part.name, "rows")
}
