//! Looks inside: attention against the golden and against its definition, in every form; beside images; and (`refusals`) what a
//! wrong look is told.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

mod refusals;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{Answer, TestServer, decode, keys, png, python, shipped};
use windowpane_diffusion::manifest::Manifest;
use windowpane_diffusion::{Grid, Window, noise};
use windowpane_server::Config;

const ATTENTION: &str = "/v1/analysis/attention";

/// The grid of models/tiny: a token is a pixel.
const GRID: Grid = Grid::new(32, 32);

fn request(server: &TestServer, body: &Value) -> reqwest::RequestBuilder {
    server.request("POST", ATTENTION).header(CONTENT_TYPE, "application/json").body(body.to_string())
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

/// The numbers of an array in an answer.
fn numbers(array: &Value) -> Vec<f32> {
    let numbers = array["data"].as_array().unwrap_or_else(|| panic!("no array: {array}"));
    numbers.iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn sizes(array: &Value) -> Vec<usize> {
    array["shape"].as_array().unwrap().iter().map(|side| side.as_u64().unwrap() as usize).collect()
}

/// The floats of a tensor.
fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// A `.npy` of f32.
fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let shape: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n");
    let length = (header.len() as u16).to_le_bytes();
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &data].concat()
}

/// A PNG of these grey pixels, or of this colour.
fn picture(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn tiny() -> Manifest {
    Manifest::from_json(&std::fs::read_to_string(shipped("tiny").join("manifest.json")).unwrap()).unwrap()
}

#[test]
fn rows_add_up_to_one_and_are_zero_outside_of_the_window() {
    let server = TestServer::shared();
    let tokens = [0, 31, 32 * 16 + 15, 32 * 31 + 2, 1023];
    let places: Vec<Value> = tokens.iter().map(|&t| json!([t / 32, t % 32])).collect();
    let body = look(server, ring(json!({"tokens": tokens}))).ok().json();
    assert_eq!(look(server, ring(json!({"tokens": places}))).ok().json()["layers"], body["layers"]);
    assert_eq!((&body["grid"], &body["heads"]), (&json!([32, 32]), &json!([0, 1])));
    assert_eq!(body["tokens"], json!(tokens));
    assert_eq!((&body["about"]["input"], &body["about"]["seed"]), (&json!("sample"), &json!("7")));
    assert_eq!((&body["about"]["class"], &body["about"]["timestep"]), (&json!("ring"), &json!(999.0)));
    let windows = tiny().config.windows;
    let layers = body["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for (layer, window) in layers.iter().zip(&windows) {
        assert_eq!(layer["window"], serde_json::to_value(window).unwrap());
        let (heads, mean) = (&layer["attention"], &layer["mean"]);
        assert_eq!((sizes(heads), sizes(mean)), (vec![2, 5, 32, 32], vec![5, 32, 32]));
        let (heads, mean) = (numbers(heads), numbers(mean));
        for (i, row) in heads.chunks_exact(1024).enumerate() {
            let token = tokens[i % 5];
            let sum: f32 = row.iter().sum();
            assert!((sum - 1.0).abs() < 1e-5, "layer {} row {i}: {sum}", layer["layer"]);
            for (key, &probability) in row.iter().enumerate() {
                let sees = window.sees(GRID.position(token), GRID.position(key));
                assert!(probability >= 0.0 && (sees || probability == 0.0), "{token} sees {key}");
            }
        }
        for (i, value) in mean.iter().enumerate() {
            let expected = (heads[i] + heads[5 * 1024 + i]) / 2.0;
            assert!((value - expected).abs() < 1e-7, "{value} {expected}");
        }
        locality_is_that_of(layer, &heads, &tokens);
    }
}

/// The numbers of a layer, from its maps `[2, tokens, 32, 32]`.
fn locality_is_that_of(layer: &Value, maps: &[f32], tokens: &[usize]) {
    let (mut distance, mut entropy, mut within) = (0.0, 0.0, [0.0; 32]);
    let rows = 2.0 * tokens.len() as f64;
    for (i, row) in maps.chunks_exact(1024).enumerate() {
        let (y, x) = GRID.position(tokens[i % tokens.len()]);
        for (key, &p) in row.iter().enumerate().filter(|(_, p)| **p > 0.0) {
            let (ky, kx) = GRID.position(key);
            let (dy, dx, p) = (y.abs_diff(ky), x.abs_diff(kx), f64::from(p) / rows);
            distance += p * ((dy * dy + dx * dx) as f64).sqrt();
            entropy -= p * (p * rows).ln();
            within[dy.max(dx)..].iter_mut().for_each(|share| *share += p);
        }
    }
    let told = &layer["locality"];
    let close = |told: &Value, expected: f64| (told.as_f64().unwrap() - expected).abs() < 1e-4;
    assert!(
        close(&told["distance"], distance) && close(&told["entropy"], entropy),
        "{told}: {distance} {entropy}"
    );
    for (reach, share) in within.iter().enumerate() {
        assert_eq!(told["within"][reach]["side"], 2 * reach + 1);
        assert!(close(&told["within"][reach]["share"], *share), "{told}");
    }
    let enough = within.iter().position(|&share| share >= 0.95 * within[31]).unwrap();
    assert_eq!(told["effective_window"], 2 * enough + 1);
    let heads = layer["locality_by_head"].as_array().unwrap();
    let mean = heads.iter().map(|head| head["distance"].as_f64().unwrap()).sum::<f64>() / 2.0;
    assert!(close(&told["distance"], mean), "{told}");
}

/// The golden is the trainer's network in libtorch, whose attention is dense under a mask; what is served are tiles.
#[test]
fn what_is_told_is_what_the_trainers_network_attends_to() {
    for (model, server) in [("tiny", TestServer::shared()), ("fashion-dit", TestServer::shelf())] {
        let text = std::fs::read_to_string(shipped(model).join("manifest.json")).unwrap();
        let config = Manifest::from_json(&text).unwrap().config;
        let golden = std::fs::read(shipped(model).join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let integers = |name: &str| -> Vec<i64> {
            let tensor = golden.tensor(name).unwrap();
            tensor.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()
        };
        let (x, t, y) =
            (floats(&golden, "attention.x"), floats(&golden, "attention.t"), integers("attention.y"));
        let (tokens, elements, count) =
            (integers("attention.tokens"), config.elements(), config.grid().tokens());
        let shape = [config.channels, config.height, config.width];
        for (i, x) in x.chunks_exact(elements).enumerate() {
            let mut body = json!({
                "model": model, "x_t": STANDARD.encode(npy(&shape, x)), "timestep": t[i], "tokens": tokens,
                "output_format": "safetensors",
            });
            if y[i] < config.null_class() as i64 {
                body["class"] = json!(y[i]);
            }
            let answer = look(server, body).ok();
            let file = STANDARD.decode(answer.json()["b64_json"].as_str().unwrap()).unwrap();
            let file = SafeTensors::deserialize(&file).unwrap();
            assert_eq!(floats(&file, "x_t"), x);
            let compare = |name: &str, got: &[f32], reference: &[f32]| {
                let largest = reference.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let worst = got.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert_eq!(got.len(), reference.len(), "{name}");
                // The package's own tolerance.
                assert!(worst < 1e-4 * largest, "{model} image {i} {name}: {worst} of {largest}");
            };
            let prediction = floats(&golden, "attention.prediction");
            let own = elements * i..elements * (i + 1);
            compare("prediction", &floats(&file, "prediction"), &prediction[own]);
            for layer in 0..config.depth {
                let reference = floats(&golden, &format!("attention.attention.{layer}"));
                let size = config.heads * tokens.len() * count;
                let got = floats(&file, &format!("layer.{layer}.heads"));
                compare(&format!("layer {layer}"), &got, &reference[size * i..size * (i + 1)]);
            }
        }
    }
}

#[test]
fn a_compact_map_is_the_window_of_the_whole_one() {
    let server = TestServer::shared();
    let tokens = [0, 40, 700, 1023];
    let ask = |layout: &str| {
        let body = ring(json!({"tokens": tokens, "layout": layout, "maps": "heads", "heads": [1]}));
        look(server, body).ok().json()
    };
    let (whole, compact) = (ask("grid"), ask("compact"));
    for (layer, window) in tiny().config.windows.iter().enumerate() {
        let of = |body: &Value| body["layers"][layer]["attention"].clone();
        let Window::Local { side } = *window else {
            assert_eq!(of(&whole), of(&compact), "a layer without a window is whole");
            continue;
        };
        assert_eq!(sizes(&of(&compact)), [1, 4, side, side]);
        let (whole, compact) = (numbers(&of(&whole)), numbers(&of(&compact)));
        for (i, &token) in tokens.iter().enumerate() {
            let (y, x) = GRID.position(token);
            for place in 0..side * side {
                let (ky, kx) = (y + place / side, x + place % side);
                let inside = |k: usize| k.checked_sub(side / 2).filter(|&k| k < 32);
                let key = inside(ky).zip(inside(kx)).map(|(ky, kx)| GRID.token(ky, kx));
                let expected = key.map_or(0.0, |key| whole[i * 1024 + key]);
                assert_eq!(compact[i * side * side + place], expected, "token {token} place {place}");
            }
        }
    }
}

#[test]
fn json_npz_and_safetensors_hold_the_same_numbers() {
    let server = TestServer::shared();
    let said = python("attention_client.py", [server.url().as_str()]);
    let said: Value = serde_json::from_str(&said).expect("the client prints JSON");
    assert_eq!(said["names"].as_array().unwrap().len(), 5 + 2 * 5 + 1, "{said}");
    assert_eq!(said["about"]["model"], "tiny");
    assert_eq!(said["compared"], 4, "{said}");
}

#[test]
fn a_sample_is_looked_at_where_the_images_route_has_it_then() {
    let server = TestServer::shared();
    let ask = |timestep: f64| {
        let body = ring(json!({"timestep": timestep, "steps": 4, "maps": "none", "tokens": [0]}));
        let answer = server.send(request(server, &body).header(ACCEPT, "application/vnd.safetensors")).ok();
        let about: Value = serde_json::from_str(answer.header("x-about")).unwrap();
        let file = SafeTensors::deserialize(&answer.bytes).unwrap();
        (about["timestep"].as_f64().unwrap(), floats(&file, "x_t"))
    };
    let body = json!({"prompt": "ring", "seed": 7, "steps": 4, "trajectory": 1});
    let answer = server.picture("application/vnd.safetensors", &body).ok();
    let file = SafeTensors::deserialize(&answer.bytes).unwrap();
    let frames = floats(&file, "frames");
    let frame = |i: usize| frames[1024 * i..1024 * (i + 1)].to_vec();
    // Four steps of the uniform grid.
    assert_eq!(ask(999.0), (999.0, noise::normal(7, noise::INITIAL, 1024)));
    assert_eq!(ask(700.0), (666.0, frame(0)));
    assert_eq!(ask(333.0), (333.0, frame(1)));
    assert_eq!(ask(0.0), (0.0, frame(2)));
    // The graph that shows the insides predicts what the network does.
    let row = |x: &[f32]| {
        json!({"inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 1, 32, 32], "data": x},
            {"name": "t", "datatype": "FP32", "shape": [1], "data": [333]},
            {"name": "y", "datatype": "INT64", "shape": [1], "data": [3]},
        ]})
    };
    let infer = server.request("POST", "/v2/models/tiny/infer").body(row(&frame(1)).to_string());
    let expected = numbers(&server.send(infer).ok().json()["outputs"][0]);
    let body = ring(json!({"timestep": 333, "maps": "none", "tokens": [0]}));
    let answer = server.send(request(server, &body).header(ACCEPT, "application/vnd.safetensors")).ok();
    let prediction = floats(&SafeTensors::deserialize(&answer.bytes).unwrap(), "prediction");
    let worst = prediction.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn an_uploaded_picture_is_made_as_noisy_as_was_asked() {
    let server = TestServer::shared();
    let grey = |x: u32, y: u32| [(x * 7 + y * 3) as u8; 3];
    let file = picture(32, 32, grey);
    let ask = |fields: Value| {
        let mut body = json!({"model": "tiny", "seed": 11, "maps": "none", "tokens": [0]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.send(request(server, &body).header(ACCEPT, "application/vnd.safetensors")).ok();
        let about: Value = serde_json::from_str(answer.header("x-about")).unwrap();
        (about, floats(&SafeTensors::deserialize(&answer.bytes).unwrap(), "x_t"))
    };
    let encoded = STANDARD.encode(&file);
    let (about, x) = ask(json!({"image": encoded, "timestep": 400}));
    assert_eq!(
        (&about["input"], &about["class"], &about["seed"]),
        (&json!("image"), &Value::Null, &json!("11"))
    );
    let alpha_bar = about["alpha_bar"].as_f64().unwrap();
    let (alpha, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
    assert!((sigma - about["sigma"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!(tiny().schedule.build().unwrap().alpha_bar(400), alpha_bar);
    let x0: Vec<f32> = (0..1024).map(|i| f32::from(grey(i % 32, i / 32)[0]) / 127.5 - 1.0).collect();
    let noise = noise::normal(11, noise::INITIAL, 1024);
    for (i, value) in x.iter().enumerate() {
        let expected = alpha as f32 * x0[i] + sigma as f32 * noise[i];
        assert!((value - expected).abs() < 1e-5, "{i}: {value} {expected}");
    }
    // The same level by its sigma, and the same picture as numbers.
    let array = STANDARD.encode(npy(&[1, 32, 32], &x0));
    for same in [json!({"image": encoded, "sigma": about["sigma"]}), json!({"image": array, "timestep": 400})]
    {
        let (_, other) = ask(same);
        let worst = x.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }
    // Twice as large, of one colour each 2×2: the triangle filter leaves flat areas as they are.
    let large = STANDARD.encode(picture(64, 64, |_, _| [200, 100, 50]));
    let (_, x) = ask(json!({"image": large, "timestep": 0, "resize": true}));
    let luma = (0.299 * 200.0 + 0.587 * 100.0 + 0.114 * 50.0_f32).round() / 127.5 - 1.0;
    assert!(
        x.iter().zip(&noise).all(|(value, noise)| (value - luma).abs() < 0.02 + 0.1 * noise.abs()),
        "{x:?}"
    );
}

#[test]
fn a_form_is_the_same_request() {
    let server = TestServer::shared();
    let file = picture(32, 32, |x, y| [(x * 5 + y) as u8; 3]);
    let json = json!({
        "model": "tiny", "image": STANDARD.encode(&file), "seed": 5, "timestep": 250.5, "class": "ring",
        "layers": [0, 3], "tokens": [[1, 2], 600], "maps": "mean",
    });
    let part = |name: &str, text: &str| {
        format!("--bound\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let fields: String = [
        ("model", "tiny"),
        ("seed", "5"),
        ("timestep", "250.5"),
        ("class", "ring"),
        ("layers", "0"),
        ("layers", "3"),
        ("tokens", "[[1, 2], 600]"),
        ("maps", "mean"),
    ]
    .iter()
    .map(|(name, text)| part(name, text))
    .collect();
    let head = "--bound\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\n";
    let body = [fields.as_bytes(), head.as_bytes(), &file, b"\r\n--bound--\r\n"].concat();
    let form = |body: Vec<u8>| {
        let kind = "multipart/form-data; boundary=bound";
        server.send(server.request("POST", ATTENTION).header(CONTENT_TYPE, kind).body(body))
    };
    let answer = form(body.clone()).ok();
    assert_eq!(answer.json(), look(server, json).ok().json());
    form(body[..body.len() / 2].to_vec()).refused(400, "malformed_body", None);
    let unknown = [part("colour", "red").as_bytes(), b"--bound--"].concat();
    form(unknown).refused(422, "unknown_field", Some("colour"));
    let twice = [part("seed", "1"), part("seed", "2"), "--bound--".to_owned()].concat();
    form(twice.into_bytes()).refused(422, "invalid_value", Some("seed"));
    let wrong = [part("timestep", "soon"), "--bound--".to_owned()].concat();
    form(wrong.into_bytes()).refused(422, "invalid_value", Some("timestep"));
}

#[test]
fn a_picture_shows_every_layer_and_says_of_what() {
    let server = TestServer::shelf();
    let body = json!({
        "model": "fashion-dit", "prompt": "sneaker", "seed": 7, "timestep": 300, "output_format": "png",
        "tokens": [24, [1, 1]],
    });
    let raw = server.send(request(server, &body).header(ACCEPT, "image/png")).ok();
    assert_eq!(raw.header("content-type"), "image/png");
    let inside = look(server, body.clone()).ok().json();
    assert_eq!(STANDARD.decode(inside["b64_json"].as_str().unwrap()).unwrap(), raw.bytes);
    assert!(inside["layers"][0]["mean"].is_null() && inside["layers"][7]["locality"]["distance"].is_number());
    let shown = decode(&raw.bytes).to_rgb8();
    // Eight panels of 49 tokens at 4 pixels.
    assert_eq!(shown.width(), 12 + 8 * (196 + 12));
    let about: Value = serde_json::from_str(&png::note(&raw.bytes).unwrap()).unwrap();
    assert_eq!((&about["model"], &about["class"]), (&json!("fashion-dit"), &json!("sneaker")));
    // The box around the token, and far away from it in a windowed layer nothing.
    let boxes = shown.pixels().filter(|pixel| pixel.0 == [217, 95, 2]).count();
    assert!(boxes > 8 * 2 * 4 * 20, "{boxes}");
    // A line of words above the map, in whose corner the inset has thirteen pixels for each of six tokens.
    assert_eq!(shown.get_pixel(12 + 196 - 6 * 13 - 3, 12 + 14 + 3).0, [40; 3], "the frame of the inset");
    let narrow = look(
        server,
        json!({"model": "fashion-dit", "prompt": "bag", "timestep": 0, "layers": [2], "output_format": "png"}),
    );
    assert_eq!(narrow.ok().json()["tokens"], json!([24]), "the one in the middle");
    // Rows of many tokens are a long picture, which no fewer layers or heads make short.
    let long = json!({"prompt": "ring", "timestep": 0, "layers": [0], "output_format": "png"});
    let long = |tokens: usize| {
        let mut body = long.clone();
        body["tokens"] = (0..tokens).collect();
        look(TestServer::shared(), body)
    };
    let said = long(20).refused(422, "invalid_value", Some("tokens"));
    assert!(said.contains("name fewer in `tokens` (20 now), or narrow `layers` (1)"), "{said}");
    long(2).ok();
}

#[test]
fn images_are_drawn_while_studies_run_and_a_caller_has_a_quota() {
    let config = Config { study_quota: 2, ..TestServer::config() };
    let server = TestServer::leaked(config);
    let body = json!({"prompt": "ring", "seed": 7, "steps": 100, "guidance_scale": 1});
    let image = || server.generate(&body).ok().file(0);
    // A sample of a thousand steps is a study of a thousand units.
    let long =
        ring(json!({"steps": 1000, "timestep": 0, "guidance_scale": 1, "tokens": [0], "maps": "none"}));
    let studies: Vec<_> = ["one", "two"]
        .map(|id| server.spawn(server.answer(request(server, &long).header("x-request-id", id))))
        .into();
    let count = || server.app().model(None).unwrap().batcher.standing().studies;
    server.until("both are under way", || count() == 2);
    let refused = look(server, long.clone());
    let message = refused.refused(429, "quota_reached", None);
    assert!(message.starts_with("2 looks inside this model are under way"), "{message}");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..600).contains(&wait), "{wait}");
    let drawn = image();
    // Calls are counted and not seconds, since the machine has other tests to run too; while an image is under way all the time.
    let calls = || {
        let metrics = server.app().metrics();
        let units = metrics.study_units.with_label_values(&["tiny", "denoiser"]).get();
        (metrics.ticks.with_label_values(&["tiny"]).get(), units)
    };
    let endless = json!({"prompt": "ring", "seed": 7, "steps": 1000, "guidance_scale": 1}).to_string();
    let running = server.spawn(server.answer(server.post(endless)));
    server.until_images(1);
    let (ticks, units) = calls();
    server.until("some hundred ticks are done", || calls().0 >= ticks + 300);
    let (ticks, units) = (calls().0 - ticks, calls().1 - units);
    assert_eq!((server.images(), count()), (1, 2), "all of them go on");
    running.abort();
    server.until_images(0);
    // One call in ten is a study's, each about as long as a tick: every other one would take twice as long.
    assert!(0 < units && 6 * units < ticks, "{units} calls of studies beside {ticks} ticks");
    // One is cancelled, the other's client hangs up, which is noticed in some time: neither goes on with its thousand units.
    server.send(server.request("DELETE", "/v1/requests/one")).ok();
    let mut studies = studies.into_iter();
    let cancelled = server.block_on(studies.next().unwrap()).unwrap();
    cancelled.refused(409, "cancelled", None);
    studies.next().unwrap().abort();
    server.until_within(100, || calls().1, "none is under way", || count() == 0);
    assert_eq!(image(), drawn, "the same bytes in any company");
    // Within a time that it cannot be done in, and in one that is too short by then.
    let late = look(server, {
        let mut body = long;
        body["timeout_ms"] = json!(1);
        body
    });
    late.refused(429, "deadline_unmeetable", None);
    look(server, ring(json!({"tokens": [0]}))).ok();
    let metrics = server.get("/metrics").ok();
    for line in [
        "windowpane_studies_total{model=\"tiny\",outcome=\"cancelled\"} 1",
        "windowpane_studies_total{model=\"tiny\",outcome=\"disconnect\"} 1",
        "windowpane_studies_total{model=\"tiny\",outcome=\"done\"} 1",
        "windowpane_studies{model=\"tiny\"} 0",
        "windowpane_insides_open{graph=\"attention\",model=\"tiny\"} 1",
    ] {
        assert!(metrics.text().lines().any(|other| other == line), "no {line} in {}", metrics.text());
    }
}

#[test]
fn who_leaves_is_waited_for_and_who_may_not_look_is_told() {
    let keys = keys(&[("eve", "generate"), ("ann", "analyse")]);
    let mut server = TestServer::start(Config { keys, ..TestServer::config() });
    let short = ring(json!({"tokens": [0], "maps": "none"}));
    server.send(request(&server, &short)).refused(401, "invalid_api_key", None);
    server.send(request(&server, &short).bearer_auth("eve's secret")).refused(403, "forbidden", None);
    let long = ring(json!({"tokens": [0], "maps": "none", "steps": 200, "timestep": 0}));
    let ann = |body: &Value| request(&server, body).bearer_auth("ann's secret");
    let running = server.spawn({
        let request = ann(&long);
        async move { request.send().await.unwrap().status().as_u16() }
    });
    let model = server.app().model(None).unwrap();
    server.until("it is under way", || model.batcher.standing().studies == 1);
    let next = ann(&short);
    server.begin_to_leave();
    server.until("it drains", || server.app().begin().is_err());
    assert_eq!(server.block_on(running).unwrap(), 200, "what is under way is finished");
    let after = server.block_on(async { next.send().await.map(|answer| answer.status().as_u16()) });
    assert!(after.is_err() || after.is_ok_and(|status| status == 503));
}
