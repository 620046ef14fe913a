//! Every route on one page, grouped by who calls it. A route and its documentation are one thing here: what is not
//! listed does not exist, and what exists is in the document.

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::app::App;
use crate::routes::{fallback, health, images, metrics, models, requests};
use crate::{middleware, openapi};

/// All routes with their documentation.
pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::preamble())
        // Clients.
        .routes(routes!(images::generate))
        .routes(routes!(requests::cancel))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        // Operators.
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(metrics::metrics))
}

/// The service: routes, the document at /openapi.json, its pages at /docs, and the layers around them.
pub fn router(app: &App) -> Router {
    let (router, document) = routes().split_for_parts();
    let router = router
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
        .fallback(fallback::not_found)
        .method_not_allowed_fallback(fallback::method_not_allowed)
        .with_state(app.clone());
    middleware::apply(router, app)
}
