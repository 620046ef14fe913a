//! The engine under more than it can do at once: what is admitted and when, who goes first, what is given up, and models
//! that are replaced while they serve. Real ONNX Runtime on `models/tiny`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use suite::{Answer, Package, Process, TestServer, decode, shipped};
use windowpane_server::Config;

/// Who may ask: two who generate, and an administrator.
const KEYS: [(&str, &str); 3] = [("alice", "generate"), ("bob", "generate"), ("root", "admin")];

/// One row for each of `steps` steps.
fn steps(steps: u64, seed: u64) -> Value {
    json!({"prompt": "ring", "seed": seed, "steps": steps, "guidance_scale": 1})
}

/// Seconds of a row evaluation, as the server measures them.
fn row_seconds(server: &TestServer) -> f64 {
    let model = server.app().model(None).unwrap();
    model.served.costs.tick(8).as_secs_f64() / 8.0
}

/// Seconds that a request would take as things stand, by what it is told that wants it sooner.
fn needs(refused: &Answer) -> f64 {
    let message = refused.refused(429, "deadline_unmeetable", None);
    let words = message.split_once("would take about ").and_then(|(_, rest)| rest.split(' ').next());
    let milliseconds = words.and_then(|number| number.parse::<f64>().ok());
    milliseconds.unwrap_or_else(|| panic!("{message}")) / 1e3
}

/// A request with a key, and perhaps an id.
async fn ask(server: &TestServer, key: &str, id: &str, body: &Value) -> Answer {
    let request = server.post(body.to_string()).bearer_auth(format!("{key}'s secret"));
    server.answer(request.header("x-request-id", id)).await
}

#[test]
fn whoever_comes_back_when_told_is_admitted() {
    const BACKLOG: f64 = 3.0;
    let max_backlog = Duration::from_secs_f64(BACKLOG);
    let server = TestServer::leaked(Config { max_backlog, ..TestServer::config() });
    let body = |seed: u64, steps: u64| json!({"prompt": "ring", "seed": seed, "n": 8, "steps": steps, "guidance_scale": 1});
    // A row as ticks go now: at load the machine may have had other things to do.
    server.generate(&body(9, 60)).ok();
    let mut hurried = body(9, 100);
    hurried["timeout_ms"] = json!(1);
    let row = needs(&server.generate(&hurried)) / 800.0;
    let ask = move |seed: u64, seconds: f64| {
        let steps = ((seconds / row / 8.0) as u64).clamp(10, 1000);
        server.answer(server.post(body(seed, steps).to_string()))
    };
    // The first comes to an empty engine, which takes more than may wait, so that the others are told. All three together are
    // little more than twice of what may wait: hardly any of it has to be done before a promise can be kept.
    let first = server.spawn(ask(1, 1.1 * BACKLOG));
    server.until_images(8);
    let told = [2, 3].map(|seed| {
        let answer = server.block_on(ask(seed, 0.6 * BACKLOG));
        answer.refused(429, "overloaded", None);
        (seed, answer.header("retry-after").parse::<u64>().unwrap())
    });
    // The later one is told a later time, and neither more than all of it takes a few times over.
    assert!(told[0].1 >= 1 && told[0].1 < told[1].1, "{told:?}");
    assert!((told[1].1 as f64) < 3.0 * 2.3 * BACKLOG, "{told:?}");
    let back = told.map(|(seed, wait)| {
        server.spawn(async move {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            ask(seed, 0.6 * BACKLOG).await
        })
    });
    for task in back.into_iter().chain([first]) {
        server.block_on(task).unwrap().ok();
    }
}

#[test]
fn a_deadline_is_kept_or_refused_at_once() {
    let server = TestServer::leaked(TestServer::config());
    let row = row_seconds(server);
    let long = ((4.0 / row) as u64).clamp(10, 1000);
    // Far too short, alone or not: refused before anything runs, and coming back is not advised.
    let ticks = || server.app().metrics().ticks.with_label_values(&["tiny"]).get();
    let before = ticks();
    let request = server.post(steps(long, 1).to_string()).header("x-request-timeout-ms", "100");
    let answer = server.send(request);
    answer.refused(429, "deadline_unmeetable", None);
    assert!(answer.headers.get("retry-after").is_none());
    assert_eq!(ticks(), before, "nothing runs");
    let mut body = steps(2, 1);
    body["timeout_ms"] = json!(600_000);
    server.generate(&body).ok();
    for (header, message) in
        [("0", "is 0, expected 1 to"), ("soon", "is soon, expected 1 to"), ("-1", "is -1")]
    {
        let answer = server.send(server.post(steps(1, 1).to_string()).header("x-request-timeout-ms", header));
        answer.refused(422, "invalid_value", Some("x-request-timeout-ms"));
        assert!(answer.text().contains(message), "{}", answer.text());
    }
    body["timeout_ms"] = json!(0);
    server.generate(&body).refused(422, "invalid_value", Some("timeout_ms"));
    // One that could be met, until others came who go first: it ends at its time, and its rows are free.
    let mut body = steps(long, 1);
    body["timeout_ms"] = json!(1);
    // As ticks go now.
    let limit = Duration::from_secs_f64(needs(&server.generate(&body)) * 1.5 + 0.5);
    body["timeout_ms"] = json!(limit.as_millis() as u64);
    let start = Instant::now();
    let late = server.spawn(async move { server.answer(server.post(body.to_string())).await });
    server.until_images(1);
    let admitted = Instant::now();
    let company = json!({"prompt": "ring", "seed": 1, "n": 10, "steps": long / 2}).to_string();
    let company: Vec<_> = (0..2).map(|_| server.spawn(server.answer(server.post(company.clone())))).collect();
    // Its time is over by now, wherever between its sending and its admission it began. The tick that it is in ends first.
    std::thread::sleep((admitted + limit).saturating_duration_since(Instant::now()));
    let passed = || server.app().metrics().cancellations.with_label_values(&["tiny", "deadline"]).get();
    server.until_within(1, ticks, "the deadline has passed", || passed() == 1);
    server.block_on(late).unwrap().refused(504, "deadline_passed", None);
    assert!(limit <= start.elapsed(), "{:?} for {limit:?}", start.elapsed());
    company.iter().for_each(tokio::task::JoinHandle::abort);
}

#[test]
fn a_request_is_cancelled_by_whoever_sent_it_and_by_nobody_else() {
    let server = TestServer::leaked(Config { keys: suite::keys(&KEYS), ..TestServer::config() });
    let delete = |key: &str, id: &str| {
        let request = server.request("DELETE", &format!("/v1/requests/{id}"));
        server.send(request.bearer_auth(format!("{key}'s secret")))
    };
    let mut long = steps(1000, 1);
    long["n"] = json!(4);
    for canceller in ["alice", "root"] {
        let body = long.clone();
        let running = server.spawn(async move { ask(server, "alice", "my-id", &body).await });
        server.until_images(4);
        delete("bob", "my-id").refused(404, "not_found", Some("id"));
        assert_eq!(server.images(), 4);
        assert_eq!(delete(canceller, "my-id").ok().json(), json!({"id": "my-id", "cancelled": 1}));
        server.block_on(running).unwrap().refused(409, "cancelled", None);
        server.until_images(0);
        delete("alice", "my-id").refused(404, "not_found", Some("id"));
    }
    delete("alice", "no%20id").refused(404, "not_found", Some("id"));
    // Nobody comes in without a key, or with another one.
    let keyless = server.request("DELETE", "/v1/requests/my-id");
    server.send(keyless).refused(401, "invalid_api_key", None);
    server.generate(&steps(1, 1)).refused(401, "invalid_api_key", None);
    server.block_on(ask(server, "eve", "x", &steps(1, 1))).refused(401, "invalid_api_key", None);
    server.block_on(ask(server, "bob", "x", &steps(1, 1))).ok();
    let other_header = server.post(steps(1, 1).to_string()).header("x-api-key", "bob's secret");
    server.send(other_header).ok();
}

#[test]
fn a_request_is_cancelled_whatever_form_its_answer_has() {
    let server = TestServer::leaked(TestServer::config());
    // DELETE with an id, once it is known to be under way; and the rows are free.
    let cancel = |id: &str| {
        let deleted = server.send(server.request("DELETE", &format!("/v1/requests/{id}")));
        assert_eq!(deleted.ok().json(), json!({"id": id, "cancelled": 1}));
        server.until_images(0);
    };
    // The bytes of one picture.
    let png =
        server.post(steps(1000, 1).to_string()).header("accept", "image/png").header("x-request-id", "a-png");
    let running = server.spawn(server.answer(png));
    server.until_images(1);
    cancel("a-png");
    server.block_on(running).unwrap().refused(409, "cancelled", None);
    // An inference request of two rows, in the protocol's form.
    let rows = json!({"inputs": [
        {"name": "seed", "shape": [2], "datatype": "INT64", "data": [7, 8]},
        {"name": "class", "shape": [2], "datatype": "BYTES", "data": ["ring", "blob"]},
        {"name": "steps", "shape": [2], "datatype": "INT32", "data": [1000, 999]},
    ]});
    let infer = server.request("POST", "/v2/models/tiny.sampler/infer").header("x-request-id", "rows-1");
    let running = server.spawn(server.answer(infer.body(rows.to_string())));
    server.until_images(2);
    cancel("rows-1");
    let answer = server.block_on(running).unwrap();
    let told = json!({"error": "the request was cancelled", "param": null, "code": "cancelled", "request_id": "rows-1"});
    assert_eq!((answer.status, answer.json()), (409, told));
    // A stream, by the id that is ours: its first line has it, long before the first event.
    let mut body = steps(1000, 1);
    body["stream"] = json!(true);
    let (id, rest) = server.block_on(async {
        let mut response = server.post(body.to_string()).send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
        let first = response.chunk().await.unwrap().unwrap();
        assert_eq!(std::str::from_utf8(&first).unwrap(), format!(": x-request-id: {id}\n\n"));
        let deleted = server.answer(server.request("DELETE", &format!("/v1/requests/{id}"))).await.ok();
        assert_eq!(deleted.json(), json!({"id": id, "cancelled": 1}));
        (id, response.text().await.unwrap())
    });
    let (name, data) = rest.trim_end().strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    let error: Value = serde_json::from_str(data).unwrap();
    assert_eq!((name, &error["error"]["code"]), ("error", &json!("cancelled")), "{rest}");
    assert_eq!(error["error"]["request_id"], json!(id));
    server.until_images(0);
    // And by the client's own, in the first event, when a preview has come.
    body["partial_images"] = json!(3);
    body["timeout_ms"] = json!(600_000);
    let last = server.block_on(async {
        let request = server.post(body.to_string()).header("x-request-id", "a-stream");
        let mut response = request.send().await.unwrap();
        let mut text = String::new();
        while !text.contains("event: ") || !text.ends_with("\n\n") {
            text += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
        }
        let data = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["type"], "image_generation.partial_image");
        let id = event["request_id"].as_str().unwrap();
        assert_eq!(id, "a-stream");
        server.answer(server.request("DELETE", &format!("/v1/requests/{id}"))).await.ok();
        response.text().await.unwrap()
    });
    assert!(last.contains("event: error\ndata: {\"error\":{") && last.contains("\"cancelled\""), "{last}");
    server.until_images(0);
    let cancelled = server.app().metrics().cancellations.with_label_values(&["tiny", "cancelled"]).get();
    assert_eq!(cancelled, 5);
    server.generate(&steps(1, 1)).ok();
}

#[test]
fn a_flood_from_one_key_leaves_another_its_share() {
    let config = Config { keys: suite::keys(&KEYS), ..TestServer::config() };
    let server = TestServer::leaked(config);
    // About four seconds of work.
    let each = ((4.0 / 16.0 / row_seconds(server)) as u64).clamp(12, 200);
    let flood: Vec<_> = (0..16)
        .map(|seed| server.spawn(async move { ask(server, "alice", "flood", &steps(each, seed)).await }))
        .collect();
    server.until_images(16);
    let body = json!({"prompt": "ring", "seed": 1, "n": 4, "steps": each / 4, "guidance_scale": 1});
    // In rows, and not in seconds, of which a busy machine may lose some at any time.
    let rows = || server.app().metrics().tick_rows.with_label_values(&["tiny"]).get_sample_sum();
    let before = rows();
    server.block_on(ask(server, "bob", "mine", &body)).ok();
    let bob = rows() - before;
    assert!(server.images() >= 12, "the flood was over before");
    for task in flood {
        server.block_on(task).unwrap().ok();
    }
    let then = rows() - before - bob;
    // Half of the rows were his, for an eighth of the time. In order of arrival he would have waited for all of it.
    assert!(bob < then / 2.0, "{bob} rows and then {then}");
}

#[test]
fn a_model_is_replaced_under_way_and_nothing_is_dropped() {
    let package = Package::tiny();
    let server = TestServer::leaked(Config { models: package.models(), ..TestServer::config() });
    let before = server.generate(&steps(3, 5)).ok();
    let old = server.app().model(Some("tiny")).unwrap();
    let running = server.spawn(async move { ask(server, "nobody", "x", &steps(200, 1)).await });
    server.until_images(1);
    // Another version: the same network under another description, and so another digest.
    package.edit(|manifest| manifest["description"] = json!("the second version"));
    let new = server.block_on(server.app().load_model("tiny")).unwrap();
    assert_ne!(new.card.digest, old.card.digest);
    let during = server.generate(&steps(3, 5)).ok();
    assert_eq!(during.json()["digest"], json!(new.card.digest));
    assert_eq!(decode(&during.file(0)), decode(&before.file(0)), "the same network in both");
    // The one under way runs on in the old version.
    let answer = server.block_on(running).unwrap().ok();
    assert_eq!(answer.json()["digest"], json!(old.card.digest));
    drop(old);
    // A version that does not load changes nothing.
    package.write("manifest.json", "{");
    assert!(server.block_on(server.app().load_model("tiny")).is_err());
    server.generate(&steps(1, 5)).ok();
    server.block_on(server.app().unload_model("tiny")).unwrap();
    server.generate(&steps(1, 5)).refused(404, "model_not_found", Some("model"));
    assert_eq!(server.get("/v1/models").ok().json()["data"], json!([]));
    assert!(server.get("/metrics").ok().text().contains("windowpane_model_ready{model=\"tiny\"} 0"));
}

#[test]
fn a_watched_folder_is_what_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        let package = folder.path().join(name);
        let staged = folder.path().join(format!(".{name}"));
        fs::create_dir(&staged).unwrap();
        for file in fs::read_dir(shipped("tiny")).unwrap().map(|entry| entry.unwrap().path()) {
            fs::copy(&file, staged.join(file.file_name().unwrap())).unwrap();
        }
        let manifest = staged.join("manifest.json");
        let mut value: Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
        value["name"] = json!(name);
        fs::write(&manifest, serde_json::to_string_pretty(&value).unwrap()).unwrap();
        fs::rename(&staged, &package).unwrap();
    };
    copy("first");
    let models = folder.path().to_str().unwrap();
    let plain = ["--models", models, "--port", "0", "--max-rows", "4"];
    let mut server = Process::windowpane(&[&plain[..], &["--watch", "1"]].concat());
    // Another of the same folder, which nobody asked to watch it.
    let mut still = Process::windowpane(&plain);
    let (url, still_url) = (server.url(), still.url());
    let list = |url: &str| {
        let answer = TestServer::shared().elsewhere("GET", &format!("{url}/v1/models"), None).unwrap().ok();
        let data = answer.json()["data"].as_array().unwrap().clone();
        let told = |model: &Value, field: &str| model[field].as_str().unwrap().to_owned();
        data.iter().map(|model| (told(model, "id"), told(model, "digest"))).collect::<Vec<_>>()
    };
    let served = || list(&url).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let at_first = list(&still_url);
    assert_eq!((served(), list(&url)), (vec!["first".to_owned()], at_first.clone()));
    copy("second");
    TestServer::shared().until("the new package is served", || served() == ["first", "second"]);
    // A new version of it.
    let digest = || list(&url).into_iter().find(|(name, _)| name == "second").map(|(_, digest)| digest);
    let before = digest();
    let manifest = folder.path().join("second/manifest.json");
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    value["description"] = json!("changed");
    let staged = folder.path().join(".manifest.json");
    fs::write(&staged, value.to_string()).unwrap();
    fs::rename(&staged, &manifest).unwrap();
    TestServer::shared()
        .until("the new version is served", || digest().is_some_and(|now| Some(now) != before));
    // A manifest that is being written is no reason to let a model go.
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, "{").unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(served(), ["first", "second"]);
    fs::write(&manifest, text).unwrap();
    fs::remove_dir_all(folder.path().join("first")).unwrap();
    TestServer::shared().until("the removed one is not", || served() == ["second"]);
    // One came, one changed and one went, and each was noticed there; here all is as it was, and draws.
    assert_eq!(list(&still_url), at_first);
    let ring = json!({"model": "first", "prompt": "ring", "steps": 1});
    TestServer::shared()
        .elsewhere("POST", &format!("{still_url}/v1/images/generations"), Some(&ring))
        .unwrap()
        .ok();
    still.signal("TERM");
    assert_eq!(still.end().code, Some(0));
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
}

#[test]
fn sixteen_clients_share_ticks_whatever_they_ask_for() {
    let models = shipped("tiny");
    let log = "warn,windowpane_server::batcher=trace";
    let mut server = Process::windowpane(&[
        "--models",
        models.to_str().unwrap(),
        "--port",
        "0",
        "--log",
        log,
        "--max-backlog",
        "3600",
        "--log-format",
        "text",
    ]);
    let url = server.url();
    let samplers = ["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m"];
    // While the server stands still its kernel takes what is sent: all of them are there when it goes on.
    server.signal("STOP");
    let sockets: Vec<TcpStream> = (0..16)
        .map(|i| {
            let body = json!({
                "prompt": "ring", "seed": i, "steps": 10 + 2 * (i % 8), "sampler": samplers[i % 6],
                "guidance_scale": if i % 2 == 0 { 1.0 } else { 2.0 },
            });
            let body = body.to_string();
            let head = format!(
                "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let mut socket = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
            socket.write_all((head + &body).as_bytes()).unwrap();
            socket
        })
        .collect();
    server.signal("CONT");
    for mut socket in sockets {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let metrics = TestServer::shared().elsewhere("GET", &format!("{url}/metrics"), None).unwrap().ok();
    let value = |name: &str| -> f64 {
        let sample = format!("windowpane_tick_rows_{name}{{model=\"tiny\"}} ");
        let text = metrics.text();
        text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
    };
    let mean = value("sum") / value("count");
    assert!(mean > 8.0, "{mean} rows in a tick");
    server.signal("TERM");
    let trace = server.end().errors;
    // A tick is its images, each `sampler done/of xROWS`.
    let image = |words: &[&str]| {
        let (done, of) = words[1].split_once('/').unwrap();
        (words[0].to_owned(), done.to_owned(), of.to_owned(), words[2][1..].parse::<usize>().unwrap())
    };
    let ticks: Vec<Vec<_>> = trace
        .lines()
        .filter_map(|line| line.split("units=\"").nth(1)?.split('"').next())
        .map(|units| units.split(' ').collect::<Vec<_>>().chunks(3).map(image).collect())
        .collect();
    let rows: usize = ticks.iter().flatten().map(|image| image.3).sum();
    assert!(rows as f64 / ticks.len() as f64 > 8.0, "{rows} rows in {} ticks", ticks.len());
    assert_eq!((ticks.len() as f64, rows as f64), (value("count"), value("sum")), "trace and metrics agree");
    // In one tick: other samplers, other numbers of steps, other positions, guided and not.
    let mixed = ticks.iter().any(|tick| {
        let samplers = tick.iter().map(|image| &image.0).collect::<BTreeSet<_>>().len();
        let positions = tick.iter().map(|image| &image.1).collect::<BTreeSet<_>>().len();
        let lengths = tick.iter().map(|image| &image.2).collect::<BTreeSet<_>>().len();
        let widths = tick.iter().map(|image| image.3).collect::<BTreeSet<_>>().len();
        samplers >= 4 && lengths >= 4 && positions >= 2 && widths == 2
    });
    assert!(mixed, "{ticks:?}");
}
