//! How much better does a model denoise the images it has seen than images it has not? The study: every image of one set or
//! two, at every timestep, denoised in one step; `windowpane_diffusion::psnr_gap` says what that is worth.

use std::time::Duration;

use bytes::Bytes;
use windowpane_diffusion::psnr_gap::{Denoising, Psnr, PsnrGap, RESAMPLES, Table};

use super::image_set::ImageSet;
use super::{Study, StudyError};
use crate::batcher::study::{Ask, Findings, Like};
use crate::engine::StepBatch;

/// Seconds in which one image is drawn again for a confidence interval, about.
const RESAMPLED: f64 = 4e-9;

/// The study.
#[derive(Debug)]
pub struct PsnrGapStudy {
    /// The images that were seen, and those that were not, if they were given.
    sides: Vec<Side>,
    shape: [usize; 3],
    levels: Vec<Denoising>,
    seed: u64,
    /// Images of one call.
    rows: usize,
    /// PSNR of every image of all sides, `[timesteps][images]`; the last row may be under way.
    table: Table,
    /// The noisy images of the call under way.
    noisy: Vec<f32>,
    /// Timesteps that were given away as pieces.
    kept: usize,
}

/// Images, with the labels that the network is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// `[n, channels, height, width]`.
    pub images: Vec<f32>,
    /// One an image.
    pub labels: Vec<i64>,
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Of one set.
    One {
        /// Timesteps of the schedule, ascending.
        timesteps: Vec<usize>,
        /// What was measured at them.
        psnr: Psnr,
    },
    /// Of two.
    Two(PsnrGap),
}

// === impl Side ===

impl Side {
    /// Of a set whose images are told as their classes, or else all as `label`.
    pub fn new(set: ImageSet, label: i64) -> Self {
        let labels = match set.labels {
            Some(labels) => labels.into_iter().map(|label| label as i64).collect(),
            None => vec![label; set.len],
        };
        Self { images: set.values, labels }
    }
}

// === impl PsnrGapStudy ===

impl PsnrGapStudy {
    /// Of one set or two that have an image each, at one timestep at least, `rows` images a call.
    pub fn new(sides: Vec<Side>, shape: [usize; 3], levels: Vec<Denoising>, seed: u64, rows: usize) -> Self {
        let (table, noisy) = (Vec::new(), Vec::new());
        Self { sides, shape, levels, seed, rows: rows.max(1), table, noisy, kept: 0 }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Images of all sides.
    fn images(&self) -> usize {
        self.sides.iter().map(|side| side.labels.len()).sum()
    }

    /// Image number `at` of all: its values, its label, and its number in its own set.
    fn image(&self, mut at: usize) -> Option<(&[f32], i64, usize)> {
        for side in &self.sides {
            if let Some(&label) = side.labels.get(at) {
                let first = at * self.elements();
                return Some((side.images.get(first..first + self.elements())?, label, at));
            }
            at -= side.labels.len();
        }
        None
    }

    /// Timesteps that are done, and images of the next that are.
    fn done(&self) -> (usize, usize) {
        match self.table.last() {
            Some(row) if row.len() < self.images() => (self.table.len() - 1, row.len()),
            _ => (self.table.len(), 0),
        }
    }
}

impl Study for PsnrGapStudy {
    const KIND: &'static str = "psnr-gap";
    type Findings = Measured;

    fn left(&self) -> usize {
        let (timesteps, images) = self.done();
        let calls = (self.levels.len() - timesteps) * self.images().div_ceil(self.rows);
        calls - images / self.rows
    }

    fn like(&self) -> Like {
        Like::denoiser(self.rows.min(self.images()))
    }

    fn end(&self) -> Duration {
        let drawn = RESAMPLES.saturating_mul(self.levels.len() * self.images());
        Duration::from_secs_f64(drawn as f64 * RESAMPLED)
    }

    fn kept(&self) -> usize {
        self.levels.len() * self.images() * size_of::<f64>()
    }

    fn next(&mut self) -> Option<Ask> {
        let (timesteps, first) = self.done();
        let level = self.levels.get(timesteps)?;
        let mut batch = StepBatch::new(self.shape);
        for at in first..self.images().min(first + self.rows) {
            let (clean, label, number) = self.image(at)?;
            batch.push(&level.noisy(clean, self.seed, number), level.t() as f32, label);
        }
        self.noisy.clone_from(&batch.x);
        Some(Ask::Denoise(batch))
    }

    fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        let predicted = findings.into_iter().next().unwrap_or_default();
        let ((timesteps, first), elements) = (self.done(), self.elements());
        let rows = self.noisy.len() / elements;
        // A second half of the channels is a variance, which is not looked at.
        let own = predicted.len() / rows.max(1);
        let (Some(level), true) = (self.levels.get(timesteps), rows > 0 && own >= elements) else {
            let shape = format!("{} values are no predictions of {rows} images", predicted.len());
            return Err(StudyError::Shape(shape));
        };
        if predicted.iter().any(|value| !value.is_finite()) {
            return Err(StudyError::NotFinite);
        }
        let mut psnr = Vec::with_capacity(rows);
        for (row, noisy) in self.noisy.chunks_exact(elements).enumerate() {
            let Some((clean, ..)) = self.image(first + row) else { break };
            psnr.push(level.psnr(clean, noisy, &predicted[row * own..row * own + elements]));
        }
        if first == 0 {
            self.table.push(Vec::with_capacity(self.images()));
        }
        if let Some(row) = self.table.last_mut() {
            row.extend(psnr);
        }
        self.noisy.clear();
        Ok(())
    }

    /// A timestep: f64 of each image, little-endian.
    fn piece(&mut self) -> Option<Bytes> {
        let (timesteps, _) = self.done();
        if self.kept == timesteps {
            return None;
        }
        let row = self.table.get(self.kept)?;
        self.kept += 1;
        Some(row.iter().flat_map(|psnr| psnr.to_le_bytes()).collect::<Vec<_>>().into())
    }

    fn resume(&mut self, pieces: &[Bytes]) -> Result<(), StudyError> {
        for piece in pieces {
            let row: Vec<f64> =
                piece.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
            if row.len() != self.images() || self.table.len() == self.levels.len() {
                return Err(StudyError::Shape("a piece of another study".to_owned()));
            }
            self.table.push(row);
        }
        self.kept = pieces.len();
        Ok(())
    }

    fn finish(self) -> Measured {
        let timesteps = self.levels.iter().map(Denoising::t).collect();
        let first = self.sides.first().map_or(0, |side| side.labels.len());
        let part = |of: fn(&[f64], usize) -> &[f64]| -> Table {
            self.table.iter().map(|row| of(row, first).to_vec()).collect()
        };
        let train = part(|row, first| &row[..first.min(row.len())]);
        if self.sides.len() == 1 {
            return Measured::One { timesteps, psnr: Psnr::of(&train, self.seed, RESAMPLES) };
        }
        let test = part(|row, first| &row[first.min(row.len())..]);
        Measured::Two(PsnrGap::of([&train, &test], timesteps, self.seed, RESAMPLES))
    }
}

#[cfg(test)]
mod tests;
