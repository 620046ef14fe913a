//! The protocol's datatypes: their names, their sizes, and which of them tensors here may have.

use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A datatype that a tensor here may have. The protocol has more (BOOL, the shorter integers, FP16, BF16); no model here
/// takes those, and they are refused by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    /// Eight bits, unsigned.
    Uint8,
    /// 32 bits, unsigned.
    Uint32,
    /// 64 bits, unsigned.
    Uint64,
    /// 32 bits, two's complement.
    Int32,
    /// 64 bits, two's complement.
    Int64,
    /// IEEE single precision.
    Fp32,
    /// IEEE double precision.
    Fp64,
    /// Strings of bytes, each of a length of its own.
    Bytes,
}

// === impl Datatype ===

impl Datatype {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Uint8,
        Self::Uint32,
        Self::Uint64,
        Self::Int32,
        Self::Int64,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uint8 => "UINT8",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// The name in a model configuration.
    pub fn config_name(self) -> &'static str {
        match self {
            Self::Uint8 => "TYPE_UINT8",
            Self::Uint32 => "TYPE_UINT32",
            Self::Uint64 => "TYPE_UINT64",
            Self::Int32 => "TYPE_INT32",
            Self::Int64 => "TYPE_INT64",
            Self::Fp32 => "TYPE_FP32",
            Self::Fp64 => "TYPE_FP64",
            Self::Bytes => "TYPE_STRING",
        }
    }

    /// The datatype of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|datatype| datatype.as_str() == name)
    }

    /// Bytes of an element; none for [`Datatype::Bytes`], whose elements differ.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Uint8 => Some(1),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl PartialSchema for Datatype {
    fn schema() -> RefOr<Schema> {
        let names = Self::ALL.map(Self::as_str);
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some(names)).into()
    }
}

impl ToSchema for Datatype {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_not() {
        for datatype in Datatype::ALL {
            assert_eq!(Datatype::parse(datatype.as_str()), Some(datatype));
        }
        for other in ["FP16", "BF16", "BOOL", "INT8", "fp32", "", "TYPE_FP32"] {
            assert_eq!(Datatype::parse(other), None, "{other}");
        }
    }
}
