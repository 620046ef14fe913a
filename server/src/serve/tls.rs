//! TLS by rustls: a certificate and its key from two files, read again when they change, so that a renewed certificate
//! needs no restart. Connections that are open keep the one they began with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::reload::Files;

/// The protocol that a client of HTTP/2 asks for.
pub(super) const H2: &[u8] = b"h2";

/// A certificate with its key, as it is now. Clones are one and the same.
#[derive(Debug, Clone)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    files: Files,
    now: Arc<RwLock<Arc<ServerConfig>>>,
}

/// The files do not make a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificates' file does not read.
    #[error("`{}`: {what}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The key's file does not read.
    #[error("`{}`: {what}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Each reads, and they do not belong together, or rustls does not take them.
    #[error("`{}` and `{}` do not go together: {what}", certificate.display(), key.display())]
    Pair {
        /// The certificates' file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        what: String,
    },
}

// === impl Tls ===

impl Tls {
    /// Reads the files.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        // Before they are read: a change between the two is seen.
        let files = Files::look([certificate.to_owned(), key.to_owned()]);
        let now = Arc::new(RwLock::new(load(certificate, key)?));
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), files, now })
    }

    /// The files, as they were when they were read.
    pub(super) fn files(&self) -> Files {
        self.files.clone()
    }

    /// Reads the files again; from now on connections are made with what they hold. Errors change nothing.
    pub(super) fn read_again(&self) -> Result<(), TlsError> {
        let new = load(&self.certificate, &self.key)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// What a connection is made with now.
    pub(super) fn now(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let of_certificate = |what: String| TlsError::Certificate { path: certificate.to_owned(), what };
    let of_key = |what: String| TlsError::Key { path: key.to_owned(), what };
    let pair = |error: tokio_rustls::rustls::Error| TlsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        what: error.to_string(),
    };
    let pem = std::fs::read(certificate).map_err(|error| of_certificate(error.to_string()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| of_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(of_certificate("no certificate in PEM form".to_owned()));
    }
    let pem = std::fs::read(key).map_err(|error| of_key(error.to_string()))?;
    let secret = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| of_key(format!("no private key in PEM form without a passphrase ({error})")))?;
    // TLS 1.2 and 1.3, with the ciphers that rustls holds to be safe.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
