//! Clients of a kind that the shared one is not: HTTP/2, TLS with a certificate made for the test, Unix sockets, and
//! bytes that are no HTTP at all.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::answer::Answer;

/// The end of a connection.
pub type Ended = JoinHandle<hyper::Result<()>>;

/// A connection of HTTP/1 over any stream.
pub async fn http1<S>(stream: S) -> (http1::SendRequest<Full<Bytes>>, Ended)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.expect("nothing is said yet");
    (client, tokio::spawn(connection))
}

/// A connection of HTTP/2 over any stream, by prior knowledge. `window` is how much of an answer may be on its way.
pub async fn http2<S>(stream: S, window: u32) -> (http2::SendRequest<Full<Bytes>>, Ended)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window);
    let (client, connection) = builder.handshake(TokioIo::new(stream)).await.expect("the preface is sent");
    (client, tokio::spawn(connection))
}

/// The preface of HTTP/2, and settings without any.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2 by its kind, flags and stream, shorter than 64 KiB.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a frame here is short").to_be_bytes();
    [&[0][..], &length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A stream that asks to POST JSON to this path, and whose body is still to come.
pub fn begun_post(stream: u32, path: &str) -> Vec<u8> {
    // POST http x, of JSON, with a path, and no end of the stream (RFC 7541, appendix A, for the numbers).
    let length = u8::try_from(path.len()).expect("a path here is short");
    let head =
        [&b"\x83\x86\x01\x01x\x04"[..], &[length], path.as_bytes(), b"\x0f\x10\x10application/json"].concat();
    frame(1, 4, stream, &head)
}

/// A request with a body of JSON, or without one.
pub fn request(method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let request =
        Request::builder().method(method).uri(format!("http://localhost{path}")).header("host", "localhost");
    let request = if body.is_empty() { request } else { request.header("content-type", "application/json") };
    request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).expect("method and path are ours")
}

/// An answer, read to its end.
pub async fn read(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes().to_vec();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, bytes })
}

/// A certificate for `localhost` and its key, in files, and whoever trusts it.
#[derive(Debug)]
pub struct Certificate {
    folder: TempDir,
}

// === impl Certificate ===

impl Certificate {
    /// A fresh one.
    pub fn new() -> Self {
        let certificate = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        certificate.renew();
        certificate
    }

    /// Puts another in its place: the key first, so that for a moment the two do not go together.
    pub fn renew(&self) {
        let (certificate, key) = pair();
        fs::write(self.key(), key).expect("it can be written");
        fs::write(self.file(), certificate).expect("it can be written");
    }

    /// The certificate's file.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    /// The key's file.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// The certificate that is in the file now.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.file()).expect("a certificate")
    }

    /// A client that trusts the certificate that is in the file now, and speaks these protocols.
    pub fn client(&self, protocols: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a certificate");
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}

/// A certificate and its key, in PEM form.
fn pair() -> (String, String) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a key can be made");
    (cert.pem(), signing_key.serialize_pem())
}

/// Shakes hands with the server at an address.
pub async fn tls(connector: &TlsConnector, address: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    connector.connect(name, TcpStream::connect(address).await?).await
}

/// What curl prints, or `None` where it is not installed, which is told.
pub fn curl(args: &[&str]) -> Option<String> {
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--max-time", "300", "--noproxy", "*"])
        .args(args)
        .stdin(Stdio::null());
    match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("curl is not installed: it was not tried as a client");
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
        Ok(output) => {
            let [out, err] =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
            Some(out)
        }
    }
}
