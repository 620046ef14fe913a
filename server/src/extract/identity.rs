//! Who calls: the API key of `authorization: Bearer …`, as OpenAI's clients send it, or of `x-api-key`.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::app::App;
use crate::error::{ApiError, Cause};
use crate::keys::{Identity, Role};

/// A caller that may generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generator(pub Identity);

/// A caller that may load and unload models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admin(pub Identity);

impl FromRequestParts<App> for Generator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        identify(parts, app, Role::Generate).map(Self)
    }
}

impl FromRequestParts<App> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        identify(parts, app, Role::Admin).map(Self)
    }
}

/// The caller, if it may do what `role` may.
pub(super) fn identify(parts: &Parts, app: &App, role: Role) -> Result<Identity, ApiError> {
    let keys = app.keys();
    let identity = keys.identify(secret(parts)).ok_or_else(unauthenticated)?;
    if identity.role >= role { Ok(identity) } else { Err(forbidden(keys.required())) }
}

/// What a caller without a key that is known is told.
pub(crate) fn unauthenticated() -> ApiError {
    ApiError::new(Cause::Unauthenticated, "no key that is known here; send `authorization: Bearer KEY`")
}

/// What a caller is told whose key may less than it asks for; or that there are no keys, where none is `required`.
pub(crate) fn forbidden(required: bool) -> ApiError {
    let message = if required {
        "this key may not do that"
    } else {
        "only an administrator may do that; start the server with `--keys FILE` to have one"
    };
    ApiError::new(Cause::Forbidden, message)
}

/// The key that a request shows. A header that is not text is no key.
fn secret(parts: &Parts) -> Option<&str> {
    let bearer = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    bearer.or_else(|| parts.headers.get("x-api-key")?.to_str().ok())
}
