//! What of a trajectory is kept on the way: previews for a stream, or every k-th step.

use std::sync::Arc;

use super::{Output, SampleSpec};
use crate::error::{ApiError, Cause};
use crate::extract::Form;
use crate::model::Card;
use crate::routes::images::ImageRequest;
use crate::spec::File;

/// Previews of one image; OpenAI's bound.
pub const MAX_PREVIEWS: u64 = 3;

/// Values that the frames of a request may hold together: 64 MiB of f32, and as much again for the clean estimates.
const MAX_FRAME_VALUES: usize = 1 << 24;

/// Bytes of the same.
pub const MAX_FRAME_BYTES: usize = MAX_FRAME_VALUES * 2 * size_of::<f32>();

/// Longest side of a strip in pixels: WebP's limit, the smallest of the formats'.
const MAX_STRIP: usize = 16_383;

/// What is kept on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// Frames are every so many steps, and the finished image is the last; `None`: they are previews, if there are any.
    pub every: Option<usize>,
    /// The evaluations that are watched, ascending, without the last one.
    pub evaluations: Arc<[usize]>,
}

// === impl Watch ===

impl Watch {
    pub(super) fn resolve(
        request: &ImageRequest,
        spec: &SampleSpec,
        output: Output,
        card: &Card,
        count: u64,
    ) -> Result<Self, ApiError> {
        let streams = output.form == Form::Events;
        let previews = request.partial_images.unwrap_or(0);
        if previews > MAX_PREVIEWS {
            return Err(ApiError::invalid("partial_images", previews, format!("0 to {MAX_PREVIEWS}")));
        }
        if previews > 0 && !streams {
            return Err(ApiError::invalid("partial_images", previews, "0 unless `stream` is true"));
        }
        let Some(every) = request.trajectory else {
            let evaluations =
                if streams { spread(spec.evaluations.len(), previews as usize) } else { Vec::new() };
            return Ok(Self { every: None, evaluations: evaluations.into() });
        };
        if streams {
            let message = "`trajectory` is not streamed: ask for `partial_images`, or leave `stream` out";
            return Err(ApiError::new(Cause::InvalidValue, message).param("trajectory"));
        }
        let steps = spec.steps_taken();
        let step = usize::try_from(every).ok().filter(|&every| (1..=steps).contains(&every));
        let step = step.ok_or_else(|| {
            ApiError::invalid("trajectory", every, format!("1 to {steps}, the steps that are taken"))
        })?;
        let watch = Self { every: Some(step), evaluations: every_kth(spec, step).into() };
        watch.fits(output, card, count as usize)?;
        Ok(watch)
    }

    /// Frames of one image, the finished one among them; 0 where none are kept.
    pub fn frames(&self) -> usize {
        if self.every.is_some() { self.evaluations.len() + 1 } else { 0 }
    }

    /// Memory of what is kept of `count` images of `elements` values until it is handed over: of each frame the noisy
    /// image and the clean one.
    pub fn bytes(&self, count: usize, elements: usize) -> usize {
        self.frames().max(self.evaluations.len()) * count * elements * 2 * size_of::<f32>()
    }

    fn fits(&self, output: Output, card: &Card, count: usize) -> Result<(), ApiError> {
        let (frames, every) = (self.frames(), self.every.unwrap_or_default());
        let refused = |most: usize, of: &str| {
            let expected = format!("a larger one: it keeps {frames} frames, and {most} {of}");
            Err(ApiError::invalid("trajectory", every, expected))
        };
        let most = MAX_STRIP / (card.manifest.config.width * output.scale);
        if matches!(output.file, File::Picture(_)) && frames > most {
            return refused(most, "fit into a strip of 16383 pixels");
        }
        let most = MAX_FRAME_VALUES / (card.shape().iter().product::<usize>() * count);
        if frames > most { refused(most, "of this size are kept for one request") } else { Ok(()) }
    }
}

/// `count` of `evaluations`, evenly, none the last.
fn spread(evaluations: usize, count: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> = (1..=count)
        .filter_map(|i| (evaluations * i / (count + 1)).checked_sub(1))
        .filter(|&evaluation| evaluation + 1 < evaluations)
        .collect();
    chosen.dedup();
    chosen
}

/// The evaluations that end every `every`-th step, without the last.
fn every_kth(spec: &SampleSpec, every: usize) -> Vec<usize> {
    let (all, first) = (&spec.evaluations, spec.evaluations.first().map_or(0, |first| first.step));
    let ends = all.windows(2).enumerate().filter(|(_, pair)| pair[0].step != pair[1].step);
    ends.filter(|(_, pair)| (pair[0].step - first + 1).is_multiple_of(every)).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_are_spread_and_none_is_the_result() {
        assert_eq!(spread(10, 0), [0_usize; 0]);
        assert_eq!(spread(10, 1), [4]);
        assert_eq!(spread(10, 3), [1, 4, 6]);
        assert_eq!(spread(1000, 3), [249, 499, 749]);
        // Fewer calls than previews: as many as there are.
        assert_eq!(spread(3, 3), [0, 1]);
        assert_eq!(spread(2, 3), [0]);
        assert_eq!(spread(1, 3), [0_usize; 0]);
    }
}
