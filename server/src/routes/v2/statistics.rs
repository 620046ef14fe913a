//! What was asked of each model, how often and for how long.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::find;
use crate::app::App;
use crate::error::{ApiError, V2ErrorBody};
use crate::extract::VersionedModel;
use crate::model::Model;
use crate::v2::Face;
use crate::v2::statistics::ModelStats;

/// Statistics of models.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Statistics)]
pub struct StatisticsBody {
    /// One for each model.
    pub model_stats: Vec<ModelStats>,
}

fn stats(app: &App, model: &Model, face: Face) -> ModelStats {
    let metrics = app.metrics();
    let ticks = match face {
        Face::Denoiser | Face::Sampler => metrics.ticks.with_label_values(&[model.name()]).get(),
        Face::Inside(inside) => metrics.study_units.with_label_values(&[model.name(), inside.as_str()]).get(),
    };
    app.statistics().of(face.name(model.name()), ticks)
}

/// The statistics of every model.
#[utoipa::path(
    get,
    path = "/v2/models/stats",
    operation_id = "v2_statistics",
    tag = "inference",
    responses((status = 200, description = "The statistics; empty while models load.", body = StatisticsBody))
)]
pub async fn all(State(app): State<App>) -> Json<StatisticsBody> {
    let mut model_stats = Vec::new();
    for model in app.models() {
        model_stats.extend(Face::of(&model.card.manifest).map(|face| stats(&app, &model, face)));
    }
    Json(StatisticsBody { model_stats })
}

/// The statistics of one model, since the server started.
#[utoipa::path(
    get,
    path = "/stats",
    operation_id = "v2_model_statistics",
    tag = "inference",
    params(("name" = String, Path, description = "The model.", example = "fashion-dit.sampler")),
    responses(
        (status = 200, description = "The statistics, a list of one.", body = StatisticsBody),
        (status = 404, description = "No such model or version.", body = V2ErrorBody),
        (status = 503, description = "The models are still loading.", body = V2ErrorBody),
    )
)]
pub async fn one(
    State(app): State<App>,
    VersionedModel(name): VersionedModel,
) -> Result<Json<StatisticsBody>, ApiError> {
    let (model, face) = find(&app, &name)?;
    Ok(Json(StatisticsBody { model_stats: vec![stats(&app, &model, face)] }))
}
