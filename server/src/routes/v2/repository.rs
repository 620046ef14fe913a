//! The repository: which models there are, and which of them serve. Packages come from the server's own folder, never
//! with a request.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windowpane_diffusion::Manifest;

use super::find;
use crate::app::{App, Phase};
use crate::error::{ApiError, Cause, V2ErrorBody};
use crate::extract::{ModelId, OptionalJson};
use crate::v2::{Face, VERSION};

/// Which models to list.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2IndexRequest)]
pub struct IndexRequest {
    /// Only those that are ready.
    #[schema(default = false)]
    pub ready: Option<bool>,
}

/// A model of the repository.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2IndexEntry)]
pub struct IndexEntry {
    /// The name to ask for.
    #[schema(example = "fashion-dit.sampler")]
    pub name: String,
    /// `1`.
    #[schema(example = "1")]
    pub version: &'static str,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    #[schema(example = "READY")]
    pub state: &'static str,
    /// Why it is unavailable; else empty.
    #[schema(example = "")]
    pub reason: &'static str,
}

/// What to load.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2LoadRequest)]
pub struct LoadRequest {
    /// None: a package is loaded as it is, and no configuration or file is taken with a request.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<BTreeMap<String, IgnoredAny>>,
}

/// What to unload.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2UnloadRequest)]
pub struct UnloadRequest {
    /// How.
    pub parameters: Option<UnloadParameters>,
}

/// How to unload.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = V2UnloadParameters)]
pub struct UnloadParameters {
    /// Either: no model depends on another.
    pub unload_dependents: Option<bool>,
}

// === impl IndexEntry ===

impl IndexEntry {
    fn new(name: String, state: &'static str, reason: &'static str) -> Self {
        Self { name, version: VERSION, state, reason }
    }
}

/// The models that are served, and those in the server's folder that could be, in order of name.
#[utoipa::path(
    post,
    path = "/v2/repository/index",
    operation_id = "v2_repository_index",
    tag = "inference",
    request_body(content = Option<IndexRequest>, description = "May be left out."),
    responses(
        (status = 200, description = "The models.", body = Vec<IndexEntry>),
        (status = 400, description = "The body is not JSON.", body = V2ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = V2ErrorBody),
        (status = 413, description = "The body is too large.", body = V2ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = V2ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted.", body = V2ErrorBody),
        (status = 500, description = "The server's folder cannot be read.", body = V2ErrorBody),
        (status = 503, description = "Too many bodies at a time.", body = V2ErrorBody),
    )
)]
pub async fn index(
    State(app): State<App>,
    OptionalJson(request): OptionalJson<IndexRequest>,
) -> Result<Json<Vec<IndexEntry>>, ApiError> {
    let mut states: BTreeMap<String, (Vec<Face>, &str, &str)> = BTreeMap::new();
    if request.ready != Some(true) {
        let loading = app.phase() == Phase::Loading;
        let state = if loading { ("LOADING", "") } else { ("UNAVAILABLE", "not loaded") };
        let here = app.clone();
        let available = tokio::task::spawn_blocking(move || here.loader().manifests())
            .await
            .map_err(|error| ApiError::internal(format!("looking for packages ended early: {error}")))?
            .map_err(|error| ApiError::internal(error.to_string()))?;
        let faces = |manifest: &Manifest| (Face::of(manifest).collect(), state.0, state.1);
        states.extend(available.into_iter().map(|manifest| (manifest.name.clone(), faces(&manifest))));
    }
    for model in app.models() {
        let (name, faces) = (model.name().to_owned(), Face::of(&model.card.manifest).collect());
        match model.batcher.is_alive() {
            true => states.insert(name, (faces, "READY", "")),
            false if request.ready == Some(true) => None,
            false => states.insert(name, (faces, "UNAVAILABLE", "its worker has died")),
        };
    }
    let mut index = Vec::new();
    for (package, (faces, state, reason)) in states {
        index.extend(faces.iter().map(|face| IndexEntry::new(face.name(&package), state, reason)));
    }
    Ok(Json(index))
}

/// Load a package.
///
/// It comes from the server's own folder of packages, and serves once its golden matches, all its faces at once. If it is
/// served already it is loaded as it is now: new requests go to the new one, those under way finish with the old one.
/// If it does not load, nothing changes.
#[utoipa::path(
    post,
    path = "/v2/repository/models/{name}/load",
    operation_id = "v2_load",
    tag = "inference",
    params(("name" = String, Path, description = "A package's name, or that of one of its faces.", example = "fashion-dit")),
    request_body(content = Option<LoadRequest>, description = "May be left out."),
    responses(
        (status = 200, description = "It serves."),
        (status = 400, description = "The body is not JSON.", body = V2ErrorBody),
        (status = 401, description = "No key that is known here.", body = V2ErrorBody),
        (status = 403, description = "Not an administrator's key.", body = V2ErrorBody),
        (status = 404, description = "No such package in the server's folder.", body = V2ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = V2ErrorBody),
        (status = 413, description = "The body is too large.", body = V2ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = V2ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted.", body = V2ErrorBody),
        (status = 500, description = "It does not load; the log says why.", body = V2ErrorBody),
        (status = 503, description = "The models are still loading, or too many bodies at a time.", body = V2ErrorBody),
    )
)]
pub async fn load(
    State(app): State<App>,
    ModelId(name): ModelId,
    OptionalJson(request): OptionalJson<LoadRequest>,
) -> Result<(), ApiError> {
    if let Some((parameter, _)) = request.parameters.iter().flatten().next() {
        let shown: String = parameter.chars().take(64).collect();
        let supported = "no parameters; a package is loaded from the server's own folder, as it is";
        return Err(ApiError::unsupported(&format!("parameters.{shown}"), "is given and", supported));
    }
    let mut missing = None;
    for (package, _) in Face::meanings(&name) {
        match app.load_model(package).await {
            Ok(_) => return Ok(()),
            Err(error) if error.cause == Cause::ModelNotFound => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(missing.unwrap_or_else(|| ApiError::internal("a name that means nothing")))
}

/// Unload a package: all its faces, and the images of `/v1`. Requests under way are finished.
#[utoipa::path(
    post,
    path = "/v2/repository/models/{name}/unload",
    operation_id = "v2_unload",
    tag = "inference",
    params(("name" = String, Path, description = "A package's name, or that of one of its faces.", example = "fashion-dit")),
    request_body(content = Option<UnloadRequest>, description = "May be left out."),
    responses(
        (status = 200, description = "It serves no longer."),
        (status = 400, description = "The body is not JSON.", body = V2ErrorBody),
        (status = 401, description = "No key that is known here.", body = V2ErrorBody),
        (status = 403, description = "Not an administrator's key.", body = V2ErrorBody),
        (status = 404, description = "No such model is served.", body = V2ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = V2ErrorBody),
        (status = 413, description = "The body is too large.", body = V2ErrorBody),
        (status = 415, description = "The body's type is not JSON.", body = V2ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted.", body = V2ErrorBody),
        (status = 503, description = "The models are still loading, or too many bodies at a time.", body = V2ErrorBody),
    )
)]
pub async fn unload(
    State(app): State<App>,
    ModelId(name): ModelId,
    OptionalJson(UnloadRequest { .. }): OptionalJson<UnloadRequest>,
) -> Result<(), ApiError> {
    let (model, _) = find(&app, &name)?;
    app.unload_model(model.name()).await
}
