//! One POST: a connection of its own to an address that we have looked at ourselves, so that a name which resolves to
//! something else a moment later changes nothing. No redirect is followed, and of the answer only the status counts.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::host::{Host, Target};
use crate::jobs::store::{Delivery, Outcome};

/// Time for all of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who posts.
pub(super) struct Poster {
    tls: Option<TlsConnector>,
}

// === impl Poster ===

impl Poster {
    /// One that trusts whom this machine trusts.
    pub(super) fn new() -> Self {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!(
                "no certificates of authorities on this machine: webhooks over https are not delivered"
            );
        }
        Self::trusting(roots)
    }

    fn trusting(roots: RootCertStore) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().ok();
        let config = config.map(|config| config.with_root_certificates(roots).with_no_client_auth());
        Self { tls: config.map(|config| TlsConnector::from(Arc::new(config))) }
    }

    /// Posts a delivery to a host of the list.
    pub(super) async fn post(
        &self,
        host: &Host,
        target: &Target,
        delivery: &Delivery,
        (timestamp, signature): (u64, &str),
    ) -> Outcome {
        let request = Request::post(&target.path)
            .header(header::HOST, host.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("windowpane/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &delivery.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::from(delivery.body.clone())));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        match tokio::time::timeout(PATIENCE, self.send(host, request)).await {
            Ok(Ok(status)) if status.is_success() => Outcome::Delivered,
            // Whoever says so wants no more of it.
            Ok(Ok(StatusCode::GONE)) => Outcome::Refused("it answered 410".to_owned()),
            Ok(Ok(status)) => Outcome::Failed(format!("it answered {}", status.as_u16())),
            Ok(Err(error)) => Outcome::Failed(error.to_string()),
            Err(_) => Outcome::Failed(format!("it took longer than {} s", PATIENCE.as_secs())),
        }
    }

    async fn send(&self, host: &Host, request: Request<Full<Bytes>>) -> io::Result<StatusCode> {
        let stream = connect(host).await?;
        if host.is_plain() {
            return exchange(stream, request).await;
        }
        let tls = self.tls.as_ref().ok_or_else(|| io::Error::other("there is no TLS here"))?;
        let name = ServerName::try_from(host.name().to_owned()).map_err(io::Error::other)?;
        exchange(tls.connect(name, stream).await?, request).await
    }
}

/// A connection to the first address of the host that we may ask at and that answers.
async fn connect(host: &Host) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host((host.name(), host.port())).await?.collect();
    let mut last = io::Error::other("its name resolves to no public address");
    for address in found.into_iter().filter(|address| host.allows(address.ip())) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends the request, and waits for the head of the answer.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> io::Result<StatusCode> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::pin!(connection);
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection does the work until the head is there; what comes after it is not read.
    let (answer, ended) = tokio::select! {
        biased;
        answer = &mut answer => (answer, Ok(())),
        // It may have the head by then, and have ended in whatever way: many hosts hang up without a goodbye.
        ended = &mut connection => (answer.await, ended),
    };
    match (answer, ended) {
        (Ok(answer), _) => Ok(answer.status()),
        (Err(error), Ok(())) | (_, Err(error)) => Err(io::Error::other(in_full(&error))),
    }
}

/// An error with what is behind it.
fn in_full(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", in_full(source)))
}

#[cfg(test)]
mod tests;
