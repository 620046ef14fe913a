//! Indices that are known at export, as what they are made of: a sum of terms, each of which depends on some axes alone.
//!
//! Attention writes its indices so (a part for rows, one for columns, one for the head), and who turns them round can
//! stay as small only while it knows the parts.

use super::graph::{Data, Graph, Source, ValueId};
use super::ops::Op;
use super::shape::Shape;

/// A value of indices as a sum. No two of its terms share an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OuterSum {
    /// Lengths of the axes, none of them one.
    pub(super) axes: Vec<usize>,
    /// How many of these axes, in order, each dimension of the value's shape is made of.
    groups: Vec<usize>,
    /// What is added up.
    pub(super) terms: Vec<Term>,
}

/// A part of a sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    /// The axes that it depends on, in order.
    pub(super) axes: Vec<usize>,
    /// Its values over these axes, the last one fastest.
    pub(super) values: Vec<i64>,
}

// === impl OuterSum ===

impl OuterSum {
    /// The sum that a value is; of one term, where it is made in a way that is not told apart here. None where it is not
    /// known at export.
    pub(super) fn of(graph: &Graph, id: ValueId) -> Option<Self> {
        match Self::parts(graph, id) {
            Some(sum) if sum.is_independent() => Some(sum),
            _ => Some(Self::whole(&graph.ty(id).shape.fixed()?, graph.known_indices(id)?)),
        }
    }

    /// Number of the value's elements.
    pub(super) fn volume(&self) -> usize {
        self.axes.iter().product()
    }

    /// For each element over `axes`, in order: how far it is from the first in the flat value.
    pub(super) fn offsets(&self, axes: &[usize]) -> Vec<i64> {
        let stride = |axis: usize| self.axes[axis + 1..].iter().product::<usize>() as i64;
        let along = |axis: usize| (0..self.axes[axis] as i64).map(move |i| i * stride(axis)).collect();
        let terms = axes.iter().map(|&axis| Term { axes: vec![axis], values: along(axis) });
        let terms: Vec<Term> = terms.collect();
        self.outer(&terms.iter().collect::<Vec<_>>(), axes)
    }

    /// The sum of some terms for each element over `axes`, which hold theirs.
    pub(super) fn outer(&self, terms: &[&Term], axes: &[usize]) -> Vec<i64> {
        let volume = axes.iter().map(|&axis| self.axes[axis]).product();
        let mut sums = vec![0; volume];
        for term in terms {
            for (element, sum) in sums.iter_mut().enumerate() {
                let (mut rest, mut place, mut stride) = (element, 0, 1);
                for &axis in axes.iter().rev() {
                    let len = self.axes[axis];
                    if term.axes.contains(&axis) {
                        place += rest % len * stride;
                        stride *= len;
                    }
                    rest /= len;
                }
                *sum += term.values[place];
            }
        }
        sums
    }

    fn whole(shape: &[usize], values: Vec<i64>) -> Self {
        let axes: Vec<usize> = shape.iter().copied().filter(|&len| len != 1).collect();
        let groups = shape.iter().map(|&len| usize::from(len != 1)).collect();
        Self { terms: vec![Term { axes: (0..axes.len()).collect(), values }], axes, groups }
    }

    fn is_independent(&self) -> bool {
        let mut axes: Vec<usize> = self.terms.iter().flat_map(|term| term.axes.iter().copied()).collect();
        axes.sort_unstable();
        axes.windows(2).all(|pair| pair[0] < pair[1])
    }

    fn parts(graph: &Graph, id: ValueId) -> Option<Self> {
        let value = graph.value(id);
        match &value.source {
            Source::Constant(Data::Int(values)) => {
                Some(Self::whole(&value.ty.shape.fixed()?, values.clone()))
            }
            Source::Node { op: Op::Add, inputs } => {
                let (a, b) = (Self::parts(graph, inputs[0])?, Self::parts(graph, inputs[1])?);
                a.plus(b)
            }
            Source::Node { op: Op::Reshape(shape), inputs } => Self::parts(graph, inputs[0])?.reshaped(shape),
            _ => None,
        }
    }

    /// The same elements in another shape; none where an axis would be cut.
    fn reshaped(mut self, shape: &Shape) -> Option<Self> {
        let (mut groups, mut next) = (Vec::new(), 0);
        for dim in shape.fixed()? {
            let (begin, mut len) = (next, 1);
            while len < dim {
                len *= self.axes.get(next)?;
                next += 1;
            }
            if len != dim {
                return None;
            }
            groups.push(next - begin);
        }
        self.groups = groups;
        Some(self)
    }

    /// The sum of two, broadcast as numpy does; none where one cuts what is an axis of the other.
    fn plus(self, other: Self) -> Option<Self> {
        let rank = self.groups.len().max(other.groups.len());
        let (a, b) = (self.split(rank), other.split(rank));
        let mut sum = Self { axes: Vec::new(), groups: Vec::new(), terms: Vec::new() };
        // Where the axes of each side come to lie.
        let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
        for (a, b) in a.iter().zip(&b) {
            let lens = if a.is_empty() { b } else { a };
            if !b.is_empty() && b != lens {
                return None;
            }
            let begin = sum.axes.len();
            from_a.extend((0..a.len()).map(|i| begin + i));
            from_b.extend((0..b.len()).map(|i| begin + i));
            sum.axes.extend(lens);
            sum.groups.push(lens.len());
        }
        for (terms, moved) in [(self.terms, from_a), (other.terms, from_b)] {
            sum.terms.extend(terms.into_iter().map(|term| Term {
                axes: term.axes.iter().map(|&axis| moved[axis]).collect(),
                values: term.values,
            }));
        }
        Some(sum)
    }

    /// The lengths of the axes by dimension, of `rank` dimensions.
    fn split(&self, rank: usize) -> Vec<Vec<usize>> {
        let mut axes = self.axes.iter().copied();
        let own = self.groups.iter().map(|&n| axes.by_ref().take(n).collect());
        let own: Vec<Vec<usize>> = own.collect();
        [vec![Vec::new(); rank - own.len()], own].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Dtype, Type};
    use super::*;

    #[test]
    fn a_sum_is_taken_apart_and_is_the_same() {
        let mut graph = Graph::new();
        let rows = graph.indices("rows", &[2, 1, 3, 1], vec![0, 10, 20, 30, 40, 50]).unwrap();
        let cols = graph.indices("cols", &[1, 4, 1, 2], (0..8).collect()).unwrap();
        let tokens = graph.add("tokens", Op::Add, &[rows, cols]).unwrap();
        let tokens = graph.add("flat", Op::Reshape(Shape::new([1, 8, 6])), &[tokens]).unwrap();
        let heads = graph.indices("heads", &[5, 1, 1], (0..5).map(|i| 100 * i).collect()).unwrap();
        let all = graph.add("all", Op::Add, &[tokens, heads]).unwrap();
        let sum = OuterSum::of(&graph, all).unwrap();
        assert_eq!((&sum.axes[..], &sum.groups[..]), (&[5, 2, 4, 3, 2][..], &[1, 2, 2][..]));
        let axes: Vec<_> = sum.terms.iter().map(|term| term.axes.clone()).collect();
        assert_eq!(axes, [vec![1, 3], vec![2, 4], vec![0]]);
        let known = graph.known_indices(all).unwrap();
        let terms: Vec<_> = sum.terms.iter().collect();
        assert_eq!((sum.volume(), sum.outer(&terms, &[0, 1, 2, 3, 4])), (known.len(), known));
        let offsets = sum.offsets(&[2, 4]);
        assert_eq!(offsets, [0, 1, 6, 7, 12, 13, 18, 19]);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_one_term() {
        let mut graph = Graph::new();
        let a = graph.indices("a", &[2, 3], vec![0, 1, 2, 3, 4, 5]).unwrap();
        let twice = graph.add("twice", Op::Mul, &[a, a]).unwrap();
        let sum = OuterSum::of(&graph, twice).unwrap();
        assert_eq!(sum.terms, [Term { axes: vec![0, 1], values: vec![0, 1, 4, 9, 16, 25] }]);
        // Both depend on the same axes, and a shape that cuts one.
        let more = graph.add("more", Op::Add, &[a, a]).unwrap();
        let cut = graph.add("cut", Op::Reshape(Shape::new([3, 2])), &[more]).unwrap();
        assert_eq!(OuterSum::of(&graph, more).unwrap().terms.len(), 1);
        assert_eq!(OuterSum::of(&graph, cut).unwrap().terms[0].values, [0, 2, 4, 6, 8, 10]);
        let given = graph.input("y", Type::new(Dtype::I64, Shape::new([2, 3]))).unwrap();
        assert_eq!(OuterSum::of(&graph, given), None);
    }
}
