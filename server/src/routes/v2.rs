//! The Open Inference Protocol, version 2, over HTTP. What its tensors mean is in [`crate::v2`]; here are the paths. Each
//! path of a model exists twice, with and without `/versions/1`.

pub mod health;
pub mod infer;
pub mod models;
pub mod repository;
pub mod server;
pub mod statistics;

use std::sync::Arc;

use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::{Object, Required, Type};
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::config::Config;
use crate::error::{ApiError, Cause};
use crate::model::Model;
use crate::v2::{Face, MAX_ROWS, VERSION};

/// Most rows of a request: a request that can never be admitted is refused as what it is, not as one too many.
pub fn max_rows(config: &Config) -> usize {
    MAX_ROWS.min(config.queue_limit)
}

/// The model of this name, and the face of it that is meant.
fn find(app: &App, name: &str) -> Result<(Arc<Model>, Face), ApiError> {
    for (package, face) in Face::meanings(name) {
        match app.model(Some(package)) {
            Ok(model) if Face::of(&model.card.manifest).any(|has| has == face) => return Ok((model, face)),
            Ok(_) => {}
            Err(error) if error.cause == Cause::ModelNotFound => {}
            Err(error) => return Err(error),
        }
    }
    let models = app.models();
    let faces = |model: &Arc<Model>| -> Vec<String> {
        Face::of(&model.card.manifest).map(|face| face.name(model.name())).collect()
    };
    let known: Vec<String> = models.iter().flat_map(faces).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let shown: String = name.chars().take(64).collect();
    Err(ApiError::model_not_found(&shown, &known))
}

/// The routes of a model, documented as those of its version.
pub fn versioned(mut routes: OpenApiRouter<App>) -> OpenApiRouter<App> {
    for item in routes.get_openapi_mut().paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post];
        for operation in operations.into_iter().flatten() {
            let schema = Object::builder().schema_type(Type::String).enum_values(Some([VERSION]));
            let version = ParameterBuilder::new()
                .name("version")
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .description(Some("The only version."))
                .schema(Some(schema));
            operation.parameters.get_or_insert_default().push(version.build().into());
            operation.operation_id = operation.operation_id.take().map(|id| id + "_version");
        }
    }
    routes
}

#[cfg(test)]
mod tests;
