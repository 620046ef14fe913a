//! Images that travel with a package, so that whoever has it can measure the PSNR gap again: the first of those that were
//! trained on, and of those that were held out. Only where the owner asks for it: they are the data itself.

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView, serialize};
use windowpane_diffusion::psnr_gap::IMAGES;

use crate::data::{ImageSet, Pair};

/// The file: pixels `train.images` and `test.images`, u8 `[n, channels, height, width]`, and where `labelled`
/// `train.labels` and `test.labels`, i64 `[n]`; n is 300 at most, as many as the measure takes. Errors: labels that are
/// missing.
pub fn file(pair: &Pair, labelled: bool) -> Result<Vec<u8>, SafeTensorError> {
    let sides = [("train", &pair.train), ("test", &pair.test)];
    let labels = sides.map(|(_, set)| -> Vec<u8> {
        set.labels.iter().take(IMAGES).flat_map(|label| label.to_le_bytes()).collect()
    });
    let mut views = Vec::new();
    for ((side, set), labels) in sides.into_iter().zip(&labels) {
        let count = set.len().min(IMAGES);
        let images = TensorView::new(Dtype::U8, shape(set, count), first(set, count))?;
        views.push((format!("{side}.images"), images));
        if labelled {
            views.push((format!("{side}.labels"), TensorView::new(Dtype::I64, vec![count], labels)?));
        }
    }
    serialize(views, None)
}

fn shape(set: &ImageSet, count: usize) -> Vec<usize> {
    vec![count, set.channels, set.height, set.width]
}

fn first(set: &ImageSet, count: usize) -> &[u8] {
    &set.pixels[..count * set.image_len()]
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn set(images: usize, salt: u8) -> ImageSet {
        let pixels = (0..images * 6).map(|i| (i as u8).wrapping_add(salt)).collect();
        ImageSet::new((1, 2, 3), pixels, (0..images as i64).map(|i| i % 2).collect(), Vec::new())
    }

    #[test]
    fn the_first_images_of_both_sides_travel() {
        let pair = Pair { train: set(310, 3), test: set(2, 9), dropped: 0 };
        let bytes = file(&pair, true).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("train.images").unwrap().shape(), [300, 1, 2, 3]);
        assert_eq!(read.tensor("train.images").unwrap().data(), &pair.train.pixels[..1800]);
        assert_eq!(read.tensor("train.labels").unwrap().data().len(), 2400);
        assert_eq!(read.tensor("test.images").unwrap().data(), pair.test.pixels);
        assert_eq!(read.tensor("test.labels").unwrap().shape(), [2]);
        let without = file(&pair, false).unwrap();
        assert_eq!(SafeTensors::deserialize(&without).unwrap().len(), 2);
    }
}
