//! One vector after another: an ONNX model whose nodes that depend on one input run for each of its entries in turn.
//!
//! Forward and reverse mode make graphs of k vectors at once. What large layers make of k vectors does not fit into a
//! processor's cache, and of one it does: on the CPU the products of 16 vectors with the Jacobian of a network of 1,024 tokens take four
//! fifths of the time so, and what depends on the vectors a k-th of the memory. What they share is computed once, before the first.

use std::collections::HashSet;

use super::onnx::{AttributeProto, GraphProto, NodeProto, TensorTypeProto, TypeProto, ValueInfoProto};

/// Rewrites a graph so that what depends on the input `name`, `[k, …]`, is a Scan over its first axis, which has to be that of
/// the outputs that depend on it, too. Other inputs and outputs, and all names of them, stay as they are. `axis` is the name
/// of a constant `[0]`.
pub(super) fn one_by_one(graph: &mut GraphProto, name: &str, axis: &str) {
    let mut inside = HashSet::from([name.to_owned()]);
    let (mut body, mut before) = (Vec::new(), Vec::new());
    for node in std::mem::take(&mut graph.node) {
        if node.input.iter().any(|input| inside.contains(input)) {
            inside.extend(node.output.iter().filter(|output| !output.is_empty()).cloned());
            body.push(node);
        } else {
            before.push(node);
        }
    }
    let is_inside = |value: &&ValueInfoProto| value.name.as_ref().is_some_and(|name| inside.contains(name));
    let given: Vec<_> = graph.input.iter().filter(is_inside).cloned().collect();
    let made: Vec<_> = graph.output.iter().filter(is_inside).cloned().collect();
    // Names of the whole are taken: within, values that have them are called after one vector.
    let outer: HashSet<&str> = given.iter().chain(&made).filter_map(|value| value.name.as_deref()).collect();
    for value in body.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if outer.contains(value.as_str()) {
            *value = batch_of_one(value);
        }
    }
    debug_assert!(!made.is_empty(), "an output depends on {name}");
    let names = |values: &[ValueInfoProto]| values.iter().filter_map(|value| value.name.clone()).collect();
    let (given_names, made_names): (Vec<String>, Vec<String>) = (names(&given), names(&made));
    let along =
        |op: &str, from: String, to: String| node(op, vec![from, axis.to_owned()], vec![to], Vec::new());
    let first = given_names.iter().map(|name| along("Unsqueeze", one(name), batch_of_one(name)));
    let last = made_names.iter().map(|name| along("Squeeze", batch_of_one(name), one(name)));
    let body = GraphProto {
        node: first.chain(body).chain(last).collect(),
        name: Some("one".to_owned()),
        input: given.iter().map(info_of_one).collect(),
        output: made.iter().map(info_of_one).collect(),
        ..GraphProto::default()
    };
    let attributes = vec![AttributeProto::graph("body", body), AttributeProto::int("num_scan_inputs", 1)];
    before.push(node("Scan", given_names, made_names, attributes));
    graph.node = before;
}

fn node(op: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) -> NodeProto {
    let name = output.first().map(|output| format!("{output}.{}", op.to_lowercase()));
    NodeProto { input, output, name, op_type: Some(op.to_owned()), attribute }
}

/// What an entry of a value is called, without the first axis.
fn one(name: &str) -> String {
    format!("{name}.one")
}

/// The same with it.
fn batch_of_one(name: &str) -> String {
    format!("{name}.batch_of_one")
}

/// Name and type of an entry.
fn info_of_one(value: &ValueInfoProto) -> ValueInfoProto {
    let rest = |tensor: &TensorTypeProto| {
        let mut tensor = tensor.clone();
        tensor.shape.iter_mut().for_each(|shape| drop(shape.dim.drain(..1)));
        tensor
    };
    let tensor_type = value.r#type.as_ref().and_then(|ty| ty.tensor_type.as_ref()).map(rest);
    ValueInfoProto { name: value.name.as_deref().map(one), r#type: Some(TypeProto { tensor_type }) }
}

#[cfg(test)]
mod tests {
    use super::super::graph::Graph;
    use super::super::lower::lower;
    use super::super::ops::Op;
    use super::super::shape::{Dim, Dtype, Shape, Type};
    use super::super::weights::WeightFile;
    use super::*;

    /// `products = vectors · sin(x)`, and `sin(x)` by itself.
    fn lowered() -> GraphProto {
        let mut graph = Graph::over("k");
        let x = graph.input("x", Type::new(Dtype::F32, Shape::new([1, 3]))).unwrap();
        let vectors = Type::new(Dtype::F32, Shape::led_by(Dim::BATCH, &[3]));
        let vectors = graph.input("vectors", vectors).unwrap();
        let sin = graph.add("sin", Op::Sin, &[x]).unwrap();
        let product = graph.add("product", Op::Mul, &[vectors, sin]).unwrap();
        let turned = Op::Reshape(Shape::led_by(Dim::BATCH, &[3, 1]));
        let products = graph.add("products", turned, &[product]).unwrap();
        graph.output(products);
        graph.output(sin);
        graph.take_one_by_one(vectors);
        lower(&graph, &WeightFile::new(), "small", "").unwrap().graph.unwrap()
    }

    fn names(values: &[ValueInfoProto]) -> Vec<&str> {
        values.iter().map(|value| value.name.as_deref().unwrap()).collect()
    }

    fn ops(graph: &GraphProto) -> Vec<&str> {
        graph.node.iter().map(|node| node.op_type.as_deref().unwrap()).collect()
    }

    fn dims(value: &ValueInfoProto) -> Vec<Option<i64>> {
        let shape = value.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap();
        shape.dim.iter().map(|dim| dim.dim_value).collect()
    }

    #[test]
    fn what_depends_on_the_input_is_scanned_and_nothing_else() {
        let graph = lowered();
        assert_eq!(
            (names(&graph.input), names(&graph.output)),
            (vec!["x", "vectors"], vec!["products", "sin"])
        );
        assert_eq!(ops(&graph), ["Sin", "Scan"]);
        let scan = graph.node.last().unwrap();
        assert_eq!((&scan.input[..], &scan.output[..]), (&["vectors".into()][..], &["products".into()][..]));
        let body = scan.attribute.iter().find_map(|attribute| attribute.g.as_deref()).unwrap();
        assert_eq!(ops(body), ["Unsqueeze", "Mul", "Reshape", "Squeeze"]);
        assert_eq!((names(&body.input), names(&body.output)), (vec!["vectors.one"], vec!["products.one"]));
        assert_eq!(dims(&graph.output[0]), [None, Some(3), Some(1)]);
        assert_eq!((dims(&body.input[0]), dims(&body.output[0])), (vec![Some(3)], vec![Some(3), Some(1)]));
    }

    #[test]
    fn every_name_is_written_once_before_it_is_read() {
        let graph = lowered();
        let mut known: HashSet<String> = graph.initializer.iter().filter_map(|t| t.name.clone()).collect();
        known.extend(graph.input.iter().filter_map(|value| value.name.clone()));
        let mut follow = |nodes: &[NodeProto]| {
            for node in nodes {
                assert!(node.input.iter().all(|name| known.contains(name)), "{node:?}");
                assert!(node.output.iter().all(|name| known.insert(name.clone())), "{node:?}");
            }
        };
        let (scan, before) = graph.node.split_last().unwrap();
        follow(before);
        let body = scan.attribute.iter().find_map(|attribute| attribute.g.as_deref()).unwrap();
        let given = names(&body.input).iter().map(|name| (*name).to_owned()).collect();
        follow(&[NodeProto { output: given, ..NodeProto::default() }]);
        follow(&body.node);
        follow(std::slice::from_ref(scan));
    }
}
