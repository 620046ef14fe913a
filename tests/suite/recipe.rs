//! From a recipe to answers, in colour: the trainer trains, measures and exports with the images themselves, and a server tells
//! of that package what the trainer did. No shipped package has three channels, or images.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{Answer, TestServer, Trainer, decode};
use tempfile::TempDir;
use windowpane_diffusion::Window;
use windowpane_diffusion::manifest::Manifest;
use windowpane_server::Config;

/// Tokens of 2 × 2 pixels, and steps so large that a few of them leave nothing where it was.
const RECIPE: &str = r#"
name = "colour"
description = "a test"
licence = "MIT"
attribution = "made up"
classes = [{ name = "ground" }, { name = "curtain" }]
model = { name = "DiT-Tiny/2", depth = 2, hidden = 16, windows = "3" }
data = { kind = "toy", toy = { size = 16, count = 10, channels = 3, classes = 2 } }
optim = { lr = 3e-2, warmup = 1, cooldown = 1, ema = 0.5 }
export = { weights = "f32", cuda = false }

[diffusion]
schedule = { kind = "linear", steps = 100 }
prediction = "eps"
variance = "fixed_small"

[train]
seed = 3
steps = 12
batch = 4
label_drop = 0.1

[sample]
sampler = "ddim"
grid = "uniform"
steps = 3
guidance_scale = 1.0
eta = 0.0
clip_x0 = true
"#;

/// Images of each side, fewer than there are, and timesteps at which both measure.
const IMAGES: &str = "8";
const TIMESTEPS: &str = "5";

const SIDE: usize = 16;
const PIXELS: usize = SIDE * SIDE;

/// What the trainer leaves: `runs/colour` and `models/colour`.
fn trained(trainer: &Trainer) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| trainer.run(folder.path(), args);
    fs::write(folder.path().join("r.toml"), RECIPE).unwrap();
    run(&["train", "r.toml"]);
    run(&["eval", "runs/colour", "--images", IMAGES, "--timesteps", TIMESTEPS]);
    run(&["export", "runs/colour", "--reference"]);
    folder
}

fn ask(server: &TestServer, path: &str, body: &Value) -> reqwest::RequestBuilder {
    server.request("POST", path).header(CONTENT_TYPE, "application/json").body(body.to_string())
}

fn file(answer: &Answer) -> Vec<u8> {
    STANDARD.decode(answer.json()["b64_json"].as_str().unwrap()).unwrap()
}

/// Shape and floats of a tensor.
fn floats(file: &SafeTensors<'_>, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let values = tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    (tensor.shape().to_vec(), values.collect())
}

/// The planes of an image `[3, h, w]`, no two of which are alike.
fn planes(image: &[f32]) -> [&[f32]; 3] {
    let planes: [&[f32]; 3] = std::array::from_fn(|channel| &image[channel * PIXELS..][..PIXELS]);
    let largest = image.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let apart = planes[a].iter().zip(planes[b]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart > 0.1 * largest, "channels {a} and {b} differ by {apart} of {largest}");
    }
    planes
}

#[test]
fn what_was_trained_in_colour_is_served_as_the_trainer_has_it() {
    let Some(trainer) = Trainer::shared() else { return };
    let folder = trained(trainer);
    let server = TestServer::start(Config { models: folder.path().join("models"), ..TestServer::config() });
    the_gap_is_the_trainers(&server, folder.path());
    an_image_has_colours(&server);
    directions_have_three_channels(&server);
    attention_has_its_windows(&server, folder.path());
}

/// Of the images in the package, as of those that the trainer had.
fn the_gap_is_the_trainers(server: &TestServer, folder: &Path) {
    let report: Value =
        serde_json::from_slice(&fs::read(folder.join("runs/colour/eval.json")).unwrap()).unwrap();
    let number = |text: &str| text.parse::<u64>().unwrap();
    let body = json!({
        "model": "colour", "images": number(IMAGES), "timesteps": number(TIMESTEPS),
        "seed": report["config"]["seed"],
    });
    let told = server.send(ask(server, "/v1/analysis/psnr-gap", &body)).ok().json();
    assert_eq!((&told["about"]["source"], &told["about"]["images"]), (&json!("reference"), &json!([8, 8])));
    let (told, expected) = (&told["gap"], &report["psnr_gap"]);
    assert_eq!(told["timesteps"], expected["timesteps"]);
    let mut compared = 0;
    for place in ["/gap", "/unclipped", "/train/mean", "/test/mean", "/train/curve", "/test/curve"] {
        let numbers = |of: &Value| match of.pointer(place).unwrap_or_else(|| panic!("no {place} in {of}")) {
            Value::Array(all) => all.iter().map(|one| one.as_f64().unwrap()).collect::<Vec<_>>(),
            one => vec![one.as_f64().unwrap()],
        };
        let (told, expected) = (numbers(told), numbers(expected));
        assert_eq!(told.len(), expected.len(), "{place}");
        for (told, expected) in told.iter().zip(&expected) {
            // The networks differ by a few roundings of f32.
            assert!((told - expected).abs() < 1e-3, "{place}: {told} dB, expected {expected}");
            compared += 1;
        }
    }
    assert_eq!(compared, 4 + 2 * 5);
    // Other images than the trainer's have other numbers.
    assert_ne!(told["train"]["curve"], told["test"]["curve"]);
}

fn an_image_has_colours(server: &TestServer) {
    let body = json!({"model": "colour", "prompt": "ground", "seed": 7, "steps": 3});
    let picture = decode(&server.picture("image/png", &body).ok().bytes);
    assert_eq!((picture.width(), picture.height(), picture.color()), (16, 16, image::ColorType::Rgb8));
    let pixels = picture.into_rgb8();
    let channel = |c: usize| pixels.pixels().map(move |pixel| f32::from(pixel.0[c]));
    planes(&(0..3).flat_map(channel).collect::<Vec<_>>());
}

/// What is looked at: a sample on its way.
fn subject(fields: &Value) -> Value {
    let mut body = json!({"model": "colour", "prompt": "curtain", "seed": 7, "steps": 3, "timestep": 60});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn directions_have_three_channels(server: &TestServer) {
    let fields = json!({"of": "eps", "k": 2, "tolerance": 1e-3, "iterations": 400});
    let mut body = subject(&fields);
    body["output_format"] = json!("safetensors");
    let answer = server.send(ask(server, "/v1/analysis/jacobian", &body)).ok();
    let (told, bytes) = (answer.json(), file(&answer));
    assert_eq!((&told["dimension"], &told["converged"]), (&json!(3 * PIXELS), &json!(2)), "{told}");
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    let [left, right] = ["left", "right"].map(|name| {
        let (shape, values) = floats(&arrays, name);
        assert_eq!(shape, [2, 3, SIDE, SIDE], "{name}");
        values
    });
    let (shape, x) = floats(&arrays, "x_t");
    assert_eq!(shape, [3, SIDE, SIDE]);
    let planes = planes(&right[..3 * PIXELS]);

    // The graph itself says the same of them: J·right is value·left.
    let tensor = |name: &str, shape: &[usize], data: Value| {
        let datatype = if name == "y" { "INT64" } else { "FP32" };
        json!({"name": name, "shape": shape, "datatype": datatype, "data": data})
    };
    let inputs = json!({"inputs": [
        tensor("x", &[1, 3, SIDE, SIDE], json!(x)),
        tensor("t", &[1], json!([told["about"]["timestep"]])),
        tensor("y", &[1], json!([told["about"]["class_index"]])),
        tensor("vectors", &[2, 3, SIDE, SIDE], json!(right)),
    ]});
    let products = server.send(ask(server, "/v2/models/colour.jvp/infer", &inputs)).ok().json();
    let products: Vec<f64> = serde_json::from_value(products["outputs"][0]["data"].clone()).unwrap();
    let values: Vec<f64> = serde_json::from_value(told["singular_values"].clone()).unwrap();
    for (i, (product, left)) in products.iter().zip(&left).enumerate() {
        let expected = values[i / (3 * PIXELS)] * f64::from(*left);
        // To the tolerance of the look, of the largest value.
        assert!((product - expected).abs() < 2e-3 * values[0], "{i}: {product}, expected {expected}");
    }

    // On the sheet, each below the other in a frame of its colour, red where it is more than nothing and blue where less.
    let mut body = subject(&fields);
    body["show"] = json!([0]);
    let request = ask(server, "/v1/analysis/jacobian", &body).header(ACCEPT, "image/png");
    let sheet = decode(&server.send(request).ok().bytes).into_rgb8();
    let (zoom, left, top) = (96 / SIDE, 12, 12 + 14);
    assert_eq!(sheet.dimensions(), (2 * 12 + 96, 2 * 12 + 14 + 3 * (96 + 4)));
    let largest = right[..3 * PIXELS].iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (channel, plane) in planes.iter().enumerate() {
        let top = top + channel * (96 + 4);
        let frame = sheet.get_pixel(left as u32, top as u32).0;
        let strongest = (0..3).max_by_key(|&c| frame[c]);
        assert_eq!(strongest, Some(channel), "the frame of channel {channel} is {frame:?}");
        for (place, value) in plane.iter().enumerate().filter(|(_, value)| value.abs() > 0.1 * largest) {
            let at = [left + place % SIDE * zoom, top + place / SIDE * zoom].map(|at| (at + zoom / 2) as u32);
            let [red, _, blue] = sheet.get_pixel(at[0], at[1]).0;
            assert_eq!(red > blue, *value > 0.0, "channel {channel}, pixel {place} is {value}");
        }
    }
}

fn attention_has_its_windows(server: &TestServer, folder: &Path) {
    let text = fs::read_to_string(folder.join("models/colour/manifest.json")).unwrap();
    let config = Manifest::from_json(&text).unwrap().config;
    let (grid, tokens) = (config.grid(), [0, 8 * 4 + 3]);
    let body = subject(&json!({"tokens": tokens, "output_format": "safetensors"}));
    let answer = server.send(ask(server, "/v1/analysis/attention", &body)).ok();
    let bytes = file(&answer);
    let arrays = SafeTensors::deserialize(&bytes).unwrap();
    let (shape, prediction) = floats(&arrays, "prediction");
    assert_eq!((shape, grid.tokens()), (vec![3, SIDE, SIDE], 64));
    planes(&prediction);
    assert_eq!(config.windows, [Window::local(3).unwrap(), Window::Global]);
    for (layer, window) in config.windows.iter().enumerate() {
        let (shape, maps) = floats(&arrays, &format!("layer.{layer}.heads"));
        assert_eq!(shape, [config.heads, tokens.len(), 8, 8]);
        for (i, row) in maps.chunks_exact(64).enumerate() {
            let token = grid.position(tokens[i % tokens.len()]);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "layer {layer}: {row:?}");
            for (key, &share) in row.iter().enumerate() {
                assert_eq!(share > 0.0, window.sees(token, grid.position(key)), "layer {layer}: {row:?}");
            }
        }
    }
}
