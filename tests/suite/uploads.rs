//! Uploads that are not what they say: pictures and archives that unpack to more than they are, arrays and tensors whose
//! sizes lie, brackets without end, and addresses in place of bytes, which nobody is to visit.

use std::io::{Cursor, Write};
use std::net::TcpListener;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use suite::{Answer, IMAGES, Process, TestServer, shipped};
use windowpane_server::Config;

/// A process that serves `models/tiny`, and has drawn an image.
fn process() -> (Process, String) {
    let models = shipped("tiny");
    let mut server =
        Process::windowpane(&["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "4"]);
    let url = server.url();
    post(&url, IMAGES, &ring()).ok();
    (server, url)
}

/// How much more memory it has had, at the most, than it has now.
fn growth(server: &Process) -> impl Fn() -> u64 {
    server.forget_peak();
    let before = server.resident_bytes();
    move || server.peak_bytes().saturating_sub(before)
}

fn post(url: &str, path: &str, body: &Value) -> Answer {
    TestServer::shared().elsewhere("POST", &format!("{url}{path}"), Some(body)).unwrap()
}

/// An image that takes no time.
fn ring() -> Value {
    json!({"prompt": "ring", "seed": 7, "steps": 1})
}

/// A PNG that says it is this large and holds `data`, compressed.
fn png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc.sum().to_be_bytes()].concat()
    };
    // Eight bits of grey.
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(data).unwrap();
    let packed = packed.finish().unwrap();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &packed), chunk(b"IEND", b"")]
        .concat()
}

/// A .npy of this head, and 64 bytes after it.
fn npy(shape: &str) -> Vec<u8> {
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &[0; 64]].concat()
}

#[test]
fn uploads_that_unpack_to_more_than_they_are_cost_nothing() {
    let (server, url) = process();
    let grown = growth(&server);
    let zeros = vec![0; 64 << 20];
    let pictures = [
        // As large as PNG goes, with nothing in it; the size of a picture of a terabyte; the model's size, with a few pixels
        // less; none at all.
        png(u32::MAX >> 1, u32::MAX >> 1, b""),
        png(1_000_000, 1_000_000, &zeros),
        png(32, 32, &zeros[..33 * 32 - 5]),
        png(0, 0, b""),
    ];
    for file in &pictures {
        let body = json!({"prompt": "ring", "steps": 1, "init_image": STANDARD.encode(file)});
        post(&url, IMAGES, &body).refused(422, "invalid_value", Some("init_image"));
    }
    // The model's size, and 64 MiB of pixels behind the last of them, which may be left unread.
    let long = STANDARD.encode(png(32, 32, &zeros));
    let answer = post(&url, IMAGES, &json!({"prompt": "ring", "steps": 1, "init_image": long}));
    assert!([200, 422].contains(&answer.status), "{answer:?}");
    for shape in [
        "(1000000000000,)",
        "(18446744073709551616, 1)",
        "(4294967296, 4294967296)",
        "(1, 1, 32, 32)",
        "(-1,)",
    ] {
        let body = json!({"prompt": "ring", "steps": 1, "x_t": STANDARD.encode(npy(shape))});
        post(&url, IMAGES, &body).refused(422, "invalid_value", Some("x_t"));
    }
    let replay =
        TestServer::shared().request_to(&format!("{url}/v1/replay"), "image/png", pictures[1].clone());
    let answer = TestServer::shared().send(replay);
    assert!((400..500).contains(&answer.status), "{answer:?}");
    // 64 MiB would be seen, be it for a moment; measured was half of one.
    let grown = grown();
    assert!(grown < 16 << 20, "{grown} bytes more than before");
    post(&url, IMAGES, &ring()).ok();
}

/// An archive with `data` under each of these names, packed once.
fn archive(names: &[String], data: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    archive.start_file(&*names[0], options.compression_method(zip::CompressionMethod::Deflated)).unwrap();
    archive.write_all(data).unwrap();
    names[1..].iter().for_each(|name| archive.deep_copy_file(&names[0], name).unwrap());
    archive.finish().unwrap().into_inner()
}

#[test]
fn archives_that_unpack_to_more_than_they_are_cost_a_picture() {
    let (server, url) = process();
    let grown = growth(&server);
    // A good picture of 16 MiB less a little, nearly all of it behind its end.
    let mut padded = png(32, 32, &[0; 33 * 32]);
    padded.resize((16 << 20) - 1024, 0);
    let names = |n: usize| (0..n).map(|i| format!("{i:02}.png")).collect::<Vec<_>>();
    for (file, said) in [
        (
            archive(&names(1), &vec![0; 256 << 20]),
            "unpacks to more than 16777216 bytes, the most of a picture",
        ),
        (archive(&names(40), &padded), "`16.png`: with it the pictures unpack to more than 268435456 bytes"),
    ] {
        assert!(file.len() < 1 << 20, "{} bytes are no bomb", file.len());
        let body = json!({"train": STANDARD.encode(file), "timesteps": 1});
        let message = post(&url, "/v1/analysis/psnr-gap", &body).refused(422, "invalid_value", Some("train"));
        assert!(message.contains(said), "{message}");
    }
    // One picture at a time, in a buffer that grows: measured were 23 MiB of 256 and of 640.
    let grown = grown();
    assert!(grown < 48 << 20, "{grown} bytes more than before");
    post(&url, IMAGES, &ring()).ok();
}

#[test]
fn megabytes_of_brackets_are_refused_by_their_size_or_by_their_depth() {
    let nested = |megabytes: usize| "[".repeat(megabytes << 20);
    let server = TestServer::shared();
    server.send(server.post(nested(64))).refused(413, "body_too_large", None);
    let patient = TestServer::start(Config { body_limit: 80 << 20, ..TestServer::config() });
    patient.send(patient.post(nested(64))).refused(400, "malformed_body", None);
    let closed = format!(r#"{{"prompt": {}{}}}"#, "[".repeat(32 << 20), "]".repeat(32 << 20));
    patient.send(patient.post(closed)).refused(422, "invalid_value", None);
    patient.generate(&ring()).ok();
}

#[test]
fn tensors_whose_sizes_lie_are_refused_in_the_protocols_form() {
    let server = TestServer::shared();
    let seed = |shape: Value, data: Value| {
        json!({
            "inputs": [{"name": "seed", "shape": shape, "datatype": "INT64", "data": data},
                       {"name": "class", "shape": [1], "datatype": "BYTES", "data": ["ring"]}],
        })
    };
    let send = |model: &str, body: Vec<u8>, json_length: Option<usize>| {
        let mut request = server.request("POST", &format!("/v2/models/{model}/infer")).body(body);
        if let Some(length) = json_length {
            request = request.header("inference-header-content-length", length);
        }
        server.send(request)
    };
    let refused = |answer: &Answer, what: &str| {
        assert!(matches!(answer.status, 400 | 422), "{what}: {answer:?}");
        let body = answer.json();
        assert!(body["code"].is_string() && !body["error"].as_str().unwrap().is_empty(), "{what}: {body}");
    };
    // What is broken below is good as it is.
    let good = seed(json!([1]), json!([7])).to_string();
    assert_eq!(send("tiny.sampler", good.into_bytes(), None).status, 200);
    for shape in [
        json!([-1]),
        json!([0]),
        json!([2]),
        json!([1, -1]),
        json!([1_u64 << 62, 4]),
        json!([u64::MAX, u64::MAX]),
        json!([1_u64 << 32, 1_u64 << 32]),
        json!([1.5]),
        json!(["1"]),
        json!([[1]]),
        json!(1),
        json!(vec![1; 1000]),
    ] {
        let body = seed(shape.clone(), json!([7])).to_string();
        refused(&send("tiny.sampler", body.into_bytes(), None), &format!("shape {shape}"));
    }
    let mut twice = seed(json!([1]), json!([7]));
    let first = twice["inputs"][0].clone();
    twice["inputs"].as_array_mut().unwrap().push(first);
    refused(&send("tiny.sampler", twice.to_string().into_bytes(), None), "an input twice");
    // Binary tensors: more bytes than came, fewer than the shape takes, none, negative, beyond a machine word.
    let binary = |size: &Value| {
        let mut body = seed(json!([1]), Value::Null);
        let input = body["inputs"][0].as_object_mut().unwrap();
        input.remove("data");
        input.insert("parameters".into(), json!({"binary_data_size": size}));
        let text = body.to_string();
        let bytes = [text.as_bytes(), &7_i64.to_le_bytes()].concat();
        send("tiny.sampler", bytes, Some(text.len()))
    };
    assert_eq!(binary(&json!(8)).status, 200);
    for size in [json!(16), json!(4), json!(0), json!(-8), json!(u64::MAX), json!("8"), json!(1e300)] {
        refused(&binary(&size), &format!("{size} bytes"));
    }
    // The denoiser's own inputs, whose sizes multiply.
    let denoise = |shape: &Value, data: Vec<f32>| {
        let body = json!({"inputs": [
            {"name": "x", "shape": shape, "datatype": "FP32", "data": data},
            {"name": "t", "shape": [1], "datatype": "FP32", "data": [1.0]},
            {"name": "y", "shape": [1], "datatype": "INT64", "data": [0]},
        ]});
        send("tiny", body.to_string().into_bytes(), None)
    };
    assert_eq!(denoise(&json!([1, 1, 32, 32]), vec![0.0; 1024]).status, 200);
    for shape in [json!([1_u64 << 40, 1, 32, 32]), json!([1, 1, 32, 1_u64 << 40]), json!([1, 1, -32, -32])] {
        refused(&denoise(&shape, vec![0.0]), &format!("x {shape}"));
    }
    server.generate(&ring()).ok();
}

#[test]
fn an_address_in_place_of_bytes_is_refused_and_visited_by_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let addresses = [
        format!("http://{address}/picture.png"),
        format!("//{address}/picture.png"),
        format!("ftp://{address}/picture.png"),
        "/etc/passwd".to_owned(),
        "file:///etc/passwd".to_owned(),
        "../../etc/passwd".to_owned(),
    ];
    let server = TestServer::shared();
    let ring = json!({"prompt": "ring", "steps": 1});
    let look = json!({"prompt": "ring", "timestep": 100, "tokens": [0]});
    for (path, field, body) in [
        (IMAGES, "init_image", &ring),
        (IMAGES, "x_t", &ring),
        ("/v1/replay", "image", &json!({})),
        ("/v1/analysis/attention", "image", &look),
        ("/v1/analysis/attention", "x_t", &look),
        ("/v1/analysis/jacobian", "image", &json!({"prompt": "ring", "timestep": 100})),
        ("/v1/analysis/psnr-gap", "train", &json!({"timesteps": 1})),
    ] {
        for address in &addresses {
            let mut body = body.clone();
            body[field] = json!(address);
            let answer = post(&server.url(), path, &body);
            let message = answer.refused(422, "invalid_value", Some(field));
            assert!(!message.contains("root:"), "{path} {field}: {message}");
        }
    }
    let visit = listener.accept().map_err(|error| error.kind());
    assert!(matches!(visit, Err(std::io::ErrorKind::WouldBlock)), "somebody came: {visit:?}");
}
