//! What a picture is. `models/tiny` throughout, with few steps: it is not beauty that is tested.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::{ColorType, ImageFormat};
use serde_json::{Value, json};
use suite::png::note;
use suite::{Answer, Package, TestServer, decode};
use windowpane_diffusion::{Sampler, TimeGrid};

/// A request for a ring in two steps, with these fields changed.
fn ring(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 2});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn png(fields: Value) -> Vec<u8> {
    TestServer::shared().picture("image/png", &ring(fields)).ok().bytes
}

fn generate(fields: Value) -> Answer {
    TestServer::shared().generate(&ring(fields)).ok()
}

/// The grey values of a picture file.
fn grey(bytes: &[u8]) -> Vec<u8> {
    decode(bytes).to_luma8().into_raw()
}

/// The largest difference of two pictures, in grey levels.
fn worst(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn accept_asks_for_the_bytes_of_a_picture() {
    let answer = TestServer::shared().picture("image/png", &ring(json!({}))).ok();
    assert_eq!(image::guess_format(&answer.bytes).unwrap(), ImageFormat::Png);
    let picture = decode(&answer.bytes);
    assert_eq!((picture.width(), picture.height(), picture.color()), (32, 32, ColorType::L8));
    let values: BTreeSet<u8> = picture.to_luma8().into_raw().into_iter().collect();
    assert!(values.len() > 16, "a picture has many shades, this one {}", values.len());
    for (header, value) in [
        ("content-type", "image/png"),
        ("x-model", "tiny"),
        ("x-seed", "7"),
        ("x-steps", "2"),
        ("x-sampler", "ddim"),
        ("x-time-grid", "uniform"),
        ("x-guidance-scale", "1.5"),
        ("x-class-index", "3"),
        ("x-upscaled", "1"),
    ] {
        assert_eq!(answer.header(header), value, "{header}");
    }
    for stage in ["queue;dur=", "denoise;dur=", "encode;dur=", "total;dur="] {
        assert!(answer.header("server-timing").contains(stage), "{}", answer.header("server-timing"));
    }
}

#[test]
fn json_holds_the_same_picture_and_says_what_was_used() {
    let answer = generate(json!({}));
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.file(0), png(json!({})));
    for stage in ["queue;dur=", "denoise;dur=", "encode;dur=", "total;dur="] {
        assert!(answer.header("server-timing").contains(stage), "{}", answer.header("server-timing"));
    }
    let mut body = answer.json();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let created = Duration::from_secs(body["created"].as_u64().unwrap());
    assert!(now.abs_diff(created) < Duration::from_secs(120), "{created:?}");
    let model = TestServer::shared().get("/v1/models/tiny").json();
    assert_eq!(body["digest"], model["digest"]);
    assert_eq!(body["determinism"], model["determinism"]["class"]);
    // The same again with each image: what its PNG carries.
    let image = body["data"][0]["provenance"].clone();
    assert_eq!(image, serde_json::from_str::<Value>(&note(&answer.file(0)).unwrap()).unwrap());
    for told in [
        "model",
        "digest",
        "steps",
        "sampler",
        "time_grid",
        "guidance_scale",
        "eta",
        "clip_x0",
        "determinism",
    ] {
        assert_eq!(image[told], body[told], "{told}");
    }
    assert_eq!(image["class"], json!({"index": 3, "name": "ring"}));
    assert_eq!(
        (&image["seed"], &image["start"], &image["size"]),
        (&json!("7"), &json!("noise"), &json!("32x32"))
    );
    for varies in ["created", "data", "digest", "determinism"] {
        body.as_object_mut().unwrap().remove(varies);
    }
    assert_eq!(
        body,
        json!({
            "model": "tiny", "class": "ring", "class_index": 3, "size": "32x32", "upscaled": 1, "output_format": "png",
            "background": "opaque", "steps": 2, "sampler": "ddim", "time_grid": "uniform", "guidance_scale": 1.5,
            "eta": 0.0, "clip_x0": true,
        })
    );
}

#[test]
fn image_i_of_a_request_is_the_one_image_of_seed_plus_i() {
    let many = generate(json!({"n": 3, "seed": 40}));
    let seeds: Vec<Value> =
        many.json()["data"].as_array().unwrap().iter().map(|d| d["seed"].clone()).collect();
    assert_eq!(seeds, ["40", "41", "42"]);
    for i in 0..3 {
        assert_eq!(many.file(i), png(json!({"seed": 40 + i})), "image {i}");
    }
    assert_ne!(grey(&many.file(0)), grey(&many.file(1)));
}

#[test]
fn a_seed_is_a_number_or_a_decimal_string() {
    for seed in [0, 7, u64::from(u32::MAX), (1 << 53) + 1, i64::MAX as u64] {
        let [number, text] =
            [json!(seed), json!(seed.to_string())].map(|seed| generate(json!({"seed": seed})));
        assert_eq!(number.file(0), text.file(0), "{seed}");
        assert_eq!(number.json()["data"][0]["seed"], seed.to_string());
    }
}

#[test]
fn seeds_that_differ_anywhere_give_other_pictures() {
    let seeds = [0, 1, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64];
    let pictures: BTreeSet<Vec<u8>> =
        seeds.iter().map(|seed| grey(&png(json!({"seed": seed, "steps": 1})))).collect();
    assert_eq!(pictures.len(), seeds.len());
}

#[test]
fn a_seed_nobody_asked_for_is_told_and_gives_the_picture_again() {
    let without = json!({"model": "tiny", "prompt": "ring", "steps": 2, "n": 2});
    let [first, second] = [0, 1].map(|_| TestServer::shared().generate(&without).ok());
    assert_ne!(grey(&first.file(0)), grey(&second.file(0)));
    for i in 0..2 {
        let image = &first.json()["data"][i];
        assert_eq!(png(json!({"seed": image["seed"]})), first.file(i), "image {i}");
        // With all that is told of it.
        assert_eq!(generate(json!({"seed": image["seed"]})).json()["data"][0], *image);
    }
}

#[test]
fn what_nobody_asks_for_is_the_models_default() {
    let server = TestServer::shared();
    let body = server.generate(&json!({"model": "tiny", "prompt": "ring"})).ok().json();
    let model = server.get("/v1/models/tiny").ok().json();
    for (field, value) in model["defaults"].as_object().unwrap() {
        assert_eq!(body[field], *value, "{field}");
    }
    assert_eq!((&body["steps"], &body["guidance_scale"]), (&json!(8), &json!(1.5)));
}

/// `models/tiny` as a model of one kind of picture: its label of no class is then that of what was the first.
#[test]
fn a_model_without_classes_draws_by_the_seed_alone() {
    let package = Package::tiny();
    package.edit(|manifest| {
        (manifest["classes"], manifest["config"]["classes"]) = (json!([]), json!(0));
        manifest["defaults"]["guidance_scale"] = json!(1);
    });
    let server = TestServer::start(package.config());
    let first = server.generate(&json!({"steps": 2, "n": 2})).ok();
    assert_eq!(first.json()["class"], Value::Null);
    for (i, image) in first.json()["data"].as_array().unwrap().iter().enumerate() {
        let seed = &image["seed"];
        let again = server.generate(&json!({"model": "tiny", "prompt": "", "seed": seed, "steps": 2})).ok();
        assert_eq!(again.json()["data"][0], *image);
        let ground = png(json!({"prompt": "ground", "seed": seed, "guidance_scale": 1}));
        assert_eq!(grey(&first.file(i)), grey(&ground), "image {i}");
    }
    server.generate(&json!({"prompt": "ring"})).refused(422, "invalid_value", Some("prompt"));
}

#[test]
fn a_class_is_told_by_name_alias_or_index_in_any_case() {
    let rings = png(json!({}));
    for prompt in ["RING", "Ring", "  ring ", "circle", "CIRCLE"] {
        assert_eq!(png(json!({"prompt": prompt})), rings, "{prompt:?}");
    }
    for fields in [
        json!({"prompt": "", "class": 3}),
        json!({"prompt": null, "class": "ring"}),
        json!({"prompt": null, "class": "Circle"}),
        json!({"class": 3}),
    ] {
        assert_eq!(png(fields.clone()), rings, "{fields}");
    }
    let classes = ["ground", "curtain", "blob", "ring"];
    let pictures: BTreeSet<Vec<u8>> =
        classes.iter().map(|class| grey(&png(json!({"prompt": class})))).collect();
    assert_eq!(pictures.len(), classes.len(), "every class has its own picture");
}

#[test]
fn a_size_is_auto_native_or_a_multiple_by_nearest_neighbour() {
    let native = png(json!({}));
    for size in [json!("auto"), json!("32x32"), Value::Null] {
        assert_eq!(png(json!({"size": size})), native, "{size}");
    }
    let answer = generate(json!({"size": "96x96"}));
    assert_eq!((&answer.json()["size"], &answer.json()["upscaled"]), (&json!("96x96"), &json!(3)));
    let [small, large] = [native, answer.file(0)].map(|bytes| decode(&bytes).to_luma8());
    assert_eq!(large.dimensions(), (96, 96));
    for (x, y, pixel) in large.enumerate_pixels() {
        assert_eq!(pixel, small.get_pixel(x / 3, y / 3), "at {x}, {y}");
    }
    let raw = TestServer::shared().picture("image/png", &ring(json!({"size": "64x64"}))).ok();
    assert_eq!(raw.header("x-upscaled"), "2");
    assert_eq!(decode(&raw.bytes).width(), 64);
}

#[test]
fn webp_is_lossless_and_jpeg_is_near() {
    let pixels = grey(&png(json!({})));
    for (kind, format) in [("webp", ImageFormat::WebP), ("jpeg", ImageFormat::Jpeg)] {
        let accept = format!("image/{kind}");
        let raw = TestServer::shared().picture(&accept, &ring(json!({}))).ok();
        assert_eq!(raw.header("content-type"), accept);
        assert_eq!(image::guess_format(&raw.bytes).unwrap(), format);
        let inside = generate(json!({"output_format": kind}));
        assert_eq!((inside.file(0), &inside.json()["output_format"]), (raw.bytes.clone(), &json!(kind)));
        let worst = worst(&grey(&raw.bytes), &pixels);
        // Quality 95 quantises by a few grey levels; a picture of another class is off by a hundred.
        assert!(worst <= if kind == "webp" { 0 } else { 16 }, "{kind} is off by {worst}");
    }
    let size = |percent: u32| {
        generate(json!({"output_format": "jpeg", "output_compression": percent})).file(0).len()
    };
    assert!(size(10) < size(100));
}

#[test]
fn accept_prefers_by_quality_and_json_is_the_default() {
    let kind = |accept: &str| {
        let answer = TestServer::shared().picture(accept, &ring(json!({"steps": 1}))).ok();
        answer.header("content-type").to_owned()
    };
    assert_eq!(kind("*/*"), "application/json");
    assert_eq!(kind("image/*"), "image/png");
    assert_eq!(kind("image/png;q=0.2, image/webp;q=0.9"), "image/webp");
    // What a browser asks for a picture.
    assert_eq!(kind("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"), "image/webp");
    let answer = TestServer::shared().picture("text/html", &ring(json!({})));
    answer.refused(406, "not_acceptable", None);
}

#[test]
fn guidance_weighs_the_class_against_none() {
    let at = |scale: f64, prompt: &str| grey(&png(json!({"guidance_scale": scale, "prompt": prompt})));
    assert_eq!(at(1.5, "ring"), grey(&png(json!({}))), "the package's default");
    let scales: BTreeSet<Vec<u8>> = [0.0, 1.0, 1.5, 8.0].map(|scale| at(scale, "ring")).into();
    assert_eq!(scales.len(), 4);
    // u + 0 · (c - u): the class has no part in the picture.
    assert_eq!(at(0.0, "ring"), at(0.0, "ground"));
    assert_ne!(at(1.0, "ring"), at(1.0, "ground"));
}

#[test]
fn every_sampler_draws_on_every_time_grid() {
    for grid in TimeGrid::ALL.map(TimeGrid::as_str) {
        let draw = |sampler: Sampler| {
            let name = sampler.as_str();
            let fields = json!({"sampler": name, "time_grid": grid, "steps": 4, "guidance_scale": 1});
            let answer = generate(fields.clone());
            assert_eq!(
                (&answer.json()["sampler"], &answer.json()["time_grid"]),
                (&json!(name), &json!(grid))
            );
            assert_eq!(answer.file(0), png(fields), "{name} on {grid} draws the same twice");
            grey(&answer.file(0))
        };
        // The same method under two names, up to rounding: Euler's is DDIM without eta, and the ancestral one is DDPM
        // where the variance is the posterior's.
        let families = [
            vec![draw(Sampler::Ddim), draw(Sampler::Euler)],
            vec![draw(Sampler::Ddpm), draw(Sampler::EulerAncestral)],
            vec![draw(Sampler::Heun)],
            vec![draw(Sampler::DpmppTwoM)],
        ];
        for (i, family) in families.iter().enumerate() {
            assert!(family.iter().all(|picture| worst(picture, &family[0]) <= 1), "family {i} on {grid}");
            for other in &families[..i] {
                assert!(worst(&family[0], &other[0]) > 1, "family {i} on {grid} is another method");
            }
        }
    }
}

#[test]
fn one_step_is_a_picture_for_every_sampler() {
    for sampler in Sampler::ALL.map(Sampler::as_str) {
        assert_eq!(grey(&png(json!({"sampler": sampler, "steps": 1}))).len(), 32 * 32, "{sampler}");
    }
}

#[test]
fn eta_and_clipping_change_the_picture_and_are_told() {
    let plain = generate(json!({"steps": 4}));
    for (field, value) in [("eta", json!(1.0)), ("clip_x0", json!(false))] {
        let other = generate(json!({"steps": 4, field: value}));
        assert_eq!(other.json()[field], value);
        assert_ne!(other.json()[field], plain.json()[field]);
    }
    let noisy = |seed: u64| png(json!({"steps": 4, "eta": 1.0, "seed": seed}));
    assert_ne!(grey(&noisy(7)), grey(&plain.file(0)));
    assert_eq!(noisy(7), noisy(7), "noise on the way is a matter of the seed too");
    // Strong guidance drives the estimates out of the pixels' range: of a model that has learnt enough to be driven.
    let far = |clip: bool| {
        let body = json!({"model": "fashion-dit", "class": 0, "seed": 7, "steps": 4, "guidance_scale": 12, "clip_x0": clip});
        grey(&TestServer::shelf().generate(&body).ok().file(0))
    };
    assert_ne!(far(true), far(false));
}
