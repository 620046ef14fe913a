//! Is the run that goes on the run that began? Whatever decides what is learnt must be what it was; what decides only how
//! long, what is written when, or what is told of the model, may be another.

use std::io::ErrorKind;
use std::path::Path;

use windowpane_diffusion::error::number;

use crate::checkpoint::State;
use crate::config::{Recipe, TrainTable};
use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::optim::OptimConfig;

/// Compares where the checkpoint at `path` stands with what the recipe and the images say now. Errors: another seed, other
/// images, a step beyond the last one.
pub(super) fn check_state(path: &Path, then: &State, now: &TrainTable, images: &ImageSet) -> Result<()> {
    if then.seed != now.seed {
        let (then, now) = (then.seed, now.seed);
        let reason = format!("was trained with seed {then}, expected `train.seed`, which is {now}");
        return Err(Error::file(path, reason));
    }
    then.check_images(path, images, "`--data` and `--images` or else `[data]` say")?;
    if then.step > now.steps {
        let told = "the steps that `--steps` or else `train.steps` says";
        let reason = format!("is at step {} already, expected at most {}, {told}", then.step, now.steps);
        return Err(Error::file(path, reason));
    }
    Ok(())
}

/// Compares a recipe with the one that the run began with, at `path`, if that is still there. Errors: it cannot be read; a
/// field that decides what is learnt and differs.
pub(super) fn check_recipe(path: &Path, now: &Recipe) -> Result<()> {
    let then = match Recipe::read(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let mut pairs = decisive(&then).into_iter().zip(decisive(now));
    let Some(((field, then), (_, now))) = pairs.find(|(then, now)| then != now) else { return Ok(()) };
    let reason = format!(
        "the run began with `{field}` {then}, expected {now}, as the recipe says now: a run goes on as it began; \
         `--run DIR` starts another one, and who means to change this one changes it here too"
    );
    Err(Error::file(path, reason))
}

/// The fields that decide what is learnt, but for those that checkpoints know: the network and its noise, the images, the
/// seed.
fn decisive(recipe: &Recipe) -> [(&'static str, String); 13] {
    // Taken apart by name: who adds a field decides on which side it is. The number of steps may grow under way, though
    // the cool-down then comes later.
    let TrainTable {
        seed: _,
        steps: _,
        batch,
        accumulate,
        flip,
        label_drop,
        log_every: _,
        sample_every: _,
        checkpoint_every: _,
    } = recipe.train;
    let OptimConfig { lr, warmup, cooldown, beta1, beta2, epsilon, weight_decay, clip, ema } = recipe.optim;
    [
        ("train.batch", batch.to_string()),
        ("train.accumulate", accumulate.to_string()),
        ("train.flip", flip.to_string()),
        ("train.label_drop", number(label_drop)),
        ("optim.lr", number(lr)),
        ("optim.warmup", warmup.to_string()),
        ("optim.cooldown", cooldown.to_string()),
        ("optim.beta1", number(beta1)),
        ("optim.beta2", number(beta2)),
        ("optim.epsilon", number(epsilon)),
        ("optim.weight_decay", number(weight_decay)),
        ("optim.clip", number(clip)),
        ("optim.ema", number(ema)),
    ]
}
