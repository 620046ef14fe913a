//! A tensor on the wire: name, shape and values in row-major order, and its binary form: little-endian, nothing
//! between the elements, each string of BYTES behind its length in four bytes.

use super::Datatype;

/// A tensor. The values are as many as the shape says.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, none of them 0.
    pub shape: Vec<usize>,
    /// Its elements, row-major.
    pub values: Values,
}

/// The elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// UINT8.
    U8(Vec<u8>),
    /// UINT32.
    U32(Vec<u32>),
    /// UINT64.
    U64(Vec<u64>),
    /// INT32.
    I32(Vec<i32>),
    /// INT64.
    I64(Vec<i64>),
    /// FP32.
    F32(Vec<f32>),
    /// FP64.
    F64(Vec<f64>),
    /// BYTES.
    Bytes(Vec<Vec<u8>>),
}

/// Bytes are not the tensor that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Too few or too many.
    #[error("{got} bytes, expected {expected}")]
    Size {
        /// Bytes there are.
        got: usize,
        /// Bytes that shape and datatype need.
        expected: String,
    },
    /// A number is infinite or none.
    #[error("not finite at element {0}, expected finite numbers")]
    NotFinite(usize),
}

// === impl Values ===

impl Values {
    /// The datatype.
    pub fn datatype(&self) -> Datatype {
        match self {
            Self::U8(_) => Datatype::Uint8,
            Self::U32(_) => Datatype::Uint32,
            Self::U64(_) => Datatype::Uint64,
            Self::I32(_) => Datatype::Int32,
            Self::I64(_) => Datatype::Int64,
            Self::F32(_) => Datatype::Fp32,
            Self::F64(_) => Datatype::Fp64,
            Self::Bytes(_) => Datatype::Bytes,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the binary form.
    pub fn binary_size(&self) -> usize {
        match self {
            Self::Bytes(strings) => strings.iter().map(|string| 4 + string.len()).sum(),
            numbers => numbers.len() * numbers.datatype().size().unwrap_or(0),
        }
    }

    /// Appends the binary form.
    pub fn write_binary(&self, out: &mut Vec<u8>) {
        out.reserve(self.binary_size());
        match self {
            Self::U8(v) => out.extend(v),
            Self::U32(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::U64(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::I32(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::I64(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::F32(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::F64(v) => v.iter().for_each(|value| out.extend(value.to_le_bytes())),
            Self::Bytes(v) => v.iter().for_each(|string| {
                // A string longer than 4 GiB cannot arrive: no body is that long.
                out.extend((string.len() as u32).to_le_bytes());
                out.extend(string);
            }),
        }
    }

    /// `count` elements from their binary form, which must be exactly that long; numbers must be finite. What is
    /// allocated is in proportion to `bytes`, whatever `count` says.
    pub fn from_binary(datatype: Datatype, count: usize, bytes: &[u8]) -> Result<Self, TensorError> {
        if let Some(size) = datatype.size() {
            let expected = count.checked_mul(size);
            if expected != Some(bytes.len()) {
                let expected = expected.map_or_else(|| format!("{count} × {size}"), |size| size.to_string());
                return Err(TensorError::Size { got: bytes.len(), expected });
            }
        }
        Ok(match datatype {
            Datatype::Uint8 => Self::U8(bytes.to_vec()),
            Datatype::Uint32 => Self::U32(numbers(bytes, u32::from_le_bytes)),
            Datatype::Uint64 => Self::U64(numbers(bytes, u64::from_le_bytes)),
            Datatype::Int32 => Self::I32(numbers(bytes, i32::from_le_bytes)),
            Datatype::Int64 => Self::I64(numbers(bytes, i64::from_le_bytes)),
            Datatype::Fp32 => Self::F32(finite(numbers(bytes, f32::from_le_bytes), |v| v.is_finite())?),
            Datatype::Fp64 => Self::F64(finite(numbers(bytes, f64::from_le_bytes), |v| v.is_finite())?),
            Datatype::Bytes => Self::Bytes(strings(count, bytes)?),
        })
    }
}

/// Little-endian numbers of N bytes each; the length is a multiple of N.
fn numbers<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|chunk| read(*chunk)).collect()
}

fn finite<T>(values: Vec<T>, is_finite: impl Fn(&T) -> bool) -> Result<Vec<T>, TensorError> {
    match values.iter().position(|value| !is_finite(value)) {
        None => Ok(values),
        Some(at) => Err(TensorError::NotFinite(at)),
    }
}

/// `count` strings, each behind its length.
fn strings(count: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>, TensorError> {
    let wrong = || TensorError::Size {
        got: bytes.len(),
        expected: format!("{count} strings, each behind its length in 4 bytes, and nothing else"),
    };
    // Each takes four bytes at least.
    if count > bytes.len() / 4 {
        return Err(wrong());
    }
    let mut strings = Vec::with_capacity(count);
    let mut rest = bytes;
    for _ in 0..count {
        let (length, behind) = rest.split_first_chunk().ok_or_else(wrong)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (string, behind) = behind.split_at_checked(length).ok_or_else(wrong)?;
        strings.push(string.to_vec());
        rest = behind;
    }
    if rest.is_empty() { Ok(strings) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down from the protocol's text, not by the code above.
    #[test]
    fn the_binary_form_is_the_protocols() {
        for (values, bytes) in [
            (Values::U8(vec![1, 255]), &b"\x01\xff"[..]),
            (Values::U32(vec![1]), b"\x01\0\0\0"),
            (Values::U64(vec![258]), b"\x02\x01\0\0\0\0\0\0"),
            (Values::I32(vec![-2]), b"\xfe\xff\xff\xff"),
            (Values::I64(vec![-1]), b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            (Values::F32(vec![1.0]), b"\0\0\x80\x3f"),
            (Values::F64(vec![-2.0]), b"\0\0\0\0\0\0\0\xc0"),
            (Values::Bytes(vec![b"ab".to_vec(), vec![]]), b"\x02\0\0\0ab\0\0\0\0"),
        ] {
            let mut written = Vec::new();
            values.write_binary(&mut written);
            assert_eq!(written, bytes, "{values:?}");
            assert_eq!(values.binary_size(), bytes.len(), "{values:?}");
            assert_eq!(Values::from_binary(values.datatype(), values.len(), bytes), Ok(values));
        }
    }

    #[test]
    fn a_wrong_length_is_refused_whatever_is_claimed() {
        let read = |datatype, count, bytes: &[u8]| Values::from_binary(datatype, count, bytes).unwrap_err();
        assert_eq!(read(Datatype::Fp32, 2, &[0; 7]).to_string(), "7 bytes, expected 8");
        assert_eq!(
            read(Datatype::Int64, usize::MAX, &[0; 8]).to_string(),
            format!("8 bytes, expected {} × 8", usize::MAX)
        );
        for bytes in [&b""[..], b"\x01\0\0\0", b"\xff\xff\xff\xffab", b"\0\0\0\0\0", b"\x01\0\0"] {
            let error = read(Datatype::Bytes, 1, bytes).to_string();
            assert!(
                error.ends_with("1 strings, each behind its length in 4 bytes, and nothing else"),
                "{error}"
            );
        }
        assert!(matches!(read(Datatype::Bytes, usize::MAX, b"\0\0\0\0"), TensorError::Size { .. }));
    }

    #[test]
    fn numbers_must_be_finite() {
        let bytes: Vec<u8> = [1.0_f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        let error = Values::from_binary(Datatype::Fp32, 2, &bytes).unwrap_err();
        assert_eq!(error.to_string(), "not finite at element 1, expected finite numbers");
        let bytes = f64::INFINITY.to_le_bytes();
        assert_eq!(Values::from_binary(Datatype::Fp64, 1, &bytes), Err(TensorError::NotFinite(0)));
    }
}
