//! The accept loop: connections in, HTTP out, and the order of leaving.
//!
//! Our own loop rather than axum's, for what that one lacks: a client has a bounded time for the head of its request and
//! for taking the answer, there is a bound on the number of connections, TLS, Unix sockets, and leaving has a deadline.
//! What is beyond the bound is hung up on at once rather than left waiting: a client, a load balancer above all, that is
//! refused asks elsewhere, while one that waits in a queue of the kernel sees a server that has died.

mod connection;
mod http2;
mod limits;
mod listener;
mod pace;
mod paced;
mod protocol;
mod tls;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::app::App;
use crate::jobs::runner::{self, AtWork};
use crate::reload;
use crate::router::{metrics_router, router};
use connection::{Leave, Served};
use limits::Limits;
use listener::Stream;

pub use limits::raise_open_files;
pub use listener::{Listener, Listeners};
pub use tls::{Tls, TlsError};

/// Time that answers already made have to reach their clients, after the last image.
const FLUSH: Duration = Duration::from_secs(5);

/// Time to wait after a failed accept: the usual cause is too many open files, which passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections to the metrics' own listener: a few scrapers and probes.
const METRICS_CONNECTIONS: usize = 64;

/// Who is at the other end of a connection, as an extension of its requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Peer(
    /// The address; none on a Unix socket. Behind a proxy it is the proxy's.
    pub Option<IpAddr>,
);

/// A listener with what is served there. Clones are one and the same.
#[derive(Debug, Clone)]
struct Door {
    app: App,
    tls: Option<Tls>,
    served: Served,
    room: Arc<Semaphore>,
}

/// Serves until `shutdown` resolves, and then leaves in order: no longer ready, new generations refused, running ones
/// finished up to `config.shutdown_timeout`, the rest answered with 503, connections closed.
pub async fn serve(
    listeners: impl Into<Listeners>,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let Listeners { main, metrics } = listeners.into();
    let (leave, told) = watch::channel(false);
    let config = app.config();
    let door =
        Door::new(&app, router(&app), config.max_connections, told.clone()).with_tls(config.tls.clone());
    // They end with this function, and not before: a server that leaves is watched, too.
    let mut beside = JoinSet::new();
    if let Some(listener) = metrics {
        let door = Door::new(&app, metrics_router(&app), METRICS_CONNECTIONS, told.clone());
        beside.spawn(door.keep(listener));
    }
    if let Some(tls) = config.tls.clone() {
        let files = tls.files();
        let read = move || tls.read_again().map_err(|error| error.to_string());
        beside.spawn(reload::on_change(files, "certificate", app.metrics().clone(), read));
    }
    if let Some(files) = config.keys.files() {
        let keyed = app.clone();
        let read = move || keyed.read_keys().map_err(|error| error.to_string());
        beside.spawn(reload::on_change(files, "keys", app.metrics().clone(), read));
    }
    drop(told);
    let (mut at_work, mut is_working) = (AtWork::default(), false);
    let kept = app.when_jobs_are_kept();

    tokio::pin!(shutdown, kept);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            jobs = &mut kept, if !is_working => {
                is_working = true;
                at_work = runner::start(&app, &jobs);
            }
            () = door.accept(&main) => {}
        }
    }

    // Still accepting: whoever comes now, a load balancer's probe among them, is told rather than left waiting.
    app.drain();
    // What is unfinished of jobs is for other servers to take up, at once.
    if let Some(jobs) = app.jobs() {
        jobs.leave();
    }
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
            () = door.accept(&main) => {}
        }
    }
    app.stop();
    let flushed = Instant::now() + FLUSH;
    if timeout_at(flushed, all(&mut at_work.workers)).await.is_err() {
        tracing::warn!("some jobs were not put down in time; others take them up when their leases run out");
    }
    if timeout_at(flushed, all(&mut at_work.beside)).await.is_err() {
        tracing::info!(
            "a webhook was being told or jobs were being forgotten: that is done again by the next server"
        );
    }
    drop(at_work);
    leave.send_replace(true);
    // The doors hold receivers as connections do.
    drop((door, main));
    beside.shutdown().await;
    if timeout(FLUSH, leave.closed()).await.is_err() {
        tracing::warn!("some clients did not take their answers in time");
    }
    // A database that says nothing has the last word of no connection.
    if let Some(jobs) = app.let_jobs_go()
        && timeout(FLUSH, jobs.store().close()).await.is_err()
    {
        tracing::warn!("the store of jobs did not let its connections go in time");
    }
    Ok(())
}

/// Until all of them have ended.
async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

// === impl Door ===

impl Door {
    fn new(app: &App, router: Router, connections: usize, leave: Leave) -> Self {
        let served = Served { router, limits: Limits::of(app.config()), leave, peer: Peer::default() };
        // Shown from the beginning, at zero.
        for outcome in ["accepted", "refused"] {
            app.metrics().connections_total.with_label_values(&[outcome]);
        }
        Self { app: app.clone(), tls: None, served, room: Arc::new(Semaphore::new(connections)) }
    }

    fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// Takes connections for ever.
    async fn keep(self, listener: Listener) {
        loop {
            self.accept(&listener).await;
        }
    }

    /// Takes the next connection, and serves it on a task of its own or hangs up.
    async fn accept(&self, listener: &Listener) {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                return sleep(ACCEPT_PAUSE).await;
            }
        };
        let metrics = self.app.metrics().clone();
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return metrics.connections_total.with_label_values(&["refused"]).inc();
        };
        metrics.connections_total.with_label_values(&["accepted"]).inc();
        metrics.connections.inc();
        let peer = Peer(stream.peer());
        let (served, tls) = (Served { peer, ..self.served.clone() }, self.tls.as_ref().map(Tls::now));
        tokio::spawn(async move {
            let ended = match stream {
                Stream::Tcp(stream) => served.connection(stream, tls).await,
                Stream::Unix(stream) => served.connection(stream, tls).await,
            };
            // A client that breaks off, or is too slow, is no fault of ours.
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
            metrics.connections.dec();
            drop(place);
        });
    }
}
