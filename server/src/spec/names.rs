//! The schemas of names that `diffusion` defines, so that the document lists what there is and cannot drift from it.

use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use windowpane_diffusion::{Sampler, TimeGrid};

/// The name of a sampler.
#[derive(Debug)]
pub enum SamplerName {}

/// The name of a time grid.
#[derive(Debug)]
pub enum TimeGridName {}

/// The bytes of a file.
#[derive(Debug)]
pub enum FileBytes {}

impl PartialSchema for SamplerName {
    fn schema() -> RefOr<Schema> {
        one_of(Sampler::ALL.map(Sampler::as_str))
    }
}

impl ToSchema for SamplerName {}

impl PartialSchema for TimeGridName {
    fn schema() -> RefOr<Schema> {
        one_of(TimeGrid::ALL.map(TimeGrid::as_str))
    }
}

impl ToSchema for TimeGridName {}

impl PartialSchema for FileBytes {
    fn schema() -> RefOr<Schema> {
        use utoipa::openapi::schema::{KnownFormat, SchemaFormat};
        let binary = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).format(Some(binary)).into()
    }
}

impl ToSchema for FileBytes {}

fn one_of<const N: usize>(names: [&'static str; N]) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some(names)).into()
}
