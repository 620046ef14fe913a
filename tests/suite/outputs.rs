//! Files of numbers, and what a PNG says of itself: NumPy reads the one, any reader of text chunks the other.
#![expect(clippy::needless_pass_by_value, reason = "a request's fields are a `json!` on the spot")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use suite::{TestServer, decode, png, python};

fn ring(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 2});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn numpy_reads_the_models_values() {
    let server = TestServer::shared();
    let said: Value = serde_json::from_str(&python("numpy_client.py", [server.url().as_str()])).unwrap();
    assert_eq!(said["npy"], json!(["float32", [1, 1, 32, 32], true]));
    assert_eq!(said["npz"], json!(["float32", [2, 1, 32, 32]]));
    assert_eq!(said["names"], json!(["images", "provenance.json", "seeds"]));
    assert_eq!(said["seeds"], json!([7, 8]));
    let answer = server.generate(&ring(json!({"n": 2}))).ok();
    for i in 0..2 {
        assert_eq!(said["provenance"][i], answer.json()["data"][i]["provenance"]);
    }
    // The picture is these values, rounded: -1 is black and 1 is white.
    let values: Vec<f64> = said["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let pixels: Vec<u8> =
        values.iter().map(|v| ((v + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8).collect();
    assert_eq!(pixels, decode(&answer.file(0)).to_luma8().into_raw());
}

#[test]
fn safetensors_hold_the_same_and_say_how() {
    let server = TestServer::shared();
    let ask = |accept: &str| server.picture(accept, &ring(json!({"n": 2}))).ok();
    let answer = ask("application/vnd.safetensors");
    assert_eq!(answer.header("content-type"), "application/vnd.safetensors");
    let file = SafeTensors::deserialize(&answer.bytes).unwrap();
    let images = file.tensor("images").unwrap();
    assert_eq!((images.dtype(), images.shape()), (safetensors::Dtype::F32, &[2, 1, 32, 32][..]));
    // A .npy ends with the same bytes.
    assert!(ask("application/x-npy").bytes.ends_with(images.data()));
    let (_, metadata) = SafeTensors::read_metadata(&answer.bytes).unwrap();
    let how: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["provenance"]).unwrap();
    assert_eq!((&how[0]["seed"], &how[1]["seed"]), (&json!("7"), &json!("8")));
}

#[test]
fn array_files_are_the_same_bytes_every_time_and_in_json() {
    let server = TestServer::shared();
    for kind in ["npy", "npz", "safetensors"] {
        let inside = |n: u64| server.generate(&ring(json!({"output_format": kind, "n": n}))).ok();
        let (one, two) = (inside(1), inside(2));
        assert_eq!((one.file(0), &one.json()["output_format"]), (two.file(0), &json!(kind)));
        let accept = if kind == "safetensors" { "vnd.safetensors".to_owned() } else { format!("x-{kind}") };
        let raw = server.picture(&format!("application/{accept}"), &ring(json!({}))).ok();
        assert_eq!(raw.bytes, one.file(0), "{kind}");
    }
    let refused = server.generate(&ring(json!({"output_format": "npy", "size": "64x64"})));
    refused.refused(422, "invalid_value", Some("size"));
}

#[test]
fn a_png_says_how_it_came_about_and_nothing_of_who_asked() {
    let server = TestServer::shared();
    let plain = server.picture("image/png", &ring(json!({}))).ok();
    let told: Value = serde_json::from_str(&png::note(&plain.bytes).unwrap()).unwrap();
    assert_eq!(told, serde_json::from_str::<Value>(plain.header("x-provenance")).unwrap());
    assert_eq!(told["digest"], server.get("/v1/models/tiny").json()["digest"]);
    assert_eq!((&told["steps"], &told["upscaled"]), (&json!(2), &json!(1)));
    // Other words for the same class, another user, another id: the same file.
    let body = json!({"model": "tiny", "prompt": " CIRCLE", "seed": "7", "steps": 2, "user": "somebody"});
    let request = server.post(body.to_string()).header("accept", "image/png").header("x-request-id", "mine");
    assert_eq!(server.send(request).ok().bytes, plain.bytes);
    // The others have no such place; what they are told is in the header.
    for kind in ["webp", "jpeg"] {
        let answer = server.picture(&format!("image/{kind}"), &ring(json!({}))).ok();
        assert_eq!(serde_json::from_str::<Value>(answer.header("x-provenance")).unwrap(), told);
        assert!(!answer.bytes.windows(6).any(|bytes| bytes == b"digest"));
    }
}

#[test]
fn a_png_is_made_again_to_the_pixel_after_a_restart() {
    let file =
        TestServer::shared().picture("image/png", &ring(json!({"steps": 3, "size": "64x64"}))).ok().bytes;
    let server = TestServer::start(TestServer::config());
    let request = server.request("POST", "/v1/replay").header("content-type", "image/png").body(file.clone());
    let answer = server.send(request).ok().json();
    assert_eq!((&answer["identical"], &answer["pixels"]), (&json!(true), &json!(64 * 64)));
    assert_eq!(answer["determinism"]["class"], server.get("/v1/models/tiny").json()["determinism"]["class"]);
    // A picture that went through another program has lost its words.
    let mut plain = std::io::Cursor::new(Vec::new());
    decode(&file).write_to(&mut plain, image::ImageFormat::Png).unwrap();
    let request =
        server.request("POST", "/v1/replay").header("content-type", "image/png").body(plain.into_inner());
    let said = server.send(request).refused(422, "invalid_value", Some("image"));
    assert!(said.contains("does not say how it came about"), "{said}");
}

#[test]
fn a_picture_is_changed_a_little_or_much_and_tells_its_origin() {
    let server = TestServer::shared();
    let file = server.picture("image/png", &ring(json!({"prompt": "blob", "steps": 4}))).ok().bytes;
    let pixels = |bytes: &[u8]| decode(bytes).to_luma8().into_raw();
    let away = |strength: f64| {
        let body = ring(json!({"steps": 10, "init_image": STANDARD.encode(&file), "strength": strength}));
        let answer = server.generate(&body).ok();
        let start = answer.json()["data"][0]["provenance"]["start"].clone();
        assert_eq!(start["init_image"]["strength"], strength);
        let distance: u64 =
            pixels(&answer.file(0)).iter().zip(&pixels(&file)).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        distance
    };
    // With all of the strength nothing is left of the picture, with half of it a network as small as this one gets as lost.
    let [little, half, all] = [0.1, 0.5, 1.0].map(away);
    assert!(0 < little && 4 * little < half.min(all), "{little} {half} {all}");
}
