//! Paths and methods that do not exist, answered in the form of every other error.

use axum::http::{Method, Uri};

use crate::error::{ApiError, Cause};

/// No such path.
pub async fn not_found(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Cause::NotFound, format!("nothing at {method} {path}; the API is described at /docs"))
}

/// The path exists, the method does not.
pub async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Cause::MethodNotAllowed, format!("{path} does not take {method}"))
}
