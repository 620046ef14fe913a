//! An interpreter of the export graph on libtorch tensors: what the graph means, for tests that compare it with
//! the model and for derivative rules that are checked against autograd.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::ExportError;
use super::graph::{Data, Graph, Source, ValueId};
use super::ops::{Op, Stride};
use super::shape::{Dim, Dtype, Shape};
use crate::error::Result;

/// Computes the graph's outputs. `given` holds its inputs and parameters by name.
pub fn evaluate(graph: &Graph, given: &HashMap<String, Tensor>) -> Result<Vec<Tensor>> {
    let live = graph.live();
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    for (id, value) in graph.values().filter(|(id, _)| live.contains(id)) {
        let tensor = match &value.source {
            Source::Input | Source::Parameter => {
                let tensor = given.get(&value.name);
                tensor.ok_or_else(|| ExportError::MissingWeight { name: value.name.clone() })?.shallow_clone()
            }
            Source::Constant(Data::Float(data)) => {
                Tensor::from_slice(data).f_reshape(sizes(&value.ty.shape))?.f_to_kind(kind(value.ty.dtype))?
            }
            Source::Constant(Data::Int(data)) => {
                Tensor::from_slice(data).f_reshape(sizes(&value.ty.shape))?.f_to_kind(kind(value.ty.dtype))?
            }
            Source::Node { op, inputs } => {
                let inputs: Vec<&Tensor> = inputs.iter().map(|id| &values[id]).collect();
                apply(op, &inputs)?
            }
        };
        values.insert(id, tensor);
    }
    Ok(graph.outputs().iter().map(|id| values[id].shallow_clone()).collect())
}

/// One operation on tensors. The graph has checked number and types of the inputs.
fn apply(op: &Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let x = inputs[0];
    let swap = |x: &Tensor, transposed: bool| {
        if transposed { x.f_transpose(-1, -2) } else { Ok(x.shallow_clone()) }
    };
    Ok(match op {
        Op::Gemm { transpose_b } => {
            let product = x.f_matmul(&swap(inputs[1], *transpose_b)?)?;
            match inputs.get(2) {
                Some(bias) => product.f_add(bias)?,
                None => product,
            }
        }
        Op::MatMul { transpose_a, transpose_b } => {
            swap(x, *transpose_a)?.f_matmul(&swap(inputs[1], *transpose_b)?)?
        }
        Op::Add => x.f_add(inputs[1])?,
        Op::Mul => x.f_mul(inputs[1])?,
        Op::Min => x.f_minimum(inputs[1])?,
        Op::Sigmoid => x.f_sigmoid()?,
        Op::Gelu => x.f_gelu("tanh")?,
        Op::Sin => x.f_sin()?,
        Op::Cos => x.f_cos()?,
        Op::Softmax => x.f_softmax(-1, x.kind())?,
        Op::LayerNorm { epsilon } => {
            let width = x.size().last().copied().unwrap_or(1);
            x.f_layer_norm([width], None::<&Tensor>, None::<&Tensor>, f64::from(*epsilon), false)?
        }
        Op::InvStdDev { epsilon } => {
            let variance = x.f_var_dim([-1].as_slice(), false, true)?;
            variance.f_add_scalar(f64::from(*epsilon))?.f_rsqrt()?
        }
        Op::Sum { axis } => x.f_sum_dim_intlist([*axis as i64].as_slice(), true, x.kind())?,
        Op::Conv(Stride { step, padding }) => {
            let [step, padding] = [step, padding].map(|&n| [n as i64; 2]);
            x.f_conv2d(inputs[1], None::<&Tensor>, step, padding, [1, 1], 1)?
        }
        Op::ConvTranspose { stride: Stride { step, padding }, extra } => {
            let [step, padding] = [step, padding].map(|&n| [n as i64; 2]);
            let extra = extra.map(|n| n as i64);
            x.f_conv_transpose2d(inputs[1], None::<&Tensor>, step, padding, extra, 1, [1, 1])?
        }
        Op::Reshape(shape) => x.f_reshape(sizes(shape))?,
        Op::Transpose(perm) => x.f_permute(perm.iter().map(|&axis| axis as i64).collect::<Vec<_>>())?,
        Op::Gather { axis } => {
            let index = inputs[1];
            let rows = x.f_index_select(*axis as i64, &index.f_reshape([-1])?)?;
            let mut shape = x.size();
            shape.splice(*axis..=*axis, index.size());
            rows.f_reshape(shape)?
        }
        Op::Slice { axis, start, len } => x.f_narrow(*axis as i64, *start as i64, *len as i64)?,
        Op::Pad { axis, before, after } => {
            // libtorch counts axes from the last.
            let mut padding = vec![0; 2 * (x.dim() - axis)];
            let at = padding.len() - 2;
            (padding[at], padding[at + 1]) = (*before as i64, *after as i64);
            x.f_constant_pad_nd(padding)?
        }
        Op::Concat { axis } => Tensor::f_cat(inputs, *axis as i64)?,
        Op::Cast(dtype) => x.f_to_kind(kind(*dtype))?,
    })
}

fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
    }
}

/// A shape as libtorch's reshape takes it: the batch is whatever is left over.
fn sizes(shape: &Shape) -> Vec<i64> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => *n as i64,
        Dim::Batch(_) => -1,
    };
    shape.dims().iter().map(size).collect()
}
