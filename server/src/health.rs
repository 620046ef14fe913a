//! `windowpane health`: asks the server on this machine how it is, for whoever supervises it where there is no other
//! client, such as the health check of a container.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Time that a healthy server has to connect, to read and to answer, each.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most that is read of an answer. Ours has a few hundred bytes.
const ANSWER_MOST: u64 = 1 << 16;

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
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// What answers is no server of ours.
    #[error("what answers at {0} does not speak HTTP")]
    Foreign(SocketAddr),
    /// It says no.
    #[error("{address}{path} answers {status}")]
    No {
        /// Where it was asked.
        address: SocketAddr,
        /// What it was asked.
        path: &'static str,
        /// The status code.
        status: u16,
    },
}

/// Asks the server that listens at `listen`; an address that means all of the machine's is asked by the loopback.
pub fn ask(listen: SocketAddr, question: Question) -> Result<(), HealthError> {
    let address = reachable(listen);
    let path = match question {
        Question::Alive => "/livez",
        Question::Ready => "/readyz",
    };
    let answer = get(address, path).map_err(|source| HealthError::Silent { address, source })?;
    match status(&answer) {
        Some(200) => Ok(()),
        Some(status) => Err(HealthError::No { address, path, status }),
        None => Err(HealthError::Foreign(address)),
    }
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
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
    fn answering(bytes: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).unwrap();
            assert!(head[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(bytes).unwrap();
        });
        address
    }

    #[test]
    fn only_a_200_is_healthy() {
        ask(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Question::Ready).unwrap();
        for (bytes, words) in [
            (&b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..], "/readyz answers 503"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
            (b"", "does not speak HTTP"),
        ] {
            let error = ask(answering(bytes), Question::Ready).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn nobody_there_is_an_error_that_says_where() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = ask(address, Question::Alive).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no answer from {address}: ")), "{error}");
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
