//! `windowpane health`: asks the server on this machine how it is, for whoever supervises it where there is no other
//! client, such as the health check of a container.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::args::{Args, Listen};

/// Time that a healthy server has to connect, to read and to answer, each.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most that is read of an answer. Ours has a few hundred bytes.
const ANSWER_MOST: u64 = 1 << 16;

/// Where a server answers: all that has to be known of its configuration. The rest may be wrong by now, a file of keys that
/// is being written for example, and the server be well all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// The address of everything.
    pub listen: Listen,
    /// The metrics' own, if they have one.
    pub metrics: Option<SocketAddr>,
    /// Whether HTTPS alone is spoken at the first.
    pub is_secret: bool,
}

impl From<&Args> for Door {
    fn from(args: &Args) -> Self {
        Self { listen: args.listen(), metrics: args.metrics_listen, is_secret: args.tls_cert.is_some() }
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Does it work? If not, restart it.
    Alive,
    /// Would a request sent now be served?
    Ready,
}

/// The server is not what it was asked to be.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nobody answers.
    #[error("no answer from {address}: {source}")]
    Silent {
        /// Where it was asked.
        address: Listen,
        /// Why.
        source: std::io::Error,
    },
    /// What answers is no server of ours.
    #[error("what answers at {0} does not speak HTTP")]
    Foreign(Listen),
    /// It speaks HTTPS alone, and this is no client of that.
    #[error("{0} speaks HTTPS; `--metrics-listen` gives /livez and /readyz a listener that can be asked")]
    Secret(Listen),
    /// It says no.
    #[error("{address}{path} answers {status}")]
    No {
        /// Where it was asked.
        address: Listen,
        /// What it was asked.
        path: &'static str,
        /// The status code.
        status: u16,
    },
}

/// Asks the server behind this door. Where metrics have a listener of their own, the question goes there;
/// an address that means all of the machine's is asked by the loopback.
pub fn ask(door: &Door, question: Question) -> Result<(), HealthError> {
    match (&door.metrics, &door.listen) {
        (Some(address), _) => at(&Listen::Tcp(reachable(*address)), question),
        (None, Listen::Unix(path)) => at(&Listen::Unix(path.clone()), question),
        (None, listen) if door.is_secret => Err(HealthError::Secret(listen.clone())),
        (None, Listen::Tcp(address)) => at(&Listen::Tcp(reachable(*address)), question),
    }
}

fn at(listen: &Listen, question: Question) -> Result<(), HealthError> {
    let address = || listen.clone();
    let path = match question {
        Question::Alive => "/livez",
        Question::Ready => "/readyz",
    };
    let answer = get(listen, path).map_err(|source| HealthError::Silent { address: address(), source })?;
    match status(&answer) {
        Some(200) => Ok(()),
        Some(status) => Err(HealthError::No { address: address(), path, status }),
        None => Err(HealthError::Foreign(address())),
    }
}

fn get(listen: &Listen, path: &str) -> std::io::Result<Vec<u8>> {
    match listen {
        Listen::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, &address.to_string(), path)
        }
        Listen::Unix(file) => {
            let stream = UnixStream::connect(file)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            exchange(stream, "localhost", path)
        }
    }
}

fn exchange(mut stream: impl Read + Write, host: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MOST).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The status code of an HTTP/1 answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

fn reachable(listen: SocketAddr) -> SocketAddr {
    let host = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, listen.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Somebody who answers one connection with these bytes.
    fn answering(bytes: &'static [u8]) -> Listen {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).unwrap();
            assert!(head[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(bytes).unwrap();
        });
        Listen::Tcp(address)
    }

    #[test]
    fn only_a_200_is_healthy() {
        at(&answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Question::Ready).unwrap();
        for (bytes, words) in [
            (&b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..], "/readyz answers 503"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
            (b"", "does not speak HTTP"),
        ] {
            let error = at(&answering(bytes), Question::Ready).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn nobody_there_is_an_error_that_says_where() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let door = Door { listen: Listen::Tcp(address), metrics: None, is_secret: false };
        let error = ask(&door, Question::Alive).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no answer from {address}: ")), "{error}");
    }

    #[test]
    fn a_socket_and_the_metrics_own_listener_are_asked_where_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&file).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]).unwrap();
            stream.write_all(b"HTTP/1.1 503 No\r\n\r\n").unwrap();
        });
        let mut door = Door { listen: Listen::Unix(file.clone()), metrics: None, is_secret: false };
        let error = ask(&door, Question::Ready).unwrap_err().to_string();
        assert_eq!(error, format!("unix:{}/readyz answers 503", file.display()));
        let Listen::Tcp(metrics) = answering(b"HTTP/1.1 200 OK\r\n\r\n") else { panic!("it is an address") };
        door.metrics = Some(metrics);
        ask(&door, Question::Ready).unwrap();
    }

    #[test]
    fn all_addresses_are_asked_by_the_loopback() {
        for (listen, asked) in
            [("0.0.0.0:8080", "127.0.0.1:8080"), ("[::]:80", "[::1]:80"), ("10.1.2.3:1", "10.1.2.3:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
