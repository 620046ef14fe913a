//! Bodies in `gzip` or `deflate` (which is zlib, RFC 9110 section 8.4.1.2), both ways: what a client sends is read up to
//! a bound, what it is sent is what it asked for.

use std::io::{Read, Write};

use axum::http::{HeaderMap, HeaderName, header};
use flate2::Compression as Level;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use super::body::too_large;
use crate::error::{ApiError, Cause};

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `gzip`.
    Gzip,
    /// `deflate`.
    Deflate,
}

// === impl Compression ===

impl Compression {
    /// The content coding.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// What `content-encoding` says of the body.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let text = text(headers, &header::CONTENT_ENCODING);
        if text.is_empty() || text.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Self::parse(&text).map(Some).ok_or_else(|| {
            let got: String = text.chars().take(64).collect();
            let message = format!("content-encoding is `{got}`, expected `gzip`, `deflate` or none");
            ApiError::new(Cause::UnsupportedMediaType, message)
        })
    }

    /// What `accept-encoding` names first. Where nothing is named, nothing is compressed: `*` is no wish.
    pub fn wanted(headers: &HeaderMap) -> Option<Self> {
        let text = text(headers, &header::ACCEPT_ENCODING);
        text.split(',').find_map(|item| {
            let (name, quality) = item.split_once(';').unwrap_or((item, ""));
            let quality = quality.trim().strip_prefix("q=").map(|q| q.trim().parse::<f32>().unwrap_or(0.0));
            Self::parse(name).filter(|_| quality.is_none_or(|quality| quality > 0.0))
        })
    }

    /// The body that was compressed, at most `limit` bytes of it.
    pub(super) fn expand(self, body: &[u8], limit: usize) -> Result<Vec<u8>, ApiError> {
        let mut out = Vec::new();
        // One byte more than the limit tells the two cases apart.
        let most = limit as u64 + 1;
        let read = match self {
            Self::Gzip => MultiGzDecoder::new(body).take(most).read_to_end(&mut out),
            Self::Deflate => ZlibDecoder::new(body).take(most).read_to_end(&mut out),
        };
        if read.is_err() {
            let message = format!("the body is not valid {}", self.as_str());
            return Err(ApiError::new(Cause::MalformedBody, message));
        }
        if out.len() > limit { Err(too_large(limit)) } else { Ok(out) }
    }

    /// The body, compressed; fast rather than small, since most of it is noise.
    pub fn compress(self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut out = GzEncoder::new(Vec::new(), Level::fast());
                out.write_all(body)?;
                out.finish()
            }
            Self::Deflate => {
                let mut out = ZlibEncoder::new(Vec::new(), Level::fast());
                out.write_all(body)?;
                out.finish()
            }
        }
    }
}

/// A header's value, what is no text being none.
fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn what_is_compressed_is_read_back_up_to_the_limit() {
        let body = vec![7; 100_000];
        for coding in [Compression::Gzip, Compression::Deflate] {
            let small = coding.compress(&body).unwrap();
            assert!(small.len() < 2000);
            assert_eq!(coding.expand(&small, 100_000).unwrap(), body);
            assert_eq!(coding.expand(&small, 99_999).unwrap_err().cause, Cause::BodyTooLarge);
            for broken in [&small[..small.len() / 2], b"nothing", b""] {
                let error = coding.expand(broken, 100_000).unwrap_err();
                assert_eq!(error.cause, Cause::MalformedBody, "{}", error.message);
            }
        }
        // Bytes of a known compressor: Python's gzip.compress(b"hi") and zlib.compress(b"hi").
        let gzip =
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\xcb\xc8\x04\x00\xac\x2a\x93\xd8\x02\x00\x00\x00";
        assert_eq!(Compression::Gzip.expand(gzip, 2).unwrap(), b"hi");
        assert_eq!(Compression::Deflate.expand(b"x\x9c\xcb\xc8\x04\x00\x01\x3b\x00\xd2", 2).unwrap(), b"hi");
    }

    #[test]
    fn headers_are_read() {
        let of_body = |value: &str| Compression::of_body(&headers(header::CONTENT_ENCODING, value));
        assert_eq!(of_body("gzip"), Ok(Some(Compression::Gzip)));
        assert_eq!(of_body("Deflate"), Ok(Some(Compression::Deflate)));
        assert_eq!(of_body("identity"), Ok(None));
        assert_eq!(Compression::of_body(&HeaderMap::new()), Ok(None));
        for other in ["br", "gzip, gzip", "zstd"] {
            assert_eq!(of_body(other).unwrap_err().cause, Cause::UnsupportedMediaType);
        }
        for (value, wanted) in [
            ("gzip", Some(Compression::Gzip)),
            ("br, deflate;q=0.5", Some(Compression::Deflate)),
            ("gzip;q=0, deflate", Some(Compression::Deflate)),
            ("identity", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(Compression::wanted(&headers(header::ACCEPT_ENCODING, value)), wanted, "{value}");
        }
    }
}
