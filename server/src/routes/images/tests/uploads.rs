//! What a client hands in, what it watches, and pictures made again.

use super::*;
use crate::decode::npy::Npy;

/// The values of an order, through a `.npy`.
async fn values(app: &App, fields: Value) -> Npy {
    let answer = generate(app, "application/x-npy", sneaker(fields)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.bytes));
    Npy::read(&answer.bytes, 1 << 20).unwrap()
}

/// These values as a `.npy` of a model's image, in base64.
fn npy(values: Vec<f32>) -> String {
    let arrays = crate::encode::Arrays {
        shape: [1, 1, 4, 6],
        images: values,
        frames: None,
        seeds: Vec::new(),
        provenance: String::new(),
    };
    STANDARD.encode(arrays.encode(crate::encode::ArrayFile::Npy).unwrap())
}

#[tokio::test]
async fn the_seeds_own_noise_as_x_t_gives_the_same_image() {
    let app = ready();
    let noise = windowpane_diffusion::noise::normal(7, windowpane_diffusion::noise::INITIAL, 24);
    for fields in [json!({}), json!({"sampler": "dpmpp_2m"}), json!({"eta": 1.0})] {
        let mut given = fields.clone();
        given["x_t"] = json!(npy(noise.clone()));
        assert_eq!(values(&app, given).await, values(&app, fields).await);
    }
    let body = generate(&app, "", sneaker(json!({"x_t": npy(noise.clone())}))).await.json();
    let told = &body["data"][0]["provenance"]["start"]["x_t"]["sha256"];
    assert_eq!(*told, json!(crate::provenance::digest_of(&noise)));
    assert_ne!(values(&app, json!({"x_t": npy(vec![0.1; 24])})).await, values(&app, json!({})).await);
}

#[tokio::test]
async fn little_strength_stays_near_the_picture_and_much_does_not() {
    let app = ready();
    // The fake's images of a boot: a picture to begin with that is none of a sneaker.
    let boot = json!({"model": "shoes", "prompt": "boot", "seed": 1});
    let file = generate(&app, "image/png", boot.clone()).await.bytes;
    let boot = Npy::read(&generate(&app, "application/x-npy", boot).await.bytes, 24).unwrap().values;
    let mut distances = Vec::new();
    for strength in [0.1, 0.5, 1.0] {
        let fields = json!({"init_image": STANDARD.encode(&file), "strength": strength, "guidance_scale": 1});
        let image = values(&app, fields).await.values;
        distances.push(image.iter().zip(&boot).map(|(a, b)| (a - b).abs()).sum::<f32>());
    }
    assert!(distances.is_sorted() && distances[0] < distances[2], "{distances:?}");
}

#[tokio::test]
async fn a_trajectory_is_a_strip_or_an_array_and_ends_with_the_image() {
    let app = ready();
    let image = values(&app, json!({"n": 2})).await;
    let frames = values(&app, json!({"n": 2, "trajectory": 4})).await;
    assert_eq!((image.shape, frames.shape), (vec![2, 1, 4, 6], vec![2, 3, 1, 4, 6]));
    for (i, own) in frames.values.chunks_exact(3 * 24).enumerate() {
        assert_eq!(own[2 * 24..], image.values[i * 24..(i + 1) * 24]);
        assert_ne!(own[..24], own[24..48]);
    }
    let answer = generate(&app, "", sneaker(json!({"trajectory": 4, "size": "12x8"}))).await.json();
    assert_eq!(answer["size"], "36x8");
    let bytes = STANDARD.decode(answer["data"][0]["b64_json"].as_str().unwrap()).unwrap();
    let strip = image::load_from_memory(&bytes).unwrap();
    let alone = generate(&app, "image/png", sneaker(json!({"size": "12x8"}))).await.bytes;
    let alone = image::load_from_memory(&alone).unwrap();
    assert_eq!((strip.width(), strip.height()), (36, 8));
    assert_eq!(strip.crop_imm(24, 0, 12, 8).to_luma8(), alone.to_luma8());
    let named = generate(&app, "application/vnd.safetensors", sneaker(json!({"trajectory": 4}))).await.bytes;
    let tensors = safetensors::SafeTensors::deserialize(&named).unwrap();
    assert_eq!(tensors.tensor("frames_x0").unwrap().shape(), [1, 3, 1, 4, 6]);
}

/// The events of a stream: names and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let (name, data) = block.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split_terminator("\n\n").filter_map(event).collect()
}

#[tokio::test]
async fn a_stream_has_previews_and_then_the_image_that_json_would_have() {
    let app = ready();
    let fields = json!({"stream": true, "partial_images": 2, "n": 2, "size": "12x8"});
    let answer = generate(&app, "application/json", sneaker(fields)).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let text = std::str::from_utf8(&answer.bytes).unwrap();
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert!(text.starts_with(&format!(": x-request-id: {id}\n\nevent: ")), "{}", &text[..80]);
    let events = events(text);
    assert_eq!(events.len(), 2 * 3);
    let whole = generate(&app, "", sneaker(json!({"n": 2, "size": "12x8"}))).await.json();
    for image in 0..2 {
        let own: Vec<_> = events.iter().filter(|(_, data)| data["image_index"] == image).collect();
        for (i, (name, data)) in own[..2].iter().enumerate() {
            assert_eq!(
                (name.as_str(), &data["partial_image_index"]),
                ("image_generation.partial_image", &json!(i))
            );
            assert_eq!(data["type"], *name);
            let bytes = STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap();
            assert_eq!(image::load_from_memory(&bytes).unwrap().width(), 12);
            assert_eq!(crate::decode::picture::note(&bytes), None, "a preview is not the image");
        }
        let (name, data) = own[2];
        assert_eq!(name, "image_generation.completed");
        for field in ["b64_json", "seed", "provenance"] {
            assert_eq!(data[field], whole["data"][image as usize][field], "{field}");
        }
        assert_eq!((&data["size"], &data["usage"]["total_tokens"]), (&json!("12x8"), &json!(0)));
        assert_eq!(data["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    }
}

#[tokio::test]
async fn an_error_on_the_way_is_the_last_event() {
    // The first preview comes after three calls, the error at the sixth.
    let app = app(Config::default(), &Faults { error_at: vec![5], ..Faults::default() });
    let fields = json!({"stream": true, "partial_images": 2});
    let answer = generate(&app, "", sneaker(fields)).await;
    assert_eq!(answer.status, StatusCode::OK);
    let events = events(std::str::from_utf8(&answer.bytes).unwrap());
    assert_eq!(events[0].0, "image_generation.partial_image");
    let (name, data) = events.last().unwrap();
    assert_eq!((events.len(), name.as_str(), &data["error"]["code"]), (2, "error", &json!("engine_error")));
    assert_eq!(data["error"]["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert!(!String::from_utf8_lossy(&answer.bytes).contains("asked to fail"));
}

async fn replay(app: &App, kind: &str, body: Vec<u8>) -> crate::testing::Answer {
    let request = Request::post("/v1/replay").header(header::CONTENT_TYPE, kind).body(Body::from(body));
    send(app, request.unwrap()).await
}

#[tokio::test]
async fn a_picture_is_made_again_and_compared() {
    let app = ready();
    let fields = json!({"sampler": "euler_a", "steps": 7, "size": "18x12", "clip_x0": false});
    let file = generate(&app, "image/png", sneaker(fields)).await.bytes;
    let answer = replay(&app, "image/png", file.clone()).await.json();
    assert_eq!(answer["identical"], json!(true), "{answer}");
    assert_eq!((&answer["pixels"], &answer["differing"]), (&json!(18 * 12), &json!(0)));
    assert_eq!((&answer["provenance"]["seed"], &answer["engine"]["provider"]), (&json!("7"), &json!("fake")));
    let inside = json!({"image": STANDARD.encode(&file)}).to_string().into_bytes();
    assert_eq!(replay(&app, "application/json", inside).await.json(), answer);

    // The same words with other pixels.
    let note = crate::decode::picture::note(&file).unwrap();
    let mut picture = crate::decode::picture::png(&file, crate::encode::Colour::Grey, [18, 12]).unwrap();
    picture.pixels[5] ^= 3;
    let forged = picture.encode(crate::encode::Encoding::Png, Some(note)).unwrap();
    let answer = replay(&app, "image/png", forged).await.json();
    assert_eq!((&answer["identical"], &answer["differing"]), (&json!(false), &json!(1)));
}

#[tokio::test]
async fn what_cannot_be_made_again_is_told_why() {
    let app = ready();
    let ask = async |fields| generate(&app, "image/png", sneaker(fields)).await.bytes;
    let plain = ask(json!({})).await;
    let note = crate::decode::picture::note(&plain).unwrap();
    let picture = crate::decode::picture::png(&plain, crate::encode::Colour::Grey, [6, 4]).unwrap();
    let with = |note: Option<&str>| picture.encode(crate::encode::Encoding::Png, note).unwrap();
    let noise = npy(vec![0.5; 24]);
    let digest = app.model(Some("shoes")).unwrap().card.digest.clone();
    for (file, status, code, said) in [
        (b"GIF89a".to_vec(), 422, "invalid_value", "not a PNG"),
        (with(None), 422, "invalid_value", "does not say how"),
        (with(Some("{}")), 422, "invalid_value", "does not read"),
        (with(Some(&note.replace("\"version\":1", "\"version\":9"))), 422, "invalid_value", "version 9"),
        (ask(json!({"x_t": noise})).await, 422, "invalid_value", "uploaded `x_t`"),
        (ask(json!({"init_image": STANDARD.encode(&plain)})).await, 422, "invalid_value", "uploaded picture"),
        (ask(json!({"trajectory": 5})).await, 422, "invalid_value", "trajectory"),
        (
            with(Some(&note.replace("\"upscaled\":1", "\"upscaled\":2"))),
            422,
            "invalid_value",
            "6x4 pixels, expected 12x8",
        ),
        (
            with(Some(&note.replace("\"upscaled\":1", "\"upscaled\":99999999"))),
            422,
            "invalid_value",
            "99999999 times",
        ),
        (with(Some(&note.replace("\"steps\":10", "\"steps\":101"))), 422, "invalid_value", "steps"),
        (with(Some(&note.replace(&digest, "f00d"))), 409, "model_changed", "f00d"),
        (
            with(Some(&note.replace(&digest, "f00d").replace("\"shoes\"", "\"hats\""))),
            404,
            "model_not_found",
            "hats",
        ),
    ] {
        let answer = replay(&app, "image/png", file).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status.as_u16(), &error["code"]), (status, &json!(code)), "{said}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
    }
    assert_eq!(replay(&app, "text/plain", Vec::new()).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(replay(&app, "application/json", b"{}".to_vec()).await.json()["error"]["param"], "image");
}
