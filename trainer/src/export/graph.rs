//! The export graph: what a network computes, as a list of values in the order in which they are computed.
//!
//! A value is an input, a parameter (named as in the checkpoint), a constant, or one operation on earlier values.
//! Every operation has one output, so a value and the node that makes it are one thing with one name, and any
//! prefix of the list is itself a graph. Transformations of a graph (derivatives, another precision) append to it
//! or read it front to back; none edits it in place.

use std::collections::HashSet;

use thiserror::Error;

use super::ops::Op;
use super::shape::{Dtype, Shape, Type};

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
#[derive(Debug, Clone, Default)]
pub struct Graph {
    values: Vec<Value>,
    names: HashSet<String>,
    outputs: Vec<ValueId>,
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
    /// A graph without values.
    pub fn new() -> Self {
        Self::default()
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

    /// Appends a constant of indices.
    pub fn indices(&mut self, name: &str, shape: &[usize], data: Vec<i64>) -> Result<ValueId, GraphError> {
        let ty = Type::new(Dtype::I64, Shape::new(shape.iter().copied()));
        if ty.shape.volume() != (data.len(), 0) {
            let (node, elements) = (name.to_owned(), data.len());
            return Err(GraphError::ConstantSize { node, elements, ty: ty.to_string() });
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
        let mut live: HashSet<ValueId> = self.outputs.iter().copied().collect();
        for (i, value) in self.values.iter().enumerate().rev() {
            if let Source::Node { inputs, .. } = &value.source
                && live.contains(&ValueId(i))
            {
                live.extend(inputs);
            }
        }
        live
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

#[cfg(test)]
mod tests {
    use super::super::shape::Dim;
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
    fn a_constant_fills_its_shape() {
        let mut graph = Graph::new();
        assert!(graph.indices("i", &[2, 3], vec![0; 5]).is_err());
        assert!(graph.floats("f", Dtype::I64, &[2], vec![0.0; 2]).is_err());
        assert!(graph.floats("g", Dtype::F16, &[2], vec![0.0; 2]).is_ok());
    }
}
