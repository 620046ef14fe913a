//! The idx files of MNIST and its relatives: a big-endian header (two zero bytes, a type, the number of dimensions, one
//! u32 each), then the values.
//!
//! The folder holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and `t10k-…` for the held-out side; a
//! dot in the place of the last dash but one is accepted too. Labels may be missing. A file must be exactly as long
//! as its header says.

use std::path::{Path, PathBuf};

use super::collect::Collector;
use super::decode::{Decoded, MAX_SIDE};
use super::error::{DataError, Result};
use super::{DataSource, ImageSet, Split};

/// The type byte for unsigned bytes, the only type read.
const UBYTE: u8 = 0x08;

/// Loads one side of the folder.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    let folder = source.path()?;
    let side = match source.split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let images_path = find(folder, side, "images", 3)?.ok_or_else(|| DataError::Missing {
        path: folder.to_owned(),
        hint: format!("the folder holds no file `{side}-images-idx3-ubyte` (unpacked: `gunzip` it first)"),
    })?;
    let ([count, height, width], pixels) = read::<3>(&images_path)?;
    if height == 0 || width == 0 || height > MAX_SIDE as usize || width > MAX_SIDE as usize {
        let reason = format!("images of {height}×{width}, expected sides of 1 to {MAX_SIDE}");
        return Err(DataError::container(&images_path, "idx", reason));
    }
    let labels = match find(folder, side, "labels", 1)? {
        None => None,
        Some(path) => {
            let ([labels], values) = read::<1>(&path)?;
            if labels != count {
                let reason = format!("{labels} labels for {count} images");
                return Err(DataError::container(&path, "idx", reason));
            }
            Some(values)
        }
    };
    let wanted = source.images.map_or(count, |n| n.min(count));
    let mut set = Collector::new(source, wanted, Vec::new());
    for (i, image) in pixels.chunks_exact(height * width).take(wanted).enumerate() {
        let at = || format!("`{}` image {i}", images_path.display());
        let label = labels.as_ref().map(|values| i64::from(values[i]));
        set.push(Decoded { channels: 1, height, width, pixels: image.to_vec() }, label, at)?;
    }
    set.finish()
}

/// The file's path, under either of its usual names.
fn find(folder: &Path, side: &str, what: &str, dimensions: usize) -> Result<Option<PathBuf>> {
    let names = ["-", "."].map(|dot| format!("{side}-{what}{dot}idx{dimensions}-ubyte"));
    std::fs::metadata(folder).map_err(|e| DataError::io(folder, e))?;
    Ok(names.iter().map(|name| folder.join(name)).find(|path| path.is_file()))
}

/// Dimensions and values of a file.
fn read<const D: usize>(path: &Path) -> Result<([usize; D], Vec<u8>)> {
    let mut bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
    let bad = |reason: String| Err(DataError::container(path, "idx", reason));
    let header = 4 + 4 * D;
    if bytes.len() < header {
        return bad(format!("{} bytes, the header alone has {header}", bytes.len()));
    }
    if bytes[..4] != [0, 0, UBYTE, D as u8] {
        return bad(format!("it begins with {:02x?}, expected [00, 00, {UBYTE:02x}, {D:02x}]", &bytes[..4]));
    }
    let sizes: [usize; D] = std::array::from_fn(|i| {
        let at = 4 + 4 * i;
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
    });
    let claimed = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let found = bytes.len() - header;
    if claimed != Some(found) {
        return bad(format!("its header says {sizes:?} values, but {found} follow"));
    }
    bytes.drain(..header);
    Ok((sizes, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Kind;

    fn idx(sizes: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, UBYTE, sizes.len() as u8];
        sizes.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn load_files(files: &[(&str, Vec<u8>)], split: Split) -> Result<ImageSet> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        load(&DataSource { split, ..DataSource::new(Kind::Idx, dir.path()) })
    }

    const IMAGES: &str = "train-images-idx3-ubyte";
    const LABELS: &str = "train-labels-idx1-ubyte";

    #[test]
    fn images_and_labels_are_read() {
        let images = idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let set =
            load_files(&[(IMAGES, images.clone()), (LABELS, idx(&[2], &[9, 0]))], Split::Train).unwrap();
        assert_eq!((set.channels, set.height, set.width), (1, 1, 3));
        assert_eq!((set.pixels, set.labels), (vec![1, 2, 3, 4, 5, 6], vec![9, 0]));
        let test = load_files(&[("t10k-images.idx3-ubyte", images)], Split::Test).unwrap();
        assert!(test.len() == 2 && test.labels.is_empty());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let images = idx(&[2, 2, 3], &[7; 12]);
        for cut in 0..images.len() {
            let error =
                load_files(&[(IMAGES, images[..cut].to_vec())], Split::Train).unwrap_err().to_string();
            assert!(error.contains(IMAGES) && error.contains("not a readable idx file"), "{cut}: {error}");
        }
    }

    #[test]
    fn lying_headers_are_errors() {
        for (images, expected) in [
            (idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 8]), "values, but 8 follow"),
            (idx(&[2, 2, 3], &[7; 13]), "[2, 2, 3] values, but 13 follow"),
            (idx(&[0, 0, 0], &[]), "images of 0×0"),
            (idx(&[12], &[7; 12]), "it begins with"),
        ] {
            let error = load_files(&[(IMAGES, images)], Split::Train).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let files = [(IMAGES, idx(&[1, 1, 1], &[0])), (LABELS, idx(&[2], &[0, 1]))];
        assert!(load_files(&files, Split::Train).unwrap_err().to_string().contains("2 labels for 1 images"));
        assert!(load_files(&[], Split::Train).unwrap_err().to_string().contains(IMAGES));
    }
}
