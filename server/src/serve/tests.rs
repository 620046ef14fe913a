//! Over real sockets: leaving in order, slow heads, and clients that go away.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::config::Config;
use crate::engine::fake::Faults;
use crate::testing;

/// A server of fake models on a free port.
struct Server {
    app: App,
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start(config: Config, delay: Duration) -> Self {
        let app = testing::app(config, &Faults { delay, ..Faults::default() });
        let listeners = Listeners::bind(app.config()).await.unwrap();
        let address = listeners.main.address().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { _ = stopped.await };
        let done = tokio::spawn(serve(listeners, app.clone(), shutdown));
        Self { app, address, stop, done }
    }

    /// Sends a request for images of `steps` steps, and leaves the answer in the socket.
    async fn ask(&self, steps: usize) -> TcpStream {
        self.ask_from([127, 0, 0, 1], steps).await
    }

    /// The same from this address.
    async fn ask_from(&self, address: [u8; 4], steps: usize) -> TcpStream {
        let body =
            json!({"model": "shoes", "prompt": "boot", "seed": 1, "steps": steps, "guidance_scale": 1})
                .to_string();
        let head = "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    fn images(&self) -> usize {
        self.app.models().iter().map(|model| model.batcher.images()).sum()
    }

    async fn until_images(&self, images: usize) {
        let reached = async {
            while self.images() != images {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(30), reached).await.expect("the number of images is reached");
    }
}

/// The status line of an answer, once it is there whole or the connection has ended.
async fn status(stream: TcpStream) -> String {
    head(stream).await.lines().next().unwrap_or("").to_owned()
}

/// The beginning of an answer.
async fn head(mut stream: TcpStream) -> String {
    let mut text = vec![0; 1 << 14];
    let n = timeout(Duration::from_secs(20), stream.read(&mut text)).await.unwrap().unwrap();
    String::from_utf8_lossy(&text[..n]).into_owned()
}

#[tokio::test]
async fn the_same_request_from_elsewhere_does_not_take_a_place_that_was_promised() {
    const REFUSED: &str = "HTTP/1.1 429 Too Many Requests";
    let config = Config { queue_limit: 2, ..Config::default() };
    let server = Server::start(config, Duration::from_millis(100)).await;
    // A second and a fifth, and ten.
    let (_short, _long) = (server.ask(12).await, server.ask(100).await);
    server.until_images(2).await;
    let refused = head(server.ask(10).await).await;
    assert!(refused.starts_with(REFUSED), "{refused}");
    let told = refused.lines().find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
    tokio::time::sleep(Duration::from_secs(told.parse().unwrap())).await;
    // The first place is free by now, the second is not.
    assert_eq!(server.images(), 1);
    assert_eq!(status(server.ask_from([127, 0, 0, 2], 10).await).await, REFUSED);
    assert_eq!(status(server.ask(10).await).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn running_images_finish_and_new_ones_are_refused() {
    let server = Server::start(Config::default(), Duration::from_millis(30)).await;
    let running = server.ask(100).await;
    server.until_images(1).await;
    server.stop.send(()).unwrap();
    while server.app.phase() != crate::app::Phase::Draining {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut late = TcpStream::connect(server.address).await.unwrap();
    late.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(status(late).await, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(status(running).await, "HTTP/1.1 200 OK");
    timeout(Duration::from_secs(30), server.done).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_deadline_ends_what_does_not_finish() {
    let config = Config { shutdown_timeout: Duration::from_millis(50), ..Config::default() };
    let server = Server::start(config, Duration::from_millis(200)).await;
    let running = server.ask(100).await;
    server.until_images(1).await;
    server.stop.send(()).unwrap();
    assert_eq!(status(running).await, "HTTP/1.1 503 Service Unavailable");
    timeout(Duration::from_secs(30), server.done).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let server = Server::start(Config::default(), Duration::from_millis(100)).await;
    let stream = server.ask(100).await;
    server.until_images(1).await;
    drop(stream);
    server.until_images(0).await;
    let gone = server.app.metrics().cancellations.with_label_values(&["shoes", "disconnect"]).get();
    assert_eq!(gone, 1);
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let config = Config { header_timeout: Duration::from_millis(100), ..Config::default() };
    let server = Server::start(config, Duration::ZERO).await;
    for begun in ["", "GET /livez HTTP/1.1\r\nhost:"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // Where it has hung up by now, and for longer than it lingers, both are errors.
        let _ = stream.write_all(begun.as_bytes()).await;
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(30), stream.read_to_end(&mut rest))
            .await
            .expect("the server hangs up");
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let config = Config { body_timeout: Duration::from_millis(100), ..Config::default() };
    let server = Server::start(config, Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    assert_eq!(status(stream).await, "HTTP/1.1 408 Request Timeout");
}

#[tokio::test]
async fn a_connection_of_http2_may_send_no_more_ahead_than_is_documented() {
    let server = Server::start(Config::default(), Duration::ZERO).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The preface, and settings without any.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut of_stream = 65_535;
    let of_connection = loop {
        let mut head = [0; 9];
        timeout(Duration::from_secs(10), stream.read_exact(&mut head)).await.unwrap().unwrap();
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| (number << 8) | u32::from(byte));
        let mut body = vec![0; number(&head[..3]) as usize];
        stream.read_exact(&mut body).await.unwrap();
        match head[3] {
            // SETTINGS_INITIAL_WINDOW_SIZE.
            4 => {
                let set = body.chunks(6).find(|set| set[..2] == [0, 4]);
                of_stream = set.map_or(of_stream, |set| number(&set[2..]));
            }
            // WINDOW_UPDATE, of the connection.
            8 if number(&head[5..]) == 0 => break 65_535 + number(&body),
            _ => {}
        }
    };
    assert_eq!((of_stream, of_connection), (32 << 10, 128 << 10));
}
