//! What one connection may cost, in time, memory and streams, and how many files the process may open for them.

use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::http2::Tasks;
use crate::config::Config;

/// Lines in the head of a request. Browsers send twenty, proxies add ten; it is hyper's own number, which it parses
/// without an allocation.
pub(super) const HEADERS: usize = 100;

/// Streams that a client has reset and the server has not yet looked at. Each costs the client one small frame and the
/// server a request's work (CVE-2023-44487, "rapid reset"); a client that cancels what it no longer wants never has
/// many. Beyond it the connection is closed.
const PENDING_RESETS: usize = 20;

/// Streams reset by the server for a client's errors before it closes the connection.
const ERROR_RESETS: usize = 100;

/// Time between two questions whether the peer of a connection of HTTP/2 is still there, and time that it has to answer.
/// One that is gone without a word would keep its images running.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// Bytes of bodies that a connection of HTTP/2 may have sent and nobody has read yet, and of those one stream's. hyper's own
/// are 1 MiB, which is more for all connections than all the bodies that are being read may have. A stream has a part, so
/// that one which waits to be read does not stop its neighbours.
const UNREAD: u32 = 128 << 10;
const UNREAD_OF_STREAM: u32 = 32 << 10;

/// The same over HTTP/1: what is read from the socket at a time. A head that is allowed to be longer has to fit.
const BUFFER: usize = 64 << 10;

/// Files that are open beside the connections: models, logs, what ONNX Runtime opens, and some to spare.
const OTHER_FILES: u64 = 256;

/// What one connection may cost.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// For the head of a request, and for nothing at all.
    pub(super) header_timeout: Duration,
    /// For taking an answer, at the least pace.
    pub(super) write_timeout: Duration,
    header_bytes: usize,
    streams: u32,
}

// === impl Limits ===

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            header_timeout: config.header_timeout,
            write_timeout: config.write_timeout,
            header_bytes: config.header_limit,
            streams: config.max_streams,
        }
    }

    /// HTTP/1 within them.
    pub(super) fn http1(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        // An idle connection is a head that does not come.
        http.timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        http.max_header_size(self.header_bytes).max_buf_size(self.header_bytes.max(BUFFER));
        http
    }

    /// HTTP/2 within them, whose tasks are started by `tasks`.
    pub(super) fn http2(&self, tasks: Tasks) -> http2::Builder<Tasks> {
        let mut http = http2::Builder::new(tasks);
        http.timer(TokioTimer::new())
            .max_concurrent_streams(self.streams)
            .initial_connection_window_size(UNREAD)
            .initial_stream_window_size(UNREAD_OF_STREAM)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(ERROR_RESETS)
            .max_header_list_size(u32::try_from(self.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG);
        http
    }
}

/// Lets the process open as many files as `connections` need, as far as the system allows, and says how many connections
/// that is.
pub fn raise_open_files(connections: usize) -> usize {
    let needed = connections as u64 + OTHER_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let Some(now) = current.filter(|&now| now < needed) else { return connections };
    let wanted = maximum.map_or(needed, |maximum| maximum.min(needed));
    let reached = match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => wanted,
        Err(_) => now,
    };
    connections.min(usize::try_from(reached.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX).max(1))
}
