//! The id of a request: the client's `x-request-id` where it sent a sane one, else one of ours. It is in the
//! response's header, in every error and in the log.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

/// The header, both ways.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a client: enough for a UUID or a trace id with a prefix.
const MAX_LEN: usize = 128;

/// The id, as an extension of the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

// === impl RequestId ===

impl RequestId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The client's id if it is short and holds only letters, digits and `-_.:/`; such an id can stand in a header,
    /// a log line and a JSON string as it is.
    fn from_client(value: &HeaderValue) -> Option<Self> {
        value.to_str().ok().and_then(Self::parse)
    }

    /// The id that a sane text is.
    pub fn parse(text: &str) -> Option<Self> {
        let sane = (1..=MAX_LEN).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b));
        sane.then(|| Self(text.into()))
    }

    /// A new one: `req_` and 64 random bits.
    fn generate() -> Self {
        Self(format!("req_{:016x}", random_u64()).into())
    }
}

/// 64 bits that differ from call to call and run to run: the keys of a new hasher are seeded by the operating
/// system. For ids and unasked-for seeds, not for secrets.
pub fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The layer.
pub async fn layer(mut request: Request, next: Next) -> Response {
    let id =
        request.headers().get(HEADER).and_then(RequestId::from_client).unwrap_or_else(RequestId::generate);
    let value = HeaderValue::from_str(id.as_str()).expect("an id is visible ASCII; this is a bug");
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    response.headers_mut().insert(HEADER, value);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sane_id_is_kept_and_others_are_not() {
        let from = |text: &[u8]| RequestId::from_client(&HeaderValue::from_bytes(text).unwrap());
        assert_eq!(from(b"abc-1_2.3:4/5").unwrap().as_str(), "abc-1_2.3:4/5");
        assert_eq!(from(b""), None);
        assert_eq!(from(b"two words"), None);
        assert_eq!(from(b"quote\""), None);
        assert_eq!(from("ü".as_bytes()), None);
        assert_eq!(from(&[b'a'; MAX_LEN + 1]), None);
    }

    #[test]
    fn generated_ids_differ() {
        let ids: std::collections::HashSet<_> =
            (0..1000).map(|_| RequestId::generate().as_str().to_owned()).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| RequestId::from_client(&HeaderValue::from_str(id).unwrap()).is_some()));
    }
}
