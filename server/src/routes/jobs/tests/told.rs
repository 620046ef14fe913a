//! Others are told of a job's end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::jobs::webhook::{Hooks, Secret};

/// A host that may be told, and its URL.
async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("http://{}", listener.local_addr().unwrap());
    (listener, host)
}

/// These hosts may be told.
fn hooks(hosts: &[&str]) -> Hooks {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let secret = Secret::read(&secret).unwrap();
    Hooks::new(hosts.iter().map(|host| host.parse().unwrap()).collect(), secret)
}

/// An order whose end is told there.
fn told(url: &str) -> Value {
    json!({"kind": "jacobian", "request": {"model": "shoes", "pieces": 1}, "webhook": {"url": url}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_answer_keeps_no_other_waiting() {
    let ((dead, nowhere), (listener, host)) = (listener().await, listener().await);
    let server = Server::with(Settings { hooks: hooks(&[&nowhere, &host]), ..Settings::default() }).await;
    for (id, url) in [("a", &nowhere), ("b", &nowhere), ("c", &host)] {
        let order = told(&format!("{url}?job={id}"));
        let path = format!("/v1/jobs/{id}");
        assert_eq!(server.ask("looks", "PUT", &path, &[], Some(order)).await.status, StatusCode::ACCEPTED);
    }
    // It is asked, and says nothing.
    let (_silent, _) = dead.accept().await.unwrap();
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, listener.accept()).await.expect("less than a try takes").unwrap();
    let second = tokio::time::timeout(Duration::from_millis(500), dead.accept()).await;
    assert!(second.is_err(), "a host is told one thing after the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wants_to_know_is_told_of_the_end() {
    let (listener, host) = listener().await;
    let server = Server::with(Settings { hooks: hooks(&[&host]), ..Settings::default() }).await;
    let order = told(&format!("{host}/hook"));
    assert_eq!(server.ask("looks", "PUT", "/v1/jobs/a", &[], Some(order)).await.status, StatusCode::ACCEPTED);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    let (head, body) = loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.unwrap();
        asked.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&asked).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && serde_json::from_str::<Value>(body).is_ok()
        {
            break (head.to_owned(), body.to_owned());
        }
        assert!(read > 0, "{text}");
    };
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(head.starts_with("POST /hook HTTP/1.1\r\n"), "{head}");
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&told["type"], &told["data"]["state"]), (&json!("job.succeeded"), &json!("succeeded")));
    let taken = server.app.metrics().webhooks.with_label_values(&["delivered"]);
    while taken.get() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
