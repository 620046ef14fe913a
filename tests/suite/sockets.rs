//! Ways to the server: HTTPS with a certificate that is renewed under way, HTTP/2 with and without it, and Unix sockets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use serde_json::json;
use suite::wire::{self, Certificate};
use suite::{IMAGES, Process, TestServer, shipped};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use windowpane_server::Config;
use windowpane_server::serve::Tls;

/// A window that no answer here fills.
const WIDE: u32 = 1 << 24;

fn address(server: &TestServer) -> String {
    server.url().trim_start_matches("http://").to_owned()
}

fn https(certificate: &Certificate) -> TestServer {
    let tls = Tls::read(&certificate.file(), &certificate.key()).unwrap_or_else(|error| panic!("{error}"));
    TestServer::start(Config { tls: Some(tls), ..TestServer::config() })
}

fn one(seed: u64) -> String {
    json!({"model": "tiny", "prompt": "ring", "seed": seed, "steps": 2}).to_string()
}

#[test]
fn http2_by_prior_knowledge_draws_what_http1_draws() {
    let server = TestServer::start(TestServer::config());
    let expected: Vec<_> = (0..8).map(|seed| server.send(server.post(one(seed))).ok().file(0)).collect();
    let answers = server.block_on(async {
        let (client, _ended) = wire::http2(TcpStream::connect(address(&server)).await.unwrap(), WIDE).await;
        // All at once on one connection.
        let asked = (0..8).map(|seed| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let response = client.send_request(wire::request("POST", IMAGES, &one(seed))).await.unwrap();
                assert_eq!(response.version(), hyper::Version::HTTP_2);
                wire::read(response).await.unwrap()
            })
        });
        let mut answers = Vec::new();
        for answer in asked.collect::<Vec<_>>() {
            answers.push(answer.await.unwrap());
        }
        answers
    });
    for (answer, expected) in answers.into_iter().zip(expected) {
        assert!(
            answer.header("server-timing").contains("denoise") && answer.header("x-request-id").len() > 4
        );
        assert_eq!(answer.ok().file(0), expected);
    }
    let url = server.url();
    let version = wire::curl(&[
        "--http2-prior-knowledge",
        "-o",
        "/dev/null",
        "-w",
        "%{http_version} %{http_code}",
        &format!("{url}/livez"),
    ]);
    assert!(version.is_none_or(|version| version == "2 200"));
}

#[test]
fn a_body_that_is_refused_unread_ends_its_stream_and_not_the_connection() {
    let server = TestServer::start(Config { body_limit: 4096, ..TestServer::config() });
    server.block_on(async {
        let (mut client, _ended) =
            wire::http2(TcpStream::connect(address(&server)).await.unwrap(), WIDE).await;
        let large = wire::request("POST", IMAGES, &" ".repeat(1 << 20));
        let refused = wire::read(client.send_request(large).await.unwrap()).await.unwrap();
        refused.refused(413, "body_too_large", None);
        assert_eq!(refused.header("connection"), "");
        let next = client.send_request(wire::request("POST", IMAGES, &one(1))).await.unwrap();
        wire::read(next).await.unwrap().ok();
    });
}

/// A number of any length, its highest byte first.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, &byte| (number << 8) | u32::from(byte))
}

/// The next frame of HTTP/2: its kind, its stream and what it holds.
fn frame(stream: &mut std::net::TcpStream) -> (u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; number(&head[..3]) as usize];
    stream.read_exact(&mut body).unwrap();
    (head[3], number(&head[5..]), body)
}

#[test]
fn a_connection_of_http2_may_send_no_more_ahead_than_is_documented() {
    let server = TestServer::shared();
    let mut stream = std::net::TcpStream::connect(address(server)).unwrap();
    stream.write_all(wire::PREFACE).unwrap();
    let (mut of_stream, mut streams) = (65_535, u32::MAX);
    let of_connection = loop {
        match frame(&mut stream) {
            (4, 0, body) => {
                let set =
                    |name: u8| body.chunks(6).find(|set| set[..2] == [0, name]).map(|set| number(&set[2..]));
                // SETTINGS_INITIAL_WINDOW_SIZE and SETTINGS_MAX_CONCURRENT_STREAMS.
                of_stream = set(4).unwrap_or(of_stream);
                streams = set(3).unwrap_or(streams);
            }
            // WINDOW_UPDATE, of the connection.
            (8, 0, body) => break 65_535 + number(&body),
            _ => {}
        }
    };
    assert_eq!((of_stream, of_connection), (32 << 10, 128 << 10));
    assert_eq!(streams, server.app().config().max_streams);
}

#[test]
fn one_stream_more_than_a_connection_may_have_is_refused_and_the_others_go_on() {
    let server = TestServer::start(Config { max_streams: 3, ..TestServer::config() });
    let mut stream = std::net::TcpStream::connect(address(&server)).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let posts = [1, 3, 5, 7].map(|stream| wire::begun_post(stream, IMAGES));
    stream.write_all(&[wire::PREFACE, &posts.concat()].concat()).unwrap();
    let (refused, code) = loop {
        // RST_STREAM.
        if let (3, of, code) = frame(&mut stream) {
            break (of, number(&code));
        }
    };
    // REFUSED_STREAM: nothing of it was worked on, and it may be sent again.
    assert_eq!((refused, code), (7, 7));
    let asked = || server.app().metrics().requests_in_flight.get();
    server.until("the others are there", || asked() == 3);
    // The first has its body, and its answer.
    stream.write_all(&wire::frame(0, 1, 1, one(1).as_bytes())).unwrap();
    while !matches!(frame(&mut stream), (1, 1, _)) {}
    server.until("two are left", || asked() == 2);
}

#[test]
fn https_speaks_what_the_client_prefers() {
    let certificate = Certificate::new();
    let server = https(&certificate);
    let address = address(&server);
    let expected = TestServer::shared().send(TestServer::shared().post(one(7))).ok().file(0);
    server.block_on(async {
        let stream = wire::tls(&certificate.client(&["h2", "http/1.1"]), &address).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, _ended) = wire::http2(stream, WIDE).await;
        let answer = client.send_request(wire::request("POST", IMAGES, &one(7))).await.unwrap();
        assert_eq!(wire::read(answer).await.unwrap().ok().file(0), expected);
        for protocols in [&["http/1.1"][..], &[]] {
            let stream = wire::tls(&certificate.client(protocols), &address).await.unwrap();
            let (mut client, _ended) = wire::http1(stream).await;
            let answer = client.send_request(wire::request("POST", IMAGES, &one(7))).await.unwrap();
            assert_eq!(wire::read(answer).await.unwrap().ok().file(0), expected);
        }
        // Somebody else's certificate is trusted by nobody.
        assert!(wire::tls(&Certificate::new().client(&["h2"]), &address).await.is_err());
    });
    // Without TLS there is nothing to be had, and nothing breaks.
    let mut plain = std::net::TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&said));
    let (file, port) = (certificate.file(), address.rsplit_once(':').unwrap().1.to_owned());
    let (resolve, url) = (format!("localhost:{port}:127.0.0.1"), format!("https://localhost:{port}/livez"));
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let args = ["--cacert", file.to_str().unwrap(), "--resolve", &resolve, flag, "-o", "/dev/null"];
        let said = wire::curl(&[&args[..], &["-w", "%{http_version} %{http_code}", &url]].concat());
        assert!(said.is_none_or(|said| said == format!("{version} 200")));
    }
}

#[test]
fn a_renewed_certificate_is_taken_up_and_a_broken_one_is_not() {
    let certificate = Certificate::new();
    let server = https(&certificate);
    let address = address(&server);
    let shown = |connector: &TlsConnector| {
        server.block_on(async {
            let stream = wire::tls(connector, &address).await.ok()?;
            Some(stream.get_ref().1.peer_certificates()?[0].clone())
        })
    };
    let reloads = |outcome| server.app().metrics().reloads.with_label_values(&["certificate", outcome]).get();
    let first = certificate.client(&["h2"]);
    assert_eq!(shown(&first), Some(certificate.der()));
    let (mut kept, _ended) =
        server.block_on(async { wire::http2(wire::tls(&first, &address).await.unwrap(), WIDE).await });

    certificate.renew();
    let second = certificate.client(&["h2"]);
    server.until("the new certificate is shown", || shown(&second) == Some(certificate.der()));
    assert_eq!(shown(&first), None, "who trusts the old one only is not served by the new one");
    server.until("it is counted", || reloads("done") >= 1);
    // A connection keeps what it began with.
    let answer = server.block_on(kept.send_request(wire::request("GET", "/livez", ""))).unwrap();
    assert_eq!(answer.status(), 200);

    let good = certificate.der();
    for broken in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let before = reloads("failed");
        fs::write(certificate.file(), broken).unwrap();
        server.until("the broken certificate is noticed", || reloads("failed") > before);
        assert_eq!(shown(&second), Some(good.clone()));
    }
    // A key that is another certificate's.
    certificate.renew();
    server
        .until("the next one is taken up", || shown(&certificate.client(&["h2"])) == Some(certificate.der()));
    let before = reloads("failed");
    fs::copy(Certificate::new().key(), certificate.key()).unwrap();
    server.until("a key that does not fit is noticed", || reloads("failed") > before);
    assert_eq!(shown(&certificate.client(&[])), Some(certificate.der()));
}

#[test]
fn a_unix_socket_serves_whoever_may_write_to_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windowpane.sock");
    let listen = format!("unix:{}", path.display());
    let models = shipped("tiny");
    let args = [
        "--models",
        models.to_str().unwrap(),
        "--max-rows",
        "4",
        "--listen",
        &listen,
        "--socket-mode",
        "600",
    ];
    let mut server = Process::windowpane(&args);
    assert_eq!(server.url(), listen);
    let found = fs::metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let expected = TestServer::shared().send(TestServer::shared().post(one(7))).ok().file(0);
    let ask = || {
        TestServer::shared().block_on(async {
            let (mut client, _ended) = wire::http1(UnixStream::connect(&path).await.unwrap()).await;
            let first = client.send_request(wire::request("POST", IMAGES, &one(7))).await.unwrap();
            let first = wire::read(first).await.unwrap();
            let (mut client, _ended) = wire::http2(UnixStream::connect(&path).await.unwrap(), WIDE).await;
            let second = client.send_request(wire::request("POST", IMAGES, &one(7))).await.unwrap();
            [first, wire::read(second).await.unwrap()]
        })
    };
    for answer in ask() {
        assert_eq!(answer.ok().file(0), expected);
    }
    let socket = path.to_str().unwrap();
    let said = wire::curl(&["--unix-socket", socket, "http://localhost/livez"]);
    assert!(said.is_none_or(|said| said.contains("alive")));

    // A second one does not take it away.
    let exit = Process::windowpane(&args).end();
    assert_eq!(exit.code, Some(1), "{}", exit.errors);
    assert!(
        exit.errors.contains("somebody listens there") && exit.errors.contains(socket),
        "{}",
        exit.errors
    );
    // One that was killed leaves its file; the next replaces it.
    server.signal("KILL");
    server.end();
    assert!(path.exists());
    let mut server = Process::windowpane(&args);
    assert_eq!(server.url(), listen);
    for answer in ask() {
        assert_eq!(answer.ok().file(0), expected);
    }
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(!path.exists(), "it cleans up");
    // What is no socket is nobody's to remove.
    fs::write(&path, "a file").unwrap();
    let exit = Process::windowpane(&args).end();
    assert_eq!(exit.code, Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
}

#[test]
fn the_metrics_are_where_they_were_put() {
    let elsewhere = Some("127.0.0.1:0".parse().unwrap());
    let server = TestServer::start(Config { metrics_listen: elsewhere, ..TestServer::config() });
    let metrics = server.metrics_url().unwrap();
    let ask = |path: &str| server.elsewhere("GET", &format!("{metrics}{path}"), None).unwrap();
    assert!(ask("/metrics").ok().text().contains("windowpane_connections_total{outcome=\"accepted\"}"));
    for path in ["/livez", "/readyz", "/startupz"] {
        ask(path).ok();
        server.get(path).ok();
    }
    // And nothing else is, on either side.
    server.get("/metrics").refused(404, "not_found", None);
    assert!(server.get("/openapi.json").ok().json()["paths"].get("/metrics").is_none());
    for path in ["/v1/models", "/docs", "/v1/replay"] {
        ask(path).refused(404, "not_found", None);
    }
}
