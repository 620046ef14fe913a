//! As much of ONNX's protobuf as the suite looks at, by the field numbers of onnx.proto; the rest is skipped.

use std::collections::BTreeMap;
use std::path::Path;

use prost::Message;

/// A model.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    /// The graph.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    /// What nodes may call.
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<Function>,
}

/// Nodes under a name.
#[derive(Clone, PartialEq, Message)]
pub struct Function {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// In the order they run.
    #[prost(message, repeated, tag = "7")]
    pub nodes: Vec<Node>,
}

/// A graph.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    /// In the order they run.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
    /// The constants, weights among them.
    #[prost(message, repeated, tag = "5")]
    pub initializers: Vec<Tensor>,
    /// Those that are mostly zeros.
    #[prost(message, repeated, tag = "15")]
    pub sparse_initializers: Vec<Sparse>,
}

/// A node.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Names of the values it reads.
    #[prost(string, repeated, tag = "1")]
    pub inputs: Vec<String>,
    /// Names of the values it makes.
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    /// Its own name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The operator.
    #[prost(string, tag = "4")]
    pub op: String,
    /// What the operator is told.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<Attribute>,
}

/// A word to an operator.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The value, if it is an integer.
    #[prost(int64, tag = "3")]
    pub integer: i64,
    /// The value, if it is a tensor.
    #[prost(message, optional, tag = "5")]
    pub tensor: Option<Tensor>,
    /// The value, if it is a graph.
    #[prost(message, optional, boxed, tag = "6")]
    pub graph: Option<Box<Graph>>,
    /// The value, if it is many integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub integers: Vec<i64>,
    /// The value, if it is many tensors.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<Tensor>,
    /// The value, if it is many graphs.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<Graph>,
    /// The value, if it is a sparse tensor.
    #[prost(message, optional, tag = "22")]
    pub sparse: Option<Sparse>,
    /// Of which kind it is.
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

/// A constant.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    /// The shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// The type of the elements.
    #[prost(int32, tag = "2")]
    pub element: i32,
    /// The name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// The elements, little-endian, where they are in the graph itself.
    #[prost(bytes = "vec", tag = "9")]
    pub raw: Vec<u8>,
    /// File, offset and length, where it is not in the graph itself.
    #[prost(message, repeated, tag = "13")]
    pub external: Vec<Entry>,
}

/// A constant of which most elements are zero.
#[derive(Clone, PartialEq, Message)]
pub struct Sparse {
    /// The others.
    #[prost(message, optional, tag = "1")]
    pub values: Option<Tensor>,
    /// Where they are.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<Tensor>,
}

/// A key and its value.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// FLOAT of `TensorProto.DataType`.
pub const FLOAT: i32 = 1;

/// INT of `AttributeProto.AttributeType`.
pub const INT: i32 = 2;

// === impl Node ===

impl Node {
    /// An operator that makes one value.
    pub fn new<const N: usize>(op: &str, inputs: [&str; N], output: &str) -> Self {
        Self {
            inputs: inputs.map(str::to_owned).to_vec(),
            outputs: vec![output.to_owned()],
            name: format!("made.{output}"),
            op: op.to_owned(),
            attributes: Vec::new(),
        }
    }

    /// What it is told of this name, as integers; none where it is told nothing.
    pub fn integers(&self, name: &str) -> &[i64] {
        let attribute = self.attributes.iter().find(|attribute| attribute.name == name);
        attribute.map_or(&[], |attribute| &attribute.integers)
    }
}

// === impl Attribute ===

impl Attribute {
    /// A word without a value.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }
}

// === impl Tensor ===

impl Tensor {
    /// What the graph says of where it lies, where that is another file.
    pub fn entry(&self, key: &str) -> Option<&str> {
        self.external.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }

    /// A number.
    pub fn scalar(name: &str, value: f32) -> Self {
        let raw = value.to_le_bytes().to_vec();
        Self { dims: Vec::new(), element: FLOAT, name: name.to_owned(), raw, external: Vec::new() }
    }
}

// === impl Graph ===

impl Graph {
    /// The graph of a file.
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let model =
            Model::decode(bytes.as_slice()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        model.graph.unwrap_or_else(|| panic!("{} holds no graph", path.display()))
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node `{name}`"))
    }

    /// Its nodes, and those of the graphs within them.
    pub fn every_node(&self) -> Vec<&Node> {
        let mut all = Vec::new();
        for node in &self.nodes {
            all.push(node);
            for attribute in &node.attributes {
                let inner = attribute.graph.as_deref().into_iter().chain(&attribute.graphs);
                all.extend(inner.flat_map(Self::every_node));
            }
        }
        all
    }

    /// The shapes of all constants, by name.
    pub fn constants(&self) -> BTreeMap<&str, &[i64]> {
        self.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor.dims.as_slice())).collect()
    }
}
