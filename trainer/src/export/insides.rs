//! The graphs that show a network's insides: what its layers attend to, and products with its Jacobian. They read the
//! same weights as the denoiser, under the same names.

use windowpane_diffusion::{ModelConfig, Plan};

use super::adjoint::pull_back;
use super::attention::Attended;
use super::dit::Network;
use super::graph::{Graph, ValueId};
use super::ops::Op;
use super::shape::{Dim, Dtype, Shape, Type};
use super::tangent::push_forward;
use crate::error::Result;

/// The prediction, and what every layer's tokens see of each other: `x [n,c,h,w]`, `t [n]`, `y [n]` ->
/// `prediction [n,out,h,w]`, and for each layer `i` `attention.i [n,heads,tiles,queries,keys]`, tiles as `plans` has them
/// (one that holds the grid, where a layer is dense).
pub fn attention(config: &ModelConfig, plans: &[Plan]) -> Result<Graph> {
    let network = Network::new(Graph::new(), config, plans, Dtype::F32, Dim::BATCH)?;
    let Network { mut graph, prediction, attended, .. } = network;
    graph.output(prediction);
    for (i, attended) in attended.iter().enumerate() {
        let name = format!("attention.{i}");
        let groups: Vec<ValueId> = attended.probabilities().collect();
        let all = match groups[..] {
            [all] => {
                let shape = graph.ty(all).shape.clone();
                graph.add(&name, Op::Reshape(shape), &[all])?
            }
            _ => graph.add(&name, Op::Concat { axis: 1 }, &groups)?,
        };
        graph.output(all);
    }
    Ok(graph)
}

/// The Jacobian of the prediction with respect to the image, times vectors: `x [1,c,h,w]`, `t [1]`, `y [1]`,
/// `vectors [k,c,h,w]` -> `products [k,c,h,w]`, the k products J·v. Of a prediction that brings a variance along
/// only the mean is differentiated.
pub fn jvp(config: &ModelConfig, plans: &[Plan]) -> Result<Graph> {
    products(config, plans, |graph, x, vectors, output, _| push_forward(graph, x, vectors, output))
}

/// The transposed Jacobian times vectors, Jᵀ·u; otherwise as [`jvp`].
pub fn vjp(config: &ModelConfig, plans: &[Plan]) -> Result<Graph> {
    products(config, plans, pull_back)
}

/// Entries of what a layer passes on, `[tokens, hidden]`, from which vectors are taken one after another: as many fill a
/// processor's cache on the way through a layer. Of 256 tokens of 192, 16 vectors cost nine tenths so, and of 1,024 of 252 four
/// fifths; small products of matrices are slow, and 49 tokens of 160 would cost half as much again.
const LARGE: usize = 1 << 15;

/// Forward or reverse mode: graph, input, vectors, output and the attention between them to the products.
type Mode = fn(
    &mut Graph,
    ValueId,
    ValueId,
    ValueId,
    &[Attended],
) -> std::result::Result<ValueId, super::ExportError>;

fn products(config: &ModelConfig, plans: &[Plan], mode: Mode) -> Result<Graph> {
    let network = Network::new(Graph::over("k"), config, plans, Dtype::F32, Dim::Fixed(1))?;
    let Network { mut graph, x, mut prediction, attended } = network;
    if config.learn_sigma {
        let mean = Op::Slice { axis: 1, start: 0, len: config.channels };
        prediction = graph.add("prediction.mean", mean, &[prediction])?;
    }
    let shape = Shape::led_by(Dim::BATCH, &[config.channels, config.height, config.width]);
    let vectors = graph.input("vectors", Type::new(Dtype::F32, shape.clone()))?;
    if config.grid().tokens() * config.hidden >= LARGE {
        graph.take_one_by_one(vectors);
    }
    let products = mode(&mut graph, x, vectors, prediction, &attended)?;
    let products = graph.add("products", Op::Reshape(shape), &[products])?;
    graph.output(products);
    Ok(graph)
}
