//! Spans of requests, as a collector receives them: a listener here, the exporter's own bytes, the protocol's own types.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use suite::{IMAGES, Process, TestServer, shipped};

/// A collector on a free port: its address, and the spans of every export.
fn collector() -> (String, mpsc::Receiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (send, spans) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            assert!(head.starts_with("POST /v1/traces "), "{head}");
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
            });
            let mut body = vec![0; length.expect("an export has a length")];
            reader.read_exact(&mut body).unwrap();
            let export = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
            for resource in export.resource_spans {
                let service = &resource.resource.as_ref().unwrap().attributes;
                assert!(format!("{service:?}").contains("windowpane"), "{service:?}");
                for scope in resource.scope_spans {
                    for span in scope.spans {
                        send.send(span).unwrap();
                    }
                }
            }
            reader
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
        }
    });
    (address, spans)
}

#[test]
fn a_request_and_its_stages_are_spans_of_the_callers_trace() {
    let (address, spans) = collector();
    let models = shipped("tiny");
    let models = models.to_str().unwrap();
    let mut server = Process::windowpane(&["--models", models, "--port", "0", "--otlp-endpoint", &address]);
    let url = server.url();
    let shared = TestServer::shared();
    let request = shared
        .elsewhere_request(&format!("{url}{IMAGES}"), &json!({"class": 1, "seed": 1, "steps": 3}))
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(shared.block_on(shared.answer(request)).status, 200);
    shared.elsewhere("GET", &format!("{url}/livez"), None).unwrap().ok();
    let stream = json!({"class": 1, "seed": 1, "steps": 40, "stream": true});
    let stream =
        shared.elsewhere_request(&format!("{url}{IMAGES}"), &stream).header("x-request-id", "stream");
    assert_eq!(shared.block_on(shared.answer(stream)).status, 200);
    // A client that hangs up before there is an answer.
    let body = json!({"class": 1, "seed": 1, "steps": 1000, "n": 4}).to_string();
    let head = format!(
        "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-request-id: gone\r\n"
    );
    let mut gone = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    write!(gone, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let metric = |line: &str| {
        let metrics = shared.elsewhere("GET", &format!("{url}/metrics"), None).unwrap();
        metrics.ok().text().lines().any(|other| other == line)
    };
    shared.until("it is under way", || metric("windowpane_trajectories{model=\"tiny\"} 4"));
    drop(gone);
    shared.until("it is given up", || metric("windowpane_hangups_total{during=\"wait\"} 1"));
    // What is not yet sent is sent when the server ends.
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
    let mut spans: Vec<Span> =
        std::iter::from_fn(|| spans.recv_timeout(Duration::from_secs(5)).ok()).collect();
    spans.sort_by_key(|span| span.start_time_unix_nano);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let named = |name: &str| {
        spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"))
    };
    let root = named("POST /v1/images/generations");
    assert_eq!(hex(&root.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&root.parent_span_id), "b7ad6b7169203331");
    assert!(format!("{:?}", root.attributes).contains("windowpane.request_id"));
    let mut from = root.start_time_unix_nano;
    for stage in ["queue", "denoise", "encode"].map(named) {
        assert_eq!(
            (&stage.trace_id, &stage.parent_span_id),
            (&root.trace_id, &root.span_id),
            "{}",
            stage.name
        );
        assert!(from <= stage.start_time_unix_nano && stage.end_time_unix_nano <= root.end_time_unix_nano);
        from = stage.end_time_unix_nano;
    }
    let denoise = named("denoise");
    assert!(denoise.end_time_unix_nano - denoise.start_time_unix_nano > 1_000_000, "three steps take longer");
    // Another trace, without stages.
    let health = named("GET /livez");
    assert_ne!(health.trace_id, root.trace_id);
    // A stream's lasts until all of it is there, and has its stages.
    let of = |id: &str| {
        let is_its = |span: &&Span| format!("{:?}", span.attributes).contains(&format!("{id:?}"));
        spans.iter().find(is_its).unwrap_or_else(|| panic!("no {id}: {spans:?}"))
    };
    let stream = of("stream");
    let stages: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == stream.span_id).collect();
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["queue", "denoise", "encode"]);
    assert!(stages.iter().all(|stage| stage.end_time_unix_nano <= stream.end_time_unix_nano));
    assert!(stages[1].end_time_unix_nano - stages[1].start_time_unix_nano > 1_000_000);
    // Who gave up has one as well, with no status.
    let gone = format!("{:?}", of("gone").attributes);
    assert!(gone.contains("\"client\"") && !gone.contains("status_code"), "{gone}");
}

#[test]
fn a_collector_that_is_not_there_costs_nothing() {
    // One that refuses, and one that takes everything and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in ["127.0.0.1:9".to_owned(), silent.local_addr().unwrap().to_string()] {
        let models = shipped("tiny");
        let (models, address) = (models.to_str().unwrap(), format!("http://{address}"));
        let mut server =
            Process::windowpane(&["--models", models, "--port", "0", "--otlp-endpoint", &address]);
        let url = server.url();
        // More than wait to be sent at a time, each beside one of a server that has no collector.
        let plain = TestServer::shared();
        let took = |url: &str| {
            let start = Instant::now();
            plain.elsewhere("GET", &format!("{url}/livez"), None).unwrap().ok();
            start.elapsed()
        };
        let (with, without) = (0..3000).fold((Duration::ZERO, Duration::ZERO), |(with, without), _| {
            (with + took(&url), without + took(&plain.url()))
        });
        assert!(with < 3 * without, "{with:?} for 3000 answers, and {without:?} without a collector");
        let start = Instant::now();
        server.signal("TERM");
        assert_eq!(server.end().code, Some(0));
        // Spans that nobody takes are waited for five seconds.
        assert!(start.elapsed() < Duration::from_secs(15), "{:?} to leave", start.elapsed());
    }
}
