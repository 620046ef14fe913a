//! What a wrong look is told: what is accepted, how large it would be, and nothing of the inside.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{Package, TestServer};
use windowpane_server::Config;

use super::{ATTENTION, look, npy, picture, request, ring};

#[test]
fn a_wrong_look_is_told_what_is_accepted() {
    let server = TestServer::shared();
    let shoe = STANDARD.encode(picture(28, 28, |_, _| [9; 3]));
    let array =
        |shape: &[usize], value: f32| STANDARD.encode(npy(shape, &vec![value; shape.iter().product()]));
    let mut lying = npy(&[1, 32, 32], &[0.0; 1024]);
    lying.truncate(lying.len() - 4);
    let cut = STANDARD.encode(&picture(32, 32, |x, _| [x as u8; 3])[..200]);
    let at = |fields: Value| {
        let mut body = json!({"model": "tiny", "timestep": 10});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    for (body, code, param, words) in [
        (
            at(json!({"image": shoe})),
            "invalid_value",
            "image",
            "it is 28x28 pixels, expected 32x32; expected a PNG of 32x32 pixels, or `resize` true",
        ),
        (at(json!({"image": cut})), "invalid_value", "image", "not a whole PNG"),
        (at(json!({"image": "AAAA"})), "invalid_value", "image", "neither a PNG nor a .npy"),
        (at(json!({"image": "not base64!"})), "invalid_value", "image", "standard base64"),
        (
            at(json!({"image": array(&[3, 32, 32], 0.0)})),
            "invalid_value",
            "image",
            "it has more than 1024 values; expected a .npy of f32 [1, 32, 32]",
        ),
        (
            at(json!({"image": array(&[32, 32, 1], 0.0)})),
            "invalid_value",
            "image",
            "its shape is [32, 32, 1]; expected a .npy of f32 [1, 32, 32]",
        ),
        (
            at(json!({"image": array(&[1, 32, 32], f32::NAN)})),
            "invalid_value",
            "image",
            "value 0 is not a finite number",
        ),
        (
            at(json!({"x_t": array(&[1, 32, 32], f32::INFINITY)})),
            "invalid_value",
            "x_t",
            "value 0 is not a finite number",
        ),
        (at(json!({"x_t": array(&[1, 32, 32], 1001.0)})), "invalid_value", "x_t", "not within -1000 to 1000"),
        (
            at(json!({"image": array(&[1, 32, 32], -1.5)})),
            "invalid_value",
            "image",
            "value 0 is -1.5, which is not within -1 to 1",
        ),
        (
            at(json!({"x_t": STANDARD.encode(lying)})),
            "invalid_value",
            "x_t",
            "it has 4092 bytes of data, its shape asks for 4096",
        ),
        (at(json!({"x_t": shoe})), "invalid_value", "x_t", "does not begin as a .npy file does"),
        (at(json!({"image": shoe, "x_t": shoe})), "invalid_value", "x_t", "give one of them"),
        (at(json!({"x_t": shoe, "seed": 1})), "invalid_value", "seed", "as it is"),
        (at(json!({"image": shoe, "steps": 4})), "invalid_value", "steps", "is for a sample"),
        (ring(json!({"resize": true})), "invalid_value", "resize", "is for `image`"),
        (
            ring(json!({"timestep": 1000})),
            "invalid_value",
            "timestep",
            "`timestep` is 1000, expected 0 to 999",
        ),
        (ring(json!({"timestep": -0.5})), "invalid_value", "timestep", "0 to 999"),
        (
            ring(json!({"timestep": null})),
            "invalid_value",
            "timestep",
            "is missing, expected 0 to 999, or `sigma` instead",
        ),
        (ring(json!({"sigma": 0.5})), "invalid_value", "sigma", "give one of them"),
        (
            ring(json!({"timestep": null, "sigma": 1.0})),
            "invalid_value",
            "sigma",
            "the schedule's first and last",
        ),
        (ring(json!({"timestep": null, "sigma": 0})), "invalid_value", "sigma", "`sigma` is 0, expected 0.0"),
        (
            ring(json!({"layers": [4]})),
            "invalid_value",
            "layers",
            "`layers` is a list with 4, expected 0 to 3",
        ),
        (ring(json!({"layers": []})), "invalid_value", "layers", "is an empty list"),
        (ring(json!({"layers": [1, 1]})), "invalid_value", "layers", "a list with 1 twice"),
        (ring(json!({"layers": 1})), "invalid_value", "layers", "expected a list"),
        (ring(json!({"heads": [u64::MAX]})), "invalid_value", "heads", "expected 0 to 1"),
        (
            ring(json!({"tokens": [1024]})),
            "invalid_value",
            "tokens",
            "a list with 1024, expected 0 to 1023, or [row, column] up to [31, 31]",
        ),
        (ring(json!({"tokens": [[32, 0]]})), "invalid_value", "tokens", "a list with [32, 0]"),
        (ring(json!({"tokens": ["a"]})), "invalid_value", "tokens", "[row, column]"),
        (ring(json!({"maps": "all"})), "invalid_value", "maps", "one of `heads`, `mean`, `both`, `none`"),
        (ring(json!({"layout": "tiles"})), "invalid_value", "layout", "one of `grid`, `compact`"),
        (
            ring(json!({"output_format": "npy"})),
            "invalid_value",
            "output_format",
            "`json`, `npz`, `safetensors` or `png`",
        ),
        (ring(json!({"output_format": "png", "maps": "mean"})), "invalid_value", "maps", "is for numbers"),
        (
            ring(json!({"output_format": "png", "full": 0, "layers": [0]})),
            "invalid_value",
            "full",
            "0.001 to 1",
        ),
        (ring(json!({"full": 0.5, "tokens": [0]})), "invalid_value", "full", "is for a picture"),
        (ring(json!({"prompt": "cat"})), "invalid_value", "prompt", "a class of `tiny`"),
        (ring(json!({"prompt": null})), "invalid_value", "prompt", "is missing"),
        (ring(json!({"steps": 0, "tokens": [0]})), "invalid_value", "steps", "1 to 1000"),
        (ring(json!({"colour": "red"})), "unknown_field", "colour", "unknown field"),
        (ring(json!({"timeout_ms": 0})), "invalid_value", "timeout_ms", "1 to 3600000"),
    ] {
        let message = look(server, body.clone()).refused(422, code, Some(param));
        assert!(message.contains(words), "{body}: {message}");
    }
    look(server, ring(json!({"model": "none"}))).refused(404, "model_not_found", Some("model"));
    let text = server.request("POST", ATTENTION).header(CONTENT_TYPE, "text/plain").body("{}");
    server.send(text).refused(415, "unsupported_media_type", None);
    let html = request(server, &ring(json!({"tokens": [0]}))).header(ACCEPT, "text/html");
    server.send(html).refused(406, "not_acceptable", None);
    let other = request(server, &ring(json!({"output_format": "json"}))).header(ACCEPT, "image/png");
    server.send(other).refused(406, "not_acceptable", None);
}

#[test]
fn what_would_be_too_large_is_refused_with_its_size() {
    let server = TestServer::shared();
    // Four layers of two heads and their mean, 1024 tokens that see as many, in JSON of 12 bytes a number.
    let message = look(server, ring(json!({}))).refused(422, "invalid_value", Some("tokens"));
    assert!(
        message.contains(&format!("{} bytes, more than {}", 4 * 3 * 1024 * 1024 * 12, 64 << 20)),
        "{message}"
    );
    assert!(message.contains("`layers` (4 now), `heads` (2) or `tokens` (1024)"), "{message}");
    // Compactly in a file it is small: 9 + 25 + 81 of each token, and the whole of the last layer.
    let body = ring(json!({"layout": "compact", "output_format": "npz"}));
    let answer = server.send(request(server, &body).header(ACCEPT, "application/x-npz")).ok();
    let numbers = 3 * 1024 * (9 + 25 + 81 + 1024);
    let more = answer.bytes.len() - 4 * numbers;
    // The tokens' numbers in 8 bytes each, the image and its prediction in 4, and of each layer three arrays of how local it is.
    assert!(more > 16_384 && more < 28_672, "{more} bytes beside the maps");
    let small = TestServer::start(Config { study_limit: 1 << 20, ..TestServer::config() });
    let message = look(&small, body).refused(422, "invalid_value", Some("tokens"));
    assert!(message.contains(&format!("{} bytes, more than 1048576", 4 * numbers)), "{message}");
    let picture = look(&small, ring(json!({"output_format": "png"})));
    let message = picture.refused(422, "invalid_value", Some("layers"));
    assert!(message.contains("narrow `layers` (4 now)"), "{message}");
}

#[test]
fn a_package_without_the_graph_says_so_and_one_with_another_is_not_believed() {
    let package = Package::tiny();
    package.edit(|manifest| {
        let graphs = manifest["graphs"].as_array_mut().unwrap();
        graphs.retain(|graph| graph["role"] != "attention");
        manifest["files"].as_object_mut().unwrap().remove("attention.f32.onnx");
    });
    std::fs::remove_file(package.file("attention.f32.onnx")).unwrap();
    let server = TestServer::start(package.config());
    let message =
        look(&server, ring(json!({"tokens": [0]}))).refused(422, "unsupported_value", Some("model"));
    assert!(message.contains("the package of `tiny` has no attention graph"), "{message}");

    // A proof of another network: the graph does not open, again and again, and images are drawn all the same.
    let package = Package::tiny();
    let mut golden = package.read("golden.safetensors");
    let (head, metadata) = SafeTensors::read_metadata(&golden).unwrap();
    let (from, to) = metadata.tensors()["attention.attention.2"].data_offsets;
    golden[8 + head + from..8 + head + to].fill(0);
    golden[8 + head + to - 1] = 0x3f;
    package.write_pinned("golden.safetensors", &golden);
    let server = TestServer::start(package.config());
    let began = Instant::now();
    for _ in 0..5 {
        let answer = look(&server, ring(json!({"tokens": [0]})));
        let message = answer.refused(500, "engine_error", None);
        assert!(!message.contains("golden") && !message.contains("onnx"), "{message}");
    }
    server.generate(&json!({"prompt": "ring", "seed": 7, "steps": 2})).ok();
    let metrics = server.get("/metrics").ok();
    // Opening takes the device: not again within a second.
    let name = "windowpane_insides_opened_total{graph=\"attention\",model=\"tiny\",outcome=\"failed\"} ";
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let tries: u64 = line.expect("it is counted").parse().unwrap();
    assert!((1..=1 + began.elapsed().as_secs()).contains(&tries), "{tries} in {:?}", began.elapsed());
}
