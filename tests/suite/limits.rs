//! Bad input. Whatever is sent, the answer is an error that says what is wrong and what is accepted, and the server
//! goes on as if nothing had been.

use serde_json::{Value, json};
use suite::{IMAGES, TestServer};
use windowpane_server::Config;

fn with(field: &str, value: &Value) -> Value {
    json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 1, field: value})
}

/// The head of a request whose body is announced and not sent, with a line of its own.
fn head(line: &str) -> String {
    format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n{line}\r\n\r\n"
    )
}

#[test]
fn numbers_beyond_their_range_are_refused_with_the_range() {
    for (field, values, accepted) in [
        ("steps", vec![json!(0), json!(1001), json!(u64::MAX)], "1 to 1000"),
        ("n", vec![json!(0), json!(11), json!(1_000_000), json!(u64::MAX)], "1 to 10"),
        ("guidance_scale", vec![json!(-1), json!(100.5), json!(1e300)], "0 to 100"),
        ("eta", vec![json!(-0.1), json!(1.01), json!(1e300)], "0 to 1"),
        ("output_compression", vec![json!(101), json!(u64::MAX)], "0 to 100"),
        ("class", vec![json!(4), json!(u64::MAX)], "0 to 3"),
    ] {
        for value in values {
            let answer = TestServer::shared().generate(&with(field, &value));
            let message = answer.refused(422, "invalid_value", Some(field));
            assert!(message.contains(accepted), "{field} {value}: {message}");
        }
    }
}

#[test]
fn values_of_another_kind_are_refused_and_the_field_is_named() {
    for (field, values) in [
        ("steps", vec![json!(-1), json!(1.5), json!("8"), json!([8]), json!(true)]),
        ("n", vec![json!(-1), json!("1"), json!({})]),
        ("guidance_scale", vec![json!("NaN"), json!("Infinity"), json!("1.5"), json!([])]),
        ("eta", vec![json!("NaN"), json!(false)]),
        ("seed", vec![json!(true), json!([7]), json!({"seed": 7})]),
        ("prompt", vec![json!(3), json!(["ring"])]),
        ("model", vec![json!(3)]),
        ("size", vec![json!(32)]),
        ("sampler", vec![json!(0), json!("DDIM"), json!("ddim ")]),
        ("time_grid", vec![json!("log"), json!(1)]),
        ("class", vec![json!(-1), json!(0.5), json!("cloud"), json!([0])]),
        ("clip_x0", vec![json!("yes"), json!(1)]),
        ("stream", vec![json!("no")]),
    ] {
        for value in values {
            TestServer::shared().generate(&with(field, &value)).refused(422, "invalid_value", Some(field));
        }
    }
}

#[test]
fn a_seed_is_0_to_2_to_the_63_less_one() {
    for seed in [
        "-1",
        "9223372036854775808",
        "18446744073709551616",
        "1e3",
        "7.5",
        "\"-1\"",
        "\"0x7\"",
        "\"\"",
        "\" 7\"",
    ] {
        let body = format!(r#"{{"model": "tiny", "prompt": "ring", "seed": {seed}}}"#);
        let answer = TestServer::shared().send(TestServer::shared().post(body));
        let message = answer.refused(422, "invalid_value", Some("seed"));
        assert!(message.contains("0 to 9223372036854775807"), "{seed}: {message}");
    }
    // The first image would have a seed, the second none.
    let body = json!({"model": "tiny", "prompt": "ring", "seed": "9223372036854775807", "n": 2});
    let message = TestServer::shared().generate(&body).refused(422, "invalid_value", Some("seed"));
    assert!(message.contains("9223372036854775806"), "{message}");
}

#[test]
fn a_size_is_a_multiple_of_the_models_and_bounded() {
    for size in [
        "33x32",
        "32x64",
        "16x16",
        "0x0",
        "2080x2080",
        "32",
        "32x",
        "-32x-32",
        "32X32",
        "1e9x1e9",
        "",
        "large",
    ] {
        let answer = TestServer::shared().generate(&with("size", &json!(size)));
        let message = answer.refused(422, "invalid_value", Some("size"));
        assert!(message.contains("`32x32`") && message.contains("`2048x2048`"), "{size}: {message}");
    }
}

#[test]
fn an_unknown_prompt_lists_the_classes() {
    for prompt in [json!("sneaker"), json!(""), json!("   "), json!("ring, please"), Value::Null] {
        let answer = TestServer::shared().generate(&with("prompt", &prompt));
        let message = answer.refused(422, "invalid_value", Some("prompt"));
        assert!(message.contains("ground, curtain, blob, ring"), "{message}");
    }
    let long = TestServer::shared().generate(&with("prompt", &json!("🪟".repeat(100_000))));
    assert!(
        long.refused(422, "invalid_value", Some("prompt")).len() < 1000,
        "nobody's prompt is sent back whole"
    );
    let disagree = TestServer::shared().generate(&with("class", &json!("blob")));
    disagree.refused(422, "invalid_value", Some("class"));
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let server = TestServer::shared();
    let eta = json!({"model": "tiny", "prompt": "ring", "sampler": "euler", "eta": 0.5});
    server.generate(&eta).refused(422, "invalid_value", Some("eta"));
    let message = server.picture("image/png", &with("n", &json!(2))).refused(422, "invalid_value", Some("n"));
    assert!(message.contains("JSON holds several images"), "{message}");
}

#[test]
fn an_unknown_field_is_refused_and_the_known_ones_are_listed() {
    for field in ["step", "negative_prompt", "Prompt", "width", ""] {
        let message =
            TestServer::shared().generate(&with(field, &json!(1))).refused(422, "unknown_field", Some(field));
        assert!(message.contains("`prompt`") && message.contains("`clip_x0`"), "{message}");
    }
    let server = TestServer::shared();
    let named = server.post(with("step", &json!(3)).to_string()).header("x-request-id", "mine-1");
    let answer = server.send(named);
    answer.refused(422, "unknown_field", Some("step"));
    assert_eq!(answer.header("x-request-id"), "mine-1");
    let twice = r#"{"model": "tiny", "prompt": "ring", "prompt": "blob"}"#;
    server.send(server.post(twice)).refused(422, "invalid_value", Some("prompt"));
}

#[test]
fn a_body_that_is_not_json_is_malformed() {
    let deep = "[".repeat(200_000);
    let bodies: Vec<&[u8]> = vec![
        b"",
        b"{",
        br#"{"prompt": "ring""#,
        br#"{"prompt": "ring"} and more"#,
        br#"{"guidance_scale": NaN}"#,
        br#"{"guidance_scale": 1e999}"#,
        br#"{"prompt": 'ring'}"#,
        b"{\"prompt\": \"\xff\xfe\"}",
        b"\xff\xfe{\x00}\x00",
        b"{\"prompt\": \"\\ud800\"}",
        b"prompt=ring&n=1",
        deep.as_bytes(),
    ];
    for body in bodies {
        let server = TestServer::shared();
        server.send(server.post(body.to_vec())).refused(400, "malformed_body", None);
    }
}

#[test]
fn json_of_another_shape_is_refused_and_depth_is_no_danger() {
    let server = TestServer::shared();
    for body in ["[]", "3", "null", r#""ring""#, r#"[{"prompt": "ring"}]"#] {
        server.send(server.post(body)).refused(422, "invalid_value", None);
    }
    server.send(server.post("{}")).refused(422, "invalid_value", Some("prompt"));
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    server.send(server.post(format!(r#"{{"prompt": {nested}}}"#))).refused(422, "invalid_value", None);
    server.send(server.post(format!(r#"{{"other": {nested}}}"#))).refused(
        422,
        "unknown_field",
        Some("other"),
    );
}

#[test]
fn the_content_type_is_json() {
    let server = TestServer::shared();
    let body = || with("n", &json!(1)).to_string();
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "nonsense"]
    {
        let request = server.request("POST", IMAGES).header("content-type", kind).body(body());
        let message = server.send(request).refused(415, "unsupported_media_type", None);
        assert!(message.contains(kind) && message.contains("application/json"), "{message}");
    }
    server.send(server.request("POST", IMAGES).body(body())).refused(415, "unsupported_media_type", None);
    let compressed = server.post(body()).header("content-encoding", "gzip");
    server.send(compressed).refused(415, "unsupported_media_type", None);
    let charset = server.request("POST", IMAGES).header("content-type", "application/json; charset=utf-8");
    server.send(charset.body(body())).ok();
}

#[test]
fn a_large_body_is_refused_and_its_size_is_believed() {
    let server = TestServer::shared();
    let limit = server.app().config().body_limit;
    let padded = |size: usize| {
        let body = with("n", &json!(1)).to_string();
        let padding = " ".repeat(size - body.len());
        body + &padding
    };
    server.send(server.post(padded(limit))).ok();
    let answer = server.send(server.post(padded(limit + 1)));
    let message = answer.refused(413, "body_too_large", None);
    assert!(message.contains(&limit.to_string()), "{message}");
    // A gigabyte that is announced is refused before a byte of it: none is ever sent here, and the answer comes.
    for line in ["content-length: 1073741824", "content-length: 1073741824\r\nexpect: 100-continue"] {
        let answer = server.raw(head(line).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("body_too_large"), "{answer}");
    }
}

#[test]
fn a_body_of_unknown_size_is_read_up_to_the_limit() {
    let server = TestServer::shared();
    let mut bytes = head("transfer-encoding: chunked").into_bytes();
    let chunk = 1 << 16;
    for _ in 0..server.app().config().body_limit / chunk + 1 {
        bytes.extend(format!("{chunk:x}\r\n{}\r\n", " ".repeat(chunk)).bytes());
    }
    // No last chunk: a reader without a limit would wait for more.
    let answer = server.raw(&bytes);
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
}

#[test]
fn a_body_of_half_a_million_chunks_is_read_in_time() {
    let ring = with("n", &json!(1)).to_string();
    let body = " ".repeat(500_000 - ring.len()) + &ring;
    let mut bytes = head("transfer-encoding: chunked").into_bytes();
    body.bytes().for_each(|byte| bytes.extend([b'1', b'\r', b'\n', byte, b'\r', b'\n']));
    bytes.extend(b"0\r\n\r\n");
    // Within the time that there is for any body: else it is told 408.
    let answer = TestServer::shared().raw(&bytes);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn only_a_body_that_was_not_read_ends_the_connection() {
    let server = TestServer::shared();
    let post = |path: &str, kind: &str, body: &str| {
        server.send(server.request("POST", path).header("content-type", kind).body(body.to_owned()))
    };
    let (json, limit) = ("application/json", server.app().config().body_limit);
    for (answer, status, connection) in [
        (post(IMAGES, json, &" ".repeat(limit + 1)), 413, "close"),
        (post(IMAGES, "text/plain", "{}"), 415, "close"),
        (post("/nothing", json, "{}"), 404, "close"),
        (post(IMAGES, json, "{"), 400, ""),
        (post(IMAGES, json, ""), 400, ""),
        (server.get("/nothing"), 404, ""),
    ] {
        assert_eq!((answer.status, answer.header("connection")), (status, connection));
    }
}

/// An answer to what is no request: this status, no body, and nothing after it; the server has hung up, though nobody
/// asked it to.
#[track_caller]
fn hung_up(server: &TestServer, bytes: &[u8], status: &str) {
    let answer = server.raw(bytes);
    let sent = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{sent}: {answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{sent}: {answer:?}");
    assert!(body.is_empty(), "{sent}: {answer:?}");
    let head = head.to_lowercase();
    assert!(head.contains("\r\ncontent-length: 0"), "{sent}: {answer:?}");
    assert!(head.contains("\r\nconnection: close"), "{sent}: {answer:?}");
    // Nothing of what was sent comes back, and nothing is said of the server.
    let names: Vec<&str> = head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0)).collect();
    assert!(names.iter().all(|name| ["content-length", "connection", "date"].contains(name)), "{names:?}");
}

#[test]
fn what_is_not_http_is_a_bad_request() {
    let server = TestServer::shared();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
        // Two lengths: what one reader takes for the body is the next request to another.
        b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}    ",
    ] {
        hung_up(server, bytes, "400");
    }
}

#[test]
fn a_head_without_end_is_too_large_and_the_server_hangs_up() {
    let server = TestServer::shared();
    let long = "a".repeat(1 << 20);
    hung_up(server, format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-long: {long}\r\n\r\n").as_bytes(), "431");
    let many = "x-many: 1\r\n".repeat(200);
    hung_up(server, format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes(), "431");
    // The path is part of the head.
    let path = &long[..1 << 17];
    hung_up(server, format!("GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes(), "431");
    // After a good request on the same connection too.
    let answer = server.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/9.9\r\n\r\n");
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "400"], "{answer}");
    server.get("/livez").ok();
}

#[test]
fn paths_models_and_methods_that_do_not_exist() {
    let server = TestServer::shared();
    server.generate(&with("model", &json!("fashion"))).refused(404, "model_not_found", Some("model"));
    let message = server.generate(&with("model", &json!("x".repeat(1 << 19)))).refused(
        404,
        "model_not_found",
        Some("model"),
    );
    assert!(message.ends_with("models here: tiny") && message.len() < 200, "{message}");
    server.generate(&with("model", &json!("../../etc/passwd"))).refused(
        404,
        "model_not_found",
        Some("model"),
    );
    for id in ["other", "%ff", "..%2f..%2fetc%2fpasswd", "tiny%00", "TINY"] {
        server.get(&format!("/v1/models/{id}")).refused(404, "model_not_found", Some("model"));
    }
    for path in ["/", "/v1", "/v1/images", "/v1/images/generations/", "/v3/models", "/v1/models/tiny/more"] {
        server.get(path).refused(404, "not_found", None);
    }
    for (method, path) in
        [("GET", IMAGES), ("DELETE", "/v1/models/tiny"), ("POST", "/livez"), ("PUT", "/metrics")]
    {
        let answer = server.send(server.request(method, path));
        answer.refused(405, "method_not_allowed", None);
        assert!(!answer.header("allow").is_empty(), "405 says what is allowed");
    }
}

#[test]
fn a_request_id_is_kept_if_it_is_sane() {
    let server = TestServer::shared();
    let id = |sent: &str| {
        let answer = server.send(server.request("GET", "/livez").header("x-request-id", sent));
        answer.ok().header("x-request-id").to_owned()
    };
    assert_eq!(id("mine-1"), "mine-1");
    for sent in ["two words", "a\"quote", "<script>", &"a".repeat(200)] {
        assert!(id(sent).starts_with("req_"), "{sent}");
    }
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let server = TestServer::start(Config { queue_limit: 3, ..TestServer::config() });
    let body = |n: u64, steps: u64| json!({"prompt": "ring", "seed": 1, "n": n, "steps": steps, "guidance_scale": 1});
    // An idle server takes a whole request, however large: nothing would ever make more room for it.
    server.generate(&body(4, 1)).ok();
    server.until_images(0);
    server.block_on(async {
        let long = server.post(body(2, 1000).to_string()).send();
        let hold = tokio::spawn(long);
        let reached = async {
            while server.images() != 2 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        reached.await;
        // Two of three places are taken: one more fits, two do not. Refusing takes nothing from those who run, and keeps the
        // third place for whoever was told when to come back.
        let answer = server.post(body(1, 1).to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer = server.answer(server.post(body(2, 1).to_string())).await;
        answer.refused(429, "overloaded", None);
        let seconds: u64 = answer.header("retry-after").parse().expect("whole seconds");
        assert!((1..=3600).contains(&seconds), "{seconds}");
        // To be full is no illness: whoever watches is to send nobody home and restart nothing.
        for path in ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"] {
            server.answer(server.request("GET", path)).await.ok();
        }
        assert_eq!(server.images(), 2, "it was not full any more: nothing was shown");
        hold.abort();
    });
    // The client of the long one has hung up; its places are free.
    server.until_images(0);
    server.generate(&body(3, 1)).ok();
}

#[test]
fn after_all_of_it_the_server_serves() {
    let server = TestServer::start(TestServer::config());
    let mut random = suite::Random::new(99);
    let good = json!({"model": "tiny", "prompt": "ring", "seed": 7, "steps": 1}).to_string();
    let expected = server.send(server.post(good.clone())).ok().file(0);
    // A good request with a few bytes changed, cut or doubled: never a fault of the server, never silence.
    for _ in 0..300 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, bytes[at]),
            }
        }
        let answer = server.send(server.post(bytes.clone()));
        let sent = String::from_utf8_lossy(&bytes);
        assert!([200, 400, 404, 422].contains(&answer.status), "{} for {sent}", answer.status);
    }
    assert_eq!(server.send(server.post(good)).ok().file(0), expected);
    assert_eq!(server.get("/livez").ok().json()["status"], "alive");
    server.leave();
}
