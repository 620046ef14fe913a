//! Metrics for Prometheus. Counters and histograms move as things happen; gauges of the moment are looked up here, when
//! somebody asks.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::health;
use crate::app::App;
use crate::error::{ApiError, ErrorBody};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::telemetry;

/// Counters, gauges and histograms in Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "text/plain; version=0.0.4"),
        (status = 500, description = "A defect of the server.", body = ErrorBody),
    )
)]
pub async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    let scrape = app.metrics().scrape(|metrics| look(&app, metrics));
    let text = scrape.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}

/// Sets the gauges of the moment. A model that is gone leaves none behind.
fn look(app: &App, metrics: &Metrics) {
    metrics.alive.set(health::failure(app).is_none().into());
    metrics.ready.set(health::unready(app).is_none().into());
    metrics.backlog_limit.set(app.config().max_backlog.as_secs_f64());
    metrics.trajectories_limit.set(whole(app.config().queue_limit));
    metrics.frame_bytes.set(whole(app.frame_bytes()));
    metrics.frame_limit.set(whole(app.config().frame_limit));
    metrics.answer_bytes.set(whole(app.answer_bytes()));
    metrics.answer_limit.set(whole(app.config().answer_limit));
    // One scrape at a time: nobody adds to it in between.
    metrics.log_lost.inc_by(telemetry::lost_lines().saturating_sub(metrics.log_lost.get()));
    metrics.study_quota.set(whole(app.config().study_quota));
    for gauge in [
        &metrics.trajectories,
        &metrics.waiting,
        &metrics.backlog_rows,
        &metrics.backlog_bytes,
        &metrics.tick_room,
        &metrics.studies,
    ] {
        gauge.reset();
    }
    metrics.backlog.reset();
    for model in app.models() {
        metrics.tick_room.with_label_values(&[model.name()]).set(whole(model.batcher.room()));
        add(metrics, &model);
    }
    // A version that was replaced counts until its last image or study is done.
    let works = |model: &&Arc<Model>| model.batcher.images() + model.batcher.standing().studies > 0;
    app.retired().iter().filter(works).for_each(|model| add(metrics, model));
}

fn add(metrics: &Metrics, model: &Model) {
    let (standing, name) = (model.batcher.standing(), &[model.name()]);
    let bytes = standing.images * model.batcher.elements() * size_of::<f32>();
    metrics.trajectories.with_label_values(name).add(whole(standing.images));
    metrics.waiting.with_label_values(name).add(whole(standing.waiting));
    metrics.backlog_rows.with_label_values(name).add(i64::try_from(standing.rows).unwrap_or(i64::MAX));
    metrics.backlog_bytes.with_label_values(name).add(whole(bytes));
    metrics.studies.with_label_values(name).add(whole(standing.studies));
    metrics.backlog.with_label_values(name).add(standing.backlog.as_secs_f64());
}

/// As a gauge has it.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
