//! Types of the export graph's values: element type and symbolic shape. One symbol exists, the batch size, and a
//! dimension is a fixed number or a multiple of it.

use std::fmt;

/// Element type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 64-bit integer: labels.
    I64,
    /// 32-bit integer: indices that are known at export, which are half of a graph's constants.
    I32,
}

/// One dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A number known at export.
    Fixed(usize),
    /// This many times the batch size, which is known at run time.
    Batch(usize),
}

/// The dimensions of a value, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shape(Vec<Dim>);

/// Element type and shape of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Type {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Shape,
}

// === impl Dtype ===

impl Dtype {
    /// Whether values of this type are real numbers, on which arithmetic is defined.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I64 => "i64",
            Self::I32 => "i32",
        })
    }
}

// === impl Dim ===

impl Dim {
    /// The batch size itself.
    pub const BATCH: Self = Self::Batch(1);

    /// This dimension `factor` times over: rows of a batch of token grids, for example.
    pub fn times(self, factor: usize) -> Self {
        match self {
            Self::Fixed(n) => Self::Fixed(n * factor),
            Self::Batch(n) => Self::Batch(n * factor),
        }
    }

    /// The dimension that `self` and `other` broadcast to, if they do.
    pub fn broadcast(self, other: Self) -> Option<Self> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Self::Fixed(1), a) | (a, Self::Fixed(1)) => Some(a),
            _ => None,
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        Self::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Batch(1) => write!(f, "n"),
            Self::Batch(k) => write!(f, "{k}n"),
        }
    }
}

// === impl Shape ===

impl Shape {
    /// From dimensions, outermost first.
    pub fn new(dims: impl IntoIterator<Item = impl Into<Dim>>) -> Self {
        Self(dims.into_iter().map(Into::into).collect())
    }

    /// From a leading dimension and the fixed ones behind it: `[n, …]` for nearly every value of a network.
    pub fn led_by(first: Dim, rest: &[usize]) -> Self {
        Self(std::iter::once(first).chain(rest.iter().map(|&n| Dim::Fixed(n))).collect())
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.0
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The dimensions as numbers; `None` where one is of the batch.
    pub fn fixed(&self) -> Option<Vec<usize>> {
        let number = |dim: &Dim| match dim {
            Dim::Fixed(n) => Some(*n),
            Dim::Batch(_) => None,
        };
        self.0.iter().map(number).collect()
    }

    /// Number of elements as (factor, power of the batch size).
    pub fn volume(&self) -> (usize, u32) {
        self.0.iter().fold((1, 0), |(factor, power), dim| match dim {
            Dim::Fixed(n) => (factor * n, power),
            Dim::Batch(n) => (factor * n, power + 1),
        })
    }

    /// The same shape with dimension `axis` replaced by `dims`.
    pub fn replaced(&self, axis: usize, dims: &[Dim]) -> Self {
        let mut all = self.0.clone();
        all.splice(axis..=axis, dims.iter().copied());
        Self(all)
    }

    /// The shape of as many tangents or cotangents of a value of this shape as the batch has: along the first axis, one
    /// after another. `None` where there is no first axis, or it is of the batch already.
    pub fn batched(&self) -> Option<Self> {
        match self.0.first() {
            Some(&Dim::Fixed(n)) => Some(self.replaced(0, &[Dim::Batch(n)])),
            _ => None,
        }
    }

    /// The shape that `self` and `other` broadcast to (numpy's rule), if they do.
    pub fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let at = |shape: &Self, axis: usize| match (axis + shape.rank()).checked_sub(rank) {
            Some(i) => shape.0[i],
            None => Dim::Fixed(1),
        };
        (0..rank).map(|axis| at(self, axis).broadcast(at(other, axis))).collect::<Option<_>>().map(Self)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<_> = self.0.iter().map(Dim::to_string).collect();
        write!(f, "[{}]", dims.join(","))
    }
}

// === impl Type ===

impl Type {
    /// A type from its parts.
    pub fn new(dtype: Dtype, shape: Shape) -> Self {
        Self { dtype, shape }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_is_numpys() {
        let a = Shape::led_by(Dim::BATCH, &[16, 8]);
        assert_eq!(a.broadcast(&Shape::new([8])), Some(a.clone()));
        assert_eq!(Shape::new([16, 1]).broadcast(&Shape::led_by(Dim::BATCH, &[1, 8])), Some(a.clone()));
        assert_eq!(a.broadcast(&Shape::new([7])), None);
        // A batch is not a number, whatever the number.
        assert_eq!(a.broadcast(&Shape::new([4, 16, 8])), None);
    }

    #[test]
    fn volumes_keep_the_batch_apart() {
        assert_eq!(Shape::led_by(Dim::Batch(3), &[4, 5]).volume(), (60, 1));
        assert_eq!(Shape::led_by(Dim::Batch(3), &[4, 5]).to_string(), "[3n,4,5]");
    }
}
