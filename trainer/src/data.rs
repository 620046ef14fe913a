//! Images to train and measure on: where they come from, and what they are once they are here.
//!
//! Owns [`DataSource`], the `[data]` table of a recipe, and [`ImageSet`], the whole set in memory as bytes. One file
//! per kind of source; each of them hands decoded images to [`collect::Collector`], which insists that all have
//! one shape. Nothing is skipped silently: a bad image is an error with its name.

pub mod collect;
pub mod decode;
pub mod error;
pub mod folder;
pub mod idx;
mod jpeg;
pub mod order;
pub mod parquet;
pub mod prepare;
pub mod source;
pub mod split;
pub mod toy;

use sha2::{Digest, Sha256};

pub use self::error::{DataError, Result};
pub use self::order::EpochOrder;
pub use self::prepare::{Report, prepare};
pub use self::source::{DataSource, Kind, Split};
pub use self::split::Pair;
pub use self::toy::Toy;

/// A set of images of one shape, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Values 0…255, planar: `[n, channels, height, width]`.
    pub pixels: Vec<u8>,
    /// Class of each image, counted from 0; empty where the source has none.
    pub labels: Vec<i64>,
    /// Names of the classes in the order of the labels; may be empty.
    pub names: Vec<String>,
    /// Hex sha256 of shape, pixels and labels.
    pub sha256: String,
}

/// Loads what `source` describes. Held-out images that have a copy among the training images are left out.
///
/// Errors: a path that is not there, a damaged file or image, images that differ in shape or are not what the source
/// demands, labels beyond the classes; each names the file and the row.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    source.validate()?;
    if source.split == Split::Test {
        let Pair { test, .. } = load_pair(&DataSource { images: None, ..source.clone() })?;
        return source.images.map_or(Ok(test.clone()), |n| test.first(n));
    }
    if source.hold_out.is_some() {
        return Ok(load_pair(source)?.train);
    }
    match source.shuffle {
        // The source's own order: reading may stop after the last image wanted.
        None => match source.images {
            Some(n) => read(source)?.first(n),
            None => read(source),
        },
        Some(_) => subset(read(&DataSource { images: None, ..source.clone() })?, source),
    }
}

/// Loads both sides of the split: by `hold_out` where the source says so, else the source's own. `images` limits the
/// training side only, so that every subset is measured on the same held-out images.
///
/// Errors: as [`load`]; also a source without a held-out side.
pub fn load_pair(source: &DataSource) -> Result<Pair> {
    source.validate()?;
    let side = |split| read(&DataSource { images: None, split, ..source.clone() });
    let pair = match source.hold_out {
        Some(count) => split::hold_out(&side(Split::Train)?, count, source.shuffle.unwrap_or(0))?,
        None => split::pair(side(Split::Train)?, &side(Split::Test)?)?,
    };
    Ok(Pair { train: subset(pair.train, source)?, ..pair })
}

/// Shuffled and cut as the source says.
fn subset(set: ImageSet, source: &DataSource) -> Result<ImageSet> {
    let set = match source.shuffle {
        Some(seed) => split::shuffled(&set, seed),
        None => set,
    };
    match source.images {
        Some(n) => set.first(n),
        None => Ok(set),
    }
}

/// One side of the source as it lies there, at most `images` of it.
fn read(source: &DataSource) -> Result<ImageSet> {
    match source.kind {
        Kind::Parquet => parquet::load(source),
        Kind::Folder => folder::load(source),
        Kind::Idx => idx::load(source),
        Kind::Toy => toy::load(source),
    }
}

// === impl ImageSet ===

impl ImageSet {
    /// A set out of its parts. Panics if the lengths do not fit together: that is a bug of the caller.
    pub fn new(
        (channels, height, width): (usize, usize, usize),
        pixels: Vec<u8>,
        labels: Vec<i64>,
        names: Vec<String>,
    ) -> Self {
        let size = channels * height * width;
        assert!(size > 0 && pixels.len().is_multiple_of(size), "pixels fill whole images");
        assert!(labels.is_empty() || labels.len() == pixels.len() / size, "one label an image");
        let sha256 = digest((channels, height, width), &pixels, &labels);
        Self { channels, height, width, pixels, labels, names, sha256 }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Values per image: `channels · height · width`.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Image `i`, planar `[channels, height, width]`. Panics beyond the set.
    pub fn image(&self, i: usize) -> &[u8] {
        let size = self.image_len();
        &self.pixels[i * size..(i + 1) * size]
    }

    /// Number of classes: as many as there are names, or labels up to the highest; 0 without labels.
    pub fn classes(&self) -> usize {
        let highest = self.labels.iter().max().map_or(0, |&label| label as usize + 1);
        highest.max(self.names.len())
    }

    /// The first `n` images. Errors: 0, or more than there are.
    pub fn first(&self, n: usize) -> Result<Self> {
        if n == 0 || n > self.len() {
            return Err(DataError::TooFew { wanted: n, found: self.len() });
        }
        Ok(self.select(&(0..n).collect::<Vec<_>>()))
    }

    /// The images at `indices`, in that order. Panics beyond the set.
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(indices.len() * self.image_len());
        for &i in indices {
            pixels.extend_from_slice(self.image(i));
        }
        let labels = if self.labels.is_empty() {
            Vec::new()
        } else {
            indices.iter().map(|&i| self.labels[i]).collect()
        };
        Self::new((self.channels, self.height, self.width), pixels, labels, self.names.clone())
    }
}

/// Shape as three little-endian u64, then the pixels, then the labels as little-endian i64.
fn digest((channels, height, width): (usize, usize, usize), pixels: &[u8], labels: &[i64]) -> String {
    let mut hash = Sha256::new();
    for side in [channels, height, width] {
        hash.update((side as u64).to_le_bytes());
    }
    hash.update(pixels);
    for label in labels {
        hash.update(label.to_le_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> ImageSet {
        ImageSet::new((1, 1, 2), vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2], vec![])
    }

    #[test]
    fn a_subset_keeps_images_with_their_labels() {
        let set = three();
        let picked = set.select(&[2, 0]);
        assert_eq!((picked.pixels, picked.labels), (vec![4, 5, 0, 1], vec![2, 0]));
        assert_eq!(set.first(2).unwrap(), set.select(&[0, 1]));
        assert_eq!((set.len(), set.classes(), set.image(1)), (3, 3, &[2u8, 3][..]));
    }

    #[test]
    fn a_subset_larger_than_the_set_is_an_error() {
        for n in [0, 4] {
            assert!(matches!(three().first(n), Err(DataError::TooFew { found: 3, .. })), "{n}");
        }
    }

    #[test]
    fn the_digest_sees_pixels_labels_and_shape() {
        let base = three().sha256;
        let pixels = ImageSet::new((1, 1, 2), vec![0, 1, 2, 3, 4, 6], vec![0, 1, 2], vec![]).sha256;
        let labels = ImageSet::new((1, 1, 2), vec![0, 1, 2, 3, 4, 5], vec![0, 1, 1], vec![]).sha256;
        let shape = ImageSet::new((1, 2, 1), vec![0, 1, 2, 3, 4, 5], vec![0, 1, 2], vec![]).sha256;
        assert_eq!(base.len(), 64);
        assert!(base != pixels && base != labels && base != shape);
    }
}
