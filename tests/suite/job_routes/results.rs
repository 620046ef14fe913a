//! Results of jobs: whole, in ranges and told; and what becomes a job's result because nobody waits that long.

use super::*;

#[test]
fn a_result_comes_whole_and_in_ranges_and_its_end_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    let secret = NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let hooks = Hooks::new(vec![host.parse().unwrap()], Secret::read(secret.path()).unwrap());
    let kept = Keeping::with(Settings { hooks, ..Settings::default() });
    let mut order = file();
    order["webhook"] = json!({"url": format!("{host}/hook")});
    kept.taken("looker", Some("a"), order);
    assert!(kept.end("a").contains("event: succeeded"));
    is_told(&listener, &kept.server);

    let request = kept.request("looker", "POST", "/v1/analysis/attention");
    let request = request.header("content-type", "application/json").header("accept", "application/x-npz");
    let waited = kept.server.send(request.body(look(json!({})).to_string())).ok();
    let whole = kept.get("/v1/jobs/a/result").ok();
    assert!(whole.bytes == waited.bytes, "the route answers otherwise");
    let size = whole.bytes.len();
    for name in ["content-type", "x-about"] {
        assert!(!whole.header(name).is_empty(), "{name}");
        assert_eq!(whole.header(name), waited.header(name), "{name}");
    }
    assert_eq!(whole.header("content-length"), size.to_string());
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let job = kept.get("/v1/jobs/a").ok().json();
    assert_eq!(
        (&job["result"]["size"], &job["result"]["media_type"]),
        (&json!(size), &json!("application/x-npz"))
    );
    assert_eq!(job["result"]["sha256"], sha256(&whole.bytes));
    let etag = whole.header("etag");
    assert_eq!(etag, format!("\"{}\"", sha256(&whole.bytes)));

    let fetch = |method: &str, headers: &[(&str, &str)]| {
        let request = kept.request("looker", method, "/v1/jobs/a/result");
        kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
    };
    for (range, part) in [
        ("bytes=0-4".to_owned(), 0..5),
        (format!("bytes={}-", size - 8), size - 8..size),
        ("bytes=-2".to_owned(), size - 2..size),
    ] {
        for headers in [&[("range", range.as_str())][..], &[("range", range.as_str()), ("if-range", etag)]] {
            let answer = fetch("GET", headers);
            assert_eq!(answer.status, 206, "{range}");
            assert_eq!(answer.bytes, whole.bytes[part.clone()], "{range}");
            assert_eq!(
                answer.header("content-range"),
                format!("bytes {}-{}/{size}", part.start, part.end - 1)
            );
            assert_eq!(answer.header("content-length"), part.len().to_string());
            assert_eq!(answer.header("etag"), etag);
        }
    }
    let other = fetch("GET", &[("range", "bytes=0-4"), ("if-range", "\"another\"")]).ok();
    assert_eq!(other.bytes.len(), size);
    let beyond = fetch("GET", &[("range", &format!("bytes={size}-"))]);
    beyond.refused(416, "range_not_satisfiable", Some("range"));
    assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
    let head = fetch("HEAD", &[("range", "bytes=0-4")]).ok();
    assert!(head.bytes.is_empty());
    assert_eq!((head.header("content-length"), head.header("etag")), (size.to_string().as_str(), etag));

    // What no job may bring is not taken.
    let kept = Keeping::with(Settings { result_limit: 1000, ..Settings::default() });
    let why = kept.order("looker", Some("large"), file()).refused(422, "invalid_value", None);
    // Nor what would keep more on its way: the whole matrix, of which little is told.
    let kept = Keeping::with(Settings { result_limit: 1 << 20, ..Settings::default() });
    let whole = json!({"model": "tiny", "prompt": "ring", "timestep": 400, "method": "full", "k": 1});
    let whole = kept.order("looker", Some("whole"), json!({"kind": "jacobian", "request": whole}));
    let whole = whole.refused(422, "invalid_value", None);
    assert!(whole.contains("the work would keep ") && whole.contains("`--job-result-limit`"), "{whole}");
    assert!(why.contains(" bytes, more than 1000, the most there may be (`--job-result-limit`)"), "{why}");
}

/// Takes what is told of the job `a` there.
fn is_told(listener: &TcpListener, server: &TestServer) {
    listener.set_nonblocking(true).unwrap();
    let mut came = None;
    server.until("somebody tells", || {
        came = listener.accept().ok();
        came.is_some()
    });
    let (mut stream, _) = came.unwrap();
    stream.set_nonblocking(false).unwrap();
    let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
    let (head, told) = loop {
        let read = stream.read(&mut buffer).unwrap();
        asked.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&asked);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(told) = serde_json::from_str::<Value>(body)
        {
            break (head.to_owned(), told);
        }
        assert!(read > 0, "{text}");
    };
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("webhook-signature: v1,"), "{head}");
    assert_eq!((&told["type"], &told["data"]["state"]), (&json!("job.succeeded"), &json!("succeeded")));
    assert_eq!(told["data"]["id"], "a");
    let taken = server.app().metrics().webhooks.with_label_values(&["delivered"]);
    server.until("it is known to be told", || taken.get() == 1);
}

/// Two images of a ring's size.
fn set() -> Vec<u8> {
    let head = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 32, 32), }\n";
    let pixels: Vec<u8> = (0..2 * 32 * 32).map(|i| (i / 8) as u8).collect();
    [b"\x93NUMPY\x01\x00", &(head.len() as u16).to_le_bytes()[..], head.as_bytes(), &pixels].concat()
}

/// How well they are denoised, asked for with these headers.
fn measure(kept: &Keeping, headers: &[(&str, &str)], more: Value) -> Answer {
    let mut body = json!({
        "model": "tiny", "train": STANDARD.encode(set()), "train_labels": ["ring", 0], "seed": "7", "timesteps": 3,
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request = kept.request("looker", "POST", "/v1/analysis/psnr-gap");
    let request = request.header("content-type", "application/json").body(body.to_string());
    kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
}

/// The same, asked for by a form.
fn measure_by_form(kept: &Keeping, headers: &[(&str, &str)]) -> Answer {
    let labels = b"[\"ring\", 0]".as_slice();
    let set = set();
    let parts = [
        ("model", &b"tiny"[..]),
        ("train", &set),
        ("train_labels", labels),
        ("timesteps", b"3"),
        ("seed", b"7"),
    ];
    let mut form = Vec::new();
    for (name, data) in parts {
        let head = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        form.extend([head.as_bytes(), data, b"\r\n"].concat());
    }
    form.extend(b"--b--\r\n");
    let request = kept.request("looker", "POST", "/v1/analysis/psnr-gap");
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(form);
    kept.server.send(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)))
}

#[test]
fn who_does_not_wait_finds_the_same_answer_as_a_jobs_result() {
    let kept = Keeping::with(Settings { after: LONG, ..Settings::default() });
    // The result of the job that an answer tells the place of.
    let found = |answer: &Answer| {
        let id = accepted(answer)["id"].as_str().unwrap().to_owned();
        assert_eq!(answer.header("preference-applied"), "respond-async");
        assert!(kept.end(&id).contains("event: succeeded"));
        kept.get(&format!("/v1/jobs/{id}/result")).ok()
    };
    let leaves = ("prefer", "respond-async");
    for accept in ["application/json", "text/csv", "image/svg+xml"] {
        let waited = measure(&kept, &[("accept", accept)], json!({})).ok();
        let left = found(&measure(&kept, &[("accept", accept), leaves], json!({})));
        for name in ["content-type", "x-about"] {
            assert_eq!(left.header(name), waited.header(name), "{accept}: {name}");
        }
        assert!(left.bytes == waited.bytes, "{accept}");
    }
    let waited = measure(&kept, &[], json!({})).ok();
    assert!(found(&measure_by_form(&kept, &[leaves])).bytes == waited.bytes, "a form is another order");
    assert!(measure_by_form(&kept, &[]).ok().bytes == waited.bytes, "a form is another request");
}

#[test]
fn what_takes_longer_than_one_waits_is_a_job_while_any_is_taken() {
    let kept = Keeping::with(Settings { workers: 0, after: Duration::ZERO, limit: 3, ..Settings::default() });
    let ask = |headers: &[(&str, &str)], more: Value| measure(&kept, headers, more);
    accepted(&ask(&[], json!({})));
    ask(&[("prefer", "wait=3600")], json!({})).ok();
    accepted(&ask(&[("prefer", "wait=0")], json!({})));
    ask(&[("prefer", "respond-async, wait=3600")], json!({})).ok();
    // Who says how long the answer is worth waiting for waits for it.
    ask(&[("x-request-timeout-ms", "3600000")], json!({})).ok();
    ask(&[("prefer", "respond-async")], json!({"timeout_ms": 3_600_000})).ok();
    // What is wrong is told at once.
    ask(&[], json!({"timesteps": 0})).refused(422, "invalid_value", Some("timesteps"));
    ask(&[("accept", "video/mp4")], json!({})).refused(406, "not_acceptable", None);
    let form = measure_by_form(&kept, &[]);
    accepted(&form);
    assert_eq!(form.header("preference-applied"), "respond-async");
    // No more are taken: only who asked for one is refused.
    ask(&[], json!({})).ok();
    ask(&[("prefer", "respond-async")], json!({})).refused(429, "too_many_jobs", None);
    // Where none are kept everybody waits.
    let shared = TestServer::shared();
    let request = shared.request("POST", "/v1/analysis/attention").header("prefer", "respond-async");
    let request = request.header("content-type", "application/json").body(look(json!({})).to_string());
    assert_eq!(shared.send(request).ok().header("preference-applied"), "");
}
