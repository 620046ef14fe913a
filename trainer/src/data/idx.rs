//! The idx files of MNIST and its relatives: a big-endian header (two zero bytes, a type, the number of dimensions, one
//! u32 each), then the values.
//!
//! The folder holds `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and `t10k-…` for the held-out side; a
//! dot in the place of the last dash but one is accepted too, and each file may be packed, its name ending in `.gz`.
//! Labels may be missing. A file must be exactly as long as its header says; not a byte more is unpacked than that. Where
//! only the first images are wanted, reading stops behind them, and what follows in a packed file is not looked at.

use std::cmp::Ordering;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::collect::Collector;
use super::decode::{Decoded, MAX_SIDE};
use super::error::{DataError, Result};
use super::{DataSource, ImageSet, Split};

/// The type byte for unsigned bytes, the only type read.
const UBYTE: u8 = 0x08;

/// Bytes that one byte of gzip can become at most: a match of 258 bytes takes two bits of a DEFLATE block (RFC 1951).
const LARGEST_RATIO: u64 = 1032;

/// Loads one side of the folder.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    let folder = source.path()?;
    let side = match source.split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let images_path = find(folder, side, "images", 3)?.ok_or_else(|| DataError::Missing {
        path: folder.to_owned(),
        hint: format!("the folder holds no file `{side}-images-idx3-ubyte` nor one that ends in `.gz`"),
    })?;
    let first = source.images.unwrap_or(usize::MAX);
    let ([count, height, width], pixels) = read::<3>(&images_path, first)?;
    if height == 0 || width == 0 || height > MAX_SIDE as usize || width > MAX_SIDE as usize {
        let reason = format!("images of {height}×{width}, expected sides of 1 to {MAX_SIDE}");
        return Err(DataError::container(&images_path, "idx", reason));
    }
    let labels = match find(folder, side, "labels", 1)? {
        None => None,
        Some(path) => {
            let ([labels], values) = read::<1>(&path, first)?;
            if labels != count {
                let reason = format!("{labels} labels for {count} images");
                return Err(DataError::container(&path, "idx", reason));
            }
            Some(values)
        }
    };
    let wanted = first.min(count);
    let mut set = Collector::new(source, wanted, Vec::new());
    for (i, image) in pixels.chunks_exact(height * width).enumerate() {
        let at = || format!("`{}` image {i}", images_path.display());
        let label = labels.as_ref().map(|values| i64::from(values[i]));
        set.push(Decoded { channels: 1, height, width, pixels: image.to_vec() }, label, at)?;
    }
    set.finish()
}

/// The file's path, under any of its usual names; unpacked before packed.
fn find(folder: &Path, side: &str, what: &str, dimensions: usize) -> Result<Option<PathBuf>> {
    let names = ["", ".gz"]
        .into_iter()
        .flat_map(|end| ["-", "."].map(|dot| format!("{side}-{what}{dot}idx{dimensions}-ubyte{end}")));
    std::fs::metadata(folder).map_err(|e| DataError::io(folder, e))?;
    Ok(names.map(|name| folder.join(name)).find(|path| path.is_file()))
}

/// Dimensions of a file, packed or not, and its values: all of them, or those of the `first` images where it has more.
fn read<const D: usize>(path: &Path, first: usize) -> Result<([usize; D], Vec<u8>)> {
    let bad = |reason: String| DataError::container(path, "idx", reason);
    let file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let stored = file.metadata().map_err(|e| DataError::io(path, e))?.len();
    let packed = path.extension().is_some_and(|end| end == "gz");
    let (mut reader, most): (Box<dyn Read>, u64) = if packed {
        (Box::new(MultiGzDecoder::new(file)), stored.saturating_mul(LARGEST_RATIO))
    } else {
        (Box::new(file), stored)
    };
    let mut up_to = |length: u64| {
        let mut bytes = Vec::new();
        match reader.by_ref().take(length).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) if packed => Err(DataError::container(path, "gzip", error)),
            Err(error) => Err(DataError::io(path, error)),
        }
    };

    let header = 4 + 4 * D;
    let head = up_to(header as u64)?;
    if head.len() < header {
        return Err(bad(format!("{} bytes, the header alone has {header}", head.len())));
    }
    if head[..4] != [0, 0, UBYTE, D as u8] {
        return Err(bad(format!(
            "it begins with {:02x?}, expected [00, 00, {UBYTE:02x}, {D:02x}]",
            &head[..4]
        )));
    }
    let sizes: [usize; D] = std::array::from_fn(|i| {
        let at = 4 + 4 * i;
        u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
    });
    let as_said = |follow: u64, said: u64| match follow.cmp(&said) {
        Ordering::Equal => Ok(()),
        Ordering::Less => Err(bad(format!("its header says {sizes:?} values, but {follow} follow"))),
        Ordering::Greater => Err(bad(format!("its header says {sizes:?} values, but more follow"))),
    };
    let claimed = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    // Of a whole file one byte more is asked for, which must not be there.
    let wanted = claimed.map(|claimed| match sizes[0] {
        count if first < count => (claimed, claimed / count as u64 * first as u64, 0),
        _ => (claimed, claimed, 1),
    });
    let Some((claimed, wanted, more)) = wanted.filter(|&(_, wanted, _)| wanted <= most) else {
        return Err(bad(format!(
            "its header says {sizes:?} values, more than {stored} bytes of file can hold"
        )));
    };
    if !packed {
        as_said(stored.saturating_sub(header as u64), claimed)?; // whatever is wanted: it costs nothing to know
    }
    let values = up_to(wanted + more)?;
    as_said(values.len() as u64, wanted)?;
    Ok((sizes, values))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::data::Kind;

    fn idx(sizes: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, UBYTE, sizes.len() as u8];
        sizes.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn load_files(files: &[(&str, Vec<u8>)], split: Split) -> Result<ImageSet> {
        load_first(files, split, None)
    }

    fn load_first(files: &[(&str, Vec<u8>)], split: Split, images: Option<usize>) -> Result<ImageSet> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        load(&DataSource { split, images, ..DataSource::new(Kind::Idx, dir.path()) })
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
            (
                idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 8]),
                "4294967295] values, more than 24 bytes of file can hold",
            ),
            (idx(&[2, 2, 3], &[7; 13]), "[2, 2, 3] values, but more follow"),
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

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const PACKED: &str = "train-images-idx3-ubyte.gz";

    #[test]
    fn packed_files_are_read_as_unpacked_ones() {
        let (images, labels) = (idx(&[2, 1, 3], &[1, 2, 3, 4, 5, 6]), idx(&[2], &[9, 0]));
        let plain = [(IMAGES, images.clone()), (LABELS, labels.clone())];
        let plain = load_files(&plain, Split::Train).unwrap();
        // Two gzip members are one file.
        let members = [gzip(&images[..17]), gzip(&images[17..])].concat();
        for packed in [gzip(&images), members] {
            let files = [(PACKED, packed), ("train-labels.idx1-ubyte.gz", gzip(&labels))];
            assert_eq!(load_files(&files, Split::Train).unwrap(), plain);
        }
    }

    #[test]
    fn damaged_packed_files_are_named() {
        let images = idx(&[2, 2, 3], &[7; 12]);
        let packed = gzip(&images);
        let error = |bytes: Vec<u8>| load_files(&[(PACKED, bytes)], Split::Train).unwrap_err().to_string();
        for cut in 0..packed.len() {
            let error = error(packed[..cut].to_vec());
            assert!(error.contains(PACKED) && error.contains("not a readable"), "{cut}: {error}");
        }
        let mut checksum = packed.clone();
        *checksum.iter_mut().nth_back(5).unwrap() ^= 1;
        for bytes in [checksum, images.clone(), [packed, b"more".to_vec()].concat()] {
            let error = error(bytes);
            assert!(error.contains(PACKED) && error.contains("not a readable gzip file"), "{error}");
        }
        // A bomb: no more is unpacked than its header says, and its header may not say what it could not hold.
        let bomb = gzip(&idx(&[2, 2, 3], &vec![0; 1 << 20]));
        assert!(error(bomb).contains("[2, 2, 3] values, but more follow"));
        let error = error(gzip(&idx(&[u32::MAX, 4, 4], &vec![0; 1 << 20])));
        assert!(error.contains("bytes of file can hold"), "{error}");
    }

    #[test]
    fn only_the_images_that_are_wanted_are_read() {
        let values: Vec<u8> = (1..=90).collect();
        let (images, labels) = (idx(&[45, 1, 2], &values), idx(&[45], &values[..45]));
        let first = |files: &[(&str, Vec<u8>)], n| load_first(files, Split::Train, Some(n));
        // Header and two images; what follows could not be unpacked.
        let damaged = [gzip(&images[..20]), b"no gzip".to_vec()].concat();
        let packed = [(PACKED, damaged), ("train-labels-idx1-ubyte.gz", gzip(&labels))];
        let plain = [(IMAGES, images.clone()), (LABELS, labels.clone())];
        for files in [&packed, &plain] {
            let set = first(files, 2).unwrap();
            assert_eq!((set.pixels, set.labels), (vec![1, 2, 3, 4], vec![1, 2]));
        }
        for n in [3, 45, 46] {
            assert!(first(&packed, n).is_err(), "{n}");
        }
        // The length of an unpacked file is known without reading it.
        for (length, follow) in [(20, "4"), (105, "89"), (107, "more")] {
            let other = [&images[..], &[0]].concat()[..length].to_vec();
            let error = first(&[(IMAGES, other), (LABELS, labels.clone())], 2).unwrap_err().to_string();
            assert!(error.contains(&format!("[45, 1, 2] values, but {follow} follow")), "{length}: {error}");
        }
        let cut = [(PACKED, gzip(&images[..19]))];
        let error = first(&cut, 2).unwrap_err().to_string();
        assert!(error.contains("its header says [45, 1, 2] values, but 3 follow"), "{error}");
        assert_eq!(first(&[(IMAGES, images)], 46).unwrap().len(), 45);
    }
}
