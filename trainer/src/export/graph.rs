//! The export graph: what a network computes, as a list of values in the order in which they are computed.
//!
//! A value is an input, a parameter (named as in the checkpoint), a constant, or one operation on earlier values.
//! Every operation has one output, so a value and the node that makes it are one thing with one name, and any
//! prefix of the list is itself a graph. Transformations of a graph (derivatives, another precision) append to it
//! or read it front to back; none edits it in place.

use std::collections::HashSet;

use thiserror::Error;

use super::ops::Op;
use super::shape::{Dim, Dtype, Shape, Type};

/// A value of one particular graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(usize);

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Unique in its graph; `blocks.3.attn.softmax` for what a node makes.
    pub name: String,
    /// Element type and shape.
    pub ty: Type,
    /// Where it comes from.
    pub source: Source,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Given by the caller.
    Input,
    /// A weight of the checkpoint with the value's name.
    Parameter,
    /// Known at export, and small enough to be written into the graph.
    Constant(Data),
    /// Computed from earlier values.
    Node {
        /// What is computed.
        op: Op,
        /// From what, in the operation's order.
        inputs: Vec<ValueId>,
    },
}

/// The elements of a constant. Floats of either width are held as f32.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Real numbers.
    Float(Vec<f32>),
    /// Integers.
    Int(Vec<i64>),
}

/// A network as values in computing order.
#[derive(Debug, Clone)]
pub struct Graph {
    values: Vec<Value>,
    names: HashSet<String>,
    outputs: Vec<ValueId>,
    /// What the batch is called.
    batch: &'static str,
    /// See [`take_one_by_one`](Self::take_one_by_one).
    one_by_one: Option<ValueId>,
}

/// Why a value cannot be added to a graph. Each names the value.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum GraphError {
    /// The operation is not defined on these inputs.
    #[error("{node}: {op} of ({got}) needs {expected}")]
    Mismatch {
        /// Name of the value that was to be made.
        node: String,
        /// The operation.
        op: String,
        /// Types of the inputs.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The name is taken.
    #[error("{node}: another value of the graph has this name")]
    DuplicateName {
        /// The name.
        node: String,
    },
    /// An index that 32 bits do not hold.
    #[error("{node}: the index {index} has more than 32 bits")]
    Index {
        /// Name of the constant.
        node: String,
        /// The index.
        index: i64,
    },
    /// A constant's elements do not fill its shape.
    #[error("{node}: {elements} elements for a constant of type {ty}")]
    ConstantSize {
        /// Name of the constant.
        node: String,
        /// Elements given.
        elements: usize,
        /// Type asked for.
        ty: String,
    },
}

// === impl Graph ===

impl Graph {
    /// A graph without values, over a batch of `n`.
    #[expect(clippy::new_without_default, reason = "a graph is begun, and not a value that stands for none")]
    pub fn new() -> Self {
        Self::over("n")
    }

    /// A graph without values, over a batch of this name.
    pub fn over(batch: &'static str) -> Self {
        Self { values: Vec::new(), names: HashSet::new(), outputs: Vec::new(), batch, one_by_one: None }
    }

    /// The name of a dimension: a number, or so many times the batch.
    pub fn symbol(&self, dim: Dim) -> String {
        match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Batch(1) => self.batch.to_owned(),
            Dim::Batch(k) => format!("{k}{}", self.batch),
        }
    }

    /// Appends an input that the caller will give.
    pub fn input(&mut self, name: &str, ty: Type) -> Result<ValueId, GraphError> {
        self.push(name, ty, Source::Input)
    }

    /// Appends the parameter `name` of the checkpoint.
    pub fn parameter(&mut self, name: &str, ty: Type) -> Result<ValueId, GraphError> {
        self.push(name, ty, Source::Parameter)
    }

    /// Appends a constant of real numbers.
    pub fn floats(
        &mut self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        data: Vec<f32>,
    ) -> Result<ValueId, GraphError> {
        let ty = Type::new(dtype, Shape::new(shape.iter().copied()));
        if !dtype.is_float() || ty.shape.volume() != (data.len(), 0) {
            let (node, elements) = (name.to_owned(), data.len());
            return Err(GraphError::ConstantSize { node, elements, ty: ty.to_string() });
        }
        self.push(name, ty, Source::Constant(Data::Float(data)))
    }

    /// Appends a constant of indices, of 32 bits. Errors: one that is larger, or not as many as the shape says.
    pub fn indices(&mut self, name: &str, shape: &[usize], data: Vec<i64>) -> Result<ValueId, GraphError> {
        let ty = Type::new(Dtype::I32, Shape::new(shape.iter().copied()));
        if ty.shape.volume() != (data.len(), 0) {
            let (node, elements) = (name.to_owned(), data.len());
            return Err(GraphError::ConstantSize { node, elements, ty: ty.to_string() });
        }
        if let Some(&index) = data.iter().find(|&&index| i32::try_from(index).is_err()) {
            return Err(GraphError::Index { node: name.to_owned(), index });
        }
        self.push(name, ty, Source::Constant(Data::Int(data)))
    }

    /// Appends `op` applied to earlier values. Errors: types on which the operation is not defined.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        let types: Vec<&Type> = inputs.iter().map(|&id| self.ty(id)).collect();
        let ty = op.infer(&types).map_err(|expected| GraphError::Mismatch {
            node: name.to_owned(),
            op: op.to_string(),
            got: types.iter().map(|ty| ty.to_string()).collect::<Vec<_>>().join(", "),
            expected,
        })?;
        self.push(name, ty, Source::Node { op, inputs: inputs.to_vec() })
    }

    /// Declares a value to be the next output.
    pub fn output(&mut self, id: ValueId) {
        self.outputs.push(id);
    }

    /// Declares an input's entries along the first axis to be taken one after another where the graph is lowered. What comes of
    /// them is the same.
    pub fn take_one_by_one(&mut self, input: ValueId) {
        self.one_by_one = Some(input);
    }

    /// The input whose entries are, if there is one.
    pub fn input_taken_one_by_one(&self) -> Option<&Value> {
        self.one_by_one.map(|id| self.value(id))
    }

    /// A value. Panics on an id of another, longer graph.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Element type and shape of a value.
    pub fn ty(&self, id: ValueId) -> &Type {
        &self.value(id).ty
    }

    /// All values in computing order.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, value)| (ValueId(i), value))
    }

    /// Values that the caller gives, in the order in which they were declared.
    pub fn inputs(&self) -> impl Iterator<Item = &Value> {
        self.values.iter().filter(|value| value.source == Source::Input)
    }

    /// Values that the caller gets.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The values on which an output depends. Lowering writes only these.
    pub fn live(&self) -> HashSet<ValueId> {
        self.needed_for(&self.outputs)
    }

    /// The values on which these depend, themselves among them.
    pub fn needed_for(&self, values: &[ValueId]) -> HashSet<ValueId> {
        let mut live: HashSet<ValueId> = values.iter().copied().collect();
        for (i, value) in self.values.iter().enumerate().rev() {
            if let Source::Node { inputs, .. } = &value.source
                && live.contains(&ValueId(i))
            {
                live.extend(inputs);
            }
        }
        live
    }

    /// Those of `among` that depend on `x`, in computing order, `x` first.
    pub fn dependents(&self, x: ValueId, among: &HashSet<ValueId>) -> Vec<ValueId> {
        let mut found = HashSet::from([x]);
        let mut ordered = vec![x];
        for (id, value) in self.values().filter(|(id, _)| *id > x && among.contains(id)) {
            if let Source::Node { inputs, .. } = &value.source
                && inputs.iter().any(|input| found.contains(input))
            {
                found.insert(id);
                ordered.push(id);
            }
        }
        ordered
    }

    /// The elements of a value of indices that is known at export: a constant, or computed from constants alone.
    pub fn known_indices(&self, id: ValueId) -> Option<Vec<i64>> {
        let value = self.value(id);
        let dims = |id| self.ty(id).shape.fixed();
        match &value.source {
            Source::Constant(Data::Int(data)) => Some(data.clone()),
            Source::Node { op: Op::Reshape(_), inputs } => self.known_indices(inputs[0]),
            Source::Node { op: op @ (Op::Add | Op::Mul | Op::Min), inputs } if !value.ty.dtype.is_float() => {
                let (a, b) = (self.known_indices(inputs[0])?, self.known_indices(inputs[1])?);
                let (shape, a_dims, b_dims) = (dims(id)?, dims(inputs[0])?, dims(inputs[1])?);
                let combine = |a: i64, b: i64| match op {
                    Op::Add => a + b,
                    Op::Mul => a * b,
                    _ => a.min(b),
                };
                let at = |i| combine(a[source_of(i, &shape, &a_dims)], b[source_of(i, &shape, &b_dims)]);
                Some((0..shape.iter().product()).map(at).collect())
            }
            _ => None,
        }
    }

    fn push(&mut self, name: &str, ty: Type, source: Source) -> Result<ValueId, GraphError> {
        if !self.names.insert(name.to_owned()) {
            return Err(GraphError::DuplicateName { node: name.to_owned() });
        }
        self.values.push(Value { name: name.to_owned(), ty, source });
        Ok(ValueId(self.values.len() - 1))
    }
}

// === impl ValueId ===

impl ValueId {
    /// Place of the value in its graph's list.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Where element `i` of a result of shape `shape` comes from in an operand that is broadcast to it.
fn source_of(mut i: usize, shape: &[usize], operand: &[usize]) -> usize {
    let (mut place, mut stride) = (0, 1);
    for (axis, &len) in shape.iter().enumerate().rev() {
        let (at, behind) = (i % len, shape.len() - axis);
        i /= len;
        if let Some(own) = operand.len().checked_sub(behind) {
            if operand[own] > 1 {
                place += at * stride;
            }
            stride *= operand[own];
        }
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(graph: &mut Graph, name: &str, rest: &[usize]) -> ValueId {
        graph.input(name, Type::new(Dtype::F32, Shape::led_by(Dim::BATCH, rest))).unwrap()
    }

    #[test]
    fn a_mismatch_names_the_node_and_what_it_got() {
        let mut graph = Graph::new();
        let a = input(&mut graph, "a", &[3]);
        let b = input(&mut graph, "b", &[4]);
        let error = graph.add("blocks.0.sum", Op::Add, &[a, b]).unwrap_err().to_string();
        assert!(error.starts_with("blocks.0.sum: Add of (f32[n,3], f32[n,4]) needs"), "{error}");
    }

    #[test]
    fn names_are_unique() {
        let mut graph = Graph::new();
        let a = input(&mut graph, "a", &[3]);
        assert_eq!(graph.add("a", Op::Add, &[a, a]), Err(GraphError::DuplicateName { node: "a".into() }));
    }

    #[test]
    fn only_what_outputs_need_is_live() {
        let mut graph = Graph::new();
        let a = input(&mut graph, "a", &[3]);
        let dead = graph.add("dead", Op::Sigmoid, &[a]).unwrap();
        let alive = graph.add("alive", Op::Gelu, &[a]).unwrap();
        graph.output(alive);
        let live = graph.live();
        assert!(live.contains(&a) && live.contains(&alive) && !live.contains(&dead));
    }

    #[test]
    fn indices_are_known_where_they_come_from_constants() {
        let mut graph = Graph::new();
        let rows = graph.indices("rows", &[2, 1], vec![0, 10]).unwrap();
        let cols = graph.indices("cols", &[1, 3], vec![1, 2, 3]).unwrap();
        let sum = graph.add("sum", Op::Add, &[rows, cols]).unwrap();
        let flat = graph.add("flat", Op::Reshape(Shape::new([6])), &[sum]).unwrap();
        let scale = graph.indices("scale", &[], vec![2]).unwrap();
        let scaled = graph.add("scaled", Op::Mul, &[flat, scale]).unwrap();
        assert_eq!(graph.known_indices(scaled), Some(vec![2, 4, 6, 22, 24, 26]));
        let given = graph.input("y", Type::new(Dtype::I32, Shape::new([6]))).unwrap();
        let unknown = graph.add("unknown", Op::Add, &[flat, given]).unwrap();
        assert_eq!(graph.known_indices(unknown), None);
    }

    #[test]
    fn dependents_are_on_the_way_from_input_to_output() {
        let mut graph = Graph::new();
        let (x, t) = (input(&mut graph, "x", &[3]), input(&mut graph, "t", &[3]));
        let of_t = graph.add("of_t", Op::Sin, &[t]).unwrap();
        let of_x = graph.add("of_x", Op::Sin, &[x]).unwrap();
        let both = graph.add("both", Op::Add, &[of_x, of_t]).unwrap();
        graph.add("aside", Op::Cos, &[x]).unwrap();
        let needed = graph.needed_for(&[both]);
        assert_eq!(graph.dependents(x, &needed), [x, of_x, both]);
    }

    #[test]
    fn a_constant_fills_its_shape() {
        let mut graph = Graph::new();
        assert!(graph.indices("i", &[2, 3], vec![0; 5]).is_err());
        let error = graph.indices("i", &[2], vec![0, 1 << 31]).unwrap_err().to_string();
        assert_eq!(error, "i: the index 2147483648 has more than 32 bits");
        assert!(graph.floats("f", Dtype::I64, &[2], vec![0.0; 2]).is_err());
        assert!(graph.floats("g", Dtype::F16, &[2], vec![0.0; 2]).is_ok());
    }
}
