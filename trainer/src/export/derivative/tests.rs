//! Every rule against libtorch: a graph's Jacobian by autograd, row by row, against what forward and reverse mode make
//! of random vectors.

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
    assert!(error < 2e-5, "{what}, forward: {error}");
    let (u, pulled) = run(pull_back, y, rows);
    let error = difference(&pulled, &u.matmul(&expected));
    assert!(error < 2e-5, "{what}, reverse: {error}");
    // ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ of every pair, which needs no autograd to be true.
    let (left, right) = (u.matmul(&pushed.tr()), pulled.matmul(&v.tr())); // (k, k)
    let scale = u.norm() * pushed.norm();
    let error = ((left - right).norm() / scale.clamp_min(1e-12)).double_value(&[]);
    assert!(error < 2e-5, "{what}, one mode against the other: {error}");
}

/// One image, and several values along the first axis.
const LEADING: [usize; 2] = [1, 3];

#[test]
fn functions_of_elements() {
    for lead in LEADING {
        for op in [Op::Sigmoid, Op::Gelu, Op::Sin, Op::Cos, Op::Softmax, Op::LayerNorm { epsilon: 1e-2 }] {
            check(&op.to_string(), &[lead, 2, 5], |case, x| case.add("y", op.clone(), &[x]));
        }
    }
    // The first axis is the last one, too.
    check("a softmax of a list", &[6], |case, x| case.add("y", Op::Softmax, &[x]));
    check("a layer norm of a list", &[6], |case, x| case.add("y", Op::LayerNorm { epsilon: 0.1 }, &[x]));
}

#[test]
fn sums_and_products_broadcast() {
    for lead in LEADING {
        for op in [Op::Add, Op::Mul] {
            let what = |which: &str| format!("{op} of {which}, {lead}");
            check(&what("itself"), &[lead, 4], |case, x| case.add("y", op.clone(), &[x, x]));
            check(&what("two functions"), &[lead, 4], |case, x| {
                let (a, b) = (case.add("a", Op::Sin, &[x]), case.add("b", Op::Cos, &[x]));
                case.add("y", op.clone(), &[a, b])
            });
            for other in [&[4][..], &[], &[2, 1], &[lead, 2, 4], &[1, 2, 1]] {
                check(&what("a constant"), &[lead, 2, 4], |case, x| {
                    let other = case.parameter("other", other);
                    case.add("y", op.clone(), &[other, x])
                });
            }
            for own in [&[lead, 1, 4][..], &[1, 2, 4], &[4], &[2, 1]] {
                check(&what("something larger"), own, |case, x| {
                    let other = case.parameter("other", &[lead, 2, 4]);
                    case.add("y", op.clone(), &[x, other])
                });
                check(&what("both, one larger"), &[own.iter().product::<usize>()], |case, x| {
                    let small = case.reshape("small", own, x);
                    let wide = case.parameter("wide", &[lead, 2, 4]);
                    let wide = case.add("large", Op::Mul, &[small, wide]);
                    case.add("y", op.clone(), &[small, wide])
                });
            }
        }
    }
}

#[test]
fn products_of_matrices() {
    for transpose_b in [false, true] {
        check("a linear layer", &[3, 4], |case, x| {
            let weight = case.parameter("w", if transpose_b { &[5, 4] } else { &[4, 5] });
            let bias = case.parameter("b", &[5]);
            case.add("y", Op::Gemm { transpose_b }, &[x, weight, bias])
        });
    }
    for lead in LEADING {
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let op = Op::MatMul { transpose_a, transpose_b };
            let a = if transpose_a { [lead, 2, 4, 3] } else { [lead, 2, 3, 4] };
            let b = if transpose_b { [lead, 2, 5, 4] } else { [lead, 2, 4, 5] };
            check(&format!("{op}, left"), &a, |case, x| {
                let other = case.parameter("b", &b);
                case.add("y", op.clone(), &[x, other])
            });
            check(&format!("{op}, right"), &b, |case, x| {
                let other = case.parameter("a", &a);
                case.add("y", op.clone(), &[other, x])
            });
            check(&format!("{op}, both"), &[lead, 24], |case, x| {
                let (left, right) = (case.reshape("a", &a, x), case.add("sin", Op::Sin, &[x]));
                let widths = case.parameter("widths", &[24, 40]);
                let right = case.add("wide", Op::Gemm { transpose_b: false }, &[right, widths]);
                let right = case.reshape("b", &b, right);
                case.add("y", op.clone(), &[left, right])
            });
        }
        check("a product that broadcasts", &[lead, 1, 3, 4], |case, x| {
            let other = case.parameter("b", &[lead, 2, 4, 5]);
            case.add("y", Op::MatMul { transpose_a: false, transpose_b: false }, &[x, other])
        });
    }
}

/// Softmaxes that weigh something and do nothing else, and ones that do.
#[test]
fn weights() {
    let product = Op::MatMul { transpose_a: false, transpose_b: false };
    for lead in LEADING {
        let scores = [lead, 2, 3, 4];
        check("weights of what stays", &scores, |case, x| {
            let (p, v) = (case.add("p", Op::Softmax, &[x]), case.parameter("v", &[lead, 2, 4, 5]));
            case.add("y", product.clone(), &[p, v])
        });
        for used_twice in [false, true] {
            check("weights of what changes", &[lead, 24], |case, x| {
                let widths = case.parameter("widths", &[24, 40]);
                let v = case.add("wide", Op::Gemm { transpose_b: false }, &[x, widths]);
                let (x, v) = (case.reshape("scores", &scores, x), case.reshape("v", &[lead, 2, 4, 5], v));
                let p = case.add("p", Op::Softmax, &[x]);
                let y = case.add("y", product.clone(), &[p, v]);
                if !used_twice {
                    return y;
                }
                let parts = [case.reshape("a", &[lead, 30], y), case.reshape("b", &[lead, 24], p)];
                case.add("both", Op::Concat { axis: 1 }, &parts)
            });
        }
        check("weights of what broadcasts", &scores, |case, x| {
            let (p, v) = (case.add("p", Op::Softmax, &[x]), case.parameter("v", &[4, 5]));
            case.add("y", product.clone(), &[p, v])
        });
        check("two that weigh the same", &scores, |case, x| {
            let sin = case.add("sin", Op::Sin, &[x]);
            let v = case.parameter("v", &[lead, 2, 4, 5]);
            let [a, b] = [("a", x), ("b", sin)].map(|(name, scores)| {
                let p = case.add(&format!("{name}.p"), Op::Softmax, &[scores]);
                case.add(&format!("{name}.y"), product.clone(), &[p, v])
            });
            case.add("y", Op::Add, &[a, b])
        });
        check("weights that broadcast", &[lead, 1, 3, 4], |case, x| {
            let (p, v) = (case.add("p", Op::Softmax, &[x]), case.parameter("v", &[lead, 2, 4, 5]));
            case.add("y", product.clone(), &[p, v])
        });
        check("weights alone, of what changes", &[lead, 2, 4, 5], |case, x| {
            let scores = case.parameter("scores", &scores);
            let p = case.add("p", Op::Softmax, &[scores]);
            case.add("y", product.clone(), &[p, x])
        });
    }
}

/// `gate (W (scale norm(x)) + b)`, of `tokens` rows of six numbers: a network's branch.
fn branch(case: &mut Case<'_>, x: ValueId, tokens: usize, transpose_b: bool) -> ValueId {
    let normed = case.add("normed", Op::LayerNorm { epsilon: 1e-3 }, &[x]);
    let (scale, gate) = (case.parameter("scale", &[1, 1, 6]), case.parameter("gate", &[6]));
    let scaled = case.add("scaled", Op::Mul, &[scale, normed]);
    let rows = case.reshape("rows", &[tokens, 6], scaled);
    let (weight, bias) = (case.parameter("w", &[6, 6]), case.parameter("b", &[6]));
    let rows = case.add("linear", Op::Gemm { transpose_b }, &[rows, weight, bias]);
    let out = case.reshape("tokens", &[1, tokens, 6], rows);
    case.add("y", Op::Mul, &[out, gate])
}

#[test]
fn scales_and_means_around_a_linear_layer() {
    for transpose_b in [false, true] {
        for tokens in [1, 8] {
            check("a branch", &[1, tokens, 6], |case, x| branch(case, x, tokens, transpose_b));
            // What is scaled is used for something else, too; or the scale differs from token to token.
            check("two uses", &[1, tokens, 6], |case, x| {
                let y = branch(case, x, tokens, transpose_b);
                let scaled = case.graph.values().find(|(_, value)| value.name == "scaled").unwrap().0;
                case.add("both", Op::Mul, &[y, scaled])
            });
            check("a row that widens", &[1, tokens, 1], |case, x| {
                let row = case.parameter("row", &[6]);
                let wide = case.add("wide", Op::Mul, &[x, row]);
                let rows = case.reshape("rows", &[tokens, 6], wide);
                let weight = case.parameter("w2", &[6, 6]);
                case.add("out", Op::Gemm { transpose_b }, &[rows, weight])
            });
            check("a column", &[1, tokens, 6], |case, x| {
                let column = case.parameter("column", &[1, tokens, 1]);
                let y = branch(case, x, tokens, transpose_b);
                let y = case.add("times", Op::Mul, &[y, column]);
                let rows = case.reshape("times.rows", &[tokens, 6], y);
                let weight = case.parameter("w2", &[6, 6]);
                case.add("out", Op::Gemm { transpose_b }, &[rows, weight])
            });
        }
    }
}

/// Of what `build` makes of an `x` of these dimensions, forward or in reverse: products, sums along an axis and sums of two
/// that are taken of values which have so many entries, or more, for every vector.
fn count(
    forward: bool,
    dims: &[usize],
    entries: usize,
    build: impl Fn(&mut Case<'_>, ValueId) -> ValueId,
) -> [usize; 3] {
    let (mut graph, mut given) = (Graph::over("k"), HashMap::new());
    let x = graph.input("x", Type::new(Dtype::F32, Shape::new(dims.iter().copied()))).unwrap();
    let y = build(&mut Case { graph: &mut graph, given: &mut given }, x);
    let shape = graph.ty(if forward { x } else { y }).shape.batched().unwrap();
    let vectors = graph.input("vectors", Type::new(Dtype::F32, shape)).unwrap();
    let mode: Mode = if forward { push_forward } else { pull_back };
    let products = mode(&mut graph, x, vectors, y).unwrap();
    graph.output(products);
    let live = graph.live();
    let of = |wanted: fn(&Op) -> bool| {
        let is = |value: &Value| match &value.source {
            Source::Node { op, inputs } if wanted(op) => {
                let mut volumes = inputs.iter().map(|&input| graph.ty(input).shape.volume());
                volumes.any(|(volume, power)| power == 1 && volume >= entries)
            }
            _ => false,
        };
        graph.values().filter(|(id, value)| live.contains(id) && is(value)).count()
    };
    [of(|op| *op == Op::Mul), of(|op| matches!(op, Op::Sum { .. })), of(|op| *op == Op::Add)]
}

#[test]
fn scales_and_means_go_into_weights() {
    // Each mode has the norm's own; forward the mean, too, since there the norm comes first.
    let of = |forward| count(forward, &[1, 8, 6], 8 * 6, |case, x| branch(case, x, 8, true));
    assert_eq!([of(true), of(false)], [[2, 2, 2], [2, 1, 1]]);
    // A weight that is larger than some vectors stays as it is.
    let wide = |forward| {
        count(forward, &[1, 1, 9], 9, |case, x| {
            let scale = case.parameter("scale", &[1, 1, 9]);
            let scaled = case.add("scaled", Op::Mul, &[x, scale]);
            let rows = case.reshape("rows", &[1, 9], scaled);
            let weight = case.parameter("w", &[9, 9]);
            case.add("y", Op::Gemm { transpose_b: true }, &[rows, weight])
        })
    };
    assert_eq!([wide(true), wide(false)], [[1, 0, 0], [1, 0, 0]]);
}

#[test]
fn probabilities_are_gone_over_once_or_twice() {
    let of = |forward| {
        count(forward, &[1, 2, 9, 9], 2 * 9 * 9, |case, x| {
            let (p, v) = (case.add("p", Op::Softmax, &[x]), case.parameter("v", &[1, 2, 9, 3]));
            case.add("y", Op::MatMul { transpose_a: false, transpose_b: false }, &[p, v])
        })
    };
    // What they are multiplied by, and forward the sums of their rows.
    assert_eq!([of(true), of(false)], [[1, 1, 0], [1, 0, 0]]);
}

#[test]
fn what_only_moves() {
    for lead in LEADING {
        check("reshape", &[lead, 4, 6], |case, x| case.reshape("y", &[lead * 2, 12], x));
        check("transpose", &[lead, 2, 3, 4], |case, x| case.add("y", Op::Transpose(vec![0, 3, 1, 2]), &[x]));
        check("slice", &[lead, 5, 2], |case, x| case.add("y", Op::Slice { axis: 1, start: 1, len: 3 }, &[x]));
        check("pad", &[lead, 3, 2], |case, x| case.add("y", Op::Pad { axis: 2, before: 1, after: 2 }, &[x]));
        check("sum", &[lead, 3, 2], |case, x| case.add("y", Op::Sum { axis: 1 }, &[x]));
        check("concat", &[lead, 3, 2], |case, x| {
            let (constant, sin) = (case.parameter("c", &[lead, 4, 2]), case.add("sin", Op::Sin, &[x]));
            let whole = case.add("all", Op::Concat { axis: 1 }, &[x, sin]);
            case.add("y", Op::Concat { axis: 1 }, &[whole, constant, sin])
        });
        check("rows, some twice, one never", &[lead, 4, 3], |case, x| {
            let index = case.indices("index", &[2, 3], &[3, 0, 3, 1, 1, 1]);
            case.add("y", Op::Gather { axis: 1 }, &[x, index])
        });
        check("rows whose places are digits", &[lead, 12, 3], |case, x| {
            // Rows are [y, x, head] of 3 × 2 × 2: twice the middle, one head from others than the second.
            let down = case.indices("down", &[4, 1], &[0, 4, 4, 8]);
            let across = case.indices("across", &[1, 3], &[0, 2, 2]);
            let tokens = case.add("tokens", Op::Add, &[down, across]);
            let (middle, second) =
                (case.indices("middle", &[3], &[0, 4, 8]), case.indices("head", &[1], &[1]));
            let few = case.add("few", Op::Add, &[middle, second]);
            let sums = [tokens, few].map(|id| OuterSum::of(case.graph, id).unwrap());
            assert_eq!(Inverse::of(12, &sums).unwrap().upper, [3, 2], "these are no digits");
            let first = case.add("first", Op::Gather { axis: 1 }, &[x, tokens]);
            let second = case.add("second", Op::Gather { axis: 1 }, &[x, few]);
            let flat = [(first, 36), (second, 9)].map(|(part, n)| {
                let name = format!("{}.flat", case.graph.value(part).name);
                case.reshape(&name, &[lead, n], part)
            });
            case.add("y", Op::Concat { axis: 1 }, &flat)
        });
        check("two values of other lengths, by one index", &[lead, 4, 3], |case, x| {
            let (index, twice) =
                (case.indices("index", &[2], &[3, 1]), case.add("xx", Op::Concat { axis: 1 }, &[x, x]));
            let few = case.add("few", Op::Gather { axis: 1 }, &[x, index]);
            let many = case.add("many", Op::Gather { axis: 1 }, &[twice, index]);
            case.add("y", Op::Concat { axis: 1 }, &[few, many])
        });
        check("rows gathered thrice, along two axes", &[lead, 4, 3], |case, x| {
            let (a, b) = (case.indices("a", &[4], &[3, 2, 1, 0]), case.indices("b", &[1, 2], &[1, 3]));
            let first = case.add("first", Op::Gather { axis: 1 }, &[x, a]);
            let second = case.add("second", Op::Gather { axis: 1 }, &[x, b]);
            let c = case.indices("c", &[2], &[2, 0]);
            let third = case.add("third", Op::Gather { axis: 2 }, &[x, c]);
            let flat = [(first, 12), (second, 6), (third, 8)].map(|(part, n)| {
                let name = format!("{}.flat", case.graph.value(part).name);
                case.reshape(&name, &[lead, n], part)
            });
            case.add("y", Op::Concat { axis: 1 }, &flat)
        });
    }
}

/// Strided and padded, with pixels left over at the far end.
#[test]
fn convolutions() {
    for (step, padding, side) in [(1, 1, 5), (2, 1, 6), (2, 1, 7), (3, 0, 8)] {
        let stride = Stride { step, padding };
        check(&format!("convolution, {stride:?}"), &[2, 3, side, side + 1], |case, x| {
            let weight = case.parameter("w", &[4, 3, 3, 3]);
            case.add("y", Op::Conv(stride), &[x, weight])
        });
        check(&format!("its transpose, {stride:?}"), &[2, 4, 3, 2], |case, x| {
            let weight = case.parameter("w", &[4, 3, 3, 3]);
            let extra = [step - 1, 0];
            case.add("y", Op::ConvTranspose { stride, extra }, &[x, weight])
        });
    }
}

/// Group norm by what there is: a layer norm over each group's channels and pixels, then a scale and a shift a channel.
fn group_norm(case: &mut Case<'_>, name: &str, x: ValueId, groups: usize, dims: [usize; 4]) -> ValueId {
    let [n, c, h, w] = dims;
    let x = case.reshape(&format!("{name}.groups"), &[n, groups, c / groups * h * w], x);
    let x = case.add(&format!("{name}.normalised"), Op::LayerNorm { epsilon: 1e-5 }, &[x]);
    let x = case.reshape(&format!("{name}.image"), &dims, x);
    let scale = case.parameter(&format!("{name}.weight"), &[c, 1, 1]);
    let shift = case.parameter(&format!("{name}.bias"), &[c, 1, 1]);
    let x = case.add(&format!("{name}.scaled"), Op::Mul, &[x, scale]);
    case.add(&format!("{name}.shifted"), Op::Add, &[x, shift])
}

/// Down by a strided convolution, up by nearest neighbours, a skip between, group norms and SiLUs.
#[test]
fn a_small_unet() {
    check("a UNet", &[1, 2, 6, 6], |case, x| {
        let (down, same) = (Stride { step: 2, padding: 1 }, Stride { step: 1, padding: 1 });
        let weight = case.parameter("in.weight", &[4, 2, 3, 3]);
        let skip = case.add("in", Op::Conv(same), &[x, weight]);
        let h = group_norm(case, "norm1", skip, 2, [1, 4, 6, 6]);
        let gate = case.add("gate", Op::Sigmoid, &[h]);
        let h = case.add("silu", Op::Mul, &[h, gate]);
        let weight = case.parameter("down.weight", &[6, 4, 3, 3]);
        let h = case.add("down", Op::Conv(down), &[h, weight]);
        let h = group_norm(case, "norm2", h, 3, [1, 6, 3, 3]);
        let twice = case.indices("twice", &[6], &[0, 0, 1, 1, 2, 2]);
        let h = case.add("up.rows", Op::Gather { axis: 2 }, &[h, twice]);
        let h = case.add("up", Op::Gather { axis: 3 }, &[h, twice]);
        let h = case.add("joined", Op::Concat { axis: 1 }, &[h, skip]);
        let weight = case.parameter("out.weight", &[2, 10, 3, 3]);
        case.add("y", Op::Conv(same), &[h, weight])
    });
}

#[test]
fn what_has_no_derivative_says_so() {
    let mut graph = Graph::over("k");
    let ty = |dims: &[usize]| Type::new(Dtype::F32, Shape::new(dims.iter().copied()));
    let x = graph.input("x", ty(&[2, 3])).unwrap();
    let turned = graph.add("turned", Op::Transpose(vec![1, 0]), &[x]).unwrap();
    let aside = graph.parameter("aside", ty(&[2])).unwrap();
    let vectors =
        graph.input("vectors", Type::new(Dtype::F32, graph.ty(x).shape.batched().unwrap())).unwrap();
    let error = push_forward(&mut graph, x, vectors, turned).unwrap_err().to_string();
    assert!(error.starts_with("turned: Transpose([1, 0]) has no derivative"), "{error}");
    assert!(pull_back(&mut graph, x, vectors, turned).unwrap_err().to_string().starts_with("turned: "));
    let index = graph.indices("index", &[2], vec![1, 7]).unwrap();
    let beyond = graph.add("beyond", Op::Gather { axis: 1 }, &[x, index]).unwrap();
    let vectors = graph.input("v", Type::new(Dtype::F32, graph.ty(beyond).shape.batched().unwrap())).unwrap();
    let error = pull_back(&mut graph, x, vectors, beyond).unwrap_err().to_string();
    assert!(
        error.starts_with("beyond.adjoint.0: a Gather of row 7 of 3, counted from 0, has no derivative"),
        "{error}"
    );
    for mode in [push_forward, pull_back] {
        let error = mode(&mut graph, x, vectors, aside).unwrap_err().to_string();
        assert_eq!(error, "`aside` does not depend on `x`");
    }
}

fn network(height: usize, width: usize, patch: usize, learn_sigma: bool) -> (ModelConfig, Vec<Plan>) {
    let local = |side| Window::local(side).unwrap();
    let windows = vec![local(3), Window::Global, local(5), local(3)];
    let config = ModelConfig {
        channels: 2,
        height: height * patch,
        width: width * patch,
        patch,
        hidden: 16,
        depth: windows.len(),
        heads: 2,
        mlp_ratio: 2,
        classes: 3,
        learn_sigma,
        windows,
    };
    config.validate().unwrap();
    // Tiles that divide the grid and tiles that do not.
    let tiles = |height, width| Plan::Tiles(Tile { height, width });
    (config, vec![tiles(2, 2), Plan::Dense, tiles(3, 2), Plan::Dense])
}

#[test]
fn the_networks_jacobian_is_autograds() {
    for (height, width, patch, learn_sigma) in [(6, 4, 1, false), (4, 5, 2, true)] {
        let (config, plans) = network(height, width, patch, learn_sigma);
        let flat = parameters(&config);
        let net = Geometry::planned(&config, |_, _| Plan::Dense, Kind::Float, Device::Cpu).bind(&flat);
        let _draws = crate::testing::seeded(6);
        let image = sizes(&[1, config.channels, config.height, config.width]);
        let x = Tensor::randn(&image[..], CPU).set_requires_grad(true);
        let (t, y) = (Tensor::from_slice(&[412.75f32]), Tensor::from_slice(&[1i64]));
        let mean = net.forward(&x, &t, &y).narrow(1, 0, config.channels as i64);
        let expected = jacobian(&mean, &x);
        let mut given = by_name(&config, &flat);
        given.extend([("x", x.detach()), ("t", t), ("y", y)].map(|(name, value)| (name.to_owned(), value)));
        let vectors = Tensor::randn([K, config.elements() as i64], CPU);
        let shape = sizes(&[K as usize, config.channels, config.height, config.width]);
        given.insert("vectors".to_owned(), vectors.view(&shape[..]));
        let jvp = evaluate(&insides::jvp(&config, &plans).unwrap(), &given).unwrap().remove(0);
        let error = difference(&jvp.reshape([K, -1]), &vectors.matmul(&expected.transpose(0, 1)));
        assert!(error < 2e-5, "forward: {error}");
        let vjp = evaluate(&insides::vjp(&config, &plans).unwrap(), &given).unwrap().remove(0);
        let error = difference(&vjp.reshape([K, -1]), &vectors.matmul(&expected));
        assert!(error < 2e-5, "reverse: {error}");
    }
}
