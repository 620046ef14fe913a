//! What a connection may cost: time, memory, streams, and how many there may be. Whoever goes beyond is hung up on, and
//! nobody else notices.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream as Blocking;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::header::HeaderValue;
use serde_json::json;
use suite::wire::{self, Certificate};
use suite::{IMAGES, TestServer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use windowpane_server::Config;
use windowpane_server::serve::Tls;

/// Time that a client is given here.
const SHORT: Duration = Duration::from_millis(300);

/// Time within which that must have had its effect on a busy machine.
const LONG: Duration = Duration::from_secs(30);

fn address(server: &TestServer) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

fn open(server: &TestServer, bytes: &[u8]) -> Blocking {
    let mut stream = Blocking::connect(address(server)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// What comes until the server hangs up.
fn rest(mut stream: Blocking) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it was waited for"),
        // Hung up on with something unread.
        _ => bytes,
    }
}

/// Waits until nobody is connected but this process's own client, whose connections are closed.
fn until_alone(server: &TestServer) {
    server.until("all connections are closed", || server.app().metrics().connections.get() == 0);
}

#[test]
fn whoever_does_not_come_to_the_point_is_hung_up_on() {
    let certificate = Certificate::new();
    let tls = Some(Tls::read(&certificate.file(), &certificate.key()).unwrap());
    let plain = TestServer::start(Config { header_timeout: SHORT, ..TestServer::config() });
    let secure = TestServer::start(Config { header_timeout: SHORT, tls, ..TestServer::config() });
    for begun in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: ",
        // HTTP/2 with nothing to ask; and with a head that does not end.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82",
    ] {
        let answer = rest(open(&plain, begun));
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    // A handshake that does not come, or stops.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        rest(open(&secure, begun));
    }
    until_alone(&plain);
    until_alone(&secure);
}

#[test]
fn a_client_that_sends_its_head_a_byte_at_a_time_gets_no_longer_for_it() {
    let server = TestServer::start(Config { header_timeout: SHORT, ..TestServer::config() });
    let mut stream = open(&server, b"GET /livez HTTP/1.1\r\nhost: x\r\n");
    let start = Instant::now();
    let cut = (0..1000).any(|_| {
        std::thread::sleep(SHORT / 10);
        stream.write_all(b"x: y\r\n").is_err()
    });
    assert!(cut && start.elapsed() < LONG, "{:?}", start.elapsed());
    until_alone(&server);
}

#[test]
fn a_client_that_does_not_read_is_hung_up_on() {
    let server = TestServer::start(Config { write_timeout: SHORT, ..TestServer::config() });
    let document = server.raw(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").len();
    until_alone(&server);
    // More answers than the kernels on both sides keep.
    let asked = (64 << 20) / document;
    let mut stream = open(&server, b"");
    server.until("it is taken", || server.app().metrics().connections.get() == 1);
    for _ in 0..asked {
        if stream.write_all(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n").is_err() {
            break;
        }
    }
    until_alone(&server);
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got);
    assert!(got.len() < asked * document, "everything fitted: nothing was shown");
    server.get("/livez").ok();
}

#[test]
fn a_stream_of_http2_that_is_not_read_is_reset_and_its_neighbours_finish() {
    // A machine that stalls for a moment is no client that does not read.
    let limit = Duration::from_secs(2);
    let server = TestServer::start(Config { write_timeout: limit, ..TestServer::config() });
    let whole = server.get("/openapi.json").ok().bytes;
    server.block_on(async {
        let (mut client, ended) =
            wire::http2(TcpStream::connect(address(&server)).await.unwrap(), 1 << 15).await;
        let mut ask = async |path: &str| {
            let answer = client.send_request(wire::request("GET", path, "")).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body()
        };
        // Their windows are filled and never opened again; beside them is one that takes a little now and then.
        let stalled = [ask("/openapi.json").await, ask("/openapi.json").await, ask("/openapi.json").await];
        let mut slow = ask("/openapi.json").await;
        let (mut got, start) = (Vec::new(), Instant::now());
        while let Some(frame) = slow.frame().await {
            got.extend(frame.expect("nobody stops it").into_data().unwrap_or_default());
            tokio::time::sleep(limit / 8).await;
        }
        assert!(start.elapsed() > limit * 3 / 2, "it was faster than the others were given up");
        assert!(got == whole, "{} of {} bytes", got.len(), whole.len());
        for body in stalled {
            let reset = timeout(LONG, body.collect())
                .await
                .expect("it ends")
                .expect_err("not all of it can have come");
            assert!(format!("{reset:?}").contains("CANCEL"), "{reset:?}");
        }
        // The connection is as good as before.
        assert_eq!(ask("/livez").await.collect().await.unwrap().to_bytes()[..1], b"{"[..]);
        assert!(!ended.is_finished());
    });
}

#[test]
fn a_body_that_does_not_come_over_http2_is_told_so_as_well() {
    let server = TestServer::start(Config { body_timeout: SHORT, ..TestServer::config() });
    let waiting = open(&server, &[wire::PREFACE, &wire::begun_post(1, IMAGES)].concat());
    let told = || server.app().metrics().rejections.with_label_values(&["body_timeout"]).get();
    server.until("the body is given up", || told() == 1);
    drop(waiting);
    until_alone(&server);
}

#[test]
fn an_image_that_takes_longer_than_all_of_these_times_is_waited_for() {
    // Longer than a busy machine needs to ask.
    let limit = Duration::from_millis(1500);
    let short =
        Config { header_timeout: limit, body_timeout: limit, write_timeout: limit, ..TestServer::config() };
    let server = TestServer::start(short);
    let mut steps = 200;
    server.block_on(async {
        let (mut client, _ended) =
            wire::http2(TcpStream::connect(address(&server)).await.unwrap(), 1 << 20).await;
        loop {
            let body = json!({"prompt": "ring", "seed": 1, "steps": steps, "n": 8}).to_string();
            let start = Instant::now();
            let answer = client.send_request(wire::request("POST", IMAGES, &body)).await.unwrap();
            wire::read(answer).await.unwrap().ok();
            if start.elapsed() > limit * 2 || steps == 1000 {
                assert!(start.elapsed() > limit * 2, "this machine is too fast for this test");
                break;
            }
            steps = 1000;
        }
    });
}

#[test]
fn a_head_of_too_many_lines_or_bytes_is_told_so() {
    let server = TestServer::start(Config { header_limit: 8192, ..TestServer::config() });
    let lines = |n: usize| (0..n).map(|i| format!("x-{i}: y\r\n")).collect::<String>();
    for (more, status) in
        [(lines(90), "200"), (lines(120), "431"), (format!("x: {}\r\n", "y".repeat(1 << 14)), "431")]
    {
        let answer = server
            .raw(format!("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n").as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    server.block_on(async {
        for (n, size, status) in [(90, 1, 200), (120, 1, 431), (1, 1 << 14, 431)] {
            let (mut client, _ended) =
                wire::http2(TcpStream::connect(address(&server)).await.unwrap(), 1 << 20).await;
            let mut request = wire::request("GET", "/livez", "");
            for i in 0..n {
                let name: hyper::header::HeaderName = format!("x-{i}").parse().unwrap();
                request.headers_mut().insert(name, HeaderValue::from_str(&"y".repeat(size)).unwrap());
            }
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.status(), status, "{n} lines of {size}");
        }
    });
}

/// The error code of HTTP/2 for a client that overdoes it.
const ENHANCE_YOUR_CALM: u32 = 11;

/// The code with which a server of HTTP/2 says that it closes the connection.
fn goodbye(mut frames: &[u8]) -> Option<u32> {
    const GOAWAY: u8 = 7;
    while let Some((head, rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, next) = rest.split_at_checked(length)?;
        if head[3] == GOAWAY {
            return Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?));
        }
        frames = next;
    }
    None
}

#[test]
fn a_storm_of_streams_that_are_reset_at_once_ends_its_connection() {
    let server = TestServer::start(TestServer::config());
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..20_001_u32).step_by(2) {
        // GET / http x, whole in one frame; and away with it.
        let head = b"\x82\x84\x86\x41\x01x";
        bytes.extend([0, 0, head.len() as u8, 1, 5]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(head);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0, 0, 0, 8]);
    }
    let mut stream = Blocking::connect(address(&server)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // It may be hung up on under way.
    let _ = stream.write_all(&bytes);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // With so much unread, the goodbye itself may be lost with the connection.
    let reset = read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
    assert!(reset || goodbye(&answer) == Some(ENHANCE_YOUR_CALM), "{answer:?}");
    until_alone(&server);
    let asked = server.app().metrics().requests.with_label_values(&["unmatched", "404"]).get();
    assert!(asked < 10_000, "all of it was worked on: {asked}");
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
}

#[test]
fn one_connection_too_many_is_closed_at_once_and_room_is_made_by_leaving() {
    let server = TestServer::start(Config { max_connections: 3, ..TestServer::config() });
    let refused = || server.app().metrics().connections_total.with_label_values(&["refused"]).get();
    let connected = |n| server.until("they are taken", || server.app().metrics().connections.get() == n);
    let mut idle: Vec<_> = (0..3).map(|_| open(&server, b"")).collect();
    connected(3);
    assert_eq!((rest(open(&server, b"")), refused()), (Vec::new(), 1));
    idle.pop();
    connected(2);
    let answer = server.raw(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(refused(), 1);
}

#[test]
fn a_client_that_is_killed_in_a_stream_frees_its_rows() {
    let server = TestServer::start(TestServer::config());
    let body =
        json!({"prompt": "ring", "seed": 1, "steps": 1000, "n": 4, "stream": true, "partial_images": 2})
            .to_string();
    let script = "import sys, urllib.request as r\n\
        q = r.Request(sys.argv[1], sys.argv[2].encode(), {'content-type': 'application/json'})\n\
        r.build_opener(r.ProxyHandler({})).open(q).read()";
    let url = format!("{}{IMAGES}", server.url());
    let mut client = Command::new("python3")
        .args(["-c", script, &url, &body])
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("python3: {error}"));
    server.until_images(4);
    // SIGKILL: it says goodbye to nobody, its kernel does.
    client.kill().unwrap();
    client.wait().unwrap();
    server.until_images(0);
    assert_eq!(server.app().metrics().cancellations.with_label_values(&["tiny", "disconnect"]).get(), 4);
}

#[test]
fn a_stream_of_http2_that_is_reset_frees_its_rows_and_no_others() {
    let server = TestServer::start(TestServer::config());
    let body = |steps: u64| json!({"prompt": "ring", "seed": 1, "steps": steps, "n": 2}).to_string();
    let (mut client, _ended) = server
        .block_on(async { wire::http2(TcpStream::connect(address(&server)).await.unwrap(), 1 << 20).await });
    let mut staying = client.clone();
    let leaving = client.send_request(wire::request("POST", IMAGES, &body(1000)));
    let leaving = server.spawn(leaving);
    server.until_images(2);
    let staying = staying.send_request(wire::request("POST", IMAGES, &body(300)));
    let staying = server.spawn(staying);
    server.until_images(4);
    assert!(!leaving.is_finished(), "a thousand steps cannot have been done");
    leaving.abort();
    server.block_on(async { wire::read(staying.await.unwrap().unwrap()).await.unwrap().ok() });
    server.until_images(0);
    assert_eq!(server.app().metrics().cancellations.with_label_values(&["tiny", "disconnect"]).get(), 2);
}

#[test]
fn leaving_finishes_what_runs_over_http2() {
    let mut server = TestServer::start(TestServer::config());
    let body = json!({"prompt": "ring", "seed": 7, "steps": 120, "guidance_scale": 1}).to_string();
    let expected = TestServer::shared().send(TestServer::shared().post(body.clone())).ok().file(0);
    let address = address(&server);
    let asked = server.spawn(async move {
        let (mut client, ended) = wire::http2(TcpStream::connect(address).await.unwrap(), 1 << 20).await;
        let answer = client.send_request(wire::request("POST", IMAGES, &body)).await.unwrap();
        (wire::read(answer).await.unwrap(), client, ended)
    });
    server.until_images(1);
    server.begin_to_leave();
    let (answer, client, ended) = server.block_on(asked).unwrap();
    assert_eq!(answer.ok().file(0), expected);
    // The server says goodbye, though the client would have stayed.
    let ended = server.block_on(async { timeout(LONG, ended).await });
    let _ = ended.expect("the connection is closed").unwrap();
    drop(client);
    server.leave();
}
