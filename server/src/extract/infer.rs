//! The bodies of the Open Inference Protocol. Its clients send no `content-type`, or an honest one; what comes as a
//! form or as text was meant for something else.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Compression, body, json};
use crate::app::App;
use crate::error::{ApiError, Cause};
use crate::v2::InferRequest;
use crate::v2::request::HEAD_LENGTH;

/// The inference request that is in the body, and a hash by which its sender is known again.
pub async fn infer(request: Request, app: &App) -> Result<(InferRequest, u64), ApiError> {
    require(request.headers(), &["application/json", "application/octet-stream"])?;
    let head_length = head_length(request.headers())?;
    let body = whole(request, app).await?;
    // Megabytes of numbers take a while.
    let read = move || {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        InferRequest::parse(&body, head_length).map(|request| (request, hasher.finish()))
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| ApiError::internal(format!("reading the request ended early: {error}")))?
}

/// A JSON body, where there is one. Every field of `T` must be optional.
#[derive(Debug, Clone)]
pub struct OptionalJson<T>(pub T);

// === impl OptionalJson ===

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        require(request.headers(), &["application/json"])?;
        let body = whole(request, app).await?;
        // The parser knows which white space is JSON's, and which makes a body that is neither nothing nor `null`.
        let is_null = || serde_json::from_slice::<()>(&body).is_ok();
        if body.is_empty() || is_null() { Ok(Self(T::default())) } else { json::parse(&body).map(Self) }
    }
}

/// The body, as it was before it was compressed.
async fn whole(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let (compression, limit) = (Compression::of_body(request.headers())?, app.config().body_limit);
    let body = body::collect(request, app).await?;
    let Some(compression) = compression else { return Ok(body) };
    tokio::task::spawn_blocking(move || compression.expand(&body, limit).map(Bytes::from))
        .await
        .map_err(|error| ApiError::internal(format!("reading the body ended early: {error}")))?
}

/// One of these types, or none.
fn require(headers: &HeaderMap, types: &[&str]) -> Result<(), ApiError> {
    let Some(said) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let said = said.to_str().unwrap_or("unreadable");
    let essence = said.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if types.contains(&essence.as_str()) {
        return Ok(());
    }
    let types = types.join("` or `");
    let message = format!("content-type is `{said}`, expected `{types}`");
    Err(ApiError::new(Cause::UnsupportedMediaType, message))
}

/// How much of the body is JSON, where tensors follow it.
fn head_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEAD_LENGTH) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok());
    length.map(Some).ok_or_else(|| {
        let got: String = value.to_str().unwrap_or("unreadable").chars().take(64).collect();
        ApiError::invalid(HEAD_LENGTH, format!("`{got}`"), "the length of the JSON in bytes")
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::StatusCode;
    use serde::Deserialize;

    use super::*;
    use crate::Config;
    use crate::engine::fake::Faults;
    use crate::testing::app;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Fields {
        ready: bool,
    }

    #[tokio::test]
    async fn no_body_is_nothing_or_null_and_not_what_looks_empty() {
        let app = app(Config::default(), &Faults::default());
        let read = async |body: &'static [u8]| {
            let request = Request::post("/").body(Body::from(body)).unwrap();
            let fields = OptionalJson::<Fields>::from_request(request, &app).await;
            fields.map(|OptionalJson(Fields { ready })| ready).map_err(|error| error.cause.status())
        };
        for body in [&b""[..], b"null", b" null\r\n\t", b"{}"] {
            assert_eq!(read(body).await, Ok(false), "{body:?}");
        }
        assert_eq!(read(br#"{"ready": true}"#).await, Ok(true));
        for body in [&b"\x0c"[..], b" ", b"\x0cnull", b"null null", b"nul"] {
            assert_eq!(read(body).await, Err(StatusCode::BAD_REQUEST), "{body:?}");
        }
    }

    #[test]
    fn the_length_of_the_head_is_a_number_of_bytes() {
        let read = |text: &str| {
            head_length(&HeaderMap::from_iter([(HEAD_LENGTH.parse().unwrap(), text.parse().unwrap())]))
        };
        assert_eq!(read("12"), Ok(Some(12)));
        assert_eq!(head_length(&HeaderMap::new()), Ok(None));
        for bad in ["", "-1", "+1", "1.0", "0x10", "99999999999999999999", "12 "] {
            assert_eq!(read(bad).unwrap_err().param.as_deref(), Some(HEAD_LENGTH), "{bad}");
        }
    }
}
