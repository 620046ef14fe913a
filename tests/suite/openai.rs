//! The OpenAI images API: every documented field is known, and their own client works with this server.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use suite::{TestServer, decode, python};
use windowpane_server::Config;

fn with(field: &str, value: &Value) -> Value {
    json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 1, field: value})
}

#[test]
fn neutral_values_of_every_documented_field_are_accepted() {
    let server = TestServer::shared();
    let plain = server.generate(&with("n", &json!(1))).ok().file(0);
    for (field, values) in [
        ("background", vec![json!("auto"), json!("opaque")]),
        ("moderation", vec![json!("auto"), json!("low")]),
        ("n", vec![json!(1)]),
        ("output_compression", vec![json!(100)]),
        ("output_format", vec![json!("png")]),
        ("partial_images", vec![json!(0)]),
        ("quality", vec![json!("auto")]),
        ("response_format", vec![json!("b64_json")]),
        ("size", vec![json!("auto"), json!("32x32")]),
        ("stream", vec![json!(false)]),
        ("style", vec![]),
        ("user", vec![json!("someone"), json!("")]),
    ] {
        for value in values.iter().chain([&Value::Null]) {
            let answer = server.generate(&with(field, value)).ok();
            assert_eq!(answer.file(0), plain, "`{field}`: {value} changes the picture");
        }
    }
}

#[test]
fn other_values_are_refused_and_say_what_is_supported() {
    for (field, value, supported) in [
        ("background", json!("transparent"), "`opaque`"),
        ("moderation", json!("high"), "`low`"),
        ("output_compression", json!(50), "100"),
        ("quality", json!("hd"), "`auto`"),
        ("response_format", json!("url"), "`b64_json`"),
        ("style", json!("vivid"), "leave it out"),
    ] {
        let message = TestServer::shared().generate(&with(field, &value)).refused(
            422,
            "unsupported_value",
            Some(field),
        );
        assert!(message.contains(&format!("`{field}`")) && message.contains(supported), "{message}");
    }
    for n in [1, 4] {
        // Previews are for streams, and three at most.
        let body = json!({"prompt": "ring", "steps": 1, "partial_images": n, "stream": n == 4});
        TestServer::shared().generate(&body).refused(422, "invalid_value", Some("partial_images"));
    }
    for (field, value) in [("size", "1024x1536"), ("output_format", "gif"), ("model", "dall-e-3")] {
        let answer = TestServer::shared().generate(&with(field, &json!(value)));
        let (status, code) = if field == "model" { (404, "model_not_found") } else { (422, "invalid_value") };
        answer.refused(status, code, Some(field));
    }
}

#[test]
fn the_openai_package_generates_an_image() {
    // With room for one image at a time, two beside one are too many: its third kind of error.
    let server = TestServer::start(Config { queue_limit: 1, ..TestServer::config() });
    let said: BTreeMap<String, Value> =
        serde_json::from_str(&python("openai_client.py", [server.url().as_str()]))
            .expect("the client prints JSON");
    let file = STANDARD.decode(said["b64_json"].as_str().unwrap()).unwrap();
    assert_eq!(file, server.block_on(server.png(&json!({"prompt": "ring", "seed": 7, "steps": 2}))));
    assert_eq!(decode(&file).width(), 32);
    assert_eq!(said["models"], json!(["tiny"]));
    // The stream: two previews, then the same file.
    assert_eq!(
        said["events"],
        json!([
            "ImageGenPartialImageEvent image_generation.partial_image 0",
            "ImageGenPartialImageEvent image_generation.partial_image 1",
            "ImageGenCompletedEvent image_generation.completed",
        ])
    );
    let streamed = json!({"prompt": "ring", "seed": 7, "steps": 6, "size": "64x64"});
    let file = STANDARD.decode(said["streamed"].as_str().unwrap()).unwrap();
    assert_eq!(file, server.block_on(server.png(&streamed)));
    let error = |name: &str| (said[name]["class"].as_str().unwrap(), said[name]["message"].as_str().unwrap());
    let (class, message) = error("unknown_prompt");
    assert_eq!(class, "UnprocessableEntityError");
    assert!(message.contains("ground, curtain, blob, ring"), "{message}");
    assert_eq!(error("unknown_model").0, "NotFoundError");
    assert_eq!(error("overloaded").0, "RateLimitError");
}
