//! Every rule against libtorch: a graph's Jacobian by autograd, row by row, against what forward and reverse mode make
//! of random vectors.

mod folds;
mod networks;
mod rules;

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{ModelConfig, Plan, Tile, Window};

use super::super::ExportError;
use super::super::adjoint::pull_back;
use super::super::dit::tests::{by_name, parameters};
use super::super::eval::evaluate;
use super::super::graph::{Graph, Source, Value, ValueId};
use super::super::insides;
use super::super::inverse::Inverse;
use super::super::ops::{Op, Stride};
use super::super::outer::OuterSum;
use super::super::shape::{Dtype, Shape, Type};
use super::super::tangent::push_forward;
use crate::model::Geometry;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Forward or reverse.
type Mode = fn(&mut Graph, ValueId, ValueId, ValueId) -> Result<ValueId, ExportError>;

/// Reverse mode, operation by operation.
fn reverse(graph: &mut Graph, x: ValueId, vectors: ValueId, y: ValueId) -> Result<ValueId, ExportError> {
    pull_back(graph, x, vectors, y, &[])
}

/// Vectors at once.
const K: i64 = 3;

fn sizes(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&n| n as i64).collect()
}

/// max|Δ| / max|expected|.
fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    assert!(largest(expected) > 1e-3, "a derivative that is nothing proves nothing");
    largest(&(got - expected)) / largest(expected)
}

/// The Jacobian of `y` with respect to `x`, `[elements of y, elements of x]`.
fn jacobian(y: &Tensor, x: &Tensor) -> Tensor {
    let y = y.flatten(0, -1);
    let row = |i| {
        let row = Tensor::run_backward(&[y.get(i)], &[x], true, false).remove(0);
        row.flatten(0, -1)
    };
    Tensor::stack(&(0..y.size()[0]).map(row).collect::<Vec<_>>(), 0)
}

/// What a graph is made of besides `x`.
struct Case<'a> {
    graph: &'a mut Graph,
    given: &'a mut HashMap<String, Tensor>,
}

impl Case<'_> {
    /// A parameter with random values.
    fn parameter(&mut self, name: &str, dims: &[usize]) -> ValueId {
        self.given.insert(name.to_owned(), Tensor::randn(sizes(dims), CPU));
        self.graph.parameter(name, Type::new(Dtype::F32, Shape::new(dims.iter().copied()))).unwrap()
    }

    fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        self.graph.add(name, op, inputs).unwrap()
    }

    fn reshape(&mut self, name: &str, dims: &[usize], x: ValueId) -> ValueId {
        self.add(name, Op::Reshape(Shape::new(dims.iter().copied())), &[x])
    }

    fn indices(&mut self, name: &str, dims: &[usize], values: &[i64]) -> ValueId {
        self.graph.indices(name, dims, values.to_vec()).unwrap()
    }
}

/// Both modes of what `build` makes of an `x` of these dimensions, against autograd.
fn check(what: &str, dims: &[usize], build: impl Fn(&mut Case<'_>, ValueId) -> ValueId) {
    check_within(2e-5, what, dims, build);
}

/// The same, to so much of the largest.
fn check_within(most: f64, what: &str, dims: &[usize], build: impl Fn(&mut Case<'_>, ValueId) -> ValueId) {
    let _draws = crate::testing::seeded(5);
    let (mut graph, mut given) = (Graph::over("k"), HashMap::new());
    let x = graph.input("x", Type::new(Dtype::F32, Shape::new(dims.iter().copied()))).unwrap();
    let y = build(&mut Case { graph: &mut graph, given: &mut given }, x);
    let at = Tensor::randn(sizes(dims), CPU).set_requires_grad(true);
    given.insert("x".to_owned(), at.shallow_clone());
    let expected = {
        let mut graph = graph.clone();
        graph.output(y);
        jacobian(&evaluate(&graph, &given).unwrap()[0], &at)
    };
    given.insert("x".to_owned(), at.detach());
    let run = |mode: Mode, of: ValueId, elements: i64| {
        let mut graph = graph.clone();
        let shape = graph.ty(of).shape.batched().unwrap();
        let vectors = graph.input("vectors", Type::new(Dtype::F32, shape.clone())).unwrap();
        let products = mode(&mut graph, x, vectors, y).unwrap_or_else(|error| panic!("{what}: {error}"));
        graph.output(products);
        let values = Tensor::randn([K, elements], CPU);
        let mut given: HashMap<_, _> =
            given.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        let mut dims = sizes(&graph.ty(of).shape.fixed().unwrap());
        dims[0] *= K;
        given.insert("vectors".to_owned(), values.reshape(&dims[..]));
        let got = evaluate(&graph, &given).unwrap().remove(0).reshape([K, -1]);
        (values, got)
    };
    let (rows, cols) = expected.size2().unwrap();
    let (v, pushed) = run(push_forward, x, cols);
    let error = difference(&pushed, &v.matmul(&expected.transpose(0, 1)));
    assert!(error < most, "{what}, forward: {error}");
    let (u, pulled) = run(reverse, y, rows);
    let error = difference(&pulled, &u.matmul(&expected));
    assert!(error < most, "{what}, reverse: {error}");
    // ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ of every pair, which needs no autograd to be true.
    let (left, right) = (u.matmul(&pushed.tr()), pulled.matmul(&v.tr())); // (k, k)
    let scale = u.norm() * pushed.norm();
    let error = ((left - right).norm() / scale.clamp_min(1e-12)).double_value(&[]);
    assert!(error < most, "{what}, one mode against the other: {error}");
}

/// One image, and several values along the first axis.
const LEADING: [usize; 2] = [1, 3];
