//! One connection, from its first byte to its last: TLS where it is spoken, then HTTP/1 or HTTP/2, whichever the client
//! begins with (by ALPN under TLS, by its first bytes without), until it ends, or is told to.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tower_http::add_extension::AddExtension;

use super::Peer;
use super::http2::{Streams, Watched};
use super::limits::Limits;
use super::paced::Paced;
use super::protocol::{Protocol, detect};
use super::tls::H2;

/// How a connection ends early.
type Ended = Box<dyn Error + Send + Sync>;

/// Whether connections should end.
pub(super) type Leave = watch::Receiver<bool>;

/// Time that a client of HTTP/2 has to answer the goodbye. Without an answer it would never be over.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a connection is served with.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) router: axum::Router,
    pub(super) limits: Limits,
    pub(super) leave: Leave,
    /// Who is at the other end.
    pub(super) peer: Peer,
}

/// What answers the requests of one connection.
pub(super) type Router = AddExtension<axum::Router, Peer>;

// === impl Served ===

impl Served {
    /// Serves a connection to its end. Errors: the client broke off, was too slow, or spoke something else.
    pub(super) async fn connection<S>(
        mut self,
        stream: S,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Below TLS, whose own records have to be taken as well.
        let stream = Paced::new(stream, self.limits.write_timeout);
        match tls {
            None => match self.begun(detect(stream)).await? {
                Some((protocol, stream)) => self.http(protocol, stream).await,
                None => Ok(()),
            },
            Some(config) => match self.begun(TlsAcceptor::from(config).accept(stream)).await? {
                Some(stream) => {
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                    self.http(if h2 { Protocol::Http2 } else { Protocol::Http1 }, stream).await
                }
                None => Ok(()),
            },
        }
    }

    /// What comes before the first request, which has the time of a head. `None`: the server leaves.
    async fn begun<T>(
        &mut self,
        begin: impl Future<Output = std::io::Result<T>>,
    ) -> Result<Option<T>, Ended> {
        tokio::select! {
            begun = timeout(self.limits.header_timeout, begin) => Ok(Some(begun??)),
            () = told(&mut self.leave) => Ok(None),
        }
    }

    async fn http<S>(self, protocol: Protocol, stream: S) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match protocol {
            Protocol::Http1 => self.http1(TokioIo::new(stream)).await,
            Protocol::Http2 => self.http2(TokioIo::new(stream)).await,
        }
    }

    async fn http1<S>(mut self, stream: TokioIo<S>) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = TowerToHyperService::new(AddExtension::new(self.router, self.peer));
        let mut connection = pin!(self.limits.http1().serve_connection(stream, service));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = told(&mut self.leave) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }

    async fn http2<S>(mut self, stream: TokioIo<S>) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Limits { header_timeout, write_timeout, .. } = self.limits;
        let streams = Streams::new(write_timeout);
        let service = Watched::new(AddExtension::new(self.router, self.peer), streams.clone());
        let mut connection = pin!(self.limits.http2(streams.tasks()).serve_connection(stream, service));
        let mut look = interval((header_timeout.min(write_timeout) / 8).max(Duration::from_millis(10)));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => return Ok(ended?),
                () = told(&mut self.leave), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = look.tick() => {
                    let given_up = streams.give_up(Instant::now());
                    if given_up > 0 {
                        tracing::debug!(given_up, "streams are reset whose client does not read");
                    }
                    let idle = streams.idle_for();
                    if idle > header_timeout + GOODBYE {
                        return Err("the client does not say goodbye".into());
                    }
                    if idle > header_timeout && !leaving {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

/// Resolves when connections should end.
async fn told(leave: &mut Leave) {
    // Whoever told is gone where this fails.
    let _ = leave.wait_for(|&leave| leave).await;
}
