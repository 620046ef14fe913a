//! What a path holds: a model's name and version, a request's id, a job's.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use serde::Deserialize;

use crate::error::{ApiError, Cause};
use crate::middleware::request_id::RequestId;
use crate::v2::VERSION;

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
        id.map(Self).ok_or_else(nobody)
    }
}

/// What is said of an id that no request under way has.
pub(crate) fn nobody() -> ApiError {
    ApiError::new(Cause::NotFound, "no request of this id is under way").param("id")
}

/// The id of a job in `/v1/jobs/{id}`, percent-decoded: whatever could be the id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobId(pub RequestId);

impl<S: Send + Sync> FromRequestParts<S> for JobId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = path.and_then(|Path(id)| RequestId::parse(&id));
        id.map(Self).ok_or_else(no_job)
    }
}

/// What is said of an id that none of the caller's jobs has.
pub(crate) fn no_job() -> ApiError {
    ApiError::new(Cause::NotFound, "no job of this id").param("id")
}

/// The model of `/v2/models/{name}/…` or `/v2/models/{name}/versions/{version}/…`, percent-decoded, whose version is
/// the only one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedModel(pub String);

impl<S: Send + Sync> FromRequestParts<S> for VersionedModel {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Segments {
            name: String,
            version: Option<String>,
        }

        let Ok(Path(Segments { name, version })) = Path::<Segments>::from_request_parts(parts, state).await
        else {
            let message = "the model's name or version is not valid UTF-8";
            return Err(ApiError::new(Cause::ModelNotFound, message).param("model"));
        };
        match version {
            Some(version) if version != VERSION => {
                let shown: String = version.chars().take(64).collect();
                let message = format!("no version `{shown}`; every model's only version is {VERSION}");
                Err(ApiError::new(Cause::ModelNotFound, message).param("version"))
            }
            _ => Ok(Self(name)),
        }
    }
}
