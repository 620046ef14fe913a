//! The export graph as an ONNX model: operator set 20 of ONNX's own domain, nothing else.
//!
//! Twenty is the first set with `Gelu`'s tanh form, and ONNX Runtime runs every operation used here on CPU and
//! CUDA. A value's name is the name of its node and of the node's output, so a graph opened in Netron reads like the model.
//! Constants of one content are written once, under the first one's name: a graph has hundreds of small ones, and few that
//! differ.

use std::collections::{HashMap, HashSet};

use windowpane_diffusion::manifest::WEIGHTS_FILE;

use super::graph::{Data, Graph, Source, Value, ValueId};
use super::onnx::{
    self, AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::ops::{Op, Stride};
use super::shape::{Dim, Dtype, Shape};
use super::weights::{WeightFile, bytes};
use super::{ExportError, scan};
use crate::error::Result;

/// ONNX operator set.
pub const OPSET: i64 = 20;
/// ONNX file format; the one that goes with the operator set.
const IR_VERSION: i64 = 9;

/// The ONNX model of `graph`, its parameters pointing into the weights file. Only what outputs need is written;
/// inputs are always kept. Errors: a parameter that the weights lack or hold in another shape.
pub fn lower(graph: &Graph, weights: &WeightFile, name: &str, doc: &str) -> Result<ModelProto> {
    let mut lowering = Lowering {
        graph,
        weights,
        live: graph.live(),
        proto: GraphProto::default(),
        split: HashSet::new(),
        constants: HashMap::new(),
        shared: HashMap::new(),
    };
    for (id, value) in graph.values() {
        if lowering.live.contains(&id) {
            lowering.value(id, value)?;
        }
    }
    let one_by_one = graph.input_taken_one_by_one().map(|value| (&value.name, lowering.integers(vec![0])));
    let mut proto = lowering.proto;
    proto.name = Some(name.to_owned());
    proto.input = graph.inputs().map(|value| value_info(graph, value)).collect();
    proto.output = graph.outputs().iter().map(|&id| value_info(graph, graph.value(id))).collect();
    if let Some((name, first_axis)) = one_by_one {
        scan::one_by_one(&mut proto, name, &first_axis);
    }
    Ok(ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("windowpane-trainer".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: Some(doc.to_owned()),
        graph: Some(proto),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
    })
}

struct Lowering<'a> {
    graph: &'a Graph,
    weights: &'a WeightFile,
    live: HashSet<ValueId>,
    proto: GraphProto,
    /// Slices already written as outputs of a Split.
    split: HashSet<String>,
    /// Names of the constants already written, by element type, shape and bytes.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    /// Under which names the graph's own constants are written.
    shared: HashMap<ValueId, String>,
}

// === impl Lowering ===

impl Lowering<'_> {
    fn value(&mut self, id: ValueId, value: &Value) -> Result<()> {
        match &value.source {
            Source::Input => {}
            Source::Parameter => self.parameter(value)?,
            Source::Constant(data) => {
                let shape: Vec<i64> = value.ty.shape.dims().iter().map(|&dim| size(dim)).collect();
                let name = self.constant(&value.name, value.ty.dtype, shape, data);
                self.shared.insert(id, name);
            }
            Source::Node { op, inputs } => self.operation(id, value, op, inputs)?,
        }
        Ok(())
    }

    /// The initializer carries the checkpoint's name; where it is stored in another type than it is computed
    /// with, a Cast, which the runtime folds at load, makes the value that nodes read.
    fn parameter(&mut self, value: &Value) -> Result<()> {
        let stored = self.weights.get(&value.name)?;
        if value.ty.shape != Shape::new(stored.shape.iter().copied()) {
            return Err(ExportError::WeightShape {
                name: value.name.clone(),
                got: stored.shape.clone(),
                expected: value.ty.shape.to_string(),
            }
            .into());
        }
        self.proto.initializer.push(TensorProto {
            dims: stored.shape.iter().map(|&n| n as i64).collect(),
            data_type: Some(data_type(stored.dtype)),
            name: Some(value.name.clone()),
            external_data: vec![
                StringStringEntryProto::new("location", &WEIGHTS_FILE),
                StringStringEntryProto::new("offset", &stored.offset),
                StringStringEntryProto::new("length", &stored.bytes()),
            ],
            data_location: Some(1),
            ..TensorProto::default()
        });
        if stored.dtype != value.ty.dtype {
            let to = AttributeProto::int("to", data_type(value.ty.dtype).into());
            self.push(&computed_name(&value.name), "Cast", vec![value.name.clone()], vec![to]);
        }
        Ok(())
    }

    fn operation(&mut self, id: ValueId, value: &Value, op: &Op, ids: &[ValueId]) -> Result<()> {
        let name = &value.name;
        let mut inputs = ids.iter().map(|&id| self.read_name(id)).collect::<Result<Vec<_>>>()?;
        let mut attributes = Vec::new();
        let op_type = match op {
            Op::Gemm { transpose_b } => {
                attributes.push(AttributeProto::int("transB", i64::from(*transpose_b)));
                "Gemm"
            }
            Op::MatMul { transpose_a, transpose_b } => {
                let rank = value.ty.shape.rank();
                for (side, transposed) in [*transpose_a, *transpose_b].into_iter().enumerate() {
                    if transposed {
                        inputs[side] = self.swap_last(name, &inputs[side], side, rank);
                    }
                }
                "MatMul"
            }
            Op::Add => "Add",
            Op::Mul => "Mul",
            Op::Min => "Min",
            Op::Sigmoid => "Sigmoid",
            Op::Gelu => {
                attributes.push(AttributeProto::string("approximate", "tanh"));
                "Gelu"
            }
            Op::Sin => "Sin",
            Op::Cos => "Cos",
            Op::Softmax => {
                attributes.push(AttributeProto::int("axis", -1));
                "Softmax"
            }
            Op::LayerNorm { epsilon } => {
                inputs.push(self.ones_for(ids[0]));
                attributes
                    .extend([AttributeProto::int("axis", -1), AttributeProto::float("epsilon", *epsilon)]);
                "LayerNormalization"
            }
            Op::InvStdDev { epsilon } => {
                inputs.push(self.ones_for(ids[0]));
                attributes
                    .extend([AttributeProto::int("axis", -1), AttributeProto::float("epsilon", *epsilon)]);
                // The third thing that it puts out.
                self.proto.node.push(NodeProto {
                    input: inputs,
                    output: vec![format!("{name}.normalised"), String::new(), name.clone()],
                    name: Some(name.clone()),
                    op_type: Some("LayerNormalization".to_owned()),
                    attribute: attributes,
                });
                return Ok(());
            }
            Op::Sum { axis } => {
                inputs.push(self.integers(vec![*axis as i64]));
                attributes.push(AttributeProto::int("keepdims", 1));
                "ReduceSum"
            }
            Op::Conv(stride) => {
                attributes.extend(strides(*stride));
                "Conv"
            }
            Op::ConvTranspose { stride, extra } => {
                attributes.extend(strides(*stride));
                attributes.push(AttributeProto::ints("output_padding", extra.map(|n| n as i64)));
                "ConvTranspose"
            }
            Op::Reshape(shape) => {
                inputs.push(self.integers(shape.dims().iter().map(|&dim| size(dim)).collect()));
                "Reshape"
            }
            Op::Transpose(perm) => {
                attributes.push(AttributeProto::ints("perm", perm.iter().map(|&axis| axis as i64)));
                "Transpose"
            }
            Op::Gather { axis } => {
                attributes.push(AttributeProto::int("axis", *axis as i64));
                "Gather"
            }
            Op::Slice { axis, start, len } => {
                if self.split.contains(name) || self.split(ids[0], *axis, &inputs[0]) {
                    return Ok(());
                }
                // First, behind the last, axis.
                inputs.extend([*start, start + len, *axis].map(|at| self.integers(vec![at as i64])));
                "Slice"
            }
            Op::Pad { axis, before, after } => {
                let rank = value.ty.shape.rank();
                let mut pads = vec![0; 2 * rank];
                (pads[*axis], pads[rank + axis]) = (*before as i64, *after as i64);
                inputs.push(self.integers(pads));
                "Pad"
            }
            Op::Concat { axis } => {
                attributes.push(AttributeProto::int("axis", *axis as i64));
                "Concat"
            }
            Op::Cast(dtype) => {
                attributes.push(AttributeProto::int("to", data_type(*dtype).into()));
                "Cast"
            }
        };
        debug_assert!(self.live.contains(&id), "only live values are written");
        self.push(name, op_type, inputs, attributes);
        Ok(())
    }

    /// Where the live slices of a value cut an axis without gap or overlap they are one Split: one kernel
    /// launch instead of six in every block. Says whether that was written.
    fn split(&mut self, data: ValueId, axis: usize, input: &str) -> bool {
        let mut parts: Vec<(usize, usize, &str)> = Vec::new();
        for (id, value) in self.graph.values().filter(|(id, _)| self.live.contains(id)) {
            if let Source::Node { op: Op::Slice { axis: at, start, len }, inputs } = &value.source
                && *at == axis
                && inputs[..] == [data]
                && id > data
            {
                parts.push((*start, *len, &value.name));
            }
        }
        parts.sort_unstable();
        let end = parts.iter().try_fold(0, |at, &(start, len, _)| (start == at).then_some(at + len));
        let whole = self.graph.ty(data).shape.dims()[axis];
        if parts.len() < 2 || end.map(Dim::Fixed) != Some(whole) {
            return false;
        }
        let lengths = parts.iter().map(|&(_, len, _)| len as i64).collect();
        let output: Vec<String> = parts.iter().map(|&(_, _, name)| name.to_owned()).collect();
        self.split.extend(output.iter().cloned());
        let name = format!("{input}.split");
        let lengths = self.integers(lengths);
        self.proto.node.push(NodeProto {
            input: vec![input.to_owned(), lengths],
            output,
            name: Some(name),
            op_type: Some("Split".to_owned()),
            attribute: vec![AttributeProto::int("axis", axis as i64)],
        });
        true
    }

    /// A transposition of the last two axes, which the runtime fuses into the product.
    fn swap_last(&mut self, name: &str, input: &str, side: usize, rank: usize) -> String {
        let output = format!("{name}.transpose_{}", ["a", "b"][side]);
        let last = rank as i64 - 1;
        let perm = AttributeProto::ints("perm", (0..last - 1).chain([last, last - 1]));
        self.push(&output, "Transpose", vec![input.to_owned()], vec![perm]);
        output
    }

    /// LayerNormalization wants a scale; ours is one.
    fn ones_for(&mut self, normalised: ValueId) -> String {
        let value = self.graph.value(normalised);
        let width = value.ty.shape.dims().last().map_or(1, |&dim| size(dim));
        let name = format!("layer_norm.scale.{}.{width}", value.ty.dtype);
        self.constant(&name, value.ty.dtype, vec![width], &Data::Float(vec![1.0; width as usize]))
    }

    /// A list that says how an operation moves things: a shape, axes, lengths. It is named after its values.
    fn integers(&mut self, values: Vec<i64>) -> String {
        let name: String = values.iter().map(|value| format!(".{value}")).collect();
        self.constant(&format!("integers{name}"), Dtype::I64, vec![values.len() as i64], &Data::Int(values))
    }

    /// Writes a constant, or finds it written: the name under which it is.
    fn constant(&mut self, name: &str, dtype: Dtype, dims: Vec<i64>, data: &Data) -> String {
        let raw = match data {
            Data::Float(values) => bytes(values, dtype),
            Data::Int(values) if dtype == Dtype::I32 => {
                values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect()
            }
            Data::Int(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let content = (data_type(dtype), dims, raw);
        if let Some(known) = self.constants.get(&content) {
            return known.clone();
        }
        self.proto.initializer.push(TensorProto {
            dims: content.1.clone(),
            data_type: Some(content.0),
            name: Some(name.to_owned()),
            raw_data: Some(content.2.clone()),
            ..TensorProto::default()
        });
        self.constants.insert(content, name.to_owned());
        name.to_owned()
    }

    fn push(&mut self, name: &str, op_type: &str, input: Vec<String>, attribute: Vec<AttributeProto>) {
        let output = vec![name.to_owned()];
        let (name, op_type) = (Some(name.to_owned()), Some(op_type.to_owned()));
        self.proto.node.push(NodeProto { input, output, name, op_type, attribute });
    }

    /// The name under which nodes read a value.
    fn read_name(&self, id: ValueId) -> Result<String> {
        if let Some(shared) = self.shared.get(&id) {
            return Ok(shared.clone());
        }
        let value = self.graph.value(id);
        let cast =
            value.source == Source::Parameter && self.weights.get(&value.name)?.dtype != value.ty.dtype;
        Ok(if cast { computed_name(&value.name) } else { value.name.clone() })
    }
}

fn computed_name(parameter: &str) -> String {
    format!("{parameter}.cast")
}

fn data_type(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => onnx::FLOAT,
        Dtype::F16 => onnx::FLOAT16,
        Dtype::I64 => onnx::INT64,
        Dtype::I32 => onnx::INT32,
    }
}

/// A dimension as a Reshape's target writes it: the batch is whatever is left over.
fn size(dim: Dim) -> i64 {
    match dim {
        Dim::Fixed(n) => n as i64,
        Dim::Batch(_) => -1,
    }
}

/// How ONNX writes a convolution's walk.
fn strides(Stride { step, padding }: Stride) -> [AttributeProto; 2] {
    [AttributeProto::ints("strides", [step as i64; 2]), AttributeProto::ints("pads", [padding as i64; 4])]
}

fn value_info(graph: &Graph, value: &Value) -> ValueInfoProto {
    let dimension = |dim: &Dim| match dim {
        Dim::Fixed(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
        Dim::Batch(_) => DimensionProto { dim_value: None, dim_param: Some(graph.symbol(*dim)) },
    };
    let shape = TensorShapeProto { dim: value.ty.shape.dims().iter().map(dimension).collect() };
    let tensor = TensorTypeProto { elem_type: Some(data_type(value.ty.dtype)), shape: Some(shape) };
    ValueInfoProto { name: Some(value.name.clone()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
