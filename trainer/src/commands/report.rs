//! `eval.json`: what `eval` leaves in a run's folder, and which of its numbers `export` may tell of a package.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use windowpane_diffusion::psnr_gap::PsnrGap;

use crate::checkpoint::State;
use crate::eval::{GapConfig, psnr_gap};
use crate::{folder, json};

/// Where `eval` leaves its numbers in a run's folder.
pub(super) const EVAL_FILE: &str = "eval.json";

/// What was measured, and on what.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvalReport {
    /// Step of the weights that were measured.
    pub(super) step: u64,
    /// Whether they were the raw weights.
    pub(super) raw: bool,
    /// Digest of the training images that they were measured on; empty where it was not written down.
    #[serde(default)]
    pub(super) data_sha256: String,
    /// How it was measured.
    pub(super) config: GapConfig,
    /// The measure.
    pub(super) psnr_gap: PsnrGap,
}

// === impl EvalReport ===

impl EvalReport {
    /// Writes it into a run's folder, with the curves as a table and as a picture.
    pub(super) fn write(&self, run: &Path) -> Result<()> {
        let write = |name: &str, text: String| folder::write_file(&run.join(name), text.as_bytes());
        write(EVAL_FILE, serde_json::to_string_pretty(self)?)?;
        write("psnr-gap.csv", self.psnr_gap.csv())?;
        write("psnr-gap.svg", psnr_gap::svg(&self.psnr_gap))?;
        println!("written to {}: {EVAL_FILE}, psnr-gap.csv, psnr-gap.svg", run.display());
        Ok(())
    }
}

/// The numbers that were measured on exactly these weights and the images they were trained on; why there are none, if
/// so, is said.
pub(super) fn metrics(run: &Path, state: &State, raw: bool) -> Result<BTreeMap<String, f64>> {
    let path = run.join(EVAL_FILE);
    if !folder::there(&path)? {
        eprintln!("no PSNR gap for the card: `eval` measures it");
        return Ok(BTreeMap::new());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let report: EvalReport = json::object(&text).with_context(|| path.display().to_string())?;
    let other = if (report.step, report.raw) != (state.step, raw) {
        format!("with other weights (step {}{})", report.step, if report.raw { ", raw" } else { "" })
    } else if report.data_sha256 != state.data_sha256 {
        "on other images, or does not say on which".to_owned()
    } else {
        let gap = report.psnr_gap;
        return Ok(BTreeMap::from([
            ("psnr_gap_db".to_owned(), gap.gap),
            ("psnr_gap_low_db".to_owned(), gap.interval[0]),
            ("psnr_gap_high_db".to_owned(), gap.interval[1]),
            ("psnr_train_db".to_owned(), gap.train.mean),
            ("psnr_test_db".to_owned(), gap.test.mean),
        ]));
    };
    eprintln!("{}: measured {other}: left out of the card; `eval` measures anew", path.display());
    Ok(BTreeMap::new())
}
