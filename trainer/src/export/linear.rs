//! Linear layers in derivatives. Tangents and cotangents are many, and their weight is one: what scales the entries of a
//! vector by a row of numbers, or takes off its mean, before or behind a weight is done to the weight.

use super::derivative::Builder;
use super::graph::{GraphError, Source, ValueId};
use super::ops::Op;
use super::shape::{Dim, Shape};

type Built<T> = Result<T, GraphError>;

// === impl Builder ===

impl Builder<'_> {
    /// Tangents or cotangents `x` through a linear layer's weight. Where they were just multiplied by a row, one number for
    /// each of their last axis' entries, the weight is multiplied instead: it is the same for all vectors.
    pub(super) fn linear(&mut self, of: &str, transpose_b: bool, x: ValueId, w: ValueId) -> Built<ValueId> {
        let (mut x, mut w) = (x, w);
        if let Some((unscaled, row)) = self.scaled_by_row(x)
            && self.is_less(w, x)
        {
            let shape = self.shape(x);
            x = self.reshaped(unscaled, shape, of, "unscaled")?;
            w = self.weight_times(of, w, row, transpose_b)?;
        }
        self.graph.add(of, Op::Gemm { transpose_b }, &[x, w])
    }

    /// `x` times a row, one number for each entry of the last axis; where `x` was just put through a weight, by multiplying that.
    /// None where it was not, or `row` is none.
    pub(super) fn times_row(&mut self, of: &str, x: ValueId, row: ValueId) -> Built<Option<ValueId>> {
        let Some((from, w, transpose_b)) = self.weighed(x).filter(|_| self.is_row(row, self.width(x))) else {
            return Ok(None);
        };
        let w = self.weight_times(of, w, row, !transpose_b)?;
        let product = self.add(of, "rows", Op::Gemm { transpose_b }, &[from, w])?;
        let shape = self.shape(x);
        self.reshaped(product, shape, of, "times").map(Some)
    }

    /// `x` less the mean of its last axis; where `x` was just put through a weight, by taking the means off that. None where it
    /// was not.
    pub(super) fn centred_by_weight(&mut self, of: &str, x: ValueId) -> Built<Option<ValueId>> {
        let Some((from, w, transpose_b)) = self.weighed(x) else { return Ok(None) };
        let (axis, width) = (usize::from(!transpose_b), self.width(x));
        let mean = self.add(of, "weight.sum", Op::Sum { axis }, &[w])?;
        let mean = self.scaled(mean, -1.0 / width as f32, of, "weight.mean")?;
        let w = self.add(of, "weight", Op::Add, &[w, mean])?;
        let product = self.add(of, "rows", Op::Gemm { transpose_b }, &[from, w])?;
        let shape = self.shape(x);
        self.reshaped(product, shape, of, "centred").map(Some)
    }

    /// What `x` was before it was put through a weight, the weight, and whether that is `[out,in]`; where changing the weight is
    /// less than changing `x`.
    fn weighed(&self, x: ValueId) -> Option<(ValueId, ValueId, bool)> {
        let Source::Node { op: Op::Gemm { transpose_b }, inputs } =
            &self.graph.value(self.unshaped(x)).source
        else {
            return None;
        };
        let &[from, w] = &inputs[..] else { return None };
        self.is_less(w, from).then_some((from, w, *transpose_b))
    }

    /// A weight whose entries are multiplied by those of a row, along its columns or along its rows.
    fn weight_times(&mut self, of: &str, w: ValueId, row: ValueId, columns: bool) -> Built<ValueId> {
        let width = self.width(row);
        let shape = if columns { [1, width] } else { [width, 1] };
        let row = self.reshaped(row, Shape::new(shape), of, "weight.by")?;
        self.add(of, "weight", Op::Mul, &[w, row])
    }

    /// What a value was before it was multiplied by a row, and the row.
    fn scaled_by_row(&self, x: ValueId) -> Option<(ValueId, ValueId)> {
        let Source::Node { op: Op::Mul, inputs } = &self.graph.value(self.unshaped(x)).source else {
            return None;
        };
        let is_row = |&id: &ValueId| self.is_row(id, self.width(x));
        let (unscaled, row) =
            if is_row(&inputs[0]) { (inputs[1], inputs[0]) } else { (inputs[0], inputs[1]) };
        let whole = self.graph.ty(unscaled).shape.volume() == self.graph.ty(x).shape.volume();
        (is_row(&row) && whole).then_some((unscaled, row))
    }

    /// Before it was given another shape with the same last axis.
    fn unshaped(&self, mut x: ValueId) -> ValueId {
        let width = self.graph.ty(x).shape.dims().last();
        while let Source::Node { op: Op::Reshape(_), inputs } = &self.graph.value(x).source
            && self.graph.ty(inputs[0]).shape.dims().last() == width
        {
            x = inputs[0];
        }
        x
    }

    /// Whether a value is the same for all vectors and along all axes but the last.
    fn is_row(&self, id: ValueId, width: usize) -> bool {
        let dims = self.graph.ty(id).shape.dims();
        dims.split_last().is_some_and(|(last, lead)| {
            *last == Dim::Fixed(width) && lead.iter().all(|&dim| dim == Dim::Fixed(1))
        })
    }

    /// Whether a weight has fewer entries than a few vectors' rows `x` that it is multiplied with.
    fn is_less(&self, w: ValueId, x: ValueId) -> bool {
        const FEW: usize = 8;
        let ((weight, _), (rows, _)) = (self.graph.ty(w).shape.volume(), self.graph.ty(x).shape.volume());
        weight < FEW * rows
    }
}
