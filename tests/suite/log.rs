//! The log of a real process: what its lines tell of each request, and that nobody waits for whoever reads them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use suite::{IMAGES, Process, TestServer, sha256, shipped};

/// Time that an answer may take on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// A process that serves `models/tiny`, before it says where.
fn arguments<'a>(models: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--models", models, "--port", "0", "--max-rows", "4"], more].concat()
}

/// The value of a sample in /metrics; 0 where it is not there.
fn sample(url: &str, name: &str) -> u64 {
    let answer = TestServer::shared().elsewhere("GET", &format!("{url}/metrics"), None).unwrap().ok();
    let line = answer.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// Asks so many times whether the server lives, on one connection, fifty at a time; each id is its number of 128 digits.
fn pipelined(url: &str, requests: usize) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let (mut answered, mut rest, mut buffer) = (0, Vec::new(), vec![0; 1 << 16]);
    for request in 0..requests + 50 {
        if request < requests {
            let asked = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-request-id: {request:0>128}\r\n\r\n");
            stream.write_all(asked.as_bytes()).unwrap();
        }
        while answered + 50 <= request {
            let n = stream.read(&mut buffer).expect("it is answered, whether or not its line was written");
            assert_ne!(n, 0, "the server hung up");
            rest.extend_from_slice(&buffer[..n]);
            answered += rest.windows(15).filter(|text| text == b"HTTP/1.1 200 OK").count();
            // What may be the beginning of the next.
            rest.drain(..rest.len() - 14.min(rest.len()));
        }
    }
}

#[test]
fn a_reader_that_has_stopped_keeps_nobody_waiting_and_what_it_missed_is_counted() {
    const REQUESTS: usize = 8000;
    let models = shipped("tiny");
    // A pipe of 64 KiB, of which nothing is ever taken.
    let (_unread, full) = std::io::pipe().unwrap();
    let mut server = Process::spawn(&arguments(models.to_str().unwrap(), &[]), |command| {
        command.stderr(full);
    });
    let url = server.url();
    assert_eq!(sample(&url, "windowpane_log_lines_lost_total"), 0);
    pipelined(&url, REQUESTS);
    let lost = sample(&url, "windowpane_log_lines_lost_total");
    assert!((1000..REQUESTS as u64).contains(&lost), "{lost}");
    // It leaves in order, and soon.
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
}

#[test]
fn a_reader_that_comes_back_within_two_seconds_of_the_end_has_every_line() {
    const REQUESTS: usize = 1000;
    let models = shipped("tiny");
    let (mut unread, full) = std::io::pipe().unwrap();
    let mut server = Process::spawn(&arguments(models.to_str().unwrap(), &[]), |command| {
        command.stderr(full);
    });
    let url = server.url();
    pipelined(&url, REQUESTS);
    assert_eq!(sample(&url, "windowpane_log_lines_lost_total"), 0);
    server.signal("TERM");
    let reader = std::thread::spawn(move || {
        // Long after it was told, and long before it gives up on a machine that stalls.
        std::thread::sleep(Duration::from_millis(400));
        let mut log = String::new();
        unread.read_to_string(&mut log).map(|_| log)
    });
    assert_eq!(server.end().code, Some(0));
    let log = reader.join().unwrap().unwrap();
    let told = (0..REQUESTS).filter(|request| log.contains(&format!("{request:0>128}"))).count();
    assert_eq!(told, REQUESTS);
}

#[test]
fn requests_that_are_given_up_at_the_end_have_their_lines() {
    const REQUESTS: usize = 300;
    let models = shipped("tiny");
    let mut server = Process::windowpane(&arguments(models.to_str().unwrap(), &[]));
    let url = server.url();
    // Half a body each: they wait for the rest for longer than the server does.
    let sockets: Vec<_> = (0..REQUESTS)
        .map(|request| {
            let mut socket = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
            let head = format!(
                "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: half-{request}\r\ncontent-length: 100\r\n\r\n{{"
            );
            socket.write_all(head.as_bytes()).unwrap();
            socket
        })
        .collect();
    TestServer::shared().until("they are under way, and who asks for that", || {
        sample(&url, "windowpane_requests_in_flight") == REQUESTS as u64 + 1
    });
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    drop(sockets);
    let lines = requests(&exit.errors);
    let given_up = |request: &usize| {
        let line = lines.get(&format!("half-{request}"));
        line.is_some_and(|line| line["ended"] == "client" && !line.contains_key("status"))
    };
    assert_eq!((0..REQUESTS).filter(given_up).count(), REQUESTS, "{}", exit.errors);
}

/// The fields of every line `request` of a log in JSON, by its id: texts as they are, numbers as they are written.
fn requests_in_json(log: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let fields = |line: &str| -> BTreeMap<String, String> {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))).collect()
    };
    let lines =
        log.lines().map(fields).filter(|fields| fields.get("message").is_some_and(|said| said == "request"));
    lines.map(|fields| (fields["request_id"].clone(), fields)).collect()
}

/// The fields of every line `request`, by its id. A value with a space in it would not be read whole; none here has one.
fn requests(log: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let fields = |line: &str| -> BTreeMap<String, String> {
        let pairs = line.split(' ').filter_map(|word| word.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
    };
    let lines = log
        .lines()
        .map(fields)
        .filter(|fields| fields.contains_key("total_us") || fields.contains_key("ended"));
    lines.map(|fields| (fields["request_id"].clone(), fields)).collect()
}

#[test]
fn a_line_says_who_asked_and_how_the_answer_ended() {
    lines_are_told("text", requests);
}

#[test]
fn a_line_in_json_says_the_same() {
    lines_are_told("json", requests_in_json);
}

/// A server with this form of the log is asked for what ends in every way, and what `read` finds in its log is compared.
fn lines_are_told(form: &str, read: fn(&str) -> BTreeMap<String, BTreeMap<String, String>>) {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let secret = "alice's secret";
    let digest = sha256(secret.as_bytes());
    fs::write(&keys, format!("[[key]]\nname = \"alice\"\nrole = \"generate\"\nsha256 = \"{digest}\"\n"))
        .unwrap();
    let models = shipped("tiny");
    let args = arguments(models.to_str().unwrap(), &["--keys", keys.to_str().unwrap(), "--log-format", form]);
    let log = folder.path().join("log");
    let mut server = Process::spawn(&args, |command| _ = command.stderr(File::create(&log).unwrap()));
    let log = || fs::read_to_string(&log).unwrap();
    // In JSON the address goes to the log alone.
    let address = || {
        let log = log();
        let (_, rest) = log.lines().find(|line| line.contains("serving"))?.split_once("http://")?;
        Some(format!("http://{}", rest.split_once('"')?.0))
    };
    let shared = TestServer::shared();
    shared.until("it says where it serves", || address().is_some());
    let url = address().unwrap();
    let ring =
        |steps: usize, stream: bool| json!({"prompt": "ring", "seed": 1, "steps": steps, "stream": stream});
    let ask = |id: &str, body: &Value| {
        let request = shared.elsewhere_request(&format!("{url}{IMAGES}"), body);
        request.header("x-request-id", id).bearer_auth(secret)
    };
    shared.send(ask("plain", &ring(2, false))).ok();
    shared.send(ask("stream", &ring(2, true))).ok();
    shared.send(ask("wrong", &json!({"prompt": "cat"}))).refused(422, "invalid_value", Some("prompt"));
    let nobody = shared.elsewhere_request(&format!("{url}{IMAGES}"), &ring(2, false));
    shared.send(nobody.header("x-request-id", "nobody")).refused(401, "invalid_api_key", None);
    let unload = format!("{url}/v2/repository/models/tiny/unload");
    let unload = shared.elsewhere_request(&unload, &json!({})).header("x-request-id", "may-not");
    assert_eq!(shared.send(unload.bearer_auth(secret)).status, 403);

    // A stream that is cancelled: its client was told 200 long before.
    let images = |n: u64| {
        shared.until("they are under way", || sample(&url, "windowpane_trajectories{model=\"tiny\"}") == n);
    };
    let running = ask("cancelled", &ring(1000, true));
    let cancelled = shared.spawn(async move { running.send().await.unwrap().text().await.unwrap() });
    images(1);
    shared.send(shared.delete(&format!("{url}/v1/requests/cancelled")).bearer_auth(secret)).ok();
    let text = shared.block_on(cancelled).unwrap();
    assert!(text.contains("event: error") && text.contains("\"cancelled\""), "{text}");
    assert_eq!(sample(&url, "windowpane_rejections_total{cause=\"cancelled\"}"), 1);

    // Clients that hang up: before the head of their answer, and within its body.
    for (id, stream, during) in [("early", false, "wait"), ("late", true, "answer")] {
        let body = ring(1000, stream).to_string();
        let mut socket = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
        let head = format!(
            "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: {id}\r\nauthorization: Bearer {secret}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).unwrap();
        images(1);
        if stream {
            assert!(socket.read(&mut [0; 1000]).unwrap() > 0);
        }
        drop(socket);
        images(0);
        let hangups = format!("windowpane_hangups_total{{during=\"{during}\"}}");
        shared.until("it is counted", || sample(&url, &hangups) == 1);
    }
    let gone = "windowpane_cancellations_total{cause=\"disconnect\",model=\"tiny\"}";
    assert_eq!(sample(&url, gone), 2);
    server.signal("TERM");
    let exit = server.end();
    let log = log();
    assert_eq!(exit.code, Some(0), "{log}");
    assert!(!log.contains(secret) && !log.contains(&digest), "{log}");
    let lines = read(&log);
    let mut wrong = Vec::new();
    for (id, status, ended, caller) in [
        ("plain", Some("200"), "whole", Some("alice")),
        ("stream", Some("200"), "whole", Some("alice")),
        ("wrong", Some("422"), "invalid_value", Some("alice")),
        ("nobody", Some("401"), "invalid_api_key", None),
        ("may-not", Some("403"), "forbidden", Some("alice")),
        ("cancelled", Some("200"), "cancelled", Some("alice")),
        ("early", None, "client", Some("alice")),
        ("late", Some("200"), "client", Some("alice")),
    ] {
        let line = lines.get(id).unwrap_or_else(|| panic!("no line of {id}: {log}"));
        let field = |name: &str| line.get(name).map(String::as_str);
        let route = if id == "may-not" { "/v2/repository/models/{name}/unload" } else { IMAGES };
        let told = (field("status"), field("ended"), field("caller"), field("route"));
        let number = |name: &str| field(name).is_some_and(|value| value.parse::<u64>().is_ok());
        // Times are numbers: always to the end, and to the head where there was one.
        let timed = number("sent_us") && number("total_us") == status.is_some();
        if told != (status, Some(ended), caller, Some(route)) || field("method") != Some("POST") || !timed {
            wrong.push(format!("{id}: {line:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
