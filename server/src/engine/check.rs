//! What a model must pass before it serves, on the thread and the device that will serve it: its golden replayed,
//! and the measurement of what can be promised about batches.

mod golden;

use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windowpane_diffusion::noise;

use super::{Denoiser, EngineError, StepBatch};
use crate::batcher::costs::TickCosts;
use crate::batcher::device::Seat;
use crate::model::Card;

pub use golden::{Case, GoldenReport, replay};

/// The header of every generated response that says what was measured of its bits.
pub const DETERMINISM_HEADER: HeaderName = HeaderName::from_static("x-determinism");

/// Whether a row's bits depend on the rows beside it, measured at load.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Determinism {
    /// `bitwise`: the same bits alone and in every batch tried. `tolerance`: within the difference stated.
    #[schema(example = "bitwise")]
    pub class: DeterminismClass,
    /// Largest max|Δ| / max|alone| over the batches tried; 0 if bitwise.
    pub relative_difference: f64,
    /// The batch sizes tried, the largest being that of the largest tick.
    pub batch_sizes: Vec<usize>,
    /// The batch size to which ticks are held while a request says `reproducible`: in it the bits do not depend on the
    /// company. Null where no size needs it (`bitwise`), and where none has it.
    #[schema(required)]
    pub pinned_rows: Option<usize>,
}

/// What was measured of a model on its device.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What can be promised about bits.
    pub determinism: Determinism,
    /// What a tick costs.
    pub costs: TickCosts,
    /// Rows of one call of the network; larger ticks run in pieces.
    pub piece: usize,
}

// === impl Determinism ===

impl Determinism {
    /// `bitwise`, or `tolerance` and the number.
    pub fn header(&self) -> HeaderValue {
        let text = match self.class {
            DeterminismClass::Bitwise => "bitwise".to_owned(),
            DeterminismClass::Tolerance => format!("tolerance {:e}", self.relative_difference),
        };
        HeaderValue::try_from(text).expect("a number is visible ASCII; this is a bug")
    }

    /// Whether the same bits can be promised to a request that insists on them.
    pub fn promises_bits(&self) -> bool {
        self.class == DeterminismClass::Bitwise || self.pinned_rows.is_some()
    }
}

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeterminismClass {
    /// Same bits.
    Bitwise,
    /// Within a stated difference.
    Tolerance,
}

/// A model does not pass.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// The golden file is not one, or lacks a case.
    #[error("golden case `{case}`: {what}")]
    Golden {
        /// The case, or the file where it is not about one.
        case: String,
        /// What is wrong.
        what: String,
    },
    /// The runtime's answer differs from the trainer's.
    #[error("golden case `{case}` differs by {error:e} of its largest value, allowed is {tolerance:e}")]
    Differs {
        /// The case.
        case: String,
        /// max|Δ| / max|reference|.
        error: f64,
        /// The bound.
        tolerance: f64,
    },
    /// A number that is none cannot be compared.
    #[error("golden case `{case}`: {whose} is not finite")]
    NotFinite {
        /// The case.
        case: String,
        /// Whose numbers, in words.
        whose: &'static str,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs a few rows alone and then in batches, everywhere in them and in different company, and compares; and times every
/// size. Every call takes its turn with the models that already
/// serve from this device: they wait for no more than one, and what is timed is the call and not the waiting.
pub fn measure(
    engine: &mut dyn Denoiser,
    seat: &Seat<'_>,
    card: &Card,
    max_rows: usize,
) -> Result<Measured, CheckError> {
    let mut probe = Probe::new(engine, seat, card);
    let mut alone = Vec::new();
    for first in 0..DISTINCT {
        alone.push(probe.run(1, first)?.0.to_vec());
    }
    let mut sizes = vec![1, 2, 3];
    sizes.extend((2..).map(|power| 1 << power).take_while(|&size| size < max_rows));
    sizes.push(max_rows);
    sizes.retain(|&size| size <= max_rows);
    sizes.dedup();
    let (mut bitwise, mut difference) = (true, 0.0_f64);
    let (mut costs, mut steady) = (Vec::new(), Vec::new());
    for &size in &sizes {
        let mut same_in_company = true;
        // What a row gives in this bucket, by which row it is, wherever it lies and whoever is beside it.
        let mut here: [Option<Vec<f32>>; DISTINCT] = Default::default();
        let mut fastest = Duration::MAX;
        // Large batches take long, and meet enough company in fewer.
        for first in 0..if size <= 8 { DISTINCT } else { 2 } {
            let (out, elapsed) = probe.run(size, first)?;
            fastest = fastest.min(elapsed);
            for (i, row) in out.chunks_exact(out.len() / size).enumerate() {
                let which = (first + i) % DISTINCT;
                bitwise &= same_bits(row, &alone[which]);
                difference = difference.max(relative(row, &alone[which]));
                same_in_company &= same_bits(here[which].get_or_insert_with(|| row.to_vec()), row);
            }
        }
        costs.push((size, fastest));
        steady.extend(same_in_company.then_some(size));
    }
    // Again, every size in turn: a machine whose speed drifts must not make one of them look better than the others.
    let began = Instant::now();
    for _ in 0..ROUNDS {
        if began.elapsed() > TIMING {
            break;
        }
        for (size, fastest) in &mut costs {
            *fastest = probe.run(*size, 0)?.1.min(*fastest);
        }
    }
    let class = if bitwise { DeterminismClass::Bitwise } else { DeterminismClass::Tolerance };
    let mut determinism =
        Determinism { class, relative_difference: difference, batch_sizes: sizes, pinned_rows: None };
    let piece = if bitwise { piece(&costs) } else { max_rows };
    probe.engine.split_at(piece);
    let costs = TickCosts::new(costs).in_pieces_of(piece);
    if bitwise {
        // Every size that one call of the network will have, and a full tick in its pieces.
        let room = costs.target(max_rows);
        for size in (1..=piece.min(room)).chain([room]) {
            if !probe.compare(size, 0, &alone, &mut determinism)? {
                steady.retain(|&other| other != size);
            }
        }
    }
    // The largest that runs in one call, as it did above: everybody's ticks are held to it while a request insists. Decided
    // when every size has been compared, since one that differs may be found last.
    if determinism.class == DeterminismClass::Tolerance {
        determinism.pinned_rows = steady.into_iter().filter(|size| (2..=piece).contains(size)).max();
    }
    Ok(Measured { determinism, costs, piece })
}

/// The most rows in one call of the network that are about as fast, for a row, as the fastest; what is larger runs in
/// pieces. At least four: the fewer, the more a call itself costs on a machine that does something else as well.
fn piece(costs: &[(usize, Duration)]) -> usize {
    const LEAST: usize = 4;
    const ABOUT: f64 = 0.95;
    let speed = |&(rows, time): &(usize, Duration)| rows as f64 / time.as_secs_f64().max(1e-9);
    let sizes = || costs.iter().filter(|(rows, _)| *rows >= LEAST);
    let best = sizes().map(speed).fold(0.0, f64::max);
    sizes().rfind(|&cost| speed(cost) >= ABOUT * best).map_or(usize::MAX, |&(rows, _)| rows)
}

/// Different rows of the measurement.
const DISTINCT: usize = 3;

/// Rounds in which every size is timed once more, and the time after which none is begun.
const ROUNDS: usize = 8;
const TIMING: Duration = Duration::from_millis(800);

/// The rows that the measurement runs, again and again.
struct Probe<'a> {
    engine: &'a mut dyn Denoiser,
    seat: &'a Seat<'a>,
    rows: [(Vec<f32>, f32, i64); DISTINCT],
    batch: StepBatch,
    out: Vec<f32>,
}

// === impl Probe ===

impl<'a> Probe<'a> {
    fn new(engine: &'a mut dyn Denoiser, seat: &'a Seat<'a>, card: &Card) -> Self {
        let elements = card.manifest.config.elements();
        let rows = std::array::from_fn(|i| {
            let t = (card.schedule.len() - 1) as f32 * (i as f32 + 0.25) / DISTINCT as f32;
            let y = (card.manifest.config.null_class() * i / (DISTINCT - 1)) as i64;
            (noise::normal(i as u64, noise::INITIAL, elements), t, y)
        });
        Self { engine, seat, rows, batch: StepBatch::new(card.shape()), out: Vec::new() }
    }

    /// A batch of `size` rows, beginning with row `first` and going round; and how long the network took.
    fn run(&mut self, size: usize, first: usize) -> Result<(&[f32], Duration), EngineError> {
        self.batch.clear();
        for (x, t, y) in self.rows.iter().cycle().skip(first).take(size) {
            self.batch.push(x, *t, *y);
        }
        let (done, elapsed) = self.seat.run(|| self.engine.denoise(&self.batch, &mut self.out));
        done?;
        Ok((&self.out, elapsed))
    }

    /// One more size against the rows alone; what differs is noted. Whether nothing does.
    fn compare(
        &mut self,
        size: usize,
        first: usize,
        alone: &[Vec<f32>],
        determinism: &mut Determinism,
    ) -> Result<bool, EngineError> {
        let (out, _) = self.run(size, first)?;
        let mut same = true;
        for (i, row) in out.chunks_exact(out.len() / size).enumerate() {
            let alone = &alone[(first + i) % DISTINCT];
            if !same_bits(row, alone) {
                same = false;
                determinism.class = DeterminismClass::Tolerance;
                determinism.relative_difference = determinism.relative_difference.max(relative(row, alone));
            }
        }
        if let Err(place) = determinism.batch_sizes.binary_search(&size) {
            determinism.batch_sizes.insert(place, size);
        }
        Ok(same)
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// max|Δ| / max|reference|; NaN if any value is, infinite if the reference is all zero and the values are not.
pub(super) fn relative(values: &[f32], reference: &[f32]) -> f64 {
    if values.len() != reference.len() || values.iter().chain(reference).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let delta = values.iter().zip(reference).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let largest = reference.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
    if delta == 0.0 { 0.0 } else { delta / largest }
}

#[cfg(test)]
mod tests;
