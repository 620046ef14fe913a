//! An uploaded picture: the file itself as the body, or base64 in JSON.

use axum::extract::{FromRequest, Request};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{body, json};
use crate::app::App;
use crate::error::ApiError;

/// The bytes of a PNG, or of what claims to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PngUpload(pub Bytes);

/// A picture in JSON.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadRequest {
    /// A PNG in base64.
    #[schema(required, content_encoding = "base64")]
    image: Option<String>,
}

impl FromRequest<App> for PngUpload {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let is_png = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "image/png");
        if !is_png {
            json::require_json(request.headers(), "`image/png` or `application/json`")?;
        }
        let body = body::collect(request, app).await?;
        if is_png {
            return Ok(Self(body));
        }
        let UploadRequest { image } = json::parse(&body)?;
        let image = image.ok_or_else(|| ApiError::invalid("image", "missing", "a PNG in base64"))?;
        let bytes = STANDARD.decode(&image).map_err(|_| {
            let expected = "a PNG in standard base64, without a `data:` prefix";
            ApiError::invalid("image", "not base64", expected)
        })?;
        Ok(Self(bytes.into()))
    }
}
