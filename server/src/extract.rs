//! What handlers take from a request: extractors whose rejection is an [`ApiError`], so that every refusal has the
//! same form.

mod accept;
mod body;
mod compression;
mod fields;
mod identity;
mod infer;
mod json;
mod multipart;
mod path;
mod upload;

pub use accept::{Accept, Form};
pub(crate) use body::{too_large, too_slow};
pub use compression::Compression;
pub(crate) use fields::form_of;
pub use fields::{ApiFields, Fields};
pub use infer::{OptionalJson, infer};
pub use json::ApiJson;
pub(crate) use path::nobody;
pub use path::{ModelId, RequestIdPath, VersionedModel};
pub use upload::{PngUpload, UploadRequest};

#[cfg(doc)]
use crate::error::ApiError;
