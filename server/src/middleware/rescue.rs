//! Errors become responses here, and only here: the body in the form of the protocol that was spoken, with the request's
//! id, and one line in the log for each fault that is ours.

use std::any::Any;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::request_id::RequestId;
use crate::error::ApiError;

/// The layer: a response that carries an [`ApiError`] gets its body.
pub async fn layer(Extension(id): Extension<RequestId>, request: Request, next: Next) -> Response {
    let v2 = is_v2(request.uri().path());
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
    if error.cause.is_fault() {
        let detail = error.detail.as_deref().unwrap_or(&error.message);
        tracing::error!(request_id = id.as_str(), code = error.cause.code(), detail, "request failed");
    }
    let answer = if v2 {
        Json(error.v2_body(id.as_str())).into_response()
    } else {
        Json(error.body(id.as_str())).into_response()
    };
    let (parts, body) = answer.into_parts();
    response.headers_mut().extend(parts.headers);
    response.extensions_mut().insert(error.cause);
    *response.body_mut() = body;
    response
}

/// Whether a path is the Open Inference Protocol's, existing or not.
fn is_v2(path: &str) -> bool {
    path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::post;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;
    use crate::engine::fake::Faults;
    use crate::middleware;
    use crate::testing::{Answer, Log, app};

    #[test]
    fn the_protocol_is_told_by_the_path() {
        for (path, v2) in
            [("/v2", true), ("/v2/", true), ("/v2/models/v1", true), ("/v22", false), ("/v1/v2", false)]
        {
            assert_eq!(is_v2(path), v2, "{path}");
        }
    }

    async fn odd() -> Response {
        panic!("of /secret/path")
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_an_error_like_any_other() {
        let app = app(Config::default(), &Faults::default());
        let router = middleware::apply(Router::new().route("/livez", post(odd)), &app);
        let log = Log::default();
        let _installed = log.install();
        let request = Request::post("/livez").header("x-request-id", "mine-1").body(Body::from("unread"));
        let answer = Answer::read(router.oneshot(request.unwrap()).await.unwrap()).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status.as_u16(), &error["code"]), (500, &"internal_error".into()));
        assert_eq!(error["request_id"], "mine-1");
        assert!(!String::from_utf8_lossy(&answer.bytes).contains("secret"));
        assert_eq!(answer.headers["connection"], "close", "its body was not read");
        assert_eq!(app.metrics().rejections.with_label_values(&["internal_error"]).get(), 1);
        let said = log.text();
        assert!(said.contains("a handler panicked: of /secret/path") && said.contains("mine-1"), "{said}");
        assert!(said.contains("ended=\"internal_error\""), "{said}");
    }
}
