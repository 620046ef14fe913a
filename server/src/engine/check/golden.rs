//! The golden: cases that the trainer's network answered in f32, and whether a network here answers them as it did.

use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use utoipa::ToSchema;
use windowpane_diffusion::manifest::Graph;

use super::{CheckError, relative};
use crate::batcher::device::Seat;
use crate::engine::{Denoiser, StepBatch};
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

/// A batch, and what the trainer's network said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    name: String,
    batch: StepBatch,
    reference: Vec<f32>,
    tolerance: f64,
}

// === impl Case ===

impl Case {
    /// The cases of a graph, from the bytes of the golden's file, in the manifest's order.
    pub fn all(card: &Card, graph: &Graph, golden: &[u8]) -> Result<Vec<Self>, CheckError> {
        let tensors =
            SafeTensors::deserialize(golden).map_err(|error| bad("golden.safetensors", error.to_string()))?;
        graph.golden.iter().map(|case| Self::read(case, card, graph, &tensors)).collect()
    }

    fn read(case: &str, card: &Card, graph: &Graph, tensors: &SafeTensors<'_>) -> Result<Self, CheckError> {
        let [c, h, w] = card.shape();
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
        Ok(Self { name: case.to_owned(), batch, reference: f32s(reference), tolerance: graph.tolerance })
    }

    /// Rows of its batch.
    pub fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// Runs it: max|Δ| / max|reference|, if that is allowed.
    pub fn replay(&self, engine: &mut dyn Denoiser) -> Result<f64, CheckError> {
        let mut prediction = Vec::new();
        engine.denoise(&self.batch, &mut prediction)?;
        let Self { name, reference, tolerance, .. } = self;
        for (whose, values) in [("the stored prediction", reference), ("the model's output", &prediction)] {
            if values.iter().any(|value| !value.is_finite()) {
                return Err(CheckError::NotFinite { case: name.clone(), whose });
            }
        }
        let (error, tolerance) = (relative(&prediction, reference), *tolerance);
        if error.is_nan() || error >= tolerance {
            return Err(CheckError::Differs { case: name.clone(), error, tolerance });
        }
        Ok(error)
    }
}

/// Runs every case, each in a turn of its own, and compares.
pub fn replay(
    engine: &mut dyn Denoiser,
    seat: &Seat<'_>,
    cases: &[Case],
) -> Result<GoldenReport, CheckError> {
    let tolerance = cases.first().map_or(0.0, |case| case.tolerance);
    let mut report = GoldenReport { relative_error: 0.0, tolerance, cases: cases.len() };
    for case in cases {
        let error = seat.run(|| case.replay(engine)).0?;
        report.relative_error = report.relative_error.max(error);
    }
    Ok(report)
}

fn bad(case: &str, what: String) -> CheckError {
    CheckError::Golden { case: case.to_owned(), what }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

fn i64s(bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}
