//! The server: what it is and which extensions of the protocol it has.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// What the server is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ServerMetadata)]
pub struct ServerMetadata {
    /// `windowpane`.
    #[schema(example = "windowpane")]
    pub name: &'static str,
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: &'static str,
    /// The extensions of the protocol that it has.
    #[schema(example = json!(["binary_tensor_data"]))]
    pub extensions: [&'static str; 4],
}

/// What the server is.
#[utoipa::path(
    get,
    path = "/v2",
    operation_id = "v2_server_metadata",
    tag = "inference",
    responses((status = 200, description = "Name, version and extensions.", body = ServerMetadata))
)]
pub async fn metadata() -> Json<ServerMetadata> {
    Json(ServerMetadata {
        name: "windowpane",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    })
}
