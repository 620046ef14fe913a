//! Reverse mode: which changes of its input a graph's output asks for. From `output` back to `x` the cotangents
//! `[k l, …]` of every value on the way are appended, one rule an operation (Griewank & Walther 2008, chapter 3), and the
//! last are Jᵀ·U. Attention in tiles has a rule for the whole of it.

use std::collections::HashMap;

use super::ExportError;
use super::attention::{Attended, KeyTiles};
use super::derivative::{Builder, spread};
use super::graph::{Graph, GraphError, Source, ValueId};
use super::ops::{Op, Stride};
use super::scatter::{Collected, Scatters};
use super::shape::{Dim, Shape};

type Built<T> = Result<T, GraphError>;

/// Appends Jᵀ·U: `vectors` are k cotangents of `output` `[l, …]`, `[k l, …]`, and the result those of `x`. What of the
/// `attended`, of one image, between them is in tiles is taken as a whole. Errors: an operation that depends on `x` in a way that has no
/// derivative here, named.
pub fn pull_back(
    graph: &mut Graph,
    x: ValueId,
    vectors: ValueId,
    output: ValueId,
    attended: &[Attended],
) -> Result<ValueId, ExportError> {
    let needed = graph.needed_for(&[output]);
    let dependents = graph.dependents(x, &needed);
    let mut backward = Backward {
        builder: Builder::new(graph, &needed),
        asked: HashMap::new(),
        scatters: Scatters::default(),
    };
    let changes = |id: ValueId| dependents.binary_search(&id).is_ok();
    let in_tiles = attended.iter().filter(|attended| attended.is_in_tiles() && changes(attended.rows));
    let in_tiles: HashMap<ValueId, &Attended> = in_tiles.map(|attended| (attended.out, attended)).collect();
    let mut tiles = KeyTiles::default();
    backward.asked.insert(output, vec![Share::Whole(vectors)]);
    for &id in dependents.iter().skip(1).rev() {
        let Some(cotangent) = backward.collect(id)? else { continue };
        if let Some(attended) = in_tiles.get(&id) {
            let rows = attended.pull_back(&mut backward.builder, &mut tiles, cotangent)?;
            backward.asked.entry(attended.rows).or_default().push(Share::Whole(rows));
            continue;
        }
        backward.of(id, cotangent, changes)?;
    }
    let constant =
        || ExportError::Constant { output: backward.builder.name(output), input: backward.builder.name(x) };
    if !backward.asked.contains_key(&x) {
        return Err(constant());
    }
    Ok(backward.collect(x)?.expect("somebody asks for it"))
}

/// What one operation asks of one of its inputs.
#[derive(Debug, Clone)]
enum Share {
    /// Cotangents of the whole input.
    Whole(ValueId),
    /// Cotangents of the rows that a Gather collected.
    Rows(Collected),
}

struct Backward<'a> {
    builder: Builder<'a>,
    asked: HashMap<ValueId, Vec<Share>>,
    scatters: Scatters,
}

// === impl Backward ===

impl Backward<'_> {
    /// The sum of what is asked of a value.
    fn collect(&mut self, id: ValueId) -> Result<Option<ValueId>, ExportError> {
        let Some(shares) = self.asked.remove(&id) else { return Ok(None) };
        let name = format!("{}.adjoint", self.builder.name(id));
        let (mut whole, mut rows) = (Vec::new(), Vec::new());
        for share in shares {
            match share {
                Share::Whole(cotangent) => whole.push(cotangent),
                Share::Rows(collected) => rows.push(collected),
            }
        }
        // All that was gathered from it along one axis is given back at once.
        while let Some(first) = rows.first() {
            let axis = first.axis;
            let (same, others): (Vec<_>, _) = rows.into_iter().partition(|rows| rows.axis == axis);
            rows = others;
            let shape = self.builder.shape(id);
            let name = format!("{name}.axis.{axis}");
            whole.push(self.scatters.give_back(&mut self.builder, &name, &shape, &same)?);
        }
        let mut sum = whole[0];
        for (i, &other) in whole.iter().enumerate().skip(1) {
            sum = self.builder.add(&name, &format!("sum.{i}"), Op::Add, &[sum, other])?;
        }
        Ok(Some(sum))
    }

    /// What a value's operation asks of those of its inputs that change.
    fn of(&mut self, id: ValueId, u: ValueId, changes: impl Fn(ValueId) -> bool) -> Result<(), ExportError> {
        let value = self.builder.graph.value(id).clone();
        let Source::Node { op, inputs } = value.source else {
            unreachable!("only what is computed depends on something: this is a bug");
        };
        let unknown = || ExportError::NoDerivative { node: value.name.clone(), op: op.to_string() };
        let shape = value.ty.shape;
        for (i, &input) in inputs.iter().enumerate().filter(|&(_, &input)| changes(input)) {
            let name = format!("{}.adjoint.{i}", value.name);
            let own = self.builder.shape(input);
            let batched = own.batched().ok_or_else(unknown)?;
            let share = match &op {
                Op::Add => Share::Whole(self.reduced(&name, u, &own, &shape)?),
                Op::Mul => {
                    let spread = self.builder.spread(u, [&shape, &shape], &name, "spread")?;
                    let product = match self.builder.times_row(&name, spread, inputs[1 - i])? {
                        Some(product) => product,
                        None => self.builder.add(&name, "product", Op::Mul, &[spread, inputs[1 - i]])?,
                    };
                    Share::Whole(self.summed(&name, product, &own, &shape)?)
                }
                Op::MatMul { .. } if i == 0 && self.builder.is_weights(input) => {
                    Share::Whole(self.weights(&name, u, id, [input, inputs[1]])?)
                }
                Op::MatMul { transpose_a, transpose_b } => {
                    let transposed = (*transpose_a, *transpose_b);
                    Share::Whole(self.matmul(&name, u, &inputs, i, transposed, &own, &shape)?)
                }
                Op::Concat { axis } if *axis > 0 => {
                    let len = |id: &ValueId| self.builder.shape(*id).fixed().map_or(0, |dims| dims[*axis]);
                    let start = inputs[..i].iter().map(len).sum();
                    let slice = Op::Slice { axis: *axis, start, len: len(&input) };
                    Share::Whole(self.builder.graph.add(&name, slice, &[u])?)
                }
                _ if i > 0 => return Err(unknown()),
                Op::Gemm { transpose_b } => {
                    Share::Whole(self.builder.linear(&name, !transpose_b, u, inputs[1])?)
                }
                Op::Conv(stride) => {
                    let extra =
                        left_over(&own, &self.builder.shape(inputs[1]), *stride).ok_or_else(unknown)?;
                    let op = Op::ConvTranspose { stride: *stride, extra };
                    Share::Whole(self.builder.graph.add(&name, op, &[u, inputs[1]])?)
                }
                Op::ConvTranspose { stride, .. } => {
                    Share::Whole(self.builder.graph.add(&name, Op::Conv(*stride), &[u, inputs[1]])?)
                }
                Op::Sigmoid | Op::Gelu | Op::Sin | Op::Cos => {
                    Share::Whole(self.builder.elementwise(id, u, &name)?)
                }
                Op::Softmax if self.builder.is_weights(id) => {
                    Share::Whole(self.builder.times(id, id, u, &name)?)
                }
                Op::Softmax => Share::Whole(self.builder.softmax(id, u, &name)?),
                Op::LayerNorm { epsilon } => Share::Whole(self.builder.layer_norm(id, *epsilon, u, &name)?),
                Op::Reshape(_) => Share::Whole(self.builder.graph.add(&name, Op::Reshape(batched), &[u])?),
                Op::Transpose(perm) if perm.first() == Some(&0) => {
                    let mut back = vec![0; perm.len()];
                    perm.iter().enumerate().for_each(|(to, &from)| back[from] = to);
                    Share::Whole(self.builder.graph.add(&name, Op::Transpose(back), &[u])?)
                }
                Op::Gather { axis } if *axis > 0 => {
                    Share::Rows(Collected { axis: *axis, index: inputs[1], cotangent: u, name })
                }
                Op::Slice { axis, start, len } if *axis > 0 => {
                    let whole = own.fixed().map_or(0, |dims| dims[*axis]);
                    let pad = Op::Pad { axis: *axis, before: *start, after: whole - start - len };
                    Share::Whole(self.builder.graph.add(&name, pad, &[u])?)
                }
                Op::Pad { axis, before, .. } if *axis > 0 => {
                    let len = own.fixed().map_or(0, |dims| dims[*axis]);
                    let slice = Op::Slice { axis: *axis, start: *before, len };
                    Share::Whole(self.builder.graph.add(&name, slice, &[u])?)
                }
                Op::Sum { axis } if *axis > 0 => {
                    let len = own.fixed().map_or(0, |dims| dims[*axis]);
                    let dims: Vec<_> = (0..own.rank()).map(|i| if i == *axis { len } else { 1 }).collect();
                    let dtype = self.builder.graph.ty(u).dtype;
                    let ones =
                        self.builder.graph.floats(&format!("{name}.ones"), dtype, &dims, vec![1.0; len])?;
                    Share::Whole(self.builder.graph.add(&name, Op::Mul, &[u, ones])?)
                }
                Op::Cast(_) => {
                    let back = Op::Cast(self.builder.graph.ty(input).dtype);
                    Share::Whole(self.builder.graph.add(&name, back, &[u])?)
                }
                Op::Transpose(_)
                | Op::Gather { .. }
                | Op::Slice { .. }
                | Op::Pad { .. }
                | Op::Sum { .. }
                | Op::Concat { .. }
                | Op::Min
                | Op::InvStdDev { .. } => return Err(unknown()),
            };
            self.asked.entry(input).or_default().push(share);
        }
        Ok(())
    }

    /// Of `y = A B`: `u Bᵀ` for A and `Aᵀ u` for B, transposed where the operand was given transposed.
    #[expect(
        clippy::too_many_arguments,
        reason = "a product has two sides, each with a shape and a direction"
    )]
    fn matmul(
        &mut self,
        name: &str,
        u: ValueId,
        inputs: &[ValueId],
        side: usize,
        (transpose_a, transpose_b): (bool, bool),
        own: &Shape,
        shape: &Shape,
    ) -> Built<ValueId> {
        let u = self.builder.spread(u, [shape, shape], name, "spread")?;
        let (a, b) = (inputs[0], inputs[1]);
        let (left, right, transpose_a, transpose_b) = match (side, transpose_a, transpose_b) {
            (0, false, _) => (u, b, false, !transpose_b),
            (0, true, _) => (b, u, transpose_b, true),
            (_, _, false) => (a, u, !transpose_a, false),
            (_, _, true) => (u, a, true, transpose_a),
        };
        let op = Op::MatMul { transpose_a, transpose_b };
        let product = self.builder.add(name, "product", op, &[left, right])?;
        self.summed(name, product, own, shape)
    }

    /// What `y = p v` asks of p, a softmax that is used for nothing else: its cotangents `g = u vᵀ` less the sum of each row
    /// of `p g`, so that p is all that is left to multiply by. That sum is the one of `u y` (Dao et al. 2022, appendix B.2),
    /// and part of the product as a column of u beside one of ones in v: `[u, -Σ u y] [v, 1]ᵀ`.
    fn weights(&mut self, name: &str, u: ValueId, y: ValueId, [p, v]: [ValueId; 2]) -> Built<ValueId> {
        let (own, shape) = (self.builder.shape(p), self.builder.shape(y));
        let u = self.builder.spread(u, [&shape, &shape], name, "spread")?;
        let negative = self.builder.negative(y)?;
        let along = self.builder.add(name, "along", Op::Mul, &[u, negative])?;
        let axis = self.builder.shape(u).rank() - 1;
        let sum = self.builder.add(name, "along.sum", Op::Sum { axis }, &[along])?;
        let wide = self.builder.add(name, "wide", Op::Concat { axis }, &[u, sum])?;
        let ones = self.builder.with_ones(v)?;
        let op = Op::MatMul { transpose_a: false, transpose_b: true };
        let centred = self.builder.add(name, "centred", op, &[wide, ones])?;
        self.builder.gathered(centred, &own, name, "gathered")
    }

    /// Cotangents `u` of a result, of shape `shape`, as those of an operand of shape `own` that was broadcast to it.
    fn reduced(&mut self, name: &str, u: ValueId, own: &Shape, shape: &Shape) -> Built<ValueId> {
        if own == shape {
            return Ok(u);
        }
        let spread = self.builder.spread(u, [shape, shape], name, "spread")?;
        self.summed(name, spread, own, shape)
    }

    /// The same of cotangents that are spread already: the sum over every axis along which it was broadcast.
    fn summed(&mut self, name: &str, u: ValueId, own: &Shape, shape: &Shape) -> Built<ValueId> {
        let (wanted, mut sum) = (spread(own, shape), u);
        for (axis, &dim) in wanted.dims().iter().enumerate().skip(1) {
            if dim == Dim::Fixed(1) && self.builder.shape(sum).dims()[axis] != dim {
                sum = self.builder.add(name, &format!("sum.{axis}"), Op::Sum { axis }, &[sum])?;
            }
        }
        self.builder.gathered(sum, own, name, "gathered")
    }
}

/// Rows and columns at the far end of an image that no patch of a convolution reaches.
fn left_over(image: &Shape, weight: &Shape, stride: Stride) -> Option<[usize; 2]> {
    let (image, weight) = (image.fixed()?, weight.fixed()?);
    Some([2, 3].map(|axis| (image[axis] + 2 * stride.padding - weight[axis]) % stride.step))
}
