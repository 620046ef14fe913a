//! Who calls: whoever `middleware/access.rs` let in.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::app::App;
use crate::error::ApiError;
use crate::keys::Identity;

impl FromRequestParts<App> for Identity {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let identity = parts.extensions.get().copied();
        identity.ok_or_else(|| ApiError::internal("a route that anybody may ask wants to know who does"))
    }
}
