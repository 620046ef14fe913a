//! `/v1/replay`: what is ours comes out again to the pixel, and what is not, or says what is not so, is told.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{DynamicImage, ImageFormat};
use serde_json::{Value, json};
use suite::{Answer, TestServer, decode, png};
use windowpane_server::Config;
use windowpane_server::batcher::Caller;

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
fn plain(pixels: impl Into<DynamicImage>) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    pixels.into().write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn a_picture_is_made_again_to_the_pixel() {
    let server = TestServer::shared();
    for fields in [
        json!({"sampler": "euler_a", "size": "64x64", "clip_x0": false}),
        json!({"sampler": "heun", "guidance_scale": 3.5, "time_grid": "karras"}),
        json!({"eta": 1.0, "seed": i64::MAX}),
        json!({"trajectory": 2, "steps": 5, "size": "64x64"}),
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
    let classes = TestServer::shared().app().model(Some("tiny")).unwrap().card.manifest.classes.clone();
    let other_class = format!("{{\"index\":1,\"name\":\"{}\"}}", classes[1].name);
    // The pixels of one image with the words of another.
    for (ours, other) in [
        ("\"seed\":\"7\"", "\"seed\":\"8\""),
        ("\"steps\":4", "\"steps\":5"),
        ("{\"index\":3,\"name\":\"ring\"}", other_class.as_str()),
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
    // A step on the way, of which the end is the same.
    let strip = ring(json!({"trajectory": 2}));
    let mut pixels = decode(&strip).into_luma8();
    assert_eq!(pixels.dimensions(), (64, 32));
    pixels.get_pixel_mut(5, 9)[0] ^= 3;
    let answer = replay(&png::with_note(&plain(pixels), &png::note(&strip).unwrap())).ok().json();
    assert_eq!((&answer["identical"], &answer["differing"]), (&json!(false), &json!(1)));
    // One pixel of 1024.
    let mut pixels = decode(&file).into_luma8();
    pixels.get_pixel_mut(5, 9)[0] ^= 3;
    let answer = replay(&png::with_note(&plain(pixels.clone()), &note)).ok().json();
    assert_eq!((&answer["identical"], &answer["differing"]), (&json!(false), &json!(1)));
    assert!(answer["max_difference"].as_u64() <= Some(3), "{answer}");
    // Another program's file, the same pixels and the same words: how it is packed is no matter.
    pixels = decode(&file).into_luma8();
    let of = |pixels: DynamicImage| replay(&png::with_note(&plain(pixels), &note)).ok().json();
    assert_eq!(of(pixels.clone().into())["identical"], true);
    // And as RGB or with 16 bits, of which none says more; but not where a colour or a low bit does.
    let (mut rgb, mut wide) =
        (DynamicImage::from(pixels.clone()).to_rgb8(), DynamicImage::from(pixels).to_luma16());
    assert_eq!(of(rgb.clone().into())["identical"], true);
    assert_eq!(of(wide.clone().into())["identical"], true);
    // A blue that the luma does not show.
    rgb.get_pixel_mut(5, 9)[2] ^= 1;
    wide.get_pixel_mut(5, 9)[0] ^= 1;
    for answer in [of(rgb.into()), of(wide.into())] {
        assert_eq!((&answer["identical"], &answer["differing"]), (&json!(false), &json!(1)), "{answer}");
        assert_eq!(answer["max_difference"], 1);
    }
}

#[test]
fn the_pixels_of_those_that_wait_have_their_room_and_no_more_than_there_is() {
    // A strip of four, each of 1024 x 1024 pixels of two bytes as they are unpacked and two as they are kept: once, not twice.
    let room = 4 * 1024 * 1024 * 4;
    let server = TestServer::leaked(Config { frame_limit: room * 3 / 2, ..TestServer::config() });
    let body = json!({
        "prompt": "ring", "seed": 7, "steps": 400, "trajectory": 100, "size": "1024x1024", "guidance_scale": 1,
    });
    let file = server.picture("image/png", &body).ok().bytes;
    let replay = move |file: &[u8]| {
        let request = server.request("POST", "/v1/replay").header("content-type", "image/png");
        server.answer(request.body(file.to_vec()))
    };
    let model = server.app().model(Some("tiny")).unwrap();
    let others = server.app().room_for_frames(Caller::ANONYMOUS, &model, room).unwrap();
    server.block_on(replay(&file)).refused(429, "memory_full", None);
    drop(others);
    let running = server.spawn(replay(&file));
    server.until_images(1);
    assert!((room..room * 11 / 10).contains(&server.app().frame_bytes()), "{}", server.app().frame_bytes());
    let answer = server.block_on(running).unwrap().ok().json();
    assert_eq!(answer["identical"], true, "{answer}");
    server.until("its room is free", || server.app().frame_bytes() == 0);
    // By its head 14336 x 2048 pixels of eight bytes; not one of them is unpacked.
    let strip = ring(json!({"steps": 7, "trajectory": 1}));
    let note = png::note(&strip).unwrap().replace("\"upscaled\":1", "\"upscaled\":64");
    let mut large = png::with_note(&strip, &note);
    large[16..26].copy_from_slice(&[0, 0, 0x38, 0, 0, 0, 8, 0, 16, 6]);
    let told = server.block_on(replay(&large)).refused(422, "invalid_value", Some("image"));
    assert!(told.contains("it takes 393 MiB to compare, more than the 24 that there are for it"), "{told}");
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
        (plain(decode(&file).into_luma8()), 422, "invalid_value", "image", "does not say how"),
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
        (with("\"trajectory\":null", "\"trajectory\":5"), 422, "invalid_value", "image", "1 to 4, the steps"),
        (
            with("\"trajectory\":null", "\"trajectory\":2"),
            422,
            "invalid_value",
            "image",
            "32x32 pixels, expected 64x32",
        ),
        (with("\"upscaled\":1", "\"upscaled\":0"), 422, "invalid_value", "image", "size"),
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
        (with("\"index\":3", "\"index\":1"), 422, "invalid_value", "image", "`class` is {\"index\":1,"),
        (with("\"name\":\"ring\"", "\"name\":\"hat\""), 422, "invalid_value", "image", "`class` is"),
        (
            with("\"size\":\"32x32\"", "\"size\":\"64x32\""),
            422,
            "invalid_value",
            "image",
            "`size` is \"64x32\"",
        ),
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
