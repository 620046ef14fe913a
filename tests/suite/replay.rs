//! `/v1/replay`: what is ours comes out again to the pixel, and what is not, or says what is not so, is told.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{GrayImage, ImageFormat};
use serde_json::{Value, json};
use suite::{Answer, TestServer, decode, png};

/// A ring's PNG, with these fields changed.
fn ring(fields: Value) -> Vec<u8> {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 4});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    TestServer::shared().picture("image/png", &body).ok().bytes
}

fn replay(file: &[u8]) -> Answer {
    let server = TestServer::shared();
    let request = server.request("POST", "/v1/replay").header("content-type", "image/png");
    server.send(request.body(file.to_vec()))
}

/// Another program's file of these pixels: without any note.
fn plain(pixels: &GrayImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    pixels.write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn a_picture_is_made_again_to_the_pixel() {
    let server = TestServer::shared();
    for fields in [
        json!({"sampler": "euler_a", "size": "64x64", "clip_x0": false}),
        json!({"sampler": "heun", "guidance_scale": 3.5, "time_grid": "karras"}),
        json!({"eta": 1.0, "seed": i64::MAX}),
    ] {
        let file = ring(fields.clone());
        let answer = replay(&file).ok().json();
        let (width, height) = decode(&file).into_luma8().dimensions();
        assert_eq!(answer["identical"], true, "{fields}: {answer}");
        assert_eq!((&answer["pixels"], &answer["differing"]), (&json!(width * height), &json!(0)));
        let note: Value = serde_json::from_str(&png::note(&file).unwrap()).unwrap();
        assert_eq!((&answer["provenance"], &answer["engine"]), (&note, &note["engine"]));
        let inside = json!({"image": STANDARD.encode(&file)}).to_string();
        let request = server.request("POST", "/v1/replay").header("content-type", "application/json");
        assert_eq!(server.send(request.body(inside)).ok().json(), answer);
    }
}

#[test]
fn a_forgery_is_found() {
    let file = ring(json!({}));
    let note = png::note(&file).unwrap();
    // The pixels of one image with the words of another.
    for (ours, other) in [
        ("\"seed\":\"7\"", "\"seed\":\"8\""),
        ("\"steps\":4", "\"steps\":5"),
        ("\"index\":3", "\"index\":1"),
        ("\"guidance_scale\":1.5", "\"guidance_scale\":1"),
        ("\"sampler\":\"ddim\"", "\"sampler\":\"heun\""),
    ] {
        assert!(note.contains(ours), "no {ours} in {note}");
        let answer = replay(&png::with_note(&file, &note.replace(ours, other))).ok().json();
        assert_eq!(answer["identical"], false, "{other}: {answer}");
        assert!(
            answer["differing"].as_u64() > Some(0) && answer["max_difference"].as_u64() > Some(0),
            "{answer}"
        );
    }
    // One pixel of 1024.
    let mut pixels = decode(&file).into_luma8();
    pixels.get_pixel_mut(5, 9)[0] ^= 3;
    let answer = replay(&png::with_note(&plain(&pixels), &note)).ok().json();
    assert_eq!((&answer["identical"], &answer["differing"]), (&json!(false), &json!(1)));
    assert!(answer["max_difference"].as_u64() <= Some(3), "{answer}");
    // Another program's file, the same pixels and the same words: how it is packed is no matter.
    pixels = decode(&file).into_luma8();
    assert_eq!(replay(&png::with_note(&plain(&pixels), &note)).ok().json()["identical"], true);
}

#[test]
fn what_cannot_be_made_again_is_told_why() {
    let server = TestServer::shared();
    let file = ring(json!({}));
    let note = png::note(&file).unwrap();
    let digest = server.get("/v1/models/tiny").json()["digest"].as_str().unwrap().to_owned();
    let with = |from: &str, to: &str| {
        assert!(note.contains(from), "no {from} in {note}");
        png::with_note(&file, &note.replace(from, to))
    };
    let elsewhere = note.replace(&digest, "f00d").replace("\"tiny\"", "\"hats\"");
    for (file, status, code, param, said) in [
        (b"GIF89a".to_vec(), 422, "invalid_value", "image", "not a PNG"),
        (plain(&decode(&file).into_luma8()), 422, "invalid_value", "image", "does not say how"),
        (png::with_note(&file, "{}"), 422, "invalid_value", "image", "does not read"),
        (with("\"version\":1", "\"version\":9"), 422, "invalid_value", "image", "version 9"),
        (
            with("\"start\":\"noise\"", "\"start\":{\"x_t\":{\"sha256\":\"00\"}}"),
            422,
            "invalid_value",
            "image",
            "uploaded `x_t`",
        ),
        (
            ring(json!({"init_image": STANDARD.encode(&file)})),
            422,
            "invalid_value",
            "image",
            "uploaded picture",
        ),
        (ring(json!({"trajectory": 2})), 422, "invalid_value", "image", "trajectory"),
        (
            with("\"upscaled\":1", "\"upscaled\":2"),
            422,
            "invalid_value",
            "image",
            "32x32 pixels, expected 64x64",
        ),
        (with("\"upscaled\":1", "\"upscaled\":99999999"), 422, "invalid_value", "image", "99999999 times"),
        (with("\"steps\":4", "\"steps\":1001"), 422, "invalid_value", "image", "steps"),
        (with("\"index\":3", "\"index\":4"), 422, "invalid_value", "image", "class"),
        (with(&digest, "f00d"), 409, "model_changed", "image", "f00d"),
        (png::with_note(&file, &elsewhere), 404, "model_not_found", "model", "hats"),
    ] {
        let told = replay(&file).refused(status, code, Some(param));
        assert!(told.contains(said), "{said}: {told}");
    }
    let request = server.request("POST", "/v1/replay").header("content-type", "text/plain");
    server.send(request).refused(415, "unsupported_media_type", None);
    let request = server.request("POST", "/v1/replay").header("content-type", "application/json").body("{}");
    server.send(request).refused(422, "invalid_value", Some("image"));
}
