//! The Open Inference Protocol: the `tritonclient` package as a client, the same images as everywhere else, and what a
//! wrong body is told.

use std::collections::BTreeMap;
use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use suite::{Answer, Package, TestServer, decode, keys, python};
use windowpane_diffusion::noise;
use windowpane_server::Config;

/// The message of an error, in the protocol's form, whose status, code and field are these.
fn refused(answer: &Answer, status: u16, code: &str, param: Option<&str>) -> String {
    let text = String::from_utf8_lossy(&answer.bytes);
    assert_eq!(answer.status, status, "{text}");
    let body = answer.json();
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["param"].as_str(), param, "{body}");
    assert_eq!(body["request_id"], answer.header("x-request-id"), "{body}");
    let keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    body["error"].as_str().unwrap().to_owned()
}

fn infer(server: &TestServer, model: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
    server.request("POST", &format!("/v2/models/{model}/infer")).body(body)
}

/// A sampler's request of one row.
fn one(seed: u64) -> Value {
    json!({
        "inputs": [
            {"name": "seed", "shape": [1], "datatype": "INT64", "data": [seed]},
            {"name": "class", "shape": [1], "datatype": "BYTES", "data": ["ring"]},
            {"name": "steps", "shape": [1], "datatype": "INT32", "data": [2]},
        ],
        "outputs": [{"name": "images"}],
    })
}

/// The faces of models/tiny, all in this state.
fn faces(state: &str) -> Value {
    ["tiny", "tiny.sampler", "tiny.attention", "tiny.jvp", "tiny.vjp"]
        .map(|face| json!([face, state]))
        .to_vec()
        .into()
}

fn said() -> BTreeMap<String, Value> {
    let server = TestServer::start(TestServer::config());
    let said = python("tritonclient_client.py", [server.url().as_str()]);
    let said: BTreeMap<String, Value> = serde_json::from_str(&said).expect("the client prints JSON");
    // Row i is the picture that the images route draws with the same values.
    let rows = [
        json!({"prompt": "ring", "seed": 7, "steps": 2, "guidance_scale": 1.5, "sampler": "ddim"}),
        json!({"class": 2, "seed": 7, "steps": 3, "guidance_scale": 1, "eta": 0.5, "sampler": "ddim"}),
        json!({"prompt": "ground", "seed": i64::MAX, "steps": 4, "guidance_scale": 3.5, "sampler": "heun"}),
    ];
    for (row, image) in rows.iter().zip(said["images"].as_array().unwrap()) {
        let file = server.block_on(server.png(row));
        let pixels = STANDARD.decode(image.as_str().unwrap()).unwrap();
        assert_eq!(decode(&file).into_luma8().into_raw(), pixels, "{row}");
    }
    said
}

#[test]
fn the_tritonclient_package_works_unmodified() {
    let said = said();
    assert_eq!(said["server"]["name"], "windowpane");
    assert_eq!(
        said["denoiser"]["outputs"],
        json!([{"name": "prediction", "datatype": "FP32", "shape": [-1, 1, 32, 32]}])
    );
    let names = |ports: &Value| -> Vec<String> {
        ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names(&said["sampler"]["inputs"]),
        ["seed", "class", "steps", "guidance", "eta", "sampler", "x_T"]
    );
    assert_eq!(said["config"]["max_batch_size"], 64);
    assert_eq!(said["index"], faces("READY"));

    let words = [
        (
            "unknown_model",
            "404",
            "no model `none`; models here: tiny, tiny.sampler, tiny.attention, tiny.jvp, tiny.vjp",
        ),
        ("unknown_version", "404", "no version `2`; every model's only version is 1"),
        ("missing", "422", "`inputs.t` is missing, expected FP32 or FP64 of shape [n]"),
        ("unknown_input", "422", "no input `z`; the inputs are x, t, y"),
        ("shape", "422", "`inputs.x.shape` is [1, 1, 16, 32], expected [n, 1, 32, 32]"),
        ("datatype", "422", "`inputs.x.datatype` is `FP16`, expected one of UINT8"),
        ("not_finite", "422", "`inputs.x` is not finite at element 0, expected finite numbers"),
        ("timestep", "422", "`inputs.t` is 1000 at row 0, expected 0 to 999, the schedule's last"),
        ("label", "422", "`inputs.y` is 5 at row 0, expected 0 to 4, which is no class"),
        ("rows", "422", "`inputs.t.shape` is [2], expected as many rows as `x`, 1"),
        ("too_many", "422", "`inputs.x.shape` is 65 rows, expected 1 to 64 rows"),
        ("output", "422", "no output `eps`; the outputs are prediction"),
        (
            "classification",
            "422",
            "`outputs.prediction.parameters.classification` is given and is not supported",
        ),
        ("shared_memory", "422", "`inputs.x.parameters.shared_memory_region` is given and is not supported"),
        ("parameter", "422", "unknown field `colour`"),
        ("sequence", "422", "`parameters.sequence_id` is given and is not supported"),
        (
            "no_class",
            "422",
            "`inputs.class` is missing, expected INT64 or INT32 or UINT32 or UINT64 or BYTES of shape [n]",
        ),
        ("unknown_class", "422", "row 0: `class` is `cat`, expected a class of `tiny`"),
        ("negative_seed", "422", "`inputs.seed` is -7 at row 0, expected 0 or more"),
        ("steps", "422", "row 0: `steps` is 0"),
        ("guidance", "422", "row 0: `guidance` is -1"),
        ("region", "404", "nothing at GET /v2/systemsharedmemory/status"),
    ];
    let failed = said["failed"].as_object().unwrap();
    assert_eq!(failed.len(), words.len());
    for (name, status, message) in words {
        let error = &failed[name];
        assert_eq!(error["status"], status, "{name}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{name}: {error}");
    }

    let inside = &said["insides"];
    // Sums of a thousand products in f32; and a step of 1e-2, whose square is what a difference leaves out.
    assert!(inside["adjoint"].as_f64().unwrap() < 1e-5, "{inside}");
    assert!(inside["slope"].as_f64().unwrap() < 1e-2, "{inside}");
    assert_eq!(inside["jvp"][3], json!({"name": "vectors", "datatype": "FP32", "shape": [-1, 1, 32, 32]}));
    assert_eq!((&inside["jvp"][0]["shape"], &inside["max_batch_size"]), (&json!([1, 1, 32, 32]), &json!(0)));
    for (name, message) in [
        ("two_images", "`inputs.x.shape` is [2, 1, 32, 32], expected [1, 1, 32, 32]"),
        ("no_vectors", "`inputs.vectors` is missing, expected FP32 of shape [n, 1, 32, 32]"),
        ("not_finite", "`inputs.vectors` is not finite at element 0"),
        ("too_many", "`inputs.vectors.shape` is 65 rows, expected 1 to 64 rows"),
        ("too_large", "the answer would have 268435456 bytes, more than 67108864"),
    ] {
        let error = &inside[name];
        assert_eq!(error["status"], "422", "{name}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{name}: {error}");
    }
    let stats = |when: &str, name: &str| said[when][name].clone();
    let attention = stats("after", "tiny.attention");
    // Two rows and one; a call each, as are those that the request which failed never made.
    assert_eq!((&attention["inference_count"], &attention["execution_count"]), (&json!(3), &json!(3)));
    assert_eq!(stats("after", "tiny.jvp")["execution_count"], 2, "seven vectors in pieces of four");
    let (before, after) = (stats("before", "tiny.sampler"), stats("after", "tiny.sampler"));
    assert_eq!(before["inference_count"], 7, "{before}");
    assert_eq!(before["inference_stats"]["success"]["count"], 3, "{before}");
    for stage in ["success", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert!(before["inference_stats"][stage]["ns"].as_u64().unwrap() > 0, "{stage}: {before}");
    }
    assert_eq!(before["inference_stats"]["fail"]["count"], 0);
    assert_eq!(after["inference_stats"]["fail"]["count"], 5, "{after}");
    assert!(after["execution_count"].as_u64().unwrap() > 0);
    assert_eq!(after["inference_count"], before["inference_count"]);
    assert_eq!(stats("before", "tiny")["inference_count"], 9 * 3 + 4);
}

#[test]
fn a_model_is_the_same_with_its_version_and_without() {
    // Of its own, so that nobody else is counted between two answers.
    let server = TestServer::start(TestServer::config());
    for path in ["", "/config", "/ready", "/stats"] {
        let [plain, versioned] = ["", "/versions/1"]
            .map(|version| server.get(&format!("/v2/models/tiny.sampler{version}{path}")).ok());
        assert_eq!(plain.json(), versioned.json(), "{path}");
        for wrong in ["0", "2", "01", "1.0", "%31%31"] {
            let answer = server.get(&format!("/v2/models/tiny/versions/{wrong}{path}"));
            refused(&answer, 404, "model_not_found", Some("version"));
        }
    }
}

#[test]
fn the_most_rows_are_those_that_the_queue_holds() {
    let server = TestServer::start(Config { queue_limit: 10, ..TestServer::config() });
    assert_eq!(server.get("/v2/models/tiny/config").ok().json()["max_batch_size"], 10);
    let ask = |rows: usize| {
        let seeds: Vec<usize> = (0..rows).collect();
        let body = json!({"inputs": [
            {"name": "seed", "shape": [rows], "datatype": "INT64", "data": seeds},
            {"name": "class", "shape": [rows], "datatype": "INT32", "data": vec![3; rows]},
            {"name": "steps", "shape": [rows], "datatype": "INT32", "data": vec![1; rows]},
        ]});
        server.send(infer(&server, "tiny.sampler", body.to_string()))
    };
    ask(10).ok();
    let message = refused(&ask(11), 422, "invalid_value", Some("inputs.seed.shape"));
    assert_eq!(message, "`inputs.seed.shape` is 11 rows, expected 1 to 10 rows");
}

#[test]
fn an_answer_is_compressed_for_whoever_asks() {
    let server = TestServer::shared();
    let ask = |coding: &str| {
        let request = infer(server, "tiny.sampler", one(7).to_string());
        server.send(request.header("accept-encoding", coding)).ok()
    };
    let (plain, gzip) = (ask("identity"), ask("gzip"));
    assert_eq!((plain.header("content-encoding"), gzip.header("content-encoding")), ("", "gzip"));
    let mut read = flate2::write::GzDecoder::new(Vec::new());
    read.write_all(&gzip.bytes).unwrap();
    assert_eq!(read.finish().unwrap(), plain.bytes);
}

#[test]
fn an_administrator_unloads_and_loads() {
    let secret = "root's secret";
    let package = Package::tiny();
    let keys = keys(&[("root", "admin"), ("eve", "generate")]);
    let server = TestServer::start(Config { keys, ..package.config() });
    let said: Value =
        serde_json::from_str(&python("tritonclient_client.py", [server.url().as_str(), secret])).unwrap();
    assert_eq!(said["states"], json!([faces("READY"), faces("UNAVAILABLE"), faces("READY")]));
    for (name, status, message) in [
        ("nobody", "401", "no key that is known here"),
        ("unknown", "404", "no model `..tiny`; models here: tiny"),
        ("config", "422", "`parameters.config` is given and is not supported"),
        ("unloaded", "404", "no model `tiny.sampler`; models here: "),
    ] {
        let error = &said["refused"][name];
        assert_eq!(error["status"], status, "{name}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{name}: {error}");
    }
    // Broken on the disk, it does not replace the one that serves; and where it lies is told to nobody.
    std::fs::remove_file(package.file("weights.bin")).unwrap();
    package.write("weights.bin", "nothing");
    let load = server.request("POST", "/v2/repository/models/tiny/load").bearer_auth(secret);
    let answer = server.send(load);
    let message = refused(&answer, 500, "load_failed", None);
    assert!(!message.contains("weights") && !message.contains('/'), "{message}");
    let ask = |who: &str, path: &str, body: &Value| {
        let request = server.request("POST", path).bearer_auth(format!("{who}'s secret"));
        server.send(request.body(body.to_string()))
    };
    let [sampler, load, unload] =
        ["models/tiny.sampler/infer", "repository/models/tiny/load", "repository/models/tiny/unload"]
            .map(|path| format!("/v2/{path}"));
    ask("root", &sampler, &one(7)).ok();
    // Who only draws is told so, and draws on.
    let message = refused(&ask("eve", &unload, &json!({})), 403, "forbidden", None);
    assert_eq!(message, "this key may not do that");
    refused(&ask("nobody", &sampler, &one(7)), 401, "invalid_api_key", None);
    ask("eve", &sampler, &one(7)).ok();
    let config = json!({"parameters": {"config": "{}"}});
    refused(&ask("root", &load, &config), 422, "unsupported_value", Some("parameters.config"));
    ask("root", &unload, &json!({"parameters": {"unload_dependents": false}})).ok();
    refused(&ask("eve", &sampler, &one(7)), 404, "model_not_found", Some("model"));
    refused(&ask("root", &unload, &json!({})), 404, "model_not_found", Some("model"));
}

#[test]
fn a_body_that_is_no_request_is_told_so_in_the_protocols_form() {
    let server = TestServer::shared();
    let send = |request: reqwest::RequestBuilder| server.send(request);
    let text = one(7).to_string();
    send(infer(server, "tiny.sampler", text.clone())).ok();
    let told = |body: &str, status, code, param| {
        refused(&send(infer(server, "tiny.sampler", body.to_owned())), status, code, param)
    };
    told("", 400, "malformed_body", None);
    told(&text[..40], 400, "malformed_body", None);
    told("[]", 400, "malformed_body", None);
    told("{}", 422, "invalid_value", Some("inputs"));
    told(&text.replace("INT64", "FP16"), 422, "invalid_value", Some("inputs.seed.datatype"));
    let header = "inference-header-content-length";
    for (length, status, code) in [
        ("0", 422, "unsupported_value"),
        ("-1", 422, "invalid_value"),
        ("1e3", 422, "invalid_value"),
        ("99999", 422, "invalid_value"),
        ("18446744073709551616", 422, "invalid_value"),
    ] {
        let answer = send(infer(server, "tiny.sampler", text.clone()).header(header, length));
        refused(&answer, status, code, Some(header));
    }
    let typed = |kind: &str| send(infer(server, "tiny.sampler", text.clone()).header("content-type", kind));
    typed("application/json").ok();
    typed("application/octet-stream").ok();
    refused(&typed("text/plain"), 415, "unsupported_media_type", None);
    for (path, status, code) in [
        ("/v2/", 404, "not_found"),
        ("/v2/cudasharedmemory/region/a/register", 404, "not_found"),
        ("/v2/models/tiny/generate", 404, "not_found"),
        ("/v2/health/live", 405, "method_not_allowed"),
        ("/v2/models/tiny/versions/01/infer", 404, "model_not_found"),
        ("/v2/models/..%2f..%2fetc/infer", 404, "model_not_found"),
    ] {
        let answer = send(server.request("POST", path).body("{}"));
        let message = refused(&answer, status, code, answer.json()["param"].as_str());
        assert!(!message.contains("models/tiny/manifest"), "{message}");
    }
}

#[test]
fn a_body_that_grows_beyond_the_limit_is_refused_while_it_grows() {
    let server = TestServer::shared();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![b' '; 1 << 20];
    (0..256).for_each(|_| bomb.write_all(&zeros).unwrap());
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 1 << 19, "{}", bomb.len());
    let send = |body: Vec<u8>, coding: &str| {
        server.send(infer(server, "tiny.sampler", body).header("content-encoding", coding))
    };
    let message = refused(&send(bomb.clone(), "gzip"), 413, "body_too_large", None);
    assert!(message.contains("1048576 bytes"), "{message}");
    refused(&send(bomb[..100].to_vec(), "gzip"), 400, "malformed_body", None);
    refused(&send(bomb, "br"), 415, "unsupported_media_type", None);
}

#[test]
fn rows_are_the_images_of_requests_of_their_own_whatever_is_beside_them() {
    let server = TestServer::shared();
    let n = 64;
    let seeds: Vec<u64> = (100..100 + n).collect();
    let steps: Vec<u64> = (0..n).map(|i| 1 + i % 3).collect();
    let classes: Vec<u64> = (0..n).map(|i| i % 4).collect();
    let body = json!({"inputs": [
        {"name": "seed", "shape": [n], "datatype": "UINT64", "data": seeds},
        {"name": "steps", "shape": [n], "datatype": "INT64", "data": steps},
        {"name": "class", "shape": [n], "datatype": "INT32", "data": classes},
    ], "outputs": [{"name": "images"}]});
    let answer = server.send(infer(server, "tiny.sampler", body.to_string())).ok().json();
    assert_eq!(answer["outputs"][0]["shape"], json!([n, 32, 32, 1]));
    let pixels: Vec<u8> =
        answer["outputs"][0]["data"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u8).collect();
    for i in [0, 1, 5, 31, 63] {
        let row = json!({"seed": seeds[i], "steps": steps[i], "class": classes[i]});
        let file = server.block_on(server.png(&row));
        let size = 32 * 32;
        assert_eq!(decode(&file).into_luma8().into_raw(), pixels[i * size..(i + 1) * size], "{row}");
    }
}

#[test]
fn a_row_starts_from_its_own_noise_unless_told_otherwise() {
    let server = TestServer::shared();
    let samples = |x: Option<&[f32]>| {
        let mut body = one(7);
        body["inputs"] = json!([
            {"name": "seed", "datatype": "INT64", "shape": [2], "data": [7, 8]},
            {"name": "class", "datatype": "INT32", "shape": [2], "data": [3, 0]},
        ]);
        if let Some(x) = x {
            let x = json!({"name": "x_T", "datatype": "FP32", "shape": [2, 1, 32, 32], "data": x});
            body["inputs"].as_array_mut().unwrap().push(x);
        }
        body["outputs"] = json!([{"name": "samples"}]);
        let answer = server.send(infer(server, "tiny.sampler", body.to_string())).ok().json();
        answer["outputs"][0]["data"].clone()
    };
    let own: Vec<f32> =
        [7, 8].into_iter().flat_map(|seed| noise::normal(seed, noise::INITIAL, 32 * 32)).collect();
    assert_eq!(samples(Some(&own)), samples(None));
    let half: Vec<f32> = own.iter().map(|x| 0.5 * x).collect();
    assert_ne!(samples(Some(&half)), samples(None));
}

#[test]
fn a_request_has_the_time_that_it_asks_for() {
    let server = TestServer::leaked(TestServer::config());
    let tick = server.app().model(None).unwrap().served.costs.tick(1).as_secs_f64();
    let long = ((2.0 / tick) as u64).clamp(10, 1000);
    let ask = move |steps: u64, timeout: Value| {
        let mut body = one(7);
        body["inputs"][2]["data"] = json!([steps]);
        let guidance = json!({"name": "guidance", "shape": [1], "datatype": "FP32", "data": [1]});
        body["inputs"].as_array_mut().unwrap().push(guidance);
        body["parameters"] = json!({"timeout": timeout});
        server.answer(infer(server, "tiny.sampler", body.to_string()))
    };
    for wrong in [json!(3_600_000_001_u64), json!(0)] {
        refused(&server.block_on(ask(2, wrong)), 422, "invalid_value", Some("parameters.timeout"));
    }
    for wrong in [json!(-1), json!("1 s"), json!(1.5)] {
        let answer = server.block_on(ask(2, wrong));
        assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("invalid_value")));
    }
    server.block_on(ask(2, json!(3_600_000_000_u64))).ok();
    // Whole milliseconds, rounded up: one is far too short for this many steps.
    let answer = server.block_on(ask(long, json!(1)));
    let message = refused(&answer, 429, "deadline_unmeetable", None);
    assert!(answer.headers.get("retry-after").is_none());
    // As ticks go now.
    let words = message.split_once("would take about ").and_then(|(_, rest)| rest.split(' ').next());
    let milliseconds = words.and_then(|number| number.parse::<f64>().ok());
    let needs = milliseconds.unwrap_or_else(|| panic!("{message}")) / 1e3;
    // One that could be met, until others came who fill its ticks.
    let limit = needs * 1.5 + 0.5;
    let late = server.spawn(ask(long, json!((limit * 1e6) as u64)));
    server.until_images(1);
    let company = json!({"prompt": "ring", "seed": 1, "n": 10, "steps": long}).to_string();
    let company: Vec<_> = (0..2).map(|_| server.spawn(server.answer(server.post(company.clone())))).collect();
    refused(&server.block_on(late).unwrap(), 504, "deadline_passed", None);
    company.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn who_may_not_look_inside_may_still_ask_the_network() {
    let keys = keys(&[("eve", "generate"), ("ann", "analyse")]);
    let server = TestServer::start(Config { keys, ..TestServer::config() });
    let body = json!({
        "inputs": [
            {"name": "x", "shape": [1, 1, 32, 32], "datatype": "FP32", "data": vec![0.25; 1024]},
            {"name": "t", "shape": [1], "datatype": "FP32", "data": [3]},
        ],
        "outputs": [{"name": "prediction"}],
    });
    let ask = |model: &str, who: &str| {
        server.send(infer(&server, model, body.to_string()).bearer_auth(format!("{who}'s secret")))
    };
    refused(&ask("tiny.attention", "eve"), 403, "forbidden", None);
    let (network, inside) = (ask("tiny", "eve").ok().json(), ask("tiny.attention", "ann").ok().json());
    assert_eq!(inside["model_name"], "tiny.attention");
    let values = |answer: &Value| -> Vec<f64> {
        answer["outputs"][0]["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let worst = values(&network).iter().zip(values(&inside)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{worst}");
}
