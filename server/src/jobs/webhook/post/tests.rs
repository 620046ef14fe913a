//! Deliveries to a server of the tests, plain and over TLS.

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::*;

/// Answers one connection, and tells what it was asked.
async fn answering(listener: TcpListener, words: &'static str) -> String {
    let (stream, _) = listener.accept().await.unwrap();
    answer(stream, words).await
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, words: &'static str) -> String {
    let mut asked = Vec::new();
    while !asked.ends_with(b"{}") {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "it ended early");
        asked.extend_from_slice(&buffer[..read]);
    }
    stream.write_all(words.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    String::from_utf8(asked).unwrap()
}

async fn deliver(answer: &'static str) -> (Outcome, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
    let target = Target::parse(&url).unwrap();
    let server = tokio::spawn(answering(listener, answer));
    let delivery = Delivery::example("{}");
    let poster = Poster::trusting(RootCertStore::empty());
    let outcome = poster.post(&target.host, &target, &delivery, (1_700_000_000, "v1,abc")).await;
    (outcome, server.await.unwrap())
}

#[tokio::test]
async fn a_delivery_is_one_request_with_its_signature() {
    let (outcome, asked) = deliver("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(outcome, Outcome::Delivered);
    let asked = asked.to_ascii_lowercase();
    for line in [
        "post /hook?a=b http/1.1\r\n",
        "content-type: application/json\r\n",
        "webhook-id: msg_1\r\n",
        "webhook-timestamp: 1700000000\r\n",
        "webhook-signature: v1,abc\r\n",
        "content-length: 2\r\n",
    ] {
        assert!(asked.contains(line), "{line} is not in {asked}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_gone_is_the_end() {
    let (outcome, _) =
        deliver("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(outcome, Outcome::Failed("it answered 302".to_owned()));
    let (outcome, _) = deliver("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n").await;
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    let (outcome, _) = deliver("nonsense\r\n\r\n").await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
    let target = Target::parse(&url).unwrap();
    let poster = Poster::trusting(RootCertStore::empty());
    let outcome = poster.post(&target.host, &target, &Delivery::example("{}"), (0, "v1,")).await;
    assert_eq!(outcome, Outcome::Failed("its name resolves to no public address".to_owned()));
}

/// Posts to a host that shows this certificate, trusting that one.
async fn deliver_by_tls(shown: &CertifiedKey<KeyPair>, trusted: &CertifiedKey<KeyPair>) -> Outcome {
    let key = PrivatePkcs8KeyDer::from(shown.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![shown.cert.der().clone()], key.into()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        // A client that does not trust us says so here.
        if let Ok(stream) = acceptor.accept(stream).await {
            answer(stream, "HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(trusted.cert.der().clone()).unwrap();
    Poster::trusting(roots).post(&target.host, &target, &Delivery::example("{}"), (0, "v1,")).await
}

#[tokio::test]
async fn over_tls_only_who_shows_a_trusted_certificate_of_that_name_is_told() {
    let [own, others, elsewhere] = ["127.0.0.1", "127.0.0.1", "hooks.example.com"]
        .map(|name| generate_simple_self_signed([name.to_owned()]).unwrap());
    assert_eq!(deliver_by_tls(&own, &own).await, Outcome::Delivered);
    for (shown, trusted, why) in
        [(&own, &others, "invalid peer certificate"), (&elsewhere, &elsewhere, "not valid for name")]
    {
        let outcome = deliver_by_tls(shown, trusted).await;
        assert!(matches!(&outcome, Outcome::Failed(said) if said.contains(why)), "{why}: {outcome:?}");
    }
}

#[tokio::test]
async fn who_does_not_speak_tls_is_not_told_over_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::parse(&format!("https://{}/", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    });
    let poster = Poster::trusting(RootCertStore::empty());
    let outcome = poster.post(&target.host, &target, &Delivery::example("{}"), (0, "v1,")).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
}
