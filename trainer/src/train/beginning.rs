//! Weights to begin with that are not random: a run's, a package's, or those of a file. What they learnt stays; steps, moments and
//! the learning rate's warm-up begin anew.

use std::path::Path;

use tch::{Device, Tensor};
use windowpane_diffusion::manifest::{MANIFEST_FILE, STEPS_BEFORE};

use crate::checkpoint::{self, Meta};
use crate::error::{Error, Result};
use crate::export::reopen::reopen;

/// The weights at `path` as `[parameters]`, of a run the moving average of its newest checkpoint, and the steps that are known to
/// be behind them. Errors: nothing there, or nothing that has weights; damaged files; another model than `recipe` says.
pub(super) fn read(path: &Path, recipe: &Meta, device: Device) -> Result<(Tensor, u64)> {
    let (meta, flat, before) = if path.join(MANIFEST_FILE).is_file() {
        let package = reopen(path)?;
        let before = package.manifest.lineage.metrics.get(STEPS_BEFORE).copied().unwrap_or(0.0);
        (package.meta, package.flat, before as u64)
    } else if path.is_dir() {
        let Some(newest) = checkpoint::list(&path.join("checkpoints"))?.pop() else {
            let expected = "expected that of a run with a checkpoint, or of a package";
            return Err(Error::file(
                path,
                format!("a folder without checkpoints and {MANIFEST_FILE}, {expected}"),
            ));
        };
        let (state, weights) = checkpoint::open(&newest, false, device)?;
        (weights.meta, weights.flat, state.steps_before.unwrap_or(0))
    } else {
        let weights = checkpoint::load_foreign(path, recipe, device)?;
        (weights.meta, weights.flat, 0)
    };
    meta.check_same(path, recipe)?;
    Ok((flat.to_device(device), before.saturating_add(meta.step)))
}
