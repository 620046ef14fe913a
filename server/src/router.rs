//! Every route on one page, grouped by who calls it. A route and its documentation are one thing here: what is not
//! listed does not exist, and what exists is in the document.

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::app::App;
use crate::routes::{analysis, fallback, health, images, jobs, metrics, models, replay, requests, v2};
use crate::{middleware, openapi};

/// Whether the metrics are among the routes, or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricsAre {
    Here,
    Elsewhere,
}

/// All routes with their documentation.
pub(crate) fn routes(metrics: MetricsAre) -> OpenApiRouter<App> {
    let mut router = OpenApiRouter::with_openapi(openapi::preamble())
        // Clients.
        .routes(routes!(images::generate))
        .routes(routes!(replay::replay))
        .routes(routes!(analysis::attention::attention))
        .routes(routes!(analysis::jacobian::jacobian))
        .routes(routes!(analysis::psnr_gap::psnr_gap))
        .routes(routes!(jobs::list::list, jobs::submit::submit))
        .routes(routes!(jobs::get::get, jobs::submit::put, jobs::cancel::cancel))
        .routes(routes!(jobs::events::events))
        .routes(routes!(jobs::result::result))
        .routes(routes!(requests::cancel))
        .routes(routes!(models::list))
        .routes(routes!(models::get))
        // Clients of the Open Inference Protocol.
        .routes(routes!(v2::server::metadata))
        .routes(routes!(v2::health::live))
        .routes(routes!(v2::health::ready))
        .routes(routes!(v2::statistics::all))
        .routes(routes!(v2::repository::index))
        .routes(routes!(v2::repository::load))
        .routes(routes!(v2::repository::unload))
        .nest("/v2/models/{name}", of_a_model())
        .nest("/v2/models/{name}/versions/{version}", v2::versioned(of_a_model()))
        // Operators.
        .merge(of_operators());
    if metrics == MetricsAre::Here {
        router = router.merge(of_metrics());
    }
    openapi::complete(router.get_openapi_mut());
    router
}

/// What supervisors ask.
fn of_operators() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::startupz))
}

fn of_metrics() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics::metrics))
}

/// What can be asked of a model of the Open Inference Protocol, below its path.
fn of_a_model() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(v2::models::metadata))
        .routes(routes!(v2::models::ready))
        .routes(routes!(v2::models::config))
        .routes(routes!(v2::statistics::one))
        .routes(routes!(v2::infer::infer))
}

/// The service: routes, the document at /openapi.json, its pages at /docs, and the layers around them. Where the metrics
/// have a listener of their own, they are not here.
pub fn router(app: &App) -> Router {
    let elsewhere = app.config().metrics_listen.is_some();
    let metrics = if elsewhere { MetricsAre::Elsewhere } else { MetricsAre::Here };
    let (router, document) = routes(metrics).split_for_parts();
    finish(router.merge(SwaggerUi::new("/docs").url("/openapi.json", document)), app)
}

/// What is served on the metrics' own listener: they, and what supervisors ask.
pub fn metrics_router(app: &App) -> Router {
    finish(of_operators().merge(of_metrics()).split_for_parts().0, app)
}

fn finish(router: Router<App>, app: &App) -> Router {
    let router = router
        .fallback(fallback::not_found)
        .method_not_allowed_fallback(fallback::method_not_allowed)
        .with_state(app.clone());
    middleware::apply(router, app)
}
