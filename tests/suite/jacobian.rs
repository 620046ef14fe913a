//! The Jacobian over HTTP: against libtorch's own products, which the package's golden holds, and against itself by other ways;
//! its pictures (`sheet`); and what a wrong look is told.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

mod sheet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::CONTENT_TYPE;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{Answer, Package, TestServer, shipped};
use windowpane_diffusion::manifest::Manifest;
use windowpane_server::Config;

const JACOBIAN: &str = "/v1/analysis/jacobian";

fn request(server: &TestServer, body: &Value) -> reqwest::RequestBuilder {
    server.request("POST", JACOBIAN).header(CONTENT_TYPE, "application/json").body(body.to_string())
}

fn look(server: &TestServer, body: Value) -> Answer {
    server.send(request(server, &body))
}

/// A look at a sample of models/tiny, with these fields.
fn ring(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 4, "timestep": 999});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The floats of a tensor.
fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn numbers(array: &Value) -> Vec<f64> {
    array
        .as_array()
        .unwrap_or_else(|| panic!("no array: {array}"))
        .iter()
        .map(|n| n.as_f64().unwrap())
        .collect()
}

/// A `.npy` of f32 `[1, 32, 32]`.
fn npy(values: &[f32]) -> Vec<u8> {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 32, 32), }\n";
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The file in an answer.
fn file(answer: &Answer) -> Vec<u8> {
    STANDARD.decode(answer.json()["b64_json"].as_str().unwrap()).unwrap()
}

/// The matrix times a vector, or its transpose.
fn product(matrix: &[f32], transposed: bool, x: &[f32]) -> Vec<f64> {
    let n = x.len();
    let entry =
        |i: usize, j: usize| f64::from(if transposed { matrix[j * n + i] } else { matrix[i * n + j] });
    (0..n).map(|i| (0..n).map(|j| entry(i, j) * f64::from(x[j])).sum()).collect()
}

/// The largest difference, of the largest value.
fn difference(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// One matrix of models/tiny, at the image of the golden, and all that can be said of it.
#[test]
fn the_whole_matrix_multiplies_as_libtorch_does_and_has_the_spectrum_that_is_told() {
    let server = TestServer::shared();
    let golden = std::fs::read(shipped("tiny").join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let label = |name: &str| i64::from_le_bytes(golden.tensor(name).unwrap().data().try_into().unwrap());
    let text = std::fs::read_to_string(shipped("tiny").join("manifest.json")).unwrap();
    let manifest = Manifest::from_json(&text).unwrap();
    // Both directions at one image.
    let (x, t, y) = (floats(&golden, "jvp2.x"), floats(&golden, "jvp2.t")[0], label("jvp2.y"));
    assert_eq!((floats(&golden, "vjp2.x"), floats(&golden, "vjp2.t")[0], label("vjp2.y")), (x.clone(), t, y));
    let here = |fields: Value| {
        let mut body = json!({"model": "tiny", "x_t": STANDARD.encode(npy(&x)), "timestep": t});
        if y < manifest.config.null_class() as i64 {
            body["class"] = json!(y);
        }
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    let own = manifest.prediction.as_str();
    let answer = look(
        server,
        here(json!({"of": own, "method": "full", "k": 3, "matrix": true, "output_format": "safetensors"})),
    )
    .ok();
    let (body, bytes) = (answer.json(), file(&answer));
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let matrix = floats(&whole, "jacobian");
    assert_eq!(matrix.len(), 1024 * 1024);

    for (name, transposed) in [("jvp2", false), ("vjp2", true)] {
        let vectors = floats(&golden, &format!("{name}.vectors"));
        let products = floats(&golden, &format!("{name}.products"));
        for (vector, expected) in vectors.chunks_exact(1024).zip(products.chunks_exact(1024)) {
            let off = difference(&product(&matrix, transposed, vector), &wide(expected));
            assert!(off < 1e-4, "{name}: {off}");
        }
    }

    // Frobenius norm, trace and asymmetry tell of all values.
    let values = numbers(&body["singular_values"]);
    let (eigen, told) = (numbers(&body["whole"]["eigenvalues"]), &body["whole"]);
    assert_eq!((values.len(), eigen.len(), body["dimension"].as_u64()), (1024, 1024, Some(1024)));
    let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let norm = square(&wide(&matrix));
    assert!(
        (square(&values) / norm - 1.0).abs() < 1e-5
            && (told["norm"].as_f64().unwrap() / norm - 1.0).abs() < 1e-5
    );
    let trace: f64 = (0..1024).map(|i| f64::from(matrix[i * 1025])).sum();
    assert!((eigen.iter().sum::<f64>() - trace).abs() < 1e-3 * norm);
    let skew: Vec<f64> =
        (0..1024 * 1024).map(|i| f64::from(matrix[i] - matrix[i % 1024 * 1024 + i / 1024])).collect();
    assert!(
        (told["asymmetry"].as_f64().unwrap() - square(&skew) / norm).abs() < 1e-4,
        "{}",
        told["asymmetry"]
    );
    assert!(values.is_sorted_by(|a, b| a >= b) && eigen.is_sorted_by(|a, b| a >= b));
    let (left, right) = (floats(&whole, "left"), floats(&whole, "right"));
    for (i, &value) in values.iter().enumerate().take(3) {
        let own = 1024 * i..1024 * (i + 1);
        let expected: Vec<f64> = left[own.clone()].iter().map(|&x| value * f64::from(x)).collect();
        assert!(difference(&product(&matrix, false, &right[own]), &expected) < 1e-4, "triplet {i}");
    }

    // The largest of them alone, by products of both directions.
    let body =
        look(server, here(json!({"of": own, "k": 4, "tolerance": 1e-4, "iterations": 200}))).ok().json();
    let (largest, residuals) = (numbers(&body["singular_values"]), numbers(&body["residuals"]));
    assert_eq!((body["converged"].as_u64(), &body["whole"]), (Some(4), &Value::Null), "{body}");
    for (i, (&value, &residual)) in largest.iter().zip(&residuals).enumerate() {
        assert!(residual <= 1e-4 * largest[0], "{residuals:?}");
        // A value lies within the bound of it; rounding of f32 is beside that.
        let off = values.iter().map(|exact| (exact - value).abs()).fold(f64::INFINITY, f64::min);
        assert!(off <= residual + 1e-4 * largest[0], "{i}: {value} is off by {off}");
    }

    // What becomes of a direction is tied by x = alpha x0 + sigma eps and v = alpha eps - sigma x0, whatever is predicted.
    assert_eq!(own, "v");
    for of in ["x0", "eps", "v"] {
        let fields = json!({"of": of, "k": 2, "iterations": 200, "output_format": "safetensors"});
        let answer = look(server, here(fields)).ok();
        let (body, bytes) = (answer.json(), file(&answer));
        assert_eq!(body["about"]["of"], of);
        let told = SafeTensors::deserialize(&bytes).unwrap();
        let (left, right) = (floats(&told, "left"), floats(&told, "right"));
        let sigma = body["about"]["sigma"].as_f64().unwrap();
        let alpha = body["about"]["alpha_bar"].as_f64().unwrap().sqrt();
        let values = numbers(&body["singular_values"]);
        assert_eq!(values.len(), 2);
        for (i, &value) in values.iter().enumerate() {
            let own = 1024 * i..1024 * (i + 1);
            let velocity = product(&matrix, false, &right[own.clone()]);
            let image: Vec<f64> = velocity
                .iter()
                .zip(&right[own.clone()])
                .map(|(v, &x)| match of {
                    "x0" => alpha * f64::from(x) - sigma * v,
                    "eps" => sigma * f64::from(x) + alpha * v,
                    _ => *v,
                })
                .collect();
            let expected: Vec<f64> = left[own].iter().map(|&x| value * f64::from(x)).collect();
            assert!(difference(&image, &expected) < 1e-3, "{of}: triplet {i}");
        }
    }
    // Unless it is said, it is the clean estimate.
    let plain = look(server, here(json!({"k": 1}))).ok().json();
    let estimate = look(server, here(json!({"k": 1, "of": "x0"}))).ok().json();
    assert_eq!(
        (&plain["about"]["of"], &plain["singular_values"]),
        (&json!("x0"), &estimate["singular_values"])
    );
}

#[test]
fn guidance_of_one_is_none_and_another_is_another_function() {
    let server = TestServer::shared();
    let values = |fields: Value| {
        let body = look(server, ring(fields)).ok().json();
        numbers(&body["singular_values"])
    };
    let (plain, one) = (values(json!({"k": 2})), values(json!({"k": 2, "guided": 1})));
    assert!(difference(&one, &plain) < 1e-4, "{one:?} {plain:?}");
    let strong = values(json!({"k": 2, "guided": 4}));
    assert!(difference(&strong, &plain) > 1e-3, "{strong:?} {plain:?}");
    // And of nought it is what the network says that is told no class.
    let at = |fields: Value| {
        let mut body =
            json!({"model": "tiny", "x_t": STANDARD.encode(npy(&[0.5; 1024])), "timestep": 500, "k": 2});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        numbers(&look(server, body).ok().json()["singular_values"])
    };
    let (told, nought, free) =
        (at(json!({"prompt": "ring"})), at(json!({"prompt": "ring", "guided": 0})), at(json!({})));
    assert!(difference(&nought, &free) < 1e-4, "{nought:?} {free:?}");
    assert!(difference(&told, &free) > 1e-3, "the class makes no difference: {told:?} {free:?}");
}

#[test]
fn a_wrong_look_is_told_what_is_accepted() {
    let server = TestServer::shared();
    for (fields, code, param, words) in [
        (json!({"k": 0}), "invalid_value", "k", "1 to 1024"),
        (json!({"k": 1025}), "invalid_value", "k", "1 to 1024"),
        (json!({"k": 600}), "invalid_value", "k", "1 to 512 for `method` top-k"),
        (json!({"method": "half"}), "invalid_value", "method", "`top-k` or `full`"),
        (json!({"of": "y"}), "invalid_value", "of", "`x0`, `eps` or `v`"),
        (json!({"tolerance": 0}), "invalid_value", "tolerance", "0.000001 to 0.5"),
        (json!({"k": 9, "iterations": 8}), "invalid_value", "iterations", "9 to 512"),
        (json!({"iterations": 2000}), "invalid_value", "iterations", "8 to 512"),
        (json!({"method": "full", "tolerance": 0.1}), "invalid_value", "tolerance", "for `method` top-k"),
        (json!({"matrix": true, "output_format": "npz"}), "invalid_value", "matrix", "for `method` full"),
        (json!({"method": "full", "matrix": true}), "invalid_value", "matrix", "npz or safetensors"),
        (
            json!({"vectors": "eigen", "output_format": "png"}),
            "invalid_value",
            "vectors",
            "for `method` full",
        ),
        (
            json!({"vectors": "up", "output_format": "png"}),
            "invalid_value",
            "vectors",
            "`right`, `left` or `eigen`",
        ),
        (json!({"vectors": "left"}), "invalid_value", "vectors", "for a picture"),
        (json!({"show": [0]}), "invalid_value", "show", "for a picture"),
        (json!({"show": [8], "output_format": "png"}), "invalid_value", "show", "0 to 7"),
        (json!({"show": [], "output_format": "png"}), "invalid_value", "show", "1 to 8"),
        (json!({"guided": 101}), "invalid_value", "guided", "0 to 100"),
        (json!({"timestep": 1000}), "invalid_value", "timestep", "0 to 999"),
        (json!({"timestep": null}), "invalid_value", "timestep", "missing"),
        (json!({"image": "?"}), "invalid_value", "steps", "is for a sample"),
        (json!({"colour": 1}), "unknown_field", "colour", "unknown field"),
        (json!({"output_format": "npy"}), "invalid_value", "output_format", "`json`, `npz`"),
    ] {
        let message = look(server, ring(fields.clone())).refused(422, code, Some(param));
        assert!(message.contains(words), "{fields}: {message}");
    }
    // Guided to nothing.
    let nowhere =
        json!({"model": "tiny", "x_t": STANDARD.encode(npy(&[0.5; 1024])), "timestep": 5, "guided": 2});
    let message = look(server, nowhere).refused(422, "invalid_value", Some("guided"));
    assert!(message.contains("needs a class"), "{message}");
    look(server, ring(json!({"model": "none"}))).refused(404, "model_not_found", Some("model"));
    let late = look(server, ring(json!({"k": 200, "timeout_ms": 1})));
    late.refused(429, "deadline_unmeetable", None);
}

#[test]
fn what_would_be_too_large_is_refused_with_its_size() {
    let server = TestServer::start(Config { study_limit: 1 << 20, ..TestServer::config() });
    let body = ring(json!({"method": "full", "k": 100, "output_format": "npz"}));
    let message = look(&server, body).refused(422, "invalid_value", Some("k"));
    assert!(message.contains(&format!("{} bytes, more than 1048576", 100 * 3 * 1024 * 4)), "{message}");
    let body = ring(json!({"method": "full", "k": 1, "output_format": "npz", "matrix": true}));
    let message = look(&server, body).refused(422, "invalid_value", Some("matrix"));
    assert!(message.contains("leave out `matrix`"), "{message}");
    let body = ring(json!({"k": 200, "output_format": "png"}));
    let message = look(&server, body).refused(422, "invalid_value", Some("show"));
    assert!(message.contains("name fewer in `show`"), "{message}");
}

#[test]
fn a_package_without_one_of_the_graphs_says_so() {
    for missing in ["jvp", "vjp"] {
        let package = Package::tiny();
        let file = format!("{missing}.f32.onnx");
        package.edit(|manifest| {
            manifest["graphs"].as_array_mut().unwrap().retain(|graph| graph["role"] != missing);
            manifest["files"].as_object_mut().unwrap().remove(&file);
        });
        std::fs::remove_file(package.file(&file)).unwrap();
        let server = TestServer::start(package.config());
        let message = look(&server, ring(json!({}))).refused(422, "unsupported_value", Some("model"));
        assert!(message.contains(&format!("the package of `tiny` has no {missing} graph")), "{message}");
        // The columns of a whole matrix take one of them, and this one has no time.
        let full = look(&server, ring(json!({"method": "full", "timeout_ms": 1})));
        match missing {
            "jvp" => full.refused(422, "unsupported_value", Some("model")),
            _ => full.refused(429, "deadline_unmeetable", None),
        };
    }
}

/// A proof of another network: the look is refused, in words that are none of the inside, and images are drawn all the same.
#[test]
fn products_that_are_not_the_goldens_are_not_believed() {
    for (graph, case) in [("jvp", "jvp1"), ("vjp", "vjp2")] {
        let package = Package::tiny();
        let mut golden = package.read("golden.safetensors");
        let (head, metadata) = SafeTensors::read_metadata(&golden).unwrap();
        let (from, _) = metadata.tensors()[&format!("{case}.products")].data_offsets;
        // One value of a thousand, larger than any other.
        golden[8 + head + from..][..4].copy_from_slice(&50.0_f32.to_le_bytes());
        package.write_pinned("golden.safetensors", &golden);
        let server = TestServer::start(package.config());
        let message = look(&server, ring(json!({"k": 1}))).refused(500, "engine_error", None);
        assert!(!message.contains("golden") && !message.contains("onnx"), "{message}");
        server.generate(&json!({"prompt": "ring", "seed": 7, "steps": 2})).ok();
        let opened = |graph: &str, outcome: &str| -> u64 {
            let labels = format!("{{graph=\"{graph}\",model=\"tiny\",outcome=\"{outcome}\"}} ");
            let metrics = server.get("/metrics").ok();
            let lines = metrics.text().lines();
            let mut counts = lines.filter_map(|line| {
                line.strip_prefix("windowpane_insides_opened_total")?.strip_prefix(&labels)?.parse().ok()
            });
            counts.next().unwrap_or(0)
        };
        assert!(opened(graph, "failed") > 0 && opened(graph, "done") == 0, "{graph}");
    }
}
