//! Are subnormals flushed? A softmax over hidden scores produces numbers below 2^-126, and a processor that treats
//! them exactly takes six times as long over them. ONNX Runtime is asked to flush them to zero; whether it does
//! depends on which session came first and on which thread runs, so it is asked again with numbers.

use ::ort::session::Session;
use ::ort::value::TensorRef;

use super::EngineError;
use super::onnx::{Element, Model, Node, Port};
use super::ort::{Runtime, runtime_error};

/// Values in the probe: enough that the runtime spreads the product over all threads of its pool.
const LEN: usize = 1 << 20;

/// Multiplies two pairs of numbers all over a long vector: a subnormal by a large number, which is zero only if
/// subnormal inputs read as zero, and two normal ones whose product is subnormal, which is zero only if subnormal
/// results are written as zero. `true`: both are, everywhere.
pub fn subnormals_are_flushed(runtime: &Runtime) -> Result<bool, EngineError> {
    session(runtime).and_then(|mut session| run(&mut session)).map_err(|error| runtime_error(&error))
}

/// A session of one multiplication.
pub(super) fn session(runtime: &Runtime) -> ::ort::Result<Session> {
    runtime.builder()?.commit_from_memory(&graph())
}

fn graph() -> Vec<u8> {
    let port = |name| Port { name, element: Element::F32, shape: vec![None] };
    let model = Model {
        inputs: vec![port("a"), port("b")],
        outputs: vec![port("c")],
        nodes: vec![Node { op: "Mul", inputs: ["a", "b"], output: "c" }],
        externals: Vec::new(),
    };
    model.encode()
}

fn run(session: &mut Session) -> ::ort::Result<bool> {
    let alternate = |even, odd| (0..LEN).map(|i| if i % 2 == 0 { even } else { odd }).collect::<Vec<f32>>();
    let (a, b) = (alternate(1e-39, 2e-38), alternate(1e10, 0.1));
    let a = TensorRef::from_array_view(([LEN], a.as_slice()))?;
    let b = TensorRef::from_array_view(([LEN], b.as_slice()))?;
    let outputs = session.run(::ort::inputs!["a" => a, "b" => b])?;
    let (_, c) = outputs[0].try_extract_tensor::<f32>()?;
    Ok(c.iter().all(|&c| c == 0.0))
}
