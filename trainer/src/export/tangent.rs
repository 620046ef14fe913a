//! Forward mode: what a graph makes of small changes of its input. Of every value that depends on `x` the tangents
//! `[k l, …]` are appended, one rule an operation (Griewank & Walther 2008, chapter 3), and the last are J·V.

use std::collections::HashMap;

use super::ExportError;
use super::derivative::{Builder, spread};
use super::graph::{Graph, GraphError, Source, ValueId};
use super::ops::Op;
use super::shape::Shape;

type Built<T> = Result<T, GraphError>;

/// An input, and its tangents where it has some.
type Given = (ValueId, Option<ValueId>);

/// Appends J·V: `vectors` are k tangents of `x` `[l, …]`, `[k l, …]`, and the result those of `output`. Errors: an
/// operation that depends on `x` in a way that has no derivative here, named.
pub fn push_forward(
    graph: &mut Graph,
    x: ValueId,
    vectors: ValueId,
    output: ValueId,
) -> Result<ValueId, ExportError> {
    let needed = graph.needed_for(&[output]);
    let dependents = graph.dependents(x, &needed);
    let tangents = HashMap::from([(x, vectors)]);
    let mut forward = Forward { builder: Builder::new(graph, &needed), tangents };
    for id in dependents {
        if id != x {
            let tangent = forward.of(id)?;
            forward.tangents.insert(id, tangent);
        }
    }
    forward.tangents.get(&output).copied().ok_or_else(|| ExportError::Constant {
        output: graph.value(output).name.clone(),
        input: graph.value(x).name.clone(),
    })
}

struct Forward<'a> {
    builder: Builder<'a>,
    tangents: HashMap<ValueId, ValueId>,
}

// === impl Forward ===

impl Forward<'_> {
    /// The tangents of a value one of whose inputs has some.
    fn of(&mut self, id: ValueId) -> Result<ValueId, ExportError> {
        let value = self.builder.graph.value(id).clone();
        let Source::Node { op, inputs } = value.source else {
            unreachable!("only what is computed depends on something: this is a bug");
        };
        let name = format!("{}.tangent", value.name);
        let (shape, own) = (value.ty.shape, inputs[0]);
        let unknown = || ExportError::NoDerivative { node: value.name.clone(), op: op.to_string() };
        // What moves or sums axes has to leave the first alone, along which tangents lie.
        let batched = shape.batched().ok_or_else(unknown)?;
        let given: Vec<Given> =
            inputs.iter().map(|input| (*input, self.tangents.get(input).copied())).collect();
        let only_first = given.iter().skip(1).all(|(_, tangent)| tangent.is_none());
        let built = match &op {
            Op::Add => self.sum(&name, &shape, &given)?,
            Op::Mul => self.product(&name, &shape, &given, &Op::Mul)?,
            Op::MatMul { .. } if given[0].1.is_some() && self.builder.is_weights(own) => {
                self.weigh(&name, id, &shape, &given)?
            }
            Op::MatMul { .. } => self.product(&name, &shape, &given, &op)?,
            Op::Concat { axis } if *axis > 0 => self.concat(&name, *axis, &given)?,
            _ if !only_first => return Err(unknown()),
            Op::Gemm { transpose_b } => {
                self.builder.linear(&name, *transpose_b, self.tangents[&own], inputs[1])?
            }
            Op::Conv(_) | Op::ConvTranspose { .. } => {
                self.move_by(&name, op.clone(), &[self.tangents[&own], inputs[1]])?
            }
            Op::Sigmoid | Op::Gelu | Op::Sin | Op::Cos => {
                self.builder.elementwise(id, self.tangents[&own], &name)?
            }
            Op::Softmax if self.builder.is_weights(id) => {
                self.builder.times(id, id, self.tangents[&own], &name)?
            }
            Op::Softmax => self.builder.softmax(id, self.tangents[&own], &name)?,
            Op::LayerNorm { epsilon } => self.builder.layer_norm(id, *epsilon, self.tangents[&own], &name)?,
            Op::Reshape(_) => self.move_by(&name, Op::Reshape(batched), &[self.tangents[&own]])?,
            Op::Transpose(perm) if perm.first() == Some(&0) => {
                self.move_by(&name, op.clone(), &[self.tangents[&own]])?
            }
            Op::Gather { axis } if *axis > 0 => {
                self.move_by(&name, op.clone(), &[self.tangents[&own], inputs[1]])?
            }
            Op::Slice { axis, .. } | Op::Pad { axis, .. } | Op::Sum { axis } if *axis > 0 => {
                self.move_by(&name, op.clone(), &[self.tangents[&own]])?
            }
            Op::Cast(_) => self.move_by(&name, op.clone(), &[self.tangents[&own]])?,
            Op::Transpose(_)
            | Op::Gather { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Sum { .. }
            | Op::Concat { .. }
            | Op::Min
            | Op::InvStdDev { .. } => return Err(unknown()),
        };
        Ok(built)
    }

    /// The operation itself, on tangents: it is linear.
    fn move_by(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Built<ValueId> {
        self.builder.graph.add(name, op, inputs)
    }

    /// `da + db`, broadcast to the sum's shape where only one of them is there.
    fn sum(&mut self, name: &str, shape: &Shape, given: &[Given]) -> Built<ValueId> {
        let parts = self.spread(name, shape, given)?;
        let whole = spread(shape, shape);
        let sum = match parts[..] {
            [part] if self.builder.shape(part) == whole => part,
            [part] => {
                let ones = vec![1.0; shape.fixed().map_or(0, |dims| dims.iter().product())];
                let dtype = self.builder.graph.ty(part).dtype;
                let dims = shape.fixed().unwrap_or_default();
                let ones = self.builder.graph.floats(&format!("{name}.ones"), dtype, &dims, ones)?;
                self.builder.add(name, "broadcast", Op::Mul, &[part, ones])?
            }
            _ => self.builder.add(name, "sum", Op::Add, &parts)?,
        };
        self.builder.gathered(sum, shape, name, "gathered")
    }

    /// The tangents that are there, each as it meets the result's.
    fn spread(&mut self, name: &str, shape: &Shape, given: &[Given]) -> Built<Vec<ValueId>> {
        let mut parts = Vec::new();
        for (i, &(input, tangent)) in given.iter().enumerate() {
            if let Some(tangent) = tangent {
                let own = self.builder.shape(input);
                parts.push(self.builder.spread(tangent, [&own, shape], name, &format!("spread.{i}"))?);
            }
        }
        Ok(parts)
    }

    /// `da b + a db`, of elements or of matrices.
    fn product(&mut self, name: &str, shape: &Shape, given: &[Given], op: &Op) -> Built<ValueId> {
        let mut terms = Vec::new();
        for (i, &(input, tangent)) in given.iter().enumerate() {
            let Some(tangent) = tangent else { continue };
            let own = self.builder.shape(input);
            let mut factors = [given[0].0, given[1].0];
            factors[i] = self.builder.spread(tangent, [&own, shape], name, &format!("spread.{i}"))?;
            let term = format!("term.{i}");
            let folded = match op {
                Op::Mul => self.builder.times_row(&format!("{name}.{term}"), factors[i], factors[1 - i])?,
                _ => None,
            };
            terms.push(match folded {
                Some(folded) => folded,
                None => self.builder.add(name, &term, op.clone(), &factors)?,
            });
        }
        let sum = match terms[..] {
            [term] => term,
            _ => self.builder.add(name, "sum", Op::Add, &terms)?,
        };
        self.builder.gathered(sum, shape, name, "gathered")
    }

    /// Of `y = p v` with a softmax p that is used for nothing else: `dp v + p dv`, where `dp = w - p Σ w` and `w = p d` is what
    /// stands for p's tangents. So it is `w v - y Σ w + p dv`, in which the sums meet y, that is small beside p.
    fn weigh(&mut self, name: &str, y: ValueId, shape: &Shape, given: &[Given]) -> Built<ValueId> {
        let [(p, Some(w)), (v, dv)] = *given else {
            unreachable!("the weights of a product have tangents: this is a bug");
        };
        let own = self.builder.shape(p);
        let w = self.builder.spread(w, [&own, shape], name, "spread.0")?;
        let product = Op::MatMul { transpose_a: false, transpose_b: false };
        let weighted = self.builder.add(name, "term.0", product.clone(), &[w, v])?;
        let axis = self.builder.shape(w).rank() - 1;
        let sum = self.builder.add(name, "weights.sum", Op::Sum { axis }, &[w])?;
        let negative = self.builder.negative(y)?;
        let share = self.builder.add(name, "share", Op::Mul, &[negative, sum])?;
        let mut out = self.builder.add(name, "centred", Op::Add, &[weighted, share])?;
        if let Some(dv) = dv {
            let own = self.builder.shape(v);
            let dv = self.builder.spread(dv, [&own, shape], name, "spread.1")?;
            let term = self.builder.add(name, "term.1", product, &[p, dv])?;
            out = self.builder.add(name, "sum", Op::Add, &[out, term])?;
        }
        self.builder.gathered(out, shape, name, "gathered")
    }

    /// One after another, zeros in the place of what does not change.
    fn concat(&mut self, name: &str, axis: usize, given: &[Given]) -> Built<ValueId> {
        if let Some(all) = given.iter().map(|&(_, tangent)| tangent).collect::<Option<Vec<_>>>() {
            return self.move_by(name, Op::Concat { axis }, &all);
        }
        let len = |&(id, _): &Given| self.builder.shape(id).fixed().map_or(0, |dims| dims[axis]);
        let lens: Vec<usize> = given.iter().map(len).collect();
        let mut sum = None;
        for (i, &(_, tangent)) in given.iter().enumerate() {
            let Some(tangent) = tangent else { continue };
            let (before, after) = (lens[..i].iter().sum(), lens[i + 1..].iter().sum());
            let part =
                self.builder.add(name, &format!("part.{i}"), Op::Pad { axis, before, after }, &[tangent])?;
            sum = Some(match sum {
                None => part,
                Some(sum) => self.builder.add(name, &format!("sum.{i}"), Op::Add, &[sum, part])?,
            });
        }
        Ok(sum.expect("one of the inputs has tangents: this is a bug"))
    }
}
