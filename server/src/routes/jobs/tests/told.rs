//! Hosts that are told of a job's end, and do not answer.

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
        server.order(id, order).await;
    }
    // It is asked, and says nothing.
    let (_silent, _) = dead.accept().await.unwrap();
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, listener.accept()).await.expect("less than a try takes").unwrap();
    let second = tokio::time::timeout(Duration::from_millis(500), dead.accept()).await;
    assert!(second.is_err(), "a host is told one thing after the other");
}
