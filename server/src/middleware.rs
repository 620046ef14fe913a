//! The layers around every route, outermost last, with the reason for each position.

pub mod access;
pub mod cors;
pub mod request_id;
pub mod rescue;
pub mod track;
pub mod unread;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;

/// Wraps the finished router.
pub fn apply(router: Router, app: &App) -> Router {
    let router = router
        // Innermost: who may not do something gets no further, and the layers above treat the refusal like any error.
        .layer(from_fn_with_state(app.clone(), access::layer))
        // Below the rest: a panic in a handler becomes an error like any other, and the layers above see it as one.
        .layer(CatchPanicLayer::custom(rescue::panicked))
        // Above the panic layer: a handler that panics may leave its body unread too.
        .layer(from_fn(unread::layer))
        // Above the panic layer, whose errors it writes too; below tracking, which should see the final status.
        .layer(from_fn(rescue::layer));
    // Above whatever refuses: a browser shows an error to its page only if the answer allows it, and it asks beforehand
    // without a key. Below tracking: these questions are requests, too.
    let router = match &app.config().cors {
        Some(cors) => router.layer(cors.layer()),
        None => router,
    };
    router
        // Measures everything below, so that `total` is what the client waited for.
        .layer(from_fn_with_state(app.clone(), track::layer))
        // Outermost: everything below may name the request.
        .layer(from_fn(request_id::layer))
}
