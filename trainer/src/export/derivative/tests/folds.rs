//! What is folded on the way: softmaxes that only weigh, scales and means that go into weights. The derivative is the same,
//! and the graph is smaller.

use super::*;

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
    let mode: Mode = if forward { push_forward } else { reverse };
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
