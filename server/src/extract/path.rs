//! A model's name in a path.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use crate::error::{ApiError, Cause};

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
