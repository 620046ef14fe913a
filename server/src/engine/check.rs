//! What a model must pass before it serves, on the thread and the device that will serve it: its golden replayed,
//! and the measurement of what can be promised about batches.

use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::manifest::Graph;
use windowpane_diffusion::noise;

use super::{Denoiser, EngineError, StepBatch};
use crate::model::Card;

/// The golden replayed through the runtime.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GoldenReport {
    /// Largest max|Δ| / max|reference| of all cases.
    pub relative_error: f64,
    /// What the manifest allows.
    pub tolerance: f64,
    /// Cases replayed.
    pub cases: usize,
}

/// Whether a row's bits depend on the rows beside it, measured at load.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Determinism {
    /// `bitwise`: the same bits alone and in every batch tried. `tolerance`: within the difference stated.
    #[schema(example = "bitwise")]
    pub class: DeterminismClass,
    /// Largest max|Δ| / max|alone| over the batches tried; 0 if bitwise.
    pub relative_difference: f64,
    /// The batch sizes tried, the largest being that of a full tick.
    pub batch_sizes: Vec<usize>,
}

/// What is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
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
        /// `the model's output` or `the stored prediction`.
        whose: &'static str,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Runs every case of the graph's golden and compares.
pub fn replay(
    engine: &mut dyn Denoiser,
    card: &Card,
    graph: &Graph,
    golden: &[u8],
) -> Result<GoldenReport, CheckError> {
    let bad = |case: &str, what: String| CheckError::Golden { case: case.to_owned(), what };
    let tensors =
        SafeTensors::deserialize(golden).map_err(|error| bad("golden.safetensors", error.to_string()))?;
    let [c, h, w] = card.shape();
    let mut report =
        GoldenReport { relative_error: 0.0, tolerance: graph.tolerance, cases: graph.golden.len() };
    for case in &graph.golden {
        let tensor = |part: &str, dtype: Dtype, row: &[usize]| {
            let view =
                tensors.tensor(&format!("{case}.{part}")).map_err(|error| bad(case, error.to_string()))?;
            match view.shape().split_first() {
                Some((&n, rest)) if view.dtype() == dtype && rest == row && n > 0 => Ok((n, view.data())),
                _ => {
                    let got = format!("`{part}` is {:?} {:?}", view.dtype(), view.shape());
                    Err(bad(case, format!("{got}, expected {dtype:?} [n, {row:?}]")))
                }
            }
        };
        let (n, x) = tensor("x", Dtype::F32, &[c, h, w])?;
        let (n_t, t) = tensor("t", Dtype::F32, &[])?;
        let (n_y, y) = tensor("y", Dtype::I64, &[])?;
        let (n_out, reference) =
            tensor("prediction", Dtype::F32, &[card.manifest.config.out_channels(), h, w])?;
        if [n_t, n_y, n_out] != [n; 3] {
            return Err(bad(case, format!("x, t, y and prediction have {n}, {n_t}, {n_y} and {n_out} rows")));
        }
        let batch = StepBatch { shape: card.shape(), x: f32s(x), t: f32s(t), y: i64s(y) };
        let mut prediction = Vec::new();
        engine.denoise(&batch, &mut prediction)?;
        let reference = f32s(reference);
        for (whose, values) in [("the stored prediction", &reference), ("the model's output", &prediction)] {
            if values.iter().any(|value| !value.is_finite()) {
                return Err(CheckError::NotFinite { case: case.clone(), whose });
            }
        }
        let error = relative(&prediction, &reference);
        if error.is_nan() || error >= graph.tolerance {
            return Err(CheckError::Differs { case: case.clone(), error, tolerance: graph.tolerance });
        }
        report.relative_error = report.relative_error.max(error);
    }
    Ok(report)
}

/// Runs a few rows alone and then in batches, everywhere in them, and compares. Also the time of one row in the
/// largest batch, which warms the runtime for the first request as it is taken.
pub fn determinism(
    engine: &mut dyn Denoiser,
    card: &Card,
    max_rows: usize,
) -> Result<(Determinism, Duration), CheckError> {
    const DISTINCT: usize = 3;
    let elements = card.manifest.config.elements();
    let rows: Vec<_> = (0..DISTINCT)
        .map(|i| {
            let t = (card.schedule.len() - 1) as f32 * (i as f32 + 0.25) / DISTINCT as f32;
            let y = (card.manifest.config.null_class() * i / (DISTINCT - 1)) as i64;
            (noise::normal(i as u64, noise::INITIAL, elements), t, y)
        })
        .collect();
    let (mut batch, mut out) = (StepBatch::new(card.shape()), Vec::new());
    let mut run = |size: usize, first: usize, out: &mut Vec<f32>| {
        batch.clear();
        for (x, t, y) in rows.iter().cycle().skip(first).take(size) {
            batch.push(x, *t, *y);
        }
        engine.denoise(&batch, out)
    };
    let mut alone = Vec::new();
    for first in 0..DISTINCT {
        run(1, first, &mut out)?;
        alone.push(out.clone());
    }
    let mut sizes = vec![2, 3, 8, max_rows];
    sizes.retain(|&size| size <= max_rows);
    sizes.sort_unstable();
    sizes.dedup();
    let (mut bitwise, mut difference, mut row_time) = (true, 0.0_f64, Duration::ZERO);
    for &size in &sizes {
        let start = Instant::now();
        run(size, 0, &mut out)?;
        row_time = start.elapsed() / size as u32;
        for (i, row) in out.chunks_exact(out.len() / size).enumerate() {
            let alone = &alone[i % DISTINCT];
            bitwise &= row.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits());
            difference = difference.max(relative(row, alone));
        }
    }
    let class = if bitwise { DeterminismClass::Bitwise } else { DeterminismClass::Tolerance };
    Ok((Determinism { class, relative_difference: difference, batch_sizes: sizes }, row_time))
}

/// max|Δ| / max|reference|; NaN if any value is, infinite if the reference is all zero and the values are not.
fn relative(values: &[f32], reference: &[f32]) -> f64 {
    if values.len() != reference.len() || values.iter().chain(reference).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let delta = values.iter().zip(reference).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let largest = reference.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
    if delta == 0.0 { 0.0 } else { delta / largest }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn i64s(bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

#[cfg(test)]
mod tests;
