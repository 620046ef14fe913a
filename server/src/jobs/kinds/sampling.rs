//! Many images as a study: groups of trajectories that fill a tick and go from noise to image together. A group that is done
//! is a piece.

use std::sync::Arc;

use bytes::Bytes;

use crate::analysis::{Study, StudyError};
use crate::batcher::study::{Ask, Findings, Like};
use crate::encode::{Colour, Picture};
use crate::engine::StepBatch;
use crate::model::Card;
use crate::sampler::{Progress, Trajectory};
use crate::spec::SampleSpec;

/// The study.
#[derive(Debug)]
pub(super) struct SamplingStudy {
    /// Image i is of spec i modulo their number; all take the same steps.
    specs: Vec<Arc<SampleSpec>>,
    seed: u64,
    count: usize,
    /// Images of a group.
    group: usize,
    shape: [usize; 3],
    colour: Colour,
    range: [f32; 2],
    /// Those under way.
    live: Vec<Trajectory>,
    /// Pixels of those that are done, group by group.
    pieces: Vec<Bytes>,
    /// How many those are.
    done: usize,
    /// Pieces that were given away.
    kept: usize,
}

/// What it comes to.
#[derive(Debug)]
pub(super) struct Drawn {
    /// `[n, height, width, channels]`, some images at a time. They are the pieces that were kept: nothing is there twice.
    pub(super) pieces: Vec<Bytes>,
}

// === impl SamplingStudy ===

impl SamplingStudy {
    /// Of `count` images from `seed` on, `rows` rows a call.
    pub(super) fn new(
        card: &Card,
        specs: Vec<Arc<SampleSpec>>,
        seed: u64,
        count: usize,
        rows: usize,
    ) -> Self {
        let each = specs.iter().map(|spec| spec.rows()).max().unwrap_or(1);
        Self {
            group: (rows / each.max(1)).max(1),
            specs,
            seed,
            count,
            shape: card.shape(),
            colour: card.colour,
            range: card.manifest.value_range,
            live: Vec::new(),
            pieces: Vec::new(),
            done: 0,
            kept: 0,
        }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Rows of a call of a whole group.
    fn rows(&self) -> usize {
        self.group.min(self.count) * self.specs.iter().map(|spec| spec.rows()).max().unwrap_or(1)
    }

    /// Calls of a group.
    fn calls(&self) -> usize {
        self.specs[0].evaluations.len()
    }
}

impl Study for SamplingStudy {
    const KIND: &'static str = "images";
    type Findings = Drawn;

    fn left(&self) -> usize {
        let begun = self.live.first().map_or(0, |first| self.calls() - first.evaluations_left());
        (self.count - self.done).div_ceil(self.group) * self.calls() - begun
    }

    fn like(&self) -> Like {
        Like::denoiser(self.rows())
    }

    fn kept(&self) -> usize {
        self.count * self.elements()
    }

    fn next(&mut self) -> Option<Ask> {
        if self.live.is_empty() {
            let (first, elements) = (self.done, self.elements());
            let image = |i: usize| {
                let spec = Arc::clone(&self.specs[i % self.specs.len()]);
                Trajectory::new(spec, self.seed + i as u64, elements)
            };
            self.live = (first..self.count.min(first + self.group)).map(image).collect();
        }
        if self.live.is_empty() {
            return None;
        }
        let mut batch = StepBatch::new(self.shape);
        self.live.iter_mut().for_each(|trajectory| trajectory.gather(&mut batch));
        Some(Ask::Denoise(batch))
    }

    fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        let mut prediction = findings.into_iter().next().unwrap_or_default();
        let rows: usize = self.live.iter().map(Trajectory::rows).sum();
        let row = prediction.len() / rows.max(1);
        if row < self.elements() || row * rows != prediction.len() {
            let shape = format!("{} values are no predictions of {rows} rows", prediction.len());
            return Err(StudyError::Shape(shape));
        }
        let (mut rest, mut finished) = (prediction.as_mut_slice(), 0);
        for trajectory in &mut self.live {
            let (own, others) = rest.split_at_mut(trajectory.rows() * row);
            rest = others;
            match trajectory.apply(own) {
                Progress::NotFinite => return Err(StudyError::NotFinite),
                Progress::Finished => finished += 1,
                Progress::Running => {}
            }
        }
        if finished < self.live.len() {
            return Ok(());
        }
        let [_, height, width] = self.shape;
        let mut pixels = Vec::with_capacity(finished * self.elements());
        for trajectory in std::mem::take(&mut self.live) {
            let values = trajectory.into_values();
            let picture = Picture::from_planar(&values, self.colour, height, width, self.range);
            pixels.extend(picture.pixels);
        }
        self.done += finished;
        self.pieces.push(pixels.into());
        Ok(())
    }

    /// The pixels of a group.
    fn piece(&mut self) -> Option<Bytes> {
        let piece = self.pieces.get(self.kept)?.clone();
        self.kept += 1;
        Some(piece)
    }

    fn resume(&mut self, pieces: &[Bytes]) -> Result<(), StudyError> {
        // A server with ticks of another size may have drawn them: groups may be others, images are the same.
        let elements = self.elements();
        let done = pieces.iter().map(Bytes::len).sum::<usize>() / elements;
        if done > self.count || pieces.iter().any(|piece| !piece.len().is_multiple_of(elements)) {
            return Err(StudyError::Shape("pieces of another order".to_owned()));
        }
        self.pieces = pieces.to_vec();
        (self.done, self.kept) = (done, pieces.len());
        Ok(())
    }

    fn finish(self) -> Drawn {
        Drawn { pieces: self.pieces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extract::Accept;
    use crate::routes::images::ImageRequest;
    use crate::spec::{ClassRef, Order};
    use crate::testing::manifest;

    fn card() -> Card {
        Card::new(manifest("shoes", &["sneaker", "boot"]), "0".repeat(64), 0).unwrap()
    }

    fn specs(card: &Card) -> Vec<Arc<SampleSpec>> {
        let of = |class| {
            let request = ImageRequest {
                class: Some(ClassRef::Index(class)),
                steps: Some(3),
                ..ImageRequest::default()
            };
            Order::resolve(&request, &Accept::default(), card).unwrap().spec
        };
        vec![of(0), of(1)]
    }

    /// A network whose prediction depends on image, time and label.
    fn predict(batch: &StepBatch) -> Vec<f32> {
        let rows = batch.x.chunks_exact(24).zip(&batch.t).zip(&batch.y);
        rows.flat_map(|((x, &t), &y)| x.iter().map(move |x| x * 0.3 + t * 0.001 + y as f32 * 0.1)).collect()
    }

    fn run(study: &mut SamplingStudy, calls: usize) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        for _ in 0..calls {
            let left = study.left();
            let Some(Ask::Denoise(batch)) = study.next() else { break };
            assert!(batch.t.len() <= 8, "two rows an image, since they are guided");
            study.take(vec![predict(&batch)]).unwrap();
            assert_eq!(study.left(), left - 1);
            pieces.extend(study.piece());
        }
        pieces
    }

    #[test]
    fn every_image_is_the_one_of_its_own_seed_and_class() {
        let card = card();
        let mut study = SamplingStudy::new(&card, specs(&card), 7, 10, 8);
        assert_eq!(study.left(), 3 * 3, "groups of four");
        run(&mut study, usize::MAX);
        let all = study.finish().pieces.concat();
        assert_eq!(all.len(), 10 * 24);
        for i in 0..10 {
            let spec = specs(&card).remove(i % 2);
            let mut alone = SamplingStudy::new(&card, vec![spec], 7 + i as u64, 1, 8);
            run(&mut alone, usize::MAX);
            assert_eq!(alone.finish().pieces.concat(), all[i * 24..(i + 1) * 24], "image {i}");
        }
    }

    #[test]
    fn whoever_goes_on_from_the_pieces_draws_the_same() {
        let card = card();
        let mut whole = SamplingStudy::new(&card, specs(&card), 7, 10, 8);
        run(&mut whole, usize::MAX);
        let whole = whole.finish().pieces.concat();
        for (calls, rows) in [(0, 8), (2, 8), (3, 8), (5, 8), (7, 4), (9, 8)] {
            let mut first = SamplingStudy::new(&card, specs(&card), 7, 10, 8);
            let pieces = run(&mut first, calls);
            assert_eq!(pieces.len(), calls / 3);
            let mut second = SamplingStudy::new(&card, specs(&card), 7, 10, rows);
            second.resume(&pieces).unwrap();
            run(&mut second, usize::MAX);
            let drawn = second.finish().pieces;
            assert!(drawn.concat() == whole, "after {calls} calls");
            // What was drawn is there once, with whoever keeps it and here.
            assert!(pieces.iter().zip(&drawn).all(|(kept, ours)| kept.as_ptr() == ours.as_ptr()));
        }
        let mut other = SamplingStudy::new(&card, specs(&card), 7, 10, 8);
        assert!(other.resume(&[Bytes::from_static(&[0; 23])]).is_err());
    }
}
