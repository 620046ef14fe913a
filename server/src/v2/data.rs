//! A tensor's `data` in JSON: flat, or nested as its shape says, row-major either way. The datatype decides how an
//! element is read, and no element beyond the shape's is kept.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, SerializeSeq, Serializer};

use super::{Datatype, Values};
use crate::error::words;

/// Reads `text`, a whole JSON value, as the elements of a tensor of this shape. What is allocated is in proportion to
/// the text. Errors are words about elements and lists, and the place in `text`.
pub fn parse(datatype: Datatype, shape: &[usize], text: &str) -> Result<Values, String> {
    values(datatype, shape, text).map_err(|error| words::of_list(&error, datatype.as_str()))
}

fn values(datatype: Datatype, shape: &[usize], text: &str) -> serde_json::Result<Values> {
    Ok(match datatype {
        Datatype::Uint8 => Values::U8(list(shape, text)?),
        Datatype::Uint32 => Values::U32(list(shape, text)?),
        Datatype::Uint64 => Values::U64(list(shape, text)?),
        Datatype::Int32 => Values::I32(list(shape, text)?),
        Datatype::Int64 => Values::I64(list(shape, text)?),
        Datatype::Fp32 => Values::F32(list::<Single>(shape, text)?.into_iter().map(|v| v.0).collect()),
        Datatype::Fp64 => Values::F64(list(shape, text)?),
        Datatype::Bytes => {
            let strings = list::<String>(shape, text)?;
            Values::Bytes(strings.into_iter().map(String::into_bytes).collect())
        }
    })
}

/// The elements in order, from a flat list or from lists in lists.
fn list<'de, T: Deserialize<'de>>(shape: &[usize], text: &'de str) -> serde_json::Result<Vec<T>> {
    let count = shape.iter().product();
    let nested = text.trim_start().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('['));
    let flat = [count];
    let dims = if nested { shape } else { &flat[..] };
    // An element takes two characters at least, itself and a comma.
    let mut out = Vec::with_capacity(count.min(text.len() / 2));
    let mut parser = serde_json::Deserializer::from_str(text);
    Elements { dims, out: &mut out }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(out)
}

/// Reads a list of `dims[0]` lists, each of the remaining dimensions; of no dimensions, an element.
struct Elements<'a, T> {
    dims: &'a [usize],
    out: &'a mut Vec<T>,
}

// === impl Elements ===

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Elements<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.dims.is_empty() {
            self.out.push(T::deserialize(deserializer)?);
            Ok(())
        } else {
            deserializer.deserialize_seq(self)
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.dims[0])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let (length, inner) = (self.dims[0], &self.dims[1..]);
        for read in 0..length {
            if list.next_element_seed(Elements { dims: inner, out: self.out })?.is_none() {
                return Err(de::Error::invalid_length(read, &Self { dims: self.dims, out: self.out }));
            }
        }
        match list.next_element_seed(Nothing(PhantomData))? {
            None => Ok(()),
            Some(()) => {
                Err(de::Error::custom(format_args!("a list of more than {length}, expected {length}")))
            }
        }
    }
}

/// An element that should not be there: looked over, not kept.
struct Nothing(PhantomData<()>);

impl<'de> DeserializeSeed<'de> for Nothing {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(drop)
    }
}

/// A number that fits into single precision.
struct Single(f32);

// === impl Single ===

impl<'de> Deserialize<'de> for Single {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        let single = number as f32;
        let beyond = || de::Error::custom(format_args!("{number:e} is beyond FP32, expected at most 3.4e38"));
        if single.is_finite() { Ok(Self(single)) } else { Err(beyond()) }
    }
}

// === impl Values ===

impl Serialize for Values {
    /// A flat list. Numbers that JSON cannot hold, and strings that are not UTF-8, are errors.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let finite = |is: bool| if is { Ok(()) } else { Err(ser::Error::custom("a number is not finite")) };
        match self {
            Self::U8(v) => serializer.collect_seq(v),
            Self::U32(v) => serializer.collect_seq(v),
            Self::U64(v) => serializer.collect_seq(v),
            Self::I32(v) => serializer.collect_seq(v),
            Self::I64(v) => serializer.collect_seq(v),
            Self::F32(v) => {
                finite(v.iter().all(|value| value.is_finite()))?;
                serializer.collect_seq(v)
            }
            Self::F64(v) => {
                finite(v.iter().all(|value| value.is_finite()))?;
                serializer.collect_seq(v)
            }
            Self::Bytes(v) => {
                let mut list = serializer.serialize_seq(Some(v.len()))?;
                for string in v {
                    list.serialize_element(std::str::from_utf8(string).map_err(ser::Error::custom)?)?;
                }
                list.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(datatype: Datatype, shape: &[usize], text: &str) -> String {
        parse(datatype, shape, text).unwrap_err()
    }

    #[test]
    fn flat_and_nested_are_the_same() {
        let values = Values::I32(vec![1, 2, 3, 4, 5, 6]);
        for text in ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]", " [ [ 1 , 2 , 3 ] , [ 4 , 5 , 6 ] ] "] {
            assert_eq!(parse(Datatype::Int32, &[2, 3], text).unwrap(), values, "{text}");
        }
        assert_eq!(parse(Datatype::Fp32, &[1, 1, 2], "[[[1, 2.5]]]").unwrap(), Values::F32(vec![1.0, 2.5]));
        let words = parse(Datatype::Bytes, &[2], r#"["a\n", "ü"]"#).unwrap();
        assert_eq!(words, Values::Bytes(vec![b"a\n".to_vec(), "ü".as_bytes().to_vec()]));
    }

    #[test]
    fn the_shape_is_what_counts() {
        for (text, words) in [
            ("[1,2,3]", "a list of 3, expected a list of 4"),
            ("[1,2,3,4,5]", "a list of more than 4, expected 4"),
            ("[[1,2],[3]]", "a list of 1, expected a list of 2"),
            ("[[1,2,3],[4]]", "a list of more than 2, expected 2"),
            ("[[1,2]]", "a list of 1, expected a list of 2"),
            ("[[1,2],3,4]", "the number `3`, expected a list of 2"),
            ("[[[1,2],[3,4]]]", "a list, expected INT64"),
            ("[1,[2],3,4]", "a list, expected INT64"),
            ("7", "the number `7`, expected a list of 4"),
            ("null", "null, expected a list of 4"),
        ] {
            let error = refused(Datatype::Int64, &[2, 2], text);
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }

    #[test]
    fn an_element_must_fit_its_datatype() {
        for (datatype, text, words) in [
            (Datatype::Uint8, "[256]", "the number `256`, expected UINT8"),
            (Datatype::Uint64, "[-1]", "the number `-1`, expected UINT64"),
            (Datatype::Int32, "[2147483648]", "the number `2147483648`, expected INT32"),
            (Datatype::Int64, "[1.0]", "the number `1.0`, expected INT64"),
            (Datatype::Int64, "[true]", "`true`, expected INT64"),
            (Datatype::Fp32, "[1e39]", "1e39 is beyond FP32, expected at most 3.4e38"),
            (Datatype::Fp64, "[1e999]", "a number is out of range"),
            (Datatype::Fp32, "[\"1\"]", "the text \"1\", expected FP32"),
            (Datatype::Fp32, "[NaN]", "something else was expected"),
            (Datatype::Bytes, "[1]", "the number `1`, expected BYTES"),
        ] {
            let error = refused(datatype, &[1], text);
            assert!(error.starts_with(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_huge_shape_allocates_nothing_and_deep_lists_end_at_the_shape() {
        assert!(refused(Datatype::Fp64, &[usize::MAX], "[1]").starts_with("a list of 1, expected"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(refused(Datatype::Fp32, &[1, 1], &deep).starts_with("a list, expected FP32"));
        assert!(refused(Datatype::Fp32, &[1], &format!("[1,{deep}]")).starts_with("a list of more than 1"));
    }

    #[test]
    fn what_json_cannot_hold_is_an_error() {
        assert!(serde_json::to_string(&Values::F32(vec![f32::NAN])).is_err());
        assert!(serde_json::to_string(&Values::Bytes(vec![vec![0xff]])).is_err());
        assert_eq!(serde_json::to_string(&Values::F32(vec![0.1, -2.0])).unwrap(), "[0.1,-2.0]");
    }
}
