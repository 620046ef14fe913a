//! The operations of the export graph and the types they infer.
//!
//! Each is primitive, or composite with a derivative in closed form, so that a forward- and a reverse-mode rule
//! can stand beside it as one more `match`. A new operation is one variant here, its type in [`Op::infer`], its
//! value in `eval.rs` and its nodes in `lower.rs`; the compiler finds all four.

use std::fmt;

use super::shape::{Dim, Dtype, Shape, Type};

/// An operation on values.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// `x[m,k] · w + b[o]`, the bias being optional: a linear layer. `w` is `[o,k]` when transposed, as
    /// checkpoints hold it, or `[k,o]`.
    Gemm {
        /// Whether the weight is `[o,k]`.
        transpose_b: bool,
    },
    /// `a[…,m,k] · b[…,k,o]`, leading dimensions broadcast, each side optionally given transposed.
    MatMul {
        /// Whether the left side is `[…,k,m]`.
        transpose_a: bool,
        /// Whether the right side is `[…,o,k]`.
        transpose_b: bool,
    },
    /// Sum, with broadcasting. Also defined on indices.
    Add,
    /// Product, with broadcasting. Also defined on indices.
    Mul,
    /// The lesser of two indices, with broadcasting.
    Min,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The Gaussian error linear unit in its tanh form (Hendrycks & Gimpel 2016, section 2).
    Gelu,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Softmax over the last axis.
    Softmax,
    /// `(x - mean) / sqrt(variance + epsilon)` over the last axis, without scale and shift (Ba et al. 2016).
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// `1 / sqrt(variance + epsilon)` over the last axis, which is kept with one entry: what [`Op::LayerNorm`] divides by.
    InvStdDev {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Sum over `axis`, which is kept with one entry.
    Sum {
        /// Axis of the input.
        axis: usize,
    },
    /// Convolution of `x[n,c,h,w]` with a weight `[o,c,kh,kw]`, with zeros around the image.
    Conv(Stride),
    /// Its transpose, of `x[n,o,h,w]` with a weight `[o,c,kh,kw]`: every pixel put out as the weight's patch, overlaps
    /// added up.
    ConvTranspose {
        /// As the convolution has it.
        stride: Stride,
        /// Rows and columns that the convolution left over at the far end of its image.
        extra: [usize; 2],
    },
    /// The same elements in another shape.
    Reshape(Shape),
    /// Axes in another order: axis `i` of the result is axis `perm[i]` of the input.
    Transpose(Vec<usize>),
    /// Rows of the first input along `axis`, at the indices of the second, whose shape takes the axis's place.
    Gather {
        /// Axis of the first input.
        axis: usize,
    },
    /// `len` entries of `axis`, from `start`.
    Slice {
        /// Axis of the input.
        axis: usize,
        /// First entry.
        start: usize,
        /// Number of entries.
        len: usize,
    },
    /// Zeros before and behind the entries of `axis`.
    Pad {
        /// Axis of the input.
        axis: usize,
        /// Zeros before the first entry.
        before: usize,
        /// Zeros behind the last.
        after: usize,
    },
    /// The inputs one after another along `axis`.
    Concat {
        /// Axis of the inputs.
        axis: usize,
    },
    /// Another element type.
    Cast(Dtype),
}

/// How a convolution walks over the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stride {
    /// Pixels from one patch to the next, down and across alike.
    pub step: usize,
    /// Zeros around the image.
    pub padding: usize,
}

// === impl Op ===

impl Op {
    /// The type of the result. Errors: a sentence on what would have been accepted.
    pub fn infer(&self, inputs: &[&Type]) -> Result<Type, String> {
        match self {
            Self::Gemm { transpose_b } => gemm(*transpose_b, inputs),
            Self::MatMul { transpose_a, transpose_b } => matmul(*transpose_a, *transpose_b, inputs),
            Self::Add | Self::Mul => {
                let [a, b] = exactly(inputs)?;
                let shape = a.shape.broadcast(&b.shape).filter(|_| a.dtype == b.dtype);
                Ok(Type::new(a.dtype, shape.ok_or("one element type and shapes that broadcast")?))
            }
            Self::Min => {
                let [a, b] = exactly(inputs)?;
                let shape =
                    a.shape.broadcast(&b.shape).filter(|_| [a, b].iter().all(|ty| ty.dtype == Dtype::I32));
                Ok(Type::new(Dtype::I32, shape.ok_or("indices whose shapes broadcast")?))
            }
            Self::Sigmoid | Self::Gelu | Self::Sin | Self::Cos => {
                let [x] = exactly(inputs)?;
                accept(x.dtype.is_float(), "floats")?;
                Ok(x.clone())
            }
            Self::Softmax | Self::LayerNorm { .. } => {
                let [x] = exactly(inputs)?;
                accept(x.dtype.is_float() && x.shape.rank() > 0, "floats with a last axis")?;
                Ok(x.clone())
            }
            Self::InvStdDev { .. } => {
                let [x] = exactly(inputs)?;
                accept(x.dtype.is_float() && x.shape.rank() > 0, "floats with a last axis")?;
                Ok(Type::new(x.dtype, x.shape.replaced(x.shape.rank() - 1, &[Dim::Fixed(1)])))
            }
            Self::Sum { axis } => {
                let [x] = exactly(inputs)?;
                let fixed = matches!(x.shape.dims().get(*axis), Some(Dim::Fixed(_)));
                accept(x.dtype.is_float() && fixed, "floats with that axis, which is not the batch")?;
                Ok(Type::new(x.dtype, x.shape.replaced(*axis, &[Dim::Fixed(1)])))
            }
            Self::Conv(stride) => conv(*stride, inputs),
            Self::ConvTranspose { stride, extra } => conv_transpose(*stride, *extra, inputs),
            Self::Reshape(shape) => {
                let [x] = exactly(inputs)?;
                accept(x.shape.volume() == shape.volume(), "a shape with as many elements")?;
                accept(shape.volume().1 < 2, "at most one dimension of the batch")?;
                Ok(Type::new(x.dtype, shape.clone()))
            }
            Self::Transpose(perm) => {
                let [x] = exactly(inputs)?;
                let mut sorted = perm.clone();
                sorted.sort_unstable();
                accept(sorted.iter().copied().eq(0..x.shape.rank()), "each axis once")?;
                Ok(Type::new(x.dtype, Shape::new(perm.iter().map(|&axis| x.shape.dims()[axis]))))
            }
            Self::Gather { axis } => {
                let [data, index] = exactly(inputs)?;
                accept(
                    *axis < data.shape.rank() && !index.dtype.is_float(),
                    "an axis of the data and integers",
                )?;
                Ok(Type::new(data.dtype, data.shape.replaced(*axis, index.shape.dims())))
            }
            Self::Slice { axis, start, len } => {
                let [x] = exactly(inputs)?;
                let holds = |dim: &Dim| matches!(dim, Dim::Fixed(n) if *len > 0 && start + len <= *n);
                accept(x.shape.dims().get(*axis).is_some_and(holds), "a fixed axis that long")?;
                Ok(Type::new(x.dtype, x.shape.replaced(*axis, &[Dim::Fixed(*len)])))
            }
            Self::Pad { axis, before, after } => {
                let [x] = exactly(inputs)?;
                let Some(&Dim::Fixed(len)) = x.shape.dims().get(*axis) else {
                    return Err("a fixed axis".to_owned());
                };
                Ok(Type::new(x.dtype, x.shape.replaced(*axis, &[Dim::Fixed(before + len + after)])))
            }
            Self::Concat { axis } => concat(*axis, inputs),
            Self::Cast(dtype) => {
                let [x] = exactly(inputs)?;
                Ok(Type::new(*dtype, x.shape.clone()))
            }
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reshape(shape) => write!(f, "Reshape to {shape}"),
            Self::Cast(dtype) => write!(f, "Cast to {dtype}"),
            other => write!(f, "{other:?}"),
        }
    }
}

fn accept(condition: bool, expected: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(expected.to_owned()) }
}

fn exactly<'a, const N: usize>(inputs: &[&'a Type]) -> Result<[&'a Type; N], String> {
    inputs.try_into().map_err(|_| format!("{N} inputs"))
}

fn gemm(transpose_b: bool, inputs: &[&Type]) -> Result<Type, String> {
    let expected = "x[m,k], the weight and perhaps a bias[o], of one float type";
    let (x, w, bias) = match *inputs {
        [x, w] => (x, w, None),
        [x, w, bias] => (x, w, Some(bias)),
        _ => return Err(expected.to_owned()),
    };
    let (&[m, k], &[w0, w1]) = (x.shape.dims(), w.shape.dims()) else {
        return Err(expected.to_owned());
    };
    let (wk, o) = if transpose_b { (w1, w0) } else { (w0, w1) };
    let same = inputs.iter().all(|ty| ty.dtype == x.dtype) && x.dtype.is_float();
    let bias_fits = bias.is_none_or(|bias| bias.shape.dims() == [o]);
    accept(same && wk == k && bias_fits, expected)?;
    Ok(Type::new(x.dtype, Shape::new([m, o])))
}

fn matmul(transpose_a: bool, transpose_b: bool, inputs: &[&Type]) -> Result<Type, String> {
    let expected = "two floats of one type whose inner dimensions agree and whose leading ones broadcast";
    let [a, b] = exactly(inputs)?;
    let (Some((lead_a, &[a0, a1])), Some((lead_b, &[b0, b1]))) =
        (a.shape.dims().split_last_chunk::<2>(), b.shape.dims().split_last_chunk::<2>())
    else {
        return Err(expected.to_owned());
    };
    let (m, ka) = if transpose_a { (a1, a0) } else { (a0, a1) };
    let (kb, o) = if transpose_b { (b1, b0) } else { (b0, b1) };
    accept(a.dtype == b.dtype && a.dtype.is_float() && ka == kb, expected)?;
    let [lead_a, lead_b] = [lead_a, lead_b].map(|lead| Shape::new(lead.iter().copied()));
    let lead = lead_a.broadcast(&lead_b).ok_or(expected)?;
    Ok(Type::new(a.dtype, Shape::new(lead.dims().iter().copied().chain([m, o]))))
}

fn conv(stride: Stride, inputs: &[&Type]) -> Result<Type, String> {
    let expected = "x[n,c,h,w] of fixed h and w, a weight[o,c,kh,kw] that fits into it, of one float type";
    let [x, w] = image_and_weight(inputs, expected)?;
    let (&[n, c, height, width], &[out, wc, kh, kw]) = (x.shape.dims(), w.shape.dims()) else {
        return Err(expected.to_owned());
    };
    accept(c == wc && stride.step > 0, expected)?;
    let side = |len: Dim, kernel: Dim| match (len, kernel) {
        (Dim::Fixed(len), Dim::Fixed(kernel)) if kernel > 0 => {
            Some(Dim::Fixed((len + 2 * stride.padding).checked_sub(kernel)? / stride.step + 1))
        }
        _ => None,
    };
    let (height, width) = (side(height, kh).ok_or(expected)?, side(width, kw).ok_or(expected)?);
    Ok(Type::new(x.dtype, Shape::new([n, out, height, width])))
}

fn conv_transpose(stride: Stride, extra: [usize; 2], inputs: &[&Type]) -> Result<Type, String> {
    let expected = "x[n,o,h,w] of fixed h and w, a weight[o,c,kh,kw], of one float type";
    let [x, w] = image_and_weight(inputs, expected)?;
    let (&[n, out, height, width], &[wo, c, kh, kw]) = (x.shape.dims(), w.shape.dims()) else {
        return Err(expected.to_owned());
    };
    accept(out == wo && stride.step > 0 && extra.iter().all(|&extra| extra < stride.step), expected)?;
    let side = |len: Dim, kernel: Dim, extra: usize| match (len, kernel) {
        (Dim::Fixed(len), Dim::Fixed(kernel)) if len > 0 => {
            ((len - 1) * stride.step + kernel + extra).checked_sub(2 * stride.padding).map(Dim::Fixed)
        }
        _ => None,
    };
    let height = side(height, kh, extra[0]).ok_or(expected)?;
    let width = side(width, kw, extra[1]).ok_or(expected)?;
    Ok(Type::new(x.dtype, Shape::new([n, c, height, width])))
}

fn image_and_weight<'a>(inputs: &[&'a Type], expected: &str) -> Result<[&'a Type; 2], String> {
    let [x, w] = exactly(inputs)?;
    accept(x.dtype == w.dtype && x.dtype.is_float(), expected)?;
    Ok([x, w])
}

fn concat(axis: usize, inputs: &[&Type]) -> Result<Type, String> {
    let expected = "inputs of one type that differ at most in a fixed axis";
    let first = *inputs.first().ok_or(expected)?;
    let mut len = 0;
    for ty in inputs {
        let Some(&Dim::Fixed(n)) = ty.shape.dims().get(axis) else {
            return Err(expected.to_owned());
        };
        let without = |ty: &Type| ty.shape.replaced(axis, &[]);
        accept(ty.dtype == first.dtype && without(ty) == without(first), expected)?;
        len += n;
    }
    Ok(Type::new(first.dtype, first.shape.replaced(axis, &[Dim::Fixed(len)])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(rest: &[usize]) -> Type {
        Type::new(Dtype::F32, Shape::led_by(Dim::BATCH, rest))
    }

    fn fixed(dims: &[usize]) -> Type {
        Type::new(Dtype::F32, Shape::new(dims.iter().copied()))
    }

    #[test]
    fn products_check_what_they_sum_over() {
        let linear = Op::Gemm { transpose_b: true };
        assert_eq!(linear.infer(&[&ty(&[8]), &fixed(&[3, 8]), &fixed(&[3])]), Ok(ty(&[3])));
        assert!(linear.infer(&[&ty(&[8]), &fixed(&[8, 3])]).is_err());
        assert!(linear.infer(&[&ty(&[8]), &fixed(&[3, 8]), &fixed(&[8])]).is_err());
        let scores = Op::MatMul { transpose_a: false, transpose_b: true };
        assert_eq!(scores.infer(&[&ty(&[2, 5, 8]), &ty(&[2, 7, 8])]), Ok(ty(&[2, 5, 7])));
        assert!(scores.infer(&[&ty(&[2, 5, 8]), &ty(&[3, 7, 8])]).is_err());
        assert_eq!(scores.infer(&[&fixed(&[1, 2, 5, 8]), &ty(&[2, 7, 8])]), Ok(ty(&[2, 5, 7])));
        assert!(scores.infer(&[&ty(&[]), &ty(&[])]).is_err());
    }

    #[test]
    fn movement_keeps_count() {
        assert_eq!(
            Op::Reshape(Shape::led_by(Dim::Batch(4), &[2])).infer(&[&ty(&[4, 2])]),
            Ok(Type::new(Dtype::F32, Shape::led_by(Dim::Batch(4), &[2])))
        );
        assert!(Op::Reshape(Shape::new([8])).infer(&[&ty(&[4, 2])]).is_err());
        assert_eq!(Op::Transpose(vec![0, 2, 1]).infer(&[&ty(&[4, 2])]), Ok(ty(&[2, 4])));
        assert!(Op::Transpose(vec![0, 1, 1]).infer(&[&ty(&[4, 2])]).is_err());
        assert_eq!(Op::Slice { axis: 1, start: 2, len: 2 }.infer(&[&ty(&[4, 2])]), Ok(ty(&[2, 2])));
        assert!(Op::Slice { axis: 1, start: 3, len: 2 }.infer(&[&ty(&[4, 2])]).is_err());
        assert!(Op::Slice { axis: 0, start: 0, len: 1 }.infer(&[&ty(&[4, 2])]).is_err());
        assert_eq!(Op::Concat { axis: 1 }.infer(&[&ty(&[4, 2]), &ty(&[3, 2])]), Ok(ty(&[7, 2])));
        assert!(Op::Concat { axis: 1 }.infer(&[&ty(&[4, 2]), &ty(&[4, 3])]).is_err());
    }

    #[test]
    fn a_convolution_and_its_transpose_undo_each_others_shapes() {
        let weight = fixed(&[6, 3, 3, 3]);
        for (side, step, padding) in [(8, 1, 1), (8, 2, 1), (9, 2, 1), (7, 2, 0), (5, 1, 0)] {
            let stride = Stride { step, padding };
            let image = ty(&[3, side, side + 1]);
            let out = Op::Conv(stride).infer(&[&image, &weight]).unwrap();
            let extra = [side, side + 1].map(|side| (side + 2 * padding - 3) % step);
            let back = Op::ConvTranspose { stride, extra };
            assert_eq!(back.infer(&[&out, &weight]), Ok(image));
        }
        let stride = Stride { step: 1, padding: 0 };
        assert!(Op::Conv(stride).infer(&[&ty(&[3, 2, 2]), &weight]).is_err());
        assert!(Op::Conv(stride).infer(&[&ty(&[4, 8, 8]), &weight]).is_err());
    }

    #[test]
    fn a_sum_keeps_its_axis_and_padding_adds_to_it() {
        assert_eq!(Op::Sum { axis: 1 }.infer(&[&ty(&[4, 2])]), Ok(ty(&[1, 2])));
        assert!(Op::Sum { axis: 0 }.infer(&[&ty(&[4, 2])]).is_err());
        assert_eq!(Op::Pad { axis: 2, before: 1, after: 3 }.infer(&[&ty(&[4, 2])]), Ok(ty(&[4, 6])));
        assert_eq!(Op::InvStdDev { epsilon: 0.1 }.infer(&[&ty(&[4, 2])]), Ok(ty(&[4, 1])));
    }

    #[test]
    fn a_gather_puts_the_indices_shape_in_the_axis() {
        let index = Type::new(Dtype::I64, Shape::new([5, 6]));
        assert_eq!(Op::Gather { axis: 1 }.infer(&[&ty(&[9, 2]), &index]), Ok(ty(&[5, 6, 2])));
        let known = Type::new(Dtype::I32, Shape::new([5, 6]));
        assert_eq!(Op::Gather { axis: 1 }.infer(&[&ty(&[9, 2]), &known]), Ok(ty(&[5, 6, 2])));
        assert!(Op::Gather { axis: 3 }.infer(&[&ty(&[9, 2]), &index]).is_err());
        assert!(Op::Gather { axis: 1 }.infer(&[&ty(&[9, 2]), &ty(&[5])]).is_err());
    }

    #[test]
    fn arithmetic_wants_one_type() {
        let half = Type::new(Dtype::F16, Shape::new([2]));
        assert!(Op::Add.infer(&[&ty(&[2]), &half]).is_err());
        assert!(Op::Sigmoid.infer(&[&Type::new(Dtype::I64, Shape::new([2]))]).is_err());
        assert!(Op::Mul.infer(&[&ty(&[2])]).is_err());
        let index = |dims: [usize; 2]| Type::new(Dtype::I32, Shape::new(dims));
        assert_eq!(Op::Min.infer(&[&index([3, 1]), &index([1, 4])]), Ok(index([3, 4])));
        assert!(Op::Min.infer(&[&ty(&[2]), &ty(&[2])]).is_err());
    }
}
