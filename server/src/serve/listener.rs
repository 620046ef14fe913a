//! Where connections come from: TCP, or a Unix socket, whose file appears with its mode and goes with the server.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};

use crate::args::Listen;
use crate::config::Config;

/// Connections that the kernel may have made and nobody has taken yet. More than the usual burst of a load balancer
/// that opens its pool.
const BACKLOG: u32 = 1024;

/// A peer that says nothing is asked after 30 s whether it is still there, and after three questions it is gone.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// Every socket that the server listens on.
#[derive(Debug)]
pub struct Listeners {
    /// Of the API.
    pub main: Listener,
    /// Of the metrics, where they have one of their own.
    pub metrics: Option<Listener>,
}

/// A socket that the server listens on.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The file of a Unix socket, removed when this is dropped, unless it is another's by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

// === impl Listeners ===

impl Listeners {
    /// Listens wherever the configuration says. Errors: the address is taken or not ours; the message says which.
    pub async fn bind(config: &Config) -> io::Result<Self> {
        let main = Listener::bind(&config.listen, config.socket_mode).await?;
        let metrics = match config.metrics_listen {
            None => None,
            Some(address) => Some(Listener::bind(&Listen::Tcp(address), config.socket_mode).await?),
        };
        Ok(Self { main, metrics })
    }
}

impl From<TcpListener> for Listeners {
    fn from(listener: TcpListener) -> Self {
        Self { main: Listener(Kind::Tcp(listener)), metrics: None }
    }
}

// === impl Listener ===

impl Listener {
    async fn bind(listen: &Listen, mode: u32) -> io::Result<Self> {
        let bound = match listen {
            Listen::Tcp(address) => TcpListener::bind(address).await.map(Kind::Tcp),
            Listen::Unix(path) => {
                bind_file(path, mode).await.map(|(listener, file)| Kind::Unix(listener, file))
            }
        };
        bound
            .map(Self)
            .map_err(|error| io::Error::new(error.kind(), format!("listening on {listen}: {error}")))
    }

    /// Where it listens: a port that was left open is known by now.
    pub fn listen(&self) -> io::Result<Listen> {
        Ok(match &self.0 {
            Kind::Tcp(listener) => Listen::Tcp(listener.local_addr()?),
            Kind::Unix(_, file) => Listen::Unix(file.path.clone()),
        })
    }

    /// The address, where it is one of the network.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match &self.0 {
            Kind::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // An answer is written whole: waiting for more bytes only delays it.
                let _ = stream.set_nodelay(true);
                // A peer that is gone without a word is found out, and its images abandoned. HTTP/2 has pings beside it.
                let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
                Ok(Stream::Tcp(stream))
            }
            Kind::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

// === impl Stream ===

impl Stream {
    /// The address at its other end, in one form however the client is reached.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }
}

/// Listens at a path. A socket's file that a server left behind, which nobody listens at, is removed first; any other
/// file is left alone.
async fn bind_file(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file is there that is no socket"));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
            Err(error) => return Err(error),
        },
    }
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    // Before anybody can connect: until `listen`, everybody is refused.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok((socket.listen(BACKLOG)?, file))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_was_left_behind_is_replaced_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listen = Listen::Unix(path.clone());
        let first = Listener::bind(&listen, 0o600).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let error = Listener::bind(&listen, 0o600).await.unwrap_err().to_string();
        assert!(error.contains("somebody listens there") && error.contains("unix:"), "{error}");
        drop(first);
        assert!(!path.exists(), "the file goes with its server");

        // As a server leaves it that is killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listener::bind(&listen, 0o660).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        // Another's file by now.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(second);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let error = Listener::bind(&listen, 0o600).await.unwrap_err().to_string();
        assert!(error.contains("no socket"), "{error}");
    }
}
