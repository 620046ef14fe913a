//! A model: what goes in, what comes out, and whether it is ready.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::{find, max_rows};
use crate::app::{App, Phase};
use crate::error::{ApiError, V2ErrorBody};
use crate::extract::VersionedModel;
use crate::v2::face::{Metadata, ModelConfig};

/// Whether a model is ready.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ModelReady)]
pub struct ModelReady {
    /// The model.
    #[schema(example = "fashion-dit.sampler")]
    pub name: String,
    /// Whether it is.
    pub ready: bool,
}

/// A model that is not ready: it says so itself, or none is there yet.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = V2NotReady)]
pub enum NotReady {
    /// Draining, or its worker has died.
    Model(ModelReady),
    /// The models are still loading.
    Error(V2ErrorBody),
}

/// What goes into a model and what comes out of it. The first dimension, -1, is the number of rows, at most the
/// configuration's `max_batch_size`; of a product with the Jacobian, that of the vectors.
#[utoipa::path(
    get,
    path = "/",
    operation_id = "v2_model_metadata",
    tag = "inference",
    params(("name" = String, Path, description = "A package's name, or that with `.sampler`, `.attention`, `.jvp` or `.vjp`.", example = "fashion-dit.sampler")),
    responses(
        (status = 200, description = "The metadata.", body = Metadata),
        (status = 404, description = "No such model or version.", body = V2ErrorBody),
        (status = 503, description = "The models are still loading.", body = V2ErrorBody),
    )
)]
pub async fn metadata(
    State(app): State<App>,
    VersionedModel(name): VersionedModel,
) -> Result<Json<Metadata>, ApiError> {
    let (model, face) = find(&app, &name)?;
    Ok(Json(face.metadata(&model.card)))
}

/// The same as a configuration, with what may be left out and the most rows of a request.
#[utoipa::path(
    get,
    path = "/config",
    operation_id = "v2_model_config",
    tag = "inference",
    params(("name" = String, Path, description = "The model.", example = "fashion-dit.sampler")),
    responses(
        (status = 200, description = "The configuration.", body = ModelConfig),
        (status = 404, description = "No such model or version.", body = V2ErrorBody),
        (status = 503, description = "The models are still loading.", body = V2ErrorBody),
    )
)]
pub async fn config(
    State(app): State<App>,
    VersionedModel(name): VersionedModel,
) -> Result<Json<ModelConfig>, ApiError> {
    let (model, face) = find(&app, &name)?;
    Ok(Json(face.config(&model.card, max_rows(app.config()))))
}

/// Whether a request to this model is served now.
#[utoipa::path(
    get,
    path = "/ready",
    operation_id = "v2_model_ready",
    tag = "inference",
    params(("name" = String, Path, description = "The model.", example = "fashion-dit.sampler")),
    responses(
        (status = 200, description = "Ready.", body = ModelReady),
        (status = 404, description = "No such model or version.", body = V2ErrorBody),
        (status = 503, description = "Loading, draining, or its worker has died.", body = NotReady),
    )
)]
pub async fn ready(
    State(app): State<App>,
    VersionedModel(name): VersionedModel,
) -> Result<(StatusCode, Json<ModelReady>), ApiError> {
    let (model, face) = find(&app, &name)?;
    let ready = app.phase() == Phase::Ready && model.batcher.is_alive();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(ModelReady { name: face.name(model.name()), ready })))
}
