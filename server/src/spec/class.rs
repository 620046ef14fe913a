//! A class on the wire: its index as a number, or its name or an alias as a string.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A class as the client wrote it. A string of digits is a name, as the digits' data sets have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassRef {
    /// Position in the model's list, from 0.
    Index(u64),
    /// Name or alias, in any case.
    Name(String),
}

// === impl ClassRef ===

impl Serialize for ClassRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Index(index) => serializer.serialize_u64(*index),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

impl<'de> Deserialize<'de> for ClassRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ClassVisitor;

        impl Visitor<'_> for ClassVisitor {
            type Value = ClassRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a class's index or its name")
            }

            fn visit_u64<E: de::Error>(self, index: u64) -> Result<ClassRef, E> {
                Ok(ClassRef::Index(index))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ClassRef, E> {
                Ok(ClassRef::Name(name.to_owned()))
            }
        }

        deserializer.deserialize_any(ClassVisitor)
    }
}

impl PartialSchema for ClassRef {
    fn schema() -> RefOr<Schema> {
        let index = ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer)).minimum(Some(0));
        let name = ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
        OneOfBuilder::new().item(index).item(name).into()
    }
}

impl ToSchema for ClassRef {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_index_and_a_string_a_name() {
        let read = |json: &str| serde_json::from_str::<ClassRef>(json).ok();
        assert_eq!(read("7"), Some(ClassRef::Index(7)));
        assert_eq!(read("\"7\""), Some(ClassRef::Name("7".to_owned())));
        assert_eq!(read("-1"), None);
        assert_eq!(read("1.0"), None);
        assert_eq!(read("[]"), None);
    }
}
