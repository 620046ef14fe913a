//! What handlers take from a request: extractors whose rejection is an [`ApiError`], so that every refusal has the
//! same form.

mod accept;
mod identity;
mod json;
mod path;

pub use accept::{Accept, Form};
pub use identity::{Admin, Generator};
pub use json::ApiJson;
pub use path::{ModelId, RequestIdPath};

#[cfg(doc)]
use crate::error::ApiError;
