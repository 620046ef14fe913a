//! The ONNX files of a package: what each is for, how its windows were realised, and its tensors.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::window::Plan;

/// One ONNX file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graph {
    /// What it computes.
    pub role: Role,
    /// Where it may run.
    pub device: GraphDevice,
    /// What it computes in.
    pub dtype: Dtype,
    /// Its file in the package.
    pub file: String,
    /// How the exporter realised the window of every layer, first to last; as many as `config.depth`. It informs people
    /// and tools: what runs is the ONNX, and nothing compares the two.
    pub plan: Vec<Plan>,
    /// Largest relative error, max|Δ| / max|reference|, at which its golden matches.
    pub tolerance: f64,
    /// Names of its cases in the golden file.
    pub golden: Vec<String>,
    /// Its inputs, in order.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs, in order.
    pub outputs: Vec<TensorSpec>,
}

/// What a graph computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The prediction.
    Denoiser,
    /// The prediction and every layer's attention.
    Attention,
    /// Jacobian times vectors.
    Jvp,
    /// Transposed Jacobian times vectors.
    Vjp,
}

/// Where a graph may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphDevice {
    /// Anywhere.
    Any,
    /// On CUDA only.
    Cuda,
}

/// What a graph computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
}

/// Name, type and shape of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub dtype: TensorType,
    /// Its shape.
    pub shape: Vec<Dim>,
}

/// Element type of an input or output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// 64-bit integer.
    I64,
}

/// One dimension: a number, or the name of one that the caller chooses, such as `"n"` for the batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Always this.
    Fixed(usize),
    /// Chosen at run time.
    Named(String),
}

// === impl Dim ===

impl Dim {
    /// The batch: `"n"`.
    pub fn batch() -> Self {
        Self::Named("n".to_owned())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

// === impl TensorSpec ===

/// As in `x: f32[n,1,28,28]`.
impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match self.dtype {
            TensorType::F32 => "f32",
            TensorType::F16 => "f16",
            TensorType::I64 => "i64",
        };
        write!(f, "{}: {dtype}[", self.name)?;
        for (i, dim) in self.shape.iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}
