//! Nobody gets further than they may: what the route needs (`access.rs`) is compared with who asks (`keys.rs`), before
//! anything of the request is read.

use axum::extract::{MatchedPath, Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::{Need, need};
use crate::app::App;
use crate::error::{ApiError, Cause};
use crate::middleware::track::Who;

/// The layer. Handlers find the [`crate::keys::Identity`] in the request.
pub async fn layer(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // What matches no route does nothing.
    let path = request.extensions().get::<MatchedPath>();
    let need = path.map_or(Need::Nothing, |path| need(request.method(), path.as_str()));
    if let Need::Key(role) = need {
        let keys = app.keys();
        let Some(identity) = keys.identify(secret(request.headers())) else {
            return unauthenticated().into_response();
        };
        // Who may not do it is told in the log as well.
        if let (Some(who), Some(name)) = (request.extensions().get::<Who>(), keys.name(identity.caller)) {
            who.is(name);
        }
        if identity.role < role {
            return forbidden(keys.required()).into_response();
        }
        request.extensions_mut().insert(identity);
    }
    next.run(request).await
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
fn secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}
