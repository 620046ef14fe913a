//! A JSON body: `content-type`, size, arrival time (`body.rs`), syntax and fields are checked in that order, and each failure
//! is an error of its own. A wrong field is named.

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::body;
use crate::app::App;
use crate::error::{ApiError, Cause, words};

/// The body as a `T`. Every field of `T` must be optional: a wrong field is found by trying each one alone.
#[derive(Debug, Clone)]
pub struct ApiJson<T>(pub T);

// === impl ApiJson ===

impl<T: DeserializeOwned> FromRequest<App> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        require_json(request.headers(), JSON)?;
        let body = body::collect(request, app).await?;
        parse(&body).map(Self)
    }
}

/// What a body of JSON says of itself, in words.
pub(super) const JSON: &str = "`application/json`";

/// `application/json`, with or without parameters, or another type that ends in `+json`; and not compressed.
pub(super) fn require_json(headers: &HeaderMap, expected: &str) -> Result<(), ApiError> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        let encoding = encoding.to_str().unwrap_or("unreadable");
        let message = format!("content-encoding is `{encoding}`, expected none: bodies are small here");
        return Err(ApiError::new(Cause::UnsupportedMediaType, message));
    }
    let said = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("unreadable"));
    let essence = said.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let message = match said {
        Some(said) => format!("content-type is `{said}`, expected {expected}"),
        None => format!("content-type is missing, expected {expected}"),
    };
    Err(ApiError::new(Cause::UnsupportedMediaType, message))
}

/// Bytes to a `T`: bad syntax and bad UTF-8 are malformed, a wrong field is invalid and named.
pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    // Serde would read an array as a struct's fields in order, which nobody means.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        serde_json::from_slice::<IgnoredAny>(body).map_err(|error| words::refused(&error))?;
        return Err(ApiError::new(Cause::InvalidValue, "the body is not a JSON object"));
    }
    let error = match serde_json::from_slice(body) {
        Ok(value) => return Ok(value),
        Err(error) => words::refused(&error),
    };
    if error.cause == Cause::MalformedBody || error.param.is_some() {
        return Err(error);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Err(culprit::<T>(fields).unwrap_or(error)),
        // Too deep for a tree of values.
        _ => Err(error),
    }
}

/// The first field that does not parse alone, and why.
pub(super) fn culprit<T: DeserializeOwned>(fields: serde_json::Map<String, Value>) -> Option<ApiError> {
    fields.into_iter().find_map(|(name, value)| {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        let error = serde_json::from_value::<T>(Value::Object(alone)).err()?;
        let words = words::of(&error);
        Some(ApiError::new(Cause::InvalidValue, format!("`{name}`: {words}")).param(name))
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        n: Option<u64>,
        name: Option<String>,
    }

    fn refused(body: impl Into<Bytes>) -> (Cause, Option<String>, String) {
        let error = parse::<Body>(&body.into()).unwrap_err();
        (error.cause, error.param, error.message)
    }

    #[test]
    fn a_good_body_is_read() {
        let body: Body = parse(&Bytes::from_static(br#"{"n": 3, "name": "x"}"#)).unwrap();
        assert_eq!((body.n, body.name.as_deref()), (Some(3), Some("x")));
    }

    #[test]
    fn a_wrong_field_is_named() {
        let (cause, param, message) = refused(r#"{"n": 1, "nn": 2}"#);
        assert_eq!((cause, param.as_deref()), (Cause::UnknownField, Some("nn")));
        assert!(message.contains("expected `n` or `name`"), "{message}");
        for body in
            [r#"{"name": "x", "n": -1}"#, r#"{"n": 1.5}"#, r#"{"n": "1"}"#, r#"{"n": 99999999999999999999}"#]
        {
            let (cause, param, _) = refused(body);
            assert_eq!((cause, param.as_deref()), (Cause::InvalidValue, Some("n")), "{body}");
            assert!(refused(body).2.ends_with("expected a whole number, 0 or more"), "{body}");
        }
        assert_eq!(refused(r#"{"n": 1, "n": 2}"#).1.as_deref(), Some("n"));
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for body in ["", " ", "{", "{\"n\": NaN}", "{\"n\": 1e999}", "{\"n\" 1}", "{} x", "[", "nul"] {
            assert_eq!(refused(body).0, Cause::MalformedBody, "{body}");
        }
        assert_eq!(refused(&b"{\"name\": \"\xff\xfe\"}"[..]).0, Cause::MalformedBody);
    }

    #[test]
    fn what_is_no_object_is_invalid() {
        for body in ["[]", "3", "null", " \"x\"", "[1, \"x\"]"] {
            assert_eq!(
                refused(body),
                (Cause::InvalidValue, None, "the body is not a JSON object".to_owned())
            );
        }
    }

    #[test]
    fn a_long_wrong_value_or_field_is_cut_and_what_was_expected_is_not() {
        let long = "x".repeat(500_000);
        for (body, end) in [
            (format!(r#"{{"n": "{long}"}}"#), "expected a whole number, 0 or more"),
            (format!(r#"{{"{long}": 1}}"#), "expected `n` or `name`"),
        ] {
            let (_, param, message) = refused(body);
            assert!(message.len() < 5000 && message.ends_with(end), "{message}");
            assert!(param.unwrap().len() < 200);
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_harms_nobody() {
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(refused(deep.clone()).0, Cause::InvalidValue);
        assert_eq!(refused(format!("{{\"n\": {deep}}}")).0, Cause::InvalidValue);
        assert_eq!(refused(format!("{{\"m\": {deep}}}")).0, Cause::UnknownField);
    }

    #[test]
    fn the_content_type_must_be_json() {
        let with = |value: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
        assert!(require_json(&with("application/json"), JSON).is_ok());
        assert!(require_json(&with("Application/JSON; charset=utf-8"), JSON).is_ok());
        assert!(require_json(&with("application/problem+json"), JSON).is_ok());
        assert!(require_json(&with("text/plain"), JSON).is_err());
        assert!(require_json(&with("application/x-www-form-urlencoded"), JSON).is_err());
        assert!(require_json(&HeaderMap::new(), JSON).is_err());
        let mut compressed = with("application/json");
        compressed.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(require_json(&compressed, JSON).is_err());
    }
}
