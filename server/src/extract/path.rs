//! What a path holds: a model's name, a request's id.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::error::{ApiError, Cause};
use crate::middleware::request_id::RequestId;

/// The last segment of `/v1/models/{id}`, percent-decoded. It is only ever looked up in a table of loaded models:
/// no path of the file system is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId(pub String);

impl<S: Send + Sync> FromRequestParts<S> for ModelId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id)),
            Err(_) => {
                Err(ApiError::new(Cause::ModelNotFound, "the model's name is not valid UTF-8").param("model"))
            }
        }
    }
}

/// The last segment of `/v1/requests/{id}`, percent-decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIdPath(pub RequestId);

impl<S: Send + Sync> FromRequestParts<S> for RequestIdPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = path.and_then(|Path(id)| RequestId::parse(&id));
        // What could be nobody's id is nobody's id.
        id.map(Self)
            .ok_or_else(|| ApiError::new(Cause::NotFound, "no request of this id is under way").param("id"))
    }
}
