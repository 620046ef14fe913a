//! `eval.json`: what `eval` leaves in a run's folder, and which of its numbers `export` may tell of a package.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use windowpane_diffusion::psnr_gap::PsnrGap;

use crate::checkpoint::State;
use crate::error::Error;
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

/// What earlier versions wrote: the settings lay within the measure, and of a side there was one number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "whether it reads is all that is asked")]
struct OlderReport {
    step: u64,
    raw: bool,
    data_sha256: Option<String>,
    psnr_gap: OlderGap,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "whether it reads is all that is asked")]
struct OlderGap {
    gap: f64,
    train: f64,
    test: f64,
    config: IgnoredAny,
}

// === impl EvalReport ===

impl EvalReport {
    /// Reads a run's. Errors: it cannot be read, it is of an earlier version, or it is damaged.
    fn read(path: &Path) -> Result<Self, Error> {
        let path = || path.to_owned();
        let text = std::fs::read_to_string(path()).map_err(|source| Error::Io { path: path(), source })?;
        json::object(&text).map_err(|error| match json::object::<OlderReport>(&text) {
            Ok(_) => Error::Older { path: path(), remedy: "run `eval` again" },
            Err(_) => Error::File { path: path(), reason: error.to_string() },
        })
    }

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
    let report = EvalReport::read(&path)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As it was written before the settings had a place of their own.
    const OLDER: &str = r#"{
        "step": 8000, "raw": false, "data_sha256": "00",
        "psnr_gap": {
            "gap": 0.5, "interval": [0.4, 0.6], "train": 21.5, "test": 21.0, "images": [300, 300],
            "timesteps": [0, 500], "train_curve": [30.0, 13.0], "test_curve": [29.5, 12.5], "curve": [0.5, 0.5],
            "config": {"images": 300, "timesteps": 2, "seed": 0, "batch": 100, "resamples": 1000, "classes": 10}
        }
    }"#;

    #[test]
    fn an_older_report_is_told_from_a_damaged_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVAL_FILE);
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            EvalReport::read(&path).unwrap_err()
        };
        for older in [OLDER, &OLDER.replace("\"data_sha256\": \"00\",", "")] {
            let error = read(older);
            assert!(matches!(&error, Error::Older { path: named, .. } if *named == path), "{error}");
            assert!(error.to_string().ends_with("run `eval` again"), "{error}");
        }
        for damaged in [
            &OLDER[..OLDER.len() / 2],
            "[8000, false, \"00\", {}]",
            "{}",
            &OLDER.replace("\"step\"", "\"stop\""),
            &OLDER.replace("21.5", "\"21.5\""),
        ] {
            let error = read(damaged);
            assert!(matches!(error, Error::File { .. }), "{damaged}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(EvalReport::read(&path), Err(Error::Io { .. })));
    }
}
