//! An image on its way: streams and their previews, trajectories, and beginnings that a client hands in. What is shown
//! of the way is compared with what another face of the server, or the mathematics, says of it.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{TestServer, decode, png, sha256};
use windowpane_diffusion::{Evaluation, Prediction, Sampler, SolverConfig, TimeGrid, noise};

/// Values of an image of models/tiny.
const ELEMENTS: usize = 32 * 32;

/// A request for rings in six steps, with these fields changed.
fn ring(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 6, "guidance_scale": 1.5});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The named arrays of a request.
fn arrays(fields: Value, name: &str) -> (Vec<usize>, Vec<f32>) {
    let answer = TestServer::shared().picture("application/vnd.safetensors", &ring(fields)).ok();
    let file = SafeTensors::deserialize(&answer.bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let values = tensor.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
    (tensor.shape().to_vec(), values.collect())
}

fn images(fields: Value) -> Vec<f32> {
    arrays(fields, "images").1
}

/// Values as pixels: -1 is black and 1 is white.
fn grey(values: &[f32]) -> Vec<u8> {
    values.iter().map(|&v| ((f64::from(v) + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect()
}

/// The events of a stream: names and data.
fn events(fields: Value) -> Vec<(String, Value)> {
    let answer = TestServer::shared().generate(&ring(fields)).ok();
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let event = |block: &str| {
        let (name, data) = block.strip_prefix("event: ")?.split_once("\ndata: ")?;
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["request_id"], answer.header("x-request-id"));
        Some((name.to_owned(), data))
    };
    answer.text().split_terminator("\n\n").filter_map(event).collect()
}

fn file(event: &Value) -> Vec<u8> {
    STANDARD.decode(event["b64_json"].as_str().unwrap()).unwrap()
}

#[test]
fn a_stream_of_several_ends_with_the_image_of_each_seed() {
    let server = TestServer::shared();
    for sampler in ["ddim", "euler_a", "heun"] {
        let fields = json!({"stream": true, "n": 3, "seed": 40, "sampler": sampler, "size": "64x64"});
        let events = events(fields);
        assert_eq!(events.len(), 3, "no previews, unless somebody asks");
        let mut seen = [false; 3];
        for (name, data) in events {
            assert_eq!(
                (name.as_str(), &data["type"]),
                ("image_generation.completed", &json!("image_generation.completed"))
            );
            let i = data["image_index"].as_u64().unwrap();
            seen[i as usize] = true;
            let alone = ring(json!({"seed": 40 + i, "sampler": sampler, "size": "64x64"}));
            let alone = server.picture("image/png", &alone).ok();
            assert_eq!(file(&data), alone.bytes, "image {i} of {sampler}");
            assert_eq!(data["seed"], (40 + i).to_string());
            assert_eq!(
                data["provenance"],
                serde_json::from_str::<Value>(alone.header("x-provenance")).unwrap()
            );
            assert_eq!((&data["size"], &data["usage"]["total_tokens"]), (&json!("64x64"), &json!(0)));
        }
        assert_eq!(seen, [true; 3]);
    }
}

#[test]
fn a_preview_is_the_clean_estimate_of_its_step() {
    let events = events(json!({"stream": true, "n": 2, "partial_images": 2}));
    assert_eq!(events.len(), 2 * 3);
    // Six steps: after the second and the fourth.
    let (shape, estimates) = arrays(json!({"n": 2, "trajectory": 2}), "frames_x0");
    assert_eq!(shape, [2, 3, 1, 32, 32]);
    for (image, estimates) in estimates.chunks_exact(3 * ELEMENTS).enumerate() {
        let own: Vec<_> = events.iter().filter(|(_, data)| data["image_index"] == image).collect();
        let mut pictures = Vec::new();
        for (i, (name, data)) in own[..2].iter().enumerate() {
            assert_eq!(name, "image_generation.partial_image");
            assert_eq!((&data["partial_image_index"], &data["step"]), (&json!(i), &json!(2 * (i + 1))));
            assert_eq!(data["seed"], (7 + image).to_string());
            let bytes = file(data);
            assert_eq!(png::note(&bytes), None, "a preview is not the image");
            let pixels = decode(&bytes).into_luma8().into_raw();
            let expected = grey(&estimates[i * ELEMENTS..(i + 1) * ELEMENTS]);
            assert_eq!(pixels, expected, "preview {i} of image {image}");
            pictures.push(pixels);
        }
        assert_eq!(own[2].0, "image_generation.completed");
        pictures.push(decode(&file(&own[2].1)).into_luma8().into_raw());
        assert!(pictures[0] != pictures[1] && pictures[1] != pictures[2], "the estimates change on the way");
    }
}

/// The network calls of six DDIM steps of models/tiny.
fn evaluations() -> Vec<Evaluation> {
    let model = TestServer::shared().app().model(None).unwrap();
    let manifest = &model.card.manifest;
    assert_eq!(manifest.prediction, Prediction::V);
    let solver = SolverConfig {
        sampler: Sampler::Ddim,
        grid: TimeGrid::Uniform,
        steps: 6,
        eta: 0.0,
        clip_x0: true,
        prediction: manifest.prediction,
        variance: manifest.variance,
    };
    solver.build(&manifest.schedule.build().unwrap()).unwrap()
}

/// What the network says of an image of class 3, by the other face.
fn velocity(x: &[f32], t: f32) -> Vec<f32> {
    let server = TestServer::shared();
    let body = json!({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 1, 32, 32], "data": x},
        {"name": "t", "datatype": "FP32", "shape": [1], "data": [t]},
        {"name": "y", "datatype": "INT64", "shape": [1], "data": [3]},
    ]});
    let answer = server.send(server.request("POST", "/v2/models/tiny/infer").body(body.to_string())).ok();
    let answer = answer.json();
    let data = answer["outputs"][0]["data"].as_array().unwrap();
    data.iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

#[test]
fn estimates_and_noisy_images_are_what_the_mathematics_says() {
    let fields = json!({"trajectory": 1, "guidance_scale": 1, "sampler": "ddim"});
    let (shape, noisy) = arrays(fields.clone(), "frames");
    assert_eq!(shape, [1, 6, 1, 32, 32]);
    let (_, clean) = arrays(fields, "frames_x0");
    let (evaluations, mut x) = (evaluations(), noise::normal(7, noise::INITIAL, ELEMENTS));
    for (i, at) in evaluations.iter().enumerate() {
        let v = velocity(&x, at.t);
        // Salimans & Ho 2022: x0 = alpha x - sigma v, and eps = sigma x + alpha v.
        let (alpha, sigma) = (at.alpha, at.sigma);
        let x0: Vec<f64> = x
            .iter()
            .zip(&v)
            .map(|(&x, &v)| (alpha * f64::from(x) - sigma * f64::from(v)).clamp(-1.0, 1.0))
            .collect();
        let frame = i * ELEMENTS..(i + 1) * ELEMENTS;
        // f32 against f64, on values of about one.
        let near = |ours: &[f32], theirs: &[f64], what: &str| {
            let worst = ours.iter().zip(theirs).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            assert!(worst < 2e-5, "{what} of step {i} is off by {worst}");
        };
        near(&clean[frame.clone()], &x0, "the estimate");
        // Song et al. 2021, equation 12 with sigma = 0; the noise is that of the clipped estimate.
        let next: Vec<f64> = evaluations.get(i + 1).map_or_else(
            || x0.clone(),
            |next| {
                let noise = |x: f32, x0: f64| (f64::from(x) - alpha * x0) / sigma;
                x.iter().zip(&x0).map(|(&x, &x0)| next.alpha * x0 + next.sigma * noise(x, x0)).collect()
            },
        );
        near(&noisy[frame.clone()], &next, "the noisy image");
        x = noisy[frame].to_vec();
    }
    assert_eq!(x, images(json!({"guidance_scale": 1, "sampler": "ddim"})), "the last frame is the image");
}

#[test]
fn a_strip_ends_with_the_image() {
    let server = TestServer::shared();
    let answer = server.generate(&ring(json!({"n": 2, "trajectory": 2, "size": "64x64"}))).ok();
    assert_eq!(answer.json()["size"], "192x64");
    let (_, frames) = arrays(json!({"n": 2, "trajectory": 2}), "frames");
    for (i, frames) in frames.chunks_exact(3 * ELEMENTS).enumerate() {
        let strip = decode(&answer.file(i)).into_luma8();
        assert_eq!(strip.dimensions(), (3 * 64, 64));
        let alone = server.picture("image/png", &ring(json!({"seed": 7 + i, "size": "64x64"}))).ok();
        let last = image::imageops::crop_imm(&strip, 128, 0, 64, 64).to_image();
        assert_eq!(last, decode(&alone.bytes).into_luma8(), "image {i}");
        // And before it the steps, each pixel twice in both directions.
        for (at, frame) in frames.chunks_exact(ELEMENTS).enumerate() {
            let frame = grey(frame);
            let shown = image::imageops::crop_imm(&strip, 64 * at as u32, 0, 64, 64).to_image();
            for (x, y, pixel) in shown.enumerate_pixels() {
                assert_eq!(
                    pixel[0],
                    frame[(y / 2 * 32 + x / 2) as usize],
                    "frame {at} of image {i} at {x}, {y}"
                );
            }
        }
    }
}

/// These values as a `.npy` of little-endian f32, in base64: NumPy's format 1.0.
fn npy(shape: &str, values: &[f32]) -> String {
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    file.extend(header.bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    STANDARD.encode(file)
}

#[test]
fn the_seeds_own_noise_as_x_t_gives_the_same_images() {
    let noise: Vec<f32> =
        [7, 8].into_iter().flat_map(|seed| noise::normal(seed, noise::INITIAL, ELEMENTS)).collect();
    let both = npy("(2, 1, 32, 32)", &noise);
    for fields in [json!({}), json!({"sampler": "dpmpp_2m"}), json!({"eta": 1.0}), json!({"sampler": "heun"})]
    {
        let mut plain = fields.clone();
        plain["n"] = json!(2);
        let mut given = plain.clone();
        given["x_t"] = json!(both);
        assert_eq!(images(given), images(plain), "{fields}");
    }
    // One for both: with the noise of the first, without any on the way, the second is the first.
    let one = npy("(1, 32, 32)", &noise[..ELEMENTS]);
    let twice = images(json!({"n": 2, "x_t": one}));
    assert_eq!(twice[..ELEMENTS], twice[ELEMENTS..]);
    assert_eq!(twice[..ELEMENTS], images(json!({})));
    let body = TestServer::shared().generate(&ring(json!({"x_t": one}))).ok().json();
    let bytes: Vec<u8> = noise[..ELEMENTS].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(body["data"][0]["provenance"]["start"]["x_t"]["sha256"], sha256(&bytes));
    let flat = npy("(1, 32, 32)", &[0.1; ELEMENTS]);
    assert_ne!(images(json!({"x_t": flat})), images(json!({})));
}
