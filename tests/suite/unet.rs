//! What no shipped network has, in ONNX Runtime: convolutions with strides, their transposes, group norms and pixels that are
//! doubled. The trainer writes a small UNet of them, forward and both derivatives, with libtorch's answers.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::onnx::Graph;
use suite::{Package, TestServer, Trainer, python};

/// Largest error against libtorch, of the largest value: a few roundings of f32, summed over a network. As a package's own.
const TOLERANCE: f64 = 1e-4;

/// The graphs, by the case of the golden that each is held to.
const GRAPHS: [(&str, &str); 3] = [("denoiser", "batch3"), ("jvp", "jvp3"), ("vjp", "vjp3")];

/// A package with the trainer's UNet for a network, whose images and classes are those of models/tiny.
fn package(trainer: &Trainer) -> Package {
    let (package, written) = (Package::tiny(), tempfile::tempdir().unwrap());
    trainer.run(written.path(), &["export-ops", "unet", "--unet"]);
    let written = written.path().join("unet");
    // ONNX's own checker and its inference of shapes agree with ours.
    python("check_onnx.py", [written.to_str().unwrap()]);
    package.edit(|manifest| {
        manifest["name"] = json!("unet");
        let graphs = manifest["graphs"].as_array_mut().unwrap();
        graphs.retain(|graph| graph["dtype"] == "f32" && graph["role"] != "attention");
        assert_eq!(graphs.len(), GRAPHS.len());
        for (graph, (role, case)) in graphs.iter_mut().zip(GRAPHS) {
            assert_eq!((&graph["role"], &graph["tolerance"]), (&json!(role), &json!(TOLERANCE)));
            graph["golden"] = json!([case]);
        }
        for gone in ["attention.f32.onnx", "denoiser.f16.onnx"] {
            manifest["files"].as_object_mut().unwrap().remove(gone).unwrap();
        }
    });
    for gone in ["attention.f32.onnx", "denoiser.f16.onnx"] {
        fs::remove_file(package.file(gone)).unwrap();
    }
    let graphs = GRAPHS.map(|(role, _)| format!("{role}.f32.onnx"));
    for file in graphs.iter().map(String::as_str).chain(["weights.bin", "golden.safetensors"]) {
        package.write_pinned(file, &fs::read(written.join(file)).unwrap());
    }
    package
}

/// A tensor as the Open Inference Protocol has it in JSON.
fn tensor(golden: &SafeTensors<'_>, case: &str, name: &str) -> Value {
    let tensor = golden.tensor(&format!("{case}.{name}")).unwrap();
    let (datatype, data) = match tensor.dtype() {
        safetensors::Dtype::I64 => {
            let words = tensor.data().as_chunks::<8>().0;
            ("INT64", json!(words.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect::<Vec<_>>()))
        }
        _ => ("FP32", json!(floats(tensor.data()))),
    };
    json!({"name": name, "shape": tensor.shape(), "datatype": datatype, "data": data})
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
}

#[test]
fn convolutions_in_the_runtime_are_libtorchs_and_so_are_their_derivatives() {
    let Some(trainer) = Trainer::shared() else { return };
    let package = package(trainer);
    let bytes = package.read("golden.safetensors");
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    // It starts only if the first of the graphs matches its golden, and opens the others only if they do.
    let server = TestServer::start(package.config());
    for (role, case) in GRAPHS {
        let (model, output) = match role {
            "denoiser" => ("unet".to_owned(), "prediction"),
            inside => (format!("unet.{inside}"), "products"),
        };
        let mut inputs = vec!["x", "t", "y"];
        inputs.extend((output == "products").then_some("vectors"));
        let inputs: Vec<Value> = inputs.into_iter().map(|name| tensor(&golden, case, name)).collect();
        let request = server.request("POST", &format!("/v2/models/{model}/infer"));
        let answer = server.send(request.body(json!({"inputs": inputs}).to_string())).ok().json();
        let expected = golden.tensor(&format!("{case}.{output}")).unwrap();
        assert_eq!(answer["outputs"][0]["shape"], json!(expected.shape()), "{role}");
        let expected = floats(expected.data());
        let got: Vec<f64> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
        let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        let error = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        assert_eq!(got.len(), expected.len(), "{role}");
        assert!(largest > 0.1 && error < TOLERANCE, "{role}: {error} of {largest}");
    }
}

/// Lest the network become one that proves less.
#[test]
fn the_network_has_what_it_is_for() {
    let Some(trainer) = Trainer::shared() else { return };
    let package = package(trainer);
    for (role, _) in GRAPHS {
        let graph = Graph::open(&package.file(&format!("{role}.f32.onnx")));
        let nodes = graph.every_node();
        let of = |op: &str, attribute: &str| -> Vec<Vec<i64>> {
            let nodes = nodes.iter().filter(|node| node.op == op);
            nodes.map(|node| node.integers(attribute).to_vec()).collect()
        };
        let (strides, extra) = (of("Conv", "strides"), of("ConvTranspose", "output_padding"));
        // Strides of one and of two; transposes that leave over a row, and in reverse one of each, or nothing.
        assert!(strides.contains(&vec![1, 1]) && strides.contains(&vec![2, 2]), "{role}: {strides:?}");
        assert!(extra.contains(&vec![1, 0]), "{role}: {extra:?}");
        if role == "vjp" {
            assert!(extra.contains(&vec![1, 1]) && extra.contains(&vec![0, 0]), "{role}: {extra:?}");
        }
        for op in ["LayerNormalization", "Gather", "Concat"] {
            assert!(nodes.iter().any(|node| node.op == op), "{role} has no {op}");
        }
    }
}
