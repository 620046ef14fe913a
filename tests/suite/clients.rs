//! Clients that leave, and clients that are slow: neither costs the others anything.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use suite::{IMAGES, TestServer};
use windowpane_server::Config;

/// Opens a connection of its own and writes this.
fn open(server: &TestServer, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

/// A request for images of so many steps that it does not end by itself during a test.
fn endless(n: u64) -> String {
    let body = json!({"prompt": "ring", "seed": 1, "steps": 1000, "n": n}).to_string();
    let length = body.len();
    format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn a_client_that_hangs_up_frees_its_rows() {
    let server = TestServer::start(TestServer::config());
    let leaving = open(&server, &endless(3));
    server.until_images(3);
    drop(leaving);
    server.until_images(0);
    let metrics = server.app().metrics();
    assert_eq!(metrics.cancellations.with_label_values(&["tiny", "disconnect"]).get(), 3);
    assert_eq!(metrics.images.with_label_values(&["tiny"]).get(), 0);
    server.until("nobody asks", || metrics.requests_in_flight.get() == 0);
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
}

#[test]
fn a_client_that_hangs_up_on_a_stream_frees_its_rows() {
    let server = TestServer::start(TestServer::config());
    let body =
        json!({"prompt": "ring", "seed": 1, "steps": 1000, "n": 3, "stream": true, "partial_images": 3});
    let (body, length) = (body.to_string(), body.to_string().len());
    let mut leaving = open(
        &server,
        &format!(
            "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ),
    );
    // The head comes at once, long before the first preview.
    let mut head = [0; 15];
    leaving.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    server.until_images(3);
    drop(leaving);
    server.until_images(0);
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
}

#[test]
fn a_client_that_dawdles_is_hung_up_on() {
    let patience = Duration::from_millis(200);
    // Each has time for what is not tried on it.
    let heads = TestServer::start(Config { header_timeout: patience, ..TestServer::config() });
    let server = TestServer::start(Config { body_timeout: patience, ..TestServer::config() });
    // A head that does not end, and none at all.
    for begun in ["GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ", ""] {
        let (mut stream, mut rest, start) = (open(&heads, begun), Vec::new(), Instant::now());
        let _ = stream.read_to_end(&mut rest);
        assert!(start.elapsed() < Duration::from_secs(20), "it was waited for");
        assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
    }
    // A body that does not come.
    let head = format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: 100\r\n\r\n{{"
    );
    let start = Instant::now();
    let answer = server.raw(head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(20), "it was waited for");
    // And a body that is cut short.
    let stream = open(&server, &head);
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    // Both serve on; on a busy machine not everybody is quick enough for them.
    for server in [&heads, &server] {
        let (url, body) = (server.url() + IMAGES, json!({"prompt": "ring", "steps": 1}));
        server.until("it serves whoever does not dawdle", || {
            server.elsewhere("POST", &url, Some(&body)).is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
fn many_idle_connections_keep_nobody_waiting() {
    let server = TestServer::shared();
    let idle: Vec<TcpStream> = (0..200).map(|_| open(server, "GET /livez HTTP/1.1\r\n")).collect();
    server.get("/livez").ok();
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
    assert_eq!(idle.len(), 200);
}

#[test]
fn one_connection_carries_many_requests() {
    let server = TestServer::shared();
    let request = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{close}\r\n");
    // Pipelined: all written before the first answer is read.
    let text = [
        request("/livez", ""),
        request("/v1/models/none", ""),
        request("/v1/models", ""),
        request("/readyz", "connection: close\r\n"),
    ]
    .concat();
    let answer = server.raw(text.as_bytes());
    let statuses: Vec<&str> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404", "200", "200"]);
}

#[test]
fn who_takes_a_large_answer_slowly_keeps_no_small_one_waiting() {
    // Of 2 MiB large answers have 1.5, and the smallest of them is of 4 KiB.
    let server = TestServer::start(Config { answer_limit: 2 << 20, ..TestServer::config() });
    // 100 points of 8 KiB for each of four images, in base64.
    let large = json!({
        "prompt": "ring", "seed": 7, "steps": 100, "n": 4, "trajectory": 1, "output_format": "npz", "guidance_scale": 1,
    });
    let body = large.to_string();
    let head = format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut slow = open(&server, &(head + &body));
    assert!(slow.read(&mut [0; 100]).unwrap() > 0, "the answer begins");
    // More than the kernels keep: nobody has the end of it.
    let held = server.app().answer_bytes();
    assert!(held > 4 << 20, "{held}");
    let refused = server.generate(&large);
    let words = refused.refused(429, "memory_full", None);
    assert!(words.contains("the memory for answers"), "{words}");
    server.generate(&json!({"prompt": "ring", "seed": 7, "steps": 1})).ok();
    // It is taken after all.
    slow.read_to_end(&mut Vec::new()).unwrap();
    server.until("it is with its client", || server.app().answer_bytes() == 0);
    server.generate(&large).ok();
}
