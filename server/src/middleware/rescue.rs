//! Errors become responses here, and only here: the body in OpenAI's form with the request's id, and one line in
//! the log for each fault that is ours.

use std::any::Any;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::request_id::RequestId;
use crate::error::ApiError;

/// The layer: a response that carries an [`ApiError`] gets its body.
pub async fn layer(Extension(id): Extension<RequestId>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    if response.status().is_server_error() {
        let detail = error.detail.as_deref().unwrap_or(&error.message);
        tracing::error!(request_id = id.as_str(), code = error.cause.code(), detail, "request failed");
    }
    let (parts, body) = Json(error.body(id.as_str())).into_response().into_parts();
    response.headers_mut().extend(parts.headers);
    response.extensions_mut().insert(error.cause);
    *response.body_mut() = body;
    response
}

/// What a panic in a handler is answered with.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands the panic over")]
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    ApiError::internal(format!("a handler panicked: {}", message_of(&*panic))).into_response()
}

/// The words of a panic, where it has any.
pub fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
