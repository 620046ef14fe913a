//! The accept loop: connections in, HTTP/1.1 out, and the order of leaving.
//!
//! Our own loop rather than axum's, for two things that one lacks: a client has a bounded time for the head of its
//! request (an idle connection is a head that does not come), and leaving has a deadline. Connection limits, HTTP/2
//! and TLS are to come here.

use std::io;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::app::App;
use crate::router::router;

/// Time that answers already made have to reach their clients, after the last image.
const FLUSH: Duration = Duration::from_secs(5);

/// Time to wait after a failed accept: the usual cause is too many open files, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, and then leaves in order: no longer ready, new generations refused, running ones
/// finished up to `config.shutdown_timeout`, the rest answered with 503, connections closed.
pub async fn serve(listener: TcpListener, app: App, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let service = TowerToHyperService::new(router(&app));
    let connections = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(app.config().header_timeout);
    let accept = async || match listener.accept().await {
        Ok((stream, _)) => connect(&http, stream, service.clone(), &connections),
        Err(error) => {
            tracing::warn!(%error, "a connection was not accepted");
            sleep(ACCEPT_PAUSE).await;
        }
    };

    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            () = accept() => {}
        }
    }

    // Still accepting: whoever comes now, a load balancer's probe among them, is told rather than left waiting.
    app.drain();
    let deadline = Instant::now() + app.config().shutdown_timeout;
    loop {
        tokio::select! {
            biased;
            () = app.idle() => break,
            () = sleep_until(deadline) => {
                let images = app.images();
                tracing::warn!(images, "the deadline has passed; unfinished images are abandoned");
                break;
            }
            () = accept() => {}
        }
    }
    app.stop();
    if timeout(FLUSH, connections.shutdown()).await.is_err() {
        tracing::warn!("some clients did not take their answers in time");
    }
    Ok(())
}

/// Serves one connection on a task of its own.
fn connect(
    http: &http1::Builder,
    stream: TcpStream,
    service: TowerToHyperService<axum::Router>,
    connections: &GracefulShutdown,
) {
    // An answer is written whole: waiting for more bytes only delays it.
    let _ = stream.set_nodelay(true);
    let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
    tokio::spawn(async move {
        // A client that breaks off, or is too slow with its head, is no fault of ours.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
}

#[cfg(test)]
mod tests;
