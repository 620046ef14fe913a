//! The model's own values as files of numbers: NumPy's `.npy` and `.npz`, and safetensors. Nothing is scaled, rounded
//! or clamped; and the bytes depend on the values alone, so that the same request gives the same file.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::zip::{Archive, Full};

/// A file of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayFile {
    /// One array: the images, or the frames where there are some.
    Npy,
    /// A ZIP of `.npy` files, and the provenance as JSON.
    Npz,
    /// Named tensors, and the provenance in the metadata.
    Safetensors,
}

/// Images as the model made them.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrays {
    /// Images, channels, height, width.
    pub shape: [usize; 4],
    /// `[images, channels, height, width]`.
    pub images: Vec<f32>,
    /// What was kept on the way, where it was asked for.
    pub frames: Option<Frames>,
    /// `[images]`: effective seeds, at most 2^63 - 1.
    pub seeds: Vec<u64>,
    /// How each image came about: a JSON array.
    pub provenance: String,
}

/// Points of every image's trajectory.
#[derive(Debug, Clone, PartialEq)]
pub struct Frames {
    /// Frames of one image.
    pub count: usize,
    /// `[images, frames, channels, height, width]`: the noisy image after each of those steps.
    pub x: Vec<f32>,
    /// The same shape: the estimate of the clean image that the step went by.
    pub x0: Vec<f32>,
}

/// An array with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Little-endian.
    bytes: Vec<u8>,
}

/// A file of numbers could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("writing arrays: {0}")]
pub struct ArrayError(String);

// === impl ArrayError ===

impl From<Full> for ArrayError {
    fn from(full: Full) -> Self {
        Self(full.to_string())
    }
}

// === impl Arrays ===

impl Arrays {
    /// The file's bytes.
    pub fn encode(&self, file: ArrayFile) -> Result<Vec<u8>, ArrayError> {
        match file {
            ArrayFile::Npy => Ok(match &self.frames {
                None => npy("<f4", &self.shape, &floats(&self.images)),
                Some(frames) => npy("<f4", &self.frame_shape(frames), &floats(&frames.x)),
            }),
            ArrayFile::Npz => npz(&self.tensors(), "provenance", &self.provenance),
            ArrayFile::Safetensors => safetensors(&self.tensors(), "provenance", &self.provenance),
        }
    }

    /// Every array.
    fn tensors(&self) -> Vec<Named> {
        let mut all = vec![Named::floats("images", &self.shape, &self.images)];
        if let Some(frames) = &self.frames {
            let shape = self.frame_shape(frames);
            all.push(Named::floats("frames", &shape, &frames.x));
            all.push(Named::floats("frames_x0", &shape, &frames.x0));
        }
        // A seed is below 2^63, so the signed type, which every reader has, holds it.
        all.push(Named::integers("seeds", self.seeds.iter().map(|&seed| seed as i64)));
        all
    }

    fn frame_shape(&self, frames: &Frames) -> [usize; 5] {
        let [n, c, h, w] = self.shape;
        [n, frames.count, c, h, w]
    }
}

// === impl Named ===

impl Named {
    /// Numbers of single precision.
    pub fn floats(name: impl Into<String>, shape: &[usize], values: &[f32]) -> Self {
        Self { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: floats(values) }
    }

    /// A list of whole numbers.
    pub fn integers(name: impl Into<String>, values: impl IntoIterator<Item = i64>) -> Self {
        let bytes: Vec<u8> = values.into_iter().flat_map(i64::to_le_bytes).collect();
        Self { name: name.into(), dtype: Dtype::I64, shape: vec![bytes.len() / size_of::<i64>()], bytes }
    }
}

/// A ZIP of `.npy` files, and what is said of them as `about.json`.
pub fn npz(tensors: &[Named], about: &str, text: &str) -> Result<Vec<u8>, ArrayError> {
    let mut archive = Archive::default();
    for Named { name, dtype, shape, bytes } in tensors {
        let descr = match dtype {
            Dtype::F32 => "<f4",
            _ => "<i8",
        };
        archive.add(&format!("{name}.npy"), &[&npy_head(descr, shape), bytes])?;
    }
    archive.add(&format!("{about}.json"), &[text.as_bytes()])?;
    Ok(archive.finish()?)
}

/// Named tensors, and what is said of them in the metadata, under the name `about`.
pub fn safetensors(tensors: &[Named], about: &str, text: &str) -> Result<Vec<u8>, ArrayError> {
    let failed = |error: ::safetensors::SafeTensorError| ArrayError(error.to_string());
    let views = tensors
        .iter()
        .map(|Named { name, dtype, shape, bytes }| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    // One key: the order of several would differ from call to call.
    let metadata = HashMap::from([(about.to_owned(), text.to_owned())]);
    serialize(views, Some(metadata)).map_err(failed)
}

/// Little-endian bytes.
fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A `.npy` file.
fn npy(descr: &str, shape: &[usize], data: &[u8]) -> Vec<u8> {
    [&npy_head(descr, shape)[..], data].concat()
}

/// What a `.npy` file of version 1.0, in C order, begins with: its data lie on a multiple of 64 bytes (NEP 1).
pub fn npy_head(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let tuple = if shape.len() == 1 { sides.trim_end() } else { sides.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({tuple}), }}");
    // 10 bytes before it, a newline at its end.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("five sides are no 64 KiB of text; this is a bug");
    [b"\x93NUMPY\x01\x00", &length.to_le_bytes()[..], header.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::decode::npy::Npy;

    fn arrays(frames: bool) -> Arrays {
        let values = |n: usize| (0..n).map(|i| i as f32 / 8.0 - 1.0).collect::<Vec<_>>();
        Arrays {
            shape: [2, 1, 2, 3],
            images: values(12),
            frames: frames.then(|| Frames { count: 3, x: values(36), x0: values(36) }),
            seeds: vec![7, i64::MAX as u64],
            provenance: "[{}]".to_owned(),
        }
    }

    #[test]
    fn npy_has_the_layout_of_nep_1() {
        let bytes = arrays(false).encode(ArrayFile::Npy).unwrap();
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 2, 3), }";
        assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        assert!(std::str::from_utf8(&bytes[10..128]).unwrap().starts_with(header));
        assert_eq!((bytes[127], bytes.len()), (b'\n', 128 + 48));
        let read = Npy::read(&bytes, 1000).unwrap();
        assert_eq!((read.shape, read.values), (vec![2, 1, 2, 3], arrays(false).images));
        let read = Npy::read(&arrays(true).encode(ArrayFile::Npy).unwrap(), 1000).unwrap();
        assert_eq!(read.shape, [2, 3, 1, 2, 3]);
        let seeds = npy("<i8", &[2], &[0; 16]);
        assert!(seeds[10..].starts_with(b"{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }"));
    }

    #[test]
    fn safetensors_are_read_back_by_name() {
        let bytes = arrays(true).encode(ArrayFile::Safetensors).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("images").unwrap().data(), floats(&arrays(true).images));
        assert_eq!(read.tensor("frames_x0").unwrap().shape(), [2, 3, 1, 2, 3]);
        assert_eq!(read.tensor("seeds").unwrap().data()[8..], i64::MAX.to_le_bytes());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["provenance"], "[{}]");
    }

    #[test]
    fn the_same_arrays_give_the_same_bytes() {
        for file in [ArrayFile::Npy, ArrayFile::Npz, ArrayFile::Safetensors] {
            for frames in [false, true] {
                assert_eq!(
                    arrays(frames).encode(file).unwrap(),
                    arrays(frames).encode(file).unwrap(),
                    "{file:?}"
                );
            }
        }
    }
}
