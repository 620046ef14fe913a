//! A seed on the wire: 0 to 2^63-1, as a JSON number or as a decimal string, since many JSON libraries round
//! numbers beyond 2^53. Responses carry the string.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// The largest seed.
pub const MAX_SEED: u64 = i64::MAX as u64;

/// What is accepted, in words.
const EXPECTED: &str = "an integer from 0 to 9223372036854775807, as a number or a decimal string";

/// A seed, 0 to [`MAX_SEED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

// === impl Seed ===

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SeedVisitor;

        impl Visitor<'_> for SeedVisitor {
            type Value = Seed;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, seed: u64) -> Result<Seed, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(seed), &self);
                if seed <= MAX_SEED { Ok(Seed(seed)) } else { Err(wrong()) }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Seed, E> {
                // 19 digits hold every seed, and no number of them overflows 64 bits.
                let digits = (1..=19).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
                match text.parse() {
                    Ok(seed) if digits => self.visit_u64(seed),
                    _ => Err(E::custom(format_args!("a string that is not {EXPECTED}"))),
                }
            }
        }

        deserializer.deserialize_any(SeedVisitor)
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl PartialSchema for Seed {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .minimum(Some(0))
            .maximum(Some(i64::MAX));
        let text =
            ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some("^[0-9]{1,19}$"));
        OneOfBuilder::new().item(number).item(text).into()
    }
}

impl ToSchema for Seed {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<u64, String> {
        serde_json::from_str::<Seed>(json).map(|seed| seed.0).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_decimal_strings_are_seeds() {
        assert_eq!(read("0"), Ok(0));
        assert_eq!(read("9223372036854775807"), Ok(MAX_SEED));
        assert_eq!(read("\"9223372036854775807\""), Ok(MAX_SEED));
        assert_eq!(read("\"007\""), Ok(7));
    }

    #[test]
    fn everything_else_is_refused_with_the_range() {
        for bad in [
            "-1",
            "9223372036854775808",
            "18446744073709551616",
            "1.5",
            "1e3",
            "\"\"",
            "\"-1\"",
            "\"+1\"",
            "\" 1\"",
            "\"0x10\"",
            "\"9223372036854775808\"",
            "\"99999999999999999999\"",
            "null",
            "[1]",
            "true",
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("0 to 9223372036854775807"), "{bad}: {error}");
        }
    }

    #[test]
    fn it_is_written_as_a_string_and_read_back() {
        let text = serde_json::to_string(&Seed(MAX_SEED)).unwrap();
        assert_eq!(text, "\"9223372036854775807\"");
        assert_eq!(read(&text), Ok(MAX_SEED));
    }
}
