//! The Open Inference Protocol, version 2, without its HTTP: tensors as JSON or as bytes, requests and responses made
//! of them, and what a model package looks like through them. A package `NAME` has several faces: `NAME` is the
//! network itself, `NAME.sampler` draws images with it, and where it has their graphs `NAME.attention`, `NAME.jvp` and
//! `NAME.vjp` show its insides. Pure code: the routes are in [`crate::routes::v2`].
//!
//! Whatever the bytes, reading them takes memory in proportion to their number: every length that a client states is
//! compared with what came before anything is allocated for it.

pub mod data;
pub mod datatype;
pub mod denoiser;
pub mod face;
pub mod insides;
pub mod port;
pub mod request;
pub mod response;
pub mod sampler;
pub mod statistics;
pub mod tensor;

pub use datatype::Datatype;
pub use face::Face;
pub use port::Port;
pub use request::InferRequest;
pub use response::InferResponse;
pub use statistics::Statistics;
pub use tensor::{Tensor, Values};

/// Rows of one request, where the queue holds that many: enough that a request's own overhead is nothing, few enough
/// that one request is no flood.
pub const MAX_ROWS: usize = 64;

/// The only version of every model: a package that changes gets another name.
pub const VERSION: &str = "1";
