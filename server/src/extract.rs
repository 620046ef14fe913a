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
mod prefer;
mod upload;

pub use accept::{Accept, Form};
pub(crate) use body::{no_room, too_large, too_slow};
pub use compression::Compression;
pub(crate) use fields::form_of;
pub use fields::{ApiFields, Fields};
pub use infer::{OptionalJson, infer};
pub use json::ApiJson;
pub(crate) use json::parse;
pub use path::{JobId, ModelId, RequestIdPath, VersionedModel};
pub(crate) use path::{no_job, nobody};
pub use prefer::Prefer;
pub use upload::{PngUpload, UploadRequest};

#[cfg(doc)]
use crate::error::ApiError;
