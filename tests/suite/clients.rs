//! Clients that leave, clients that are slow, and clients that change their mind: none costs the others anything, and none
//! gets what is another's.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use suite::{IMAGES, TestServer, wire};
use windowpane_server::Config;
use windowpane_server::batcher::Caller;

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
    // And a body that is cut short, for which there would be half a minute.
    let (stream, start) = (open(&heads, &head), Instant::now());
    // The scrape itself is one.
    let under_way = |count: usize| {
        let line = format!("\nwindowpane_requests_in_flight {count}\n");
        let scrape = heads.elsewhere("GET", &format!("{}/metrics", heads.url()), None);
        scrape.is_ok_and(|scrape| scrape.text().contains(&line))
    };
    heads.until("it has begun", || under_way(2));
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    heads.until("nobody waits for the rest of it", || under_way(1));
    assert!(start.elapsed() < Duration::from_secs(20), "it was waited for");
    // Both serve on; on a busy machine not everybody is quick enough for them.
    for server in [&heads, &server] {
        let (url, body) = (server.url() + IMAGES, json!({"prompt": "ring", "steps": 1}));
        server.until("it serves whoever does not dawdle", || {
            server.elsewhere("POST", &url, Some(&body)).is_ok_and(|answer| answer.status == 200)
        });
    }
}

#[test]
fn a_body_that_trickles_gets_no_longer_for_it() {
    let patience = Duration::from_millis(300);
    let server = TestServer::start(Config { body_timeout: patience, ..TestServer::config() });
    let mut stream = open(
        &server,
        &format!(
            "POST {IMAGES} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10000\r\n\r\n"
        ),
    );
    let mut trickle = stream.try_clone().unwrap();
    // Never silent for longer than a fraction of what it has in all.
    let trickle = std::thread::spawn(move || {
        (0..10_000)
            .take_while(|_| {
                std::thread::sleep(patience / 20);
                trickle.write_all(b" ").is_ok()
            })
            .count()
    });
    let (mut answer, start) = (Vec::new(), Instant::now());
    // The bytes that came after it was given up may end it with a reset.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(20), "it was waited for");
    drop(stream);
    assert!(trickle.join().unwrap() < 10_000, "all of it was taken: nothing was shown");
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

#[test]
fn bodies_that_do_not_come_keep_nobody_waiting() {
    // More of them than have room for a whole beginning each, on connections of as many streams as one may have.
    const CONNECTIONS: u32 = 40;
    const STREAMS: u32 = 128;
    const ALL: i64 = (CONNECTIONS * STREAMS) as i64;
    let body_timeout = Duration::from_secs(600);
    let config = Config { body_timeout, max_streams: STREAMS, ..TestServer::config() };
    let server = TestServer::start(config);
    let mut bytes = wire::PREFACE.to_vec();
    for stream in (0..STREAMS).map(|i| 2 * i + 1) {
        bytes.extend(wire::begun_post(stream, IMAGES));
        // Of every other body, its first byte.
        if stream % 4 == 1 {
            bytes.extend(wire::frame(0, 0, stream, b"{"));
        }
    }
    let silent: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
            stream.write_all(&bytes).unwrap();
            stream
        })
        .collect();
    let asked = || server.app().metrics().requests_in_flight.get();
    server.until("all of them have begun", || asked() == ALL);
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
    assert!(asked() >= ALL, "some of them were answered");
    drop(silent);
    server.until("nobody asks", || asked() == 0);
}

#[test]
fn the_same_request_from_elsewhere_does_not_take_a_place_that_was_promised() {
    let server = TestServer::leaked(Config { queue_limit: 11, ..TestServer::config() });
    let draw = |body: Value| server.spawn(server.answer(server.post(body.to_string())));
    // Thousands of ticks, and two seconds of them.
    let tick = server.app().model(None).unwrap().served.costs.tick(8).as_secs_f64();
    let steps = ((2.0 / tick) as u64).clamp(20, 1000);
    let long = json!({
        "prompt": "ring", "seed": 1, "n": 10, "steps": 1000, "sampler": "heun", "guidance_scale": 2,
    });
    let short = json!({"prompt": "ring", "seed": 2, "steps": steps, "guidance_scale": 1});
    let (long, short) = (draw(long), draw(short));
    server.until_images(11);
    let body = json!({"prompt": "ring", "seed": 3, "steps": 2});
    let elsewhere = reqwest::Client::builder().no_proxy().local_address(IpAddr::from([127, 0, 0, 2])).build();
    let elsewhere = elsewhere.unwrap().post(server.url() + IMAGES).header("content-type", "application/json");
    let refused = server.generate(&body);
    let began = Instant::now();
    refused.refused(429, "overloaded", None);
    let told: u64 = refused.header("retry-after").parse().unwrap();
    // However long it would have taken, there is a place now.
    short.abort();
    server.until_images(10);
    std::thread::sleep(Duration::from_secs(told).saturating_sub(began.elapsed()));
    server.send(elsewhere.body(body.to_string())).refused(429, "overloaded", None);
    server.generate(&body).ok();
    assert_eq!(server.images(), 10, "the others were done: nothing was shown");
    long.abort();
}

/// Takes all places of those who make files; they are free again when what is returned is dropped.
fn no_place_to_encode(server: &TestServer) -> Vec<Sender<()>> {
    let (began, begun) = channel();
    let hold = |_| {
        let (hold, wait) = channel::<()>();
        let (app, began) = (server.app().clone(), began.clone());
        server.spawn(async move {
            let work = move || {
                began.send(()).unwrap();
                let _ = wait.recv();
            };
            app.workbench(Caller::ANONYMOUS).compute(work).await
        });
        begun.recv().unwrap();
        hold
    };
    (0..std::thread::available_parallelism().map_or(1, usize::from)).map(hold).collect()
}

#[test]
fn who_cancels_while_the_file_is_made_gets_no_image() {
    let server = TestServer::leaked(TestServer::config());
    let drawn = || server.app().metrics().images.with_label_values(&["tiny"]).get();
    let delete = || server.send(server.request("DELETE", "/v1/requests/mine"));
    for (accept, stream) in [("application/json", false), ("image/png", false), ("text/event-stream", true)] {
        let (held, before) = (no_place_to_encode(server), drawn());
        let body = json!({"prompt": "ring", "seed": 7, "steps": 2, "stream": stream});
        let request = server.post(body.to_string()).header("accept", accept).header("x-request-id", "mine");
        let answer = server.spawn(server.answer(request));
        server.until("it is drawn", || drawn() > before);
        assert_eq!(delete().ok().json()["cancelled"], 1);
        drop(held);
        let answer = server.block_on(answer).unwrap();
        if stream {
            let events: Vec<_> =
                answer.text().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
            assert!(events == ["error"] && answer.text().contains("\"cancelled\""), "{}", answer.text());
        } else {
            answer.refused(409, "cancelled", None);
        }
        delete().refused(404, "not_found", Some("id"));
    }
}
