//! From finished samples to files: pixels or arrays, and how each image came about beside them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::Room;
use crate::app::workbench::Workbench;
use crate::batcher::Sample;
use crate::encode::{ArrayFile, Arrays, Encoding, Frames, Picture, enlarge, strip};
use crate::error::ApiError;
use crate::extract::Form;
use crate::model::{Card, Model};
use crate::provenance::Provenance;
use crate::spec::{File, Order, Output};

/// A finished image.
#[derive(Debug)]
pub(in crate::routes) struct Made {
    /// Its values and seed.
    pub(in crate::routes) sample: Sample,
    /// Points of its trajectory, where they were asked for; the last is the image.
    pub(super) frames: Vec<Point>,
    /// How it came about.
    pub(super) provenance: Provenance,
}

/// A point of a trajectory, `[channels, height, width]` each.
#[derive(Debug, Clone)]
pub(super) struct Point {
    /// The noisy image.
    pub(super) x: Vec<f32>,
    /// The estimate of the clean one.
    pub(super) x0: Vec<f32>,
}

// === impl Made ===

impl Made {
    /// Image `image` of the order, which `model` sampled, with the frames kept before its end.
    pub(super) fn new(
        model: &Model,
        order: &Order,
        image: usize,
        sample: Sample,
        mut frames: Vec<Point>,
    ) -> Self {
        let mut provenance = Provenance::new(model, &order.spec, sample.seed, order.start.note(image));
        if let Some(every) = order.watch.every {
            provenance.trajectory = Some(every);
            // The clean image is its own estimate.
            frames.push(Point { x: sample.values.clone(), x0: sample.values.clone() });
        }
        Self { sample, frames, provenance }
    }

    /// It as a picture, each of its pixels so many of the picture's along each side: the image, or its trajectory as a strip.
    pub(in crate::routes) fn picture(&self, card: &Card, scale: usize) -> Picture {
        let shown = |values: &[f32]| enlarge(&pixels(card, values), scale);
        let strip = strip(&self.frames.iter().map(|point| shown(&point.x)).collect::<Vec<_>>());
        strip.unwrap_or_else(|| shown(&self.sample.values))
    }
}

/// A file and what it shows: one image, or with arrays as a raw answer all of them.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) provenance: Provenance,
}

/// The files of a request, off the async threads: a large PNG takes a while. And how long that took. Its frames have
/// their room until then, even if nobody waits any more.
pub(super) async fn encode(
    bench: &Workbench,
    card: &Arc<Card>,
    output: Output,
    images: Vec<Made>,
    frames: Room,
) -> Result<(Vec<Encoded>, Duration), ApiError> {
    let card = Arc::clone(card);
    let work = move || {
        let start = Instant::now();
        let files = match output {
            Output { form: Form::Json, file: File::Arrays(file), .. } => {
                images.into_iter().map(|image| arrays(&card, file, &[image])).collect()
            }
            Output { file: File::Arrays(file), .. } => arrays(&card, file, &images).map(|file| vec![file]),
            Output { file: File::Picture(encoding), scale, .. } => {
                images.into_iter().map(|image| picture(&card, encoding, scale, image)).collect()
            }
        };
        drop(frames);
        (files, start.elapsed())
    };
    let (files, elapsed): (Result<Vec<_>, ApiError>, _) = bench.compute(work).await?;
    Ok((files?, elapsed))
}

/// The picture file of an estimate on the way; it carries no provenance, since it is not the image.
pub(super) async fn preview(
    bench: &Workbench,
    card: &Arc<Card>,
    output: Output,
    x0: Vec<f32>,
) -> Result<Vec<u8>, ApiError> {
    let File::Picture(encoding) = output.file else {
        return Err(ApiError::internal("a preview that is no picture"));
    };
    let card = Arc::clone(card);
    let work = move || enlarge(&pixels(&card, &x0), output.scale).encode(encoding, None);
    bench.compute(work).await?.map_err(|error| ApiError::internal(error.to_string()))
}

/// The picture file of an image.
fn picture(card: &Card, encoding: Encoding, scale: usize, image: Made) -> Result<Encoded, ApiError> {
    let picture = image.picture(card, scale);
    let provenance = Provenance { upscaled: scale, ..image.provenance };
    let note = provenance.to_json();
    let bytes =
        picture.encode(encoding, Some(&note)).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Encoded { bytes, provenance })
}

/// The pixels of an image's values.
fn pixels(card: &Card, values: &[f32]) -> Picture {
    let config = &card.manifest.config;
    Picture::from_planar(values, card.colour, config.height, config.width, card.manifest.value_range)
}

/// One file of numbers that holds these images.
fn arrays(card: &Card, file: ArrayFile, images: &[Made]) -> Result<Encoded, ApiError> {
    let [channels, height, width] = card.shape();
    let all: Vec<&Provenance> = images.iter().map(|image| &image.provenance).collect();
    let described = serde_json::to_string(&all).map_err(|error| ApiError::internal(error.to_string()))?;
    let first = images.first().ok_or_else(|| ApiError::internal("an order without images"))?;
    let (count, provenance) = (first.frames.len(), first.provenance.clone());
    let of_frames = |part: fn(&Point) -> &[f32]| {
        images.iter().flat_map(|image| &image.frames).flat_map(|point| part(point).iter().copied()).collect()
    };
    let frames = (count > 0).then(|| Frames { count, x: of_frames(|p| &p.x), x0: of_frames(|p| &p.x0) });
    let arrays = Arrays {
        shape: [images.len(), channels, height, width],
        seeds: images.iter().map(|image| image.sample.seed).collect(),
        images: images.iter().flat_map(|image| &image.sample.values).copied().collect(),
        frames,
        provenance: described,
    };
    let bytes = arrays.encode(file).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Encoded { bytes, provenance })
}

#[cfg(test)]
mod tests {
    use super::super::response::shown_size;
    use super::*;
    use crate::testing::manifest;

    /// Every package of this repository is square: on none of them is it seen.
    #[test]
    fn width_comes_before_height() {
        let card = Card::new(manifest("shoes", &["Sneaker"]), "0".repeat(64), 0).unwrap();
        let values: Vec<f32> = (0..24).map(|i| i as f32 / 12.0 - 1.0).collect();
        let png = enlarge(&pixels(&card, &values), 2).encode(Encoding::Png, None).unwrap();
        let picture = image::load_from_memory(&png).unwrap().into_luma8();
        assert_eq!(picture.dimensions(), (12, 8));
        // The end of the first row, and the beginning of the second.
        let grey = |i: usize| ((f64::from(values[i]) + 1.0) * 127.5).round() as u8;
        assert_eq!((picture.get_pixel(11, 1)[0], picture.get_pixel(0, 2)[0]), (grey(5), grey(6)));
        assert_eq!(shown_size([12, 8]), "12x8");
    }
}
