//! `weights.bin`: every weight once, end to end, at aligned offsets. All graphs of a package point into it; a
//! weight may be stored as f16 where its graph computes in f32, and the other way round.

use std::collections::HashMap;
use std::io::Write;

use half::f16;
use tch::{Device, Kind, Tensor};

use super::ExportError;
use super::shape::Dtype;
use crate::error::Result;

/// Offsets are multiples of this many bytes: a cache line, so that a memory-mapped weight is aligned for any
/// vector instruction. (A page would leave the small models' files mostly empty.)
const ALIGNMENT: usize = 64;

/// A weight as it will lie in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWeight {
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
    /// Element type in the file.
    pub dtype: Dtype,
    /// First byte in the file.
    pub offset: usize,
    /// Its values after rounding to the stored type.
    pub values: Vec<f32>,
}

/// The weights of a package in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct WeightFile {
    order: Vec<String>,
    by_name: HashMap<String, StoredWeight>,
    end: usize,
}

// === impl StoredWeight ===

impl StoredWeight {
    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.values.len() * if self.dtype == Dtype::F16 { 2 } else { 4 }
    }

    /// The rounded values as a tensor of its shape, f32 on the CPU.
    pub fn tensor(&self) -> Tensor {
        let shape: Vec<i64> = self.shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&self.values).view(&shape[..])
    }
}

// === impl WeightFile ===

impl WeightFile {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a weight, rounded to `dtype`. Errors: values that are not finite, or too large for f16.
    pub fn add(&mut self, name: &str, tensor: &Tensor, dtype: Dtype) -> Result<()> {
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1])?;
        let mut values = Vec::<f32>::try_from(&flat)?;
        if dtype == Dtype::F16 {
            values.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            let value = f64::from(Vec::<f32>::try_from(&flat)?[i]);
            return Err(ExportError::WeightValue { name: name.to_owned(), element: i, value, dtype }.into());
        }
        let stored = StoredWeight { shape, dtype, offset: self.end.next_multiple_of(ALIGNMENT), values };
        self.end = stored.offset + stored.bytes();
        if self.by_name.insert(name.to_owned(), stored).is_none() {
            self.order.push(name.to_owned());
        }
        Ok(())
    }

    /// The weight `name`.
    pub fn get(&self, name: &str) -> Result<&StoredWeight> {
        self.by_name.get(name).ok_or_else(|| ExportError::MissingWeight { name: name.to_owned() }.into())
    }

    /// Number of values in all weights.
    pub fn len(&self) -> usize {
        self.by_name.values().map(|weight| weight.values.len()).sum()
    }

    /// Whether there is no weight.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Writes the file's bytes, gaps as zeros.
    pub fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        let mut at = 0;
        for weight in self.order.iter().map(|name| &self.by_name[name]) {
            to.write_all(&vec![0; weight.offset - at])?;
            to.write_all(&bytes(&weight.values, weight.dtype))?;
            at = weight.offset + weight.bytes();
        }
        Ok(())
    }
}

/// Floats as little-endian bytes of a float type.
pub(super) fn bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_each_weight_at_its_offset() {
        let mut weights = WeightFile::new();
        weights.add("a", &Tensor::from_slice(&[1.0f32, 2.0, 0.1]), Dtype::F16).unwrap();
        weights.add("b", &Tensor::from_slice(&[3.0f32]), Dtype::F32).unwrap();
        let mut file = Vec::new();
        weights.write(&mut file).unwrap();
        assert_eq!((weights.get("a").unwrap().offset, weights.get("b").unwrap().offset), (0, 64));
        assert_eq!(file.len(), 68);
        assert_eq!(file[..2], f16::ONE.to_le_bytes());
        assert_eq!(file[64..], 3.0f32.to_le_bytes());
        // The rounded value is the one that golden outputs are computed with.
        assert_eq!(weights.get("a").unwrap().values[2], f16::from_f32(0.1).to_f32());
    }

    #[test]
    fn a_weight_that_is_no_number_is_refused_by_name() {
        let add = |value: f32, dtype| WeightFile::new().add("w", &Tensor::from_slice(&[0.0, value]), dtype);
        assert!(add(7.0e4, Dtype::F32).is_ok());
        let error = add(7.0e4, Dtype::F16).unwrap_err().to_string();
        assert!(error.contains("`w`[1] is 70000"), "{error}");
        assert!(add(f32::NAN, Dtype::F32).is_err());
    }
}
