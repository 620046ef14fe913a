//! The rules one by one: an op, or two, of an `x`.

use super::*;

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

/// Through f16 the products themselves are rounded, in autograd as in ours.
#[test]
fn other_types_on_the_way() {
    for lead in LEADING {
        check_within(2e-3, "there and back", &[lead, 2, 5], |case, x| {
            let half = case.add("half", Op::Cast(Dtype::F16), &[x]);
            let back = case.add("back", Op::Cast(Dtype::F32), &[half]);
            case.add("y", Op::Sin, &[back])
        });
    }
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
    assert!(reverse(&mut graph, x, vectors, turned).unwrap_err().to_string().starts_with("turned: "));
    let index = graph.indices("index", &[2], vec![1, 7]).unwrap();
    let beyond = graph.add("beyond", Op::Gather { axis: 1 }, &[x, index]).unwrap();
    let vectors = graph.input("v", Type::new(Dtype::F32, graph.ty(beyond).shape.batched().unwrap())).unwrap();
    let error = reverse(&mut graph, x, vectors, beyond).unwrap_err().to_string();
    assert!(
        error.starts_with("beyond.adjoint.0: a Gather of row 7 of 3, counted from 0, has no derivative"),
        "{error}"
    );
    for mode in [push_forward, reverse] {
        let error = mode(&mut graph, x, vectors, aside).unwrap_err().to_string();
        assert_eq!(error, "`aside` does not depend on `x`");
    }
}
