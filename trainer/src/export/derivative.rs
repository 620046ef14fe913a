//! What forward and reverse mode share: how tangents and cotangents lie beside the values they belong to, and the
//! derivatives of functions that are symmetric.
//!
//! A graph that is differentiated is over one image: its values have numbers for dimensions. A value `[l, …]` has k
//! tangents `[k l, …]`, one after another along the first axis. Where they meet values that are the same for all of them,
//! both are seen as `[k, l, …]` and the values broadcast; where `l` is one, as it is for most, nothing is reshaped.

use std::collections::{HashMap, HashSet};

use super::graph::{Graph, GraphError, Source, ValueId};
use super::ops::Op;
use super::shape::{Dim, Dtype, Shape};

type Built<T> = Result<T, GraphError>;

/// Appends to a graph what derivatives need.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    pub(super) graph: &'a mut Graph,
    /// Derivatives of elementwise functions at the value, `f'(x)`, by the function's value.
    slopes: HashMap<ValueId, ValueId>,
    /// See [`weights`].
    weights: HashSet<ValueId>,
    /// See [`with_ones`](Self::with_ones).
    with_ones: HashMap<ValueId, ValueId>,
}

// === impl Builder ===

impl<'a> Builder<'a> {
    /// For derivatives of what `needed` computes.
    pub(super) fn new(graph: &'a mut Graph, needed: &HashSet<ValueId>) -> Self {
        let weights = weights(graph, needed);
        Self { graph, slopes: HashMap::new(), weights, with_ones: HashMap::new() }
    }

    /// Whether a value is a softmax's that weighs the rows of one matrix, `p v`, and does nothing else. The sums over each row
    /// in its derivative, [`softmax`](Self::softmax), then need not be spread over the largest values that there are: they
    /// meet `p v`, or are part of a product.
    pub(super) fn is_weights(&self, p: ValueId) -> bool {
        self.weights.contains(&p)
    }

    /// Appends `op`; the value's name is made of what it belongs to and what it is.
    pub(super) fn add(&mut self, of: &str, what: &str, op: Op, inputs: &[ValueId]) -> Built<ValueId> {
        self.graph.add(&format!("{of}.{what}"), op, inputs)
    }

    /// The name of a value.
    pub(super) fn name(&self, id: ValueId) -> String {
        self.graph.value(id).name.clone()
    }

    /// The shape of a value.
    pub(super) fn shape(&self, id: ValueId) -> Shape {
        self.graph.ty(id).shape.clone()
    }

    /// The last axis of a value.
    fn last(&self, id: ValueId) -> (usize, usize) {
        let dims =
            self.shape(id).fixed().expect("values of one image have numbers for dimensions: this is a bug");
        (dims.len() - 1, dims.last().copied().unwrap_or(1))
    }

    /// Length of the last axis, which is never the batch's where there is another.
    pub(super) fn width(&self, id: ValueId) -> usize {
        match self.graph.ty(id).shape.dims().last() {
            Some(&(Dim::Fixed(width) | Dim::Batch(width))) => width,
            None => 1,
        }
    }

    /// The value in this shape; itself where it has it.
    pub(super) fn reshaped(&mut self, id: ValueId, shape: Shape, of: &str, what: &str) -> Built<ValueId> {
        if self.graph.ty(id).shape == shape {
            return Ok(id);
        }
        self.add(of, what, Op::Reshape(shape), &[id])
    }

    /// Tangents of a value of shape `own`, as they meet elementwise those of a result of shape `result`.
    pub(super) fn spread(
        &mut self,
        id: ValueId,
        [own, result]: [&Shape; 2],
        of: &str,
        what: &str,
    ) -> Built<ValueId> {
        self.reshaped(id, spread(own, result), of, what)
    }

    /// Back from there, for a value of shape `own`.
    pub(super) fn gathered(&mut self, id: ValueId, own: &Shape, of: &str, what: &str) -> Built<ValueId> {
        let shape = own.batched().expect("what has tangents has a first axis: this is a bug");
        self.reshaped(id, shape, of, what)
    }

    /// A number beside values of this type.
    pub(super) fn number(&mut self, value: f32, dtype: Dtype, of: &str, what: &str) -> Built<ValueId> {
        self.graph.floats(&format!("{of}.{what}"), dtype, &[], vec![value])
    }

    /// `d * number`.
    pub(super) fn scaled(&mut self, d: ValueId, by: f32, of: &str, what: &str) -> Built<ValueId> {
        let number = self.number(by, self.graph.ty(d).dtype, of, &format!("{what}.by"))?;
        self.add(of, what, Op::Mul, &[d, number])
    }

    /// `[v, 1]`, made once.
    pub(super) fn with_ones(&mut self, v: ValueId) -> Built<ValueId> {
        if let Some(&ones) = self.with_ones.get(&v) {
            return Ok(ones);
        }
        let (name, dtype) = (self.name(v), self.graph.ty(v).dtype);
        let (axis, width) = (self.shape(v).rank() - 1, self.width(v));
        let column = (0..=width).map(|i| if i == width { 1.0 } else { 0.0 }).collect();
        let column = self.graph.floats(&format!("{name}.ones.column"), dtype, &[width + 1], column)?;
        let wide = self.add(&name, "ones.wide", Op::Pad { axis, before: 0, after: 1 }, &[v])?;
        let ones = self.add(&name, "ones", Op::Add, &[wide, column])?;
        self.with_ones.insert(v, ones);
        Ok(ones)
    }

    // === Functions whose Jacobian is symmetric: the same for tangents and cotangents ===

    /// What an elementwise function's derivative makes of tangents or cotangents `d`: `f'(x) d`.
    pub(super) fn elementwise(&mut self, value: ValueId, d: ValueId, of: &str) -> Built<ValueId> {
        let slope = self.slope(value)?;
        self.times(value, slope, d, of)
    }

    /// Tangents or cotangents `d` of a value, entry by entry times a factor of its shape.
    pub(super) fn times(&mut self, value: ValueId, factor: ValueId, d: ValueId, of: &str) -> Built<ValueId> {
        let shape = self.shape(value);
        let d = self.spread(d, [&shape, &shape], of, "spread")?;
        let product = self.add(of, "product", Op::Mul, &[d, factor])?;
        self.gathered(product, &shape, of, "gathered")
    }

    /// `f'(x)` of an elementwise function's value.
    fn slope(&mut self, value: ValueId) -> Built<ValueId> {
        if let Some(&slope) = self.slopes.get(&value) {
            return Ok(slope);
        }
        let Source::Node { op, inputs } = self.graph.value(value).source.clone() else {
            unreachable!("only what is computed has a derivative: this is a bug");
        };
        let (x, name) = (inputs[0], self.name(value));
        let slope = match op {
            Op::Sigmoid => self.sigmoid_slope(value, &name)?,
            Op::Gelu => self.gelu_slope(x, &name)?,
            Op::Sin => self.add(&name, "slope", Op::Cos, &[x])?,
            Op::Cos => {
                let sin = self.add(&name, "slope.sin", Op::Sin, &[x])?;
                self.scaled(sin, -1.0, &name, "slope")?
            }
            _ => unreachable!("{op} is not elementwise: this is a bug"),
        };
        self.slopes.insert(value, slope);
        Ok(slope)
    }

    /// `s (1 - s)`, of `s` itself.
    fn sigmoid_slope(&mut self, s: ValueId, name: &str) -> Built<ValueId> {
        let negative = self.scaled(s, -1.0, name, "slope.negative")?;
        let one = self.number(1.0, self.graph.ty(s).dtype, name, "slope.one")?;
        let rest = self.add(name, "slope.rest", Op::Add, &[negative, one])?;
        self.add(name, "slope", Op::Mul, &[s, rest])
    }

    /// The tanh form of GELU is `x s(2 z)` with the sigmoid `s` and `z = √(2/π) (x + 0.044715 x³)`, and its derivative
    /// `s + x s (1 - s) 2 √(2/π) (1 + 3 · 0.044715 x²)`.
    fn gelu_slope(&mut self, x: ValueId, name: &str) -> Built<ValueId> {
        const CUBIC: f32 = 0.044_715;
        let twice = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
        let dtype = self.graph.ty(x).dtype;
        let part = |what: &str| format!("slope.{what}");
        let square = self.add(name, &part("square"), Op::Mul, &[x, x])?;
        let cubic = self.scaled(square, twice * CUBIC, name, &part("cubic"))?;
        let linear = self.number(twice, dtype, name, &part("linear"))?;
        let factor = self.add(name, &part("factor"), Op::Add, &[cubic, linear])?;
        let z = self.add(name, &part("z"), Op::Mul, &[x, factor])?;
        let s = self.add(name, &part("gate"), Op::Sigmoid, &[z])?;
        let rise = self.sigmoid_slope(s, &format!("{name}.gate"))?;
        let cubic = self.scaled(square, 3.0 * twice * CUBIC, name, &part("z.cubic"))?;
        let slope = self.add(name, &part("z.slope"), Op::Add, &[cubic, linear])?;
        let rise = self.add(name, &part("rise"), Op::Mul, &[rise, slope])?;
        let rise = self.add(name, &part("rise.x"), Op::Mul, &[rise, x])?;
        self.add(name, "slope", Op::Add, &[s, rise])
    }

    /// Of `p = softmax(x)`: `p (d - Σ p d)`.
    pub(super) fn softmax(&mut self, p: ValueId, d: ValueId, of: &str) -> Built<ValueId> {
        let shape = self.shape(p);
        let d = self.spread(d, [&shape, &shape], of, "spread")?;
        let weighted = self.add(of, "weighted", Op::Mul, &[d, p])?;
        let axis = self.shape(weighted).rank() - 1;
        let sum = self.add(of, "sum", Op::Sum { axis }, &[weighted])?;
        let sum = self.scaled(sum, -1.0, of, "sum.negative")?;
        let share = self.add(of, "share", Op::Mul, &[p, sum])?;
        let out = self.add(of, "centred", Op::Add, &[weighted, share])?;
        self.gathered(out, &shape, of, "gathered")
    }

    /// `-y`.
    pub(super) fn negative(&mut self, y: ValueId) -> Built<ValueId> {
        let name = self.name(y);
        self.scaled(y, -1.0, &name, "negative")
    }

    /// Of `y = (x - mean) / deviation` over w entries: `(d - Σ d / w - y Σ (y d) / w) / deviation`.
    pub(super) fn layer_norm(&mut self, y: ValueId, epsilon: f32, d: ValueId, of: &str) -> Built<ValueId> {
        let inverse = self.inverse_deviation(y, epsilon)?;
        let (shape, (_, width)) = (self.shape(y), self.last(y));
        let share = -1.0 / width as f32;
        let d = self.spread(d, [&shape, &shape], of, "spread")?;
        let axis = self.shape(d).rank() - 1;
        let centred = match self.centred_by_weight(of, d)? {
            Some(centred) => centred,
            None => {
                let mean = self.add(of, "sum", Op::Sum { axis }, &[d])?;
                let mean = self.scaled(mean, share, of, "mean")?;
                self.add(of, "centred", Op::Add, &[d, mean])?
            }
        };
        // Of what is centred as much lies along y, whose entries add up to nothing.
        let along = self.add(of, "along", Op::Mul, &[centred, y])?;
        let along = self.add(of, "along.sum", Op::Sum { axis }, &[along])?;
        let along = self.scaled(along, share, of, "along.mean")?;
        let along = self.add(of, "along.y", Op::Mul, &[y, along])?;
        let across = self.add(of, "across", Op::Add, &[centred, along])?;
        let out = self.add(of, "scaled", Op::Mul, &[across, inverse])?;
        self.gathered(out, &shape, of, "gathered")
    }

    /// What a normalised value was divided by, made once.
    fn inverse_deviation(&mut self, y: ValueId, epsilon: f32) -> Built<ValueId> {
        if let Some(&inverse) = self.slopes.get(&y) {
            return Ok(inverse);
        }
        let Source::Node { inputs, .. } = &self.graph.value(y).source else {
            unreachable!("only what is computed has a derivative: this is a bug");
        };
        let (x, name) = (inputs[0], self.name(y));
        let inverse = self.add(&name, "inverse_deviation", Op::InvStdDev { epsilon }, &[x])?;
        self.slopes.insert(y, inverse);
        Ok(inverse)
    }
}

/// The softmaxes among these that are the left side of one product, of matrices that do not broadcast, and nothing else.
fn weights(graph: &Graph, among: &HashSet<ValueId>) -> HashSet<ValueId> {
    let lead = |id: ValueId| graph.ty(id).shape.dims().split_last_chunk::<2>().map(|(lead, _)| lead);
    let (mut uses, mut weights) = (HashMap::<ValueId, usize>::new(), HashSet::new());
    for &id in among {
        let Source::Node { op, inputs } = &graph.value(id).source else { continue };
        inputs.iter().for_each(|&input| *uses.entry(input).or_default() += 1);
        if *op == (Op::MatMul { transpose_a: false, transpose_b: false })
            && matches!(graph.value(inputs[0]).source, Source::Node { op: Op::Softmax, .. })
            && lead(inputs[0]) == lead(inputs[1])
        {
            weights.insert(inputs[0]);
        }
    }
    weights.retain(|p| uses[p] == 1);
    weights
}

/// See [`Builder::spread`].
pub(super) fn spread(own: &Shape, result: &Shape) -> Shape {
    // Nothing is between the tangents of one image and the next where there is one.
    let single = result.dims().first() == Some(&Dim::Fixed(1));
    let rank = result.rank() + usize::from(!single);
    let dims = if single && own.rank() == result.rank() { &own.dims()[1..] } else { own.dims() };
    let ones = std::iter::repeat_n(Dim::Fixed(1), rank - 1 - dims.len());
    Shape::new(std::iter::once(Dim::BATCH).chain(ones).chain(dims.iter().copied()))
}

#[cfg(test)]
mod tests;
