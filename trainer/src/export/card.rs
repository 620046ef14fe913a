//! The model card: what a person should know before using the weights, written from what the package is made of.

use std::fmt::Write;

use windowpane_diffusion::manifest::STEPS_BEFORE;
use windowpane_diffusion::{Plan, Variance, Window};

use super::ExportRequest;
use crate::config::StoredWeights;

/// Name of the file in a package.
pub(super) const CARD_FILE: &str = "CARD.md";

/// Headline of the paragraph that a person wrote.
const PURPOSE: &str = "## What it is good for";

/// What follows that paragraph.
const MODEL: &str = "\n## Model\n\n| | |\n| --- | --- |\n";

/// What a card says that its model is good for.
pub(super) fn purpose_in(card: &str) -> Option<String> {
    let (_, rest) = card.split_once(&format!("\n{PURPOSE}\n"))?;
    // It may have headlines of its own. What follows it is the table that every card has.
    let text = rest
        .rsplit_once(MODEL)
        .map_or_else(|| rest.split("\n## ").next().unwrap_or(rest), |(text, _)| text)
        .trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// The card as Markdown.
pub(super) fn text(request: &ExportRequest<'_>, plans: &[Plan]) -> String {
    let (meta, lineage) = (request.meta, &request.lineage);
    let config = &meta.config;
    let mut card = format!("# {}\n\n{}\n", request.name, request.description);
    if request.extra.iter().any(|(name, _)| name == "samples.png") {
        card += "\n![Samples](samples.png)\n";
    }
    let purpose = request.purpose.as_deref().map_or_else(|| unstated(request), |text| text.trim().to_owned());
    write!(card, "\n{PURPOSE}\n\n{purpose}\n").expect("memory: a bug");
    card += MODEL;
    let grid = config.grid();
    let mut row = |name: &str, value: String| writeln!(card, "| {name} | {value} |").expect("memory: a bug");
    row("image", format!("{} × {} pixels, {} channels", config.height, config.width, config.channels));
    row(
        "tokens",
        format!("{} ({} × {}), patches of {}", grid.tokens(), grid.height, grid.width, config.patch),
    );
    row(
        "network",
        format!(
            "diffusion transformer with adaLN-Zero: depth {}, hidden {}, {} heads",
            config.depth, config.hidden, config.heads
        ),
    );
    row("parameters", format!("{:.2} million", config.parameters() as f64 / 1e6));
    row("forward pass", format!("{:.3} GFLOPs an image", config.forward_flops() / 1e9));
    row("windows", config.windows.iter().map(|&w| window(w)).collect::<Vec<_>>().join(", "));
    row("computed as", plans.iter().map(|&p| plan(p)).collect::<Vec<_>>().join(", "));
    row("prediction", format!("{}, variance {}", meta.prediction, variance(meta.variance)));
    row("schedule", format!("{:?}, {} timesteps", meta.schedule.kind, meta.schedule.steps).to_lowercase());
    row(
        "stored weights",
        match request.table.weights {
            StoredWeights::F32 => "f32".to_owned(),
            StoredWeights::F16 => "f16; graphs for the CPU compute in f32".to_owned(),
        },
    );
    if !meta.classes.is_empty() {
        let names: Vec<_> = meta.classes.iter().map(|class| class.name.as_str()).collect();
        row("classes", names.join(", "));
    }
    let defaults = &request.defaults;
    row(
        "sampled with",
        format!(
            "{}, {} steps on a {} grid, guidance {}",
            defaults.sampler, defaults.steps, defaults.grid, defaults.guidance_scale
        ),
    );

    card += "\n## Training\n\n| | |\n| --- | --- |\n";
    let mut row = |name: &str, value: String| writeln!(card, "| {name} | {value} |").expect("memory: a bug");
    row("data", lineage.data.clone());
    row("images", format!("{} (sha256 {})", lineage.images, lineage.data_sha256));
    let before = lineage.metrics.get(STEPS_BEFORE);
    row(
        "steps",
        match before {
            Some(before) => format!(
                "{}; it began with trained weights, {before} known steps behind them, on images that are not told here",
                lineage.steps
            ),
            None => lineage.steps.to_string(),
        },
    );
    row("seed", lineage.seed.to_string());
    row("trainer", lineage.trainer.clone());
    for (name, value) in lineage.metrics.iter().filter(|(name, _)| *name != STEPS_BEFORE) {
        row(name, format!("{value:.4}"));
    }
    write!(card, "\n## Licence\n\n{}\n", request.licence).expect("memory: a bug");
    card
}

/// What can be said of any model, where its recipe says nothing.
fn unstated(request: &ExportRequest<'_>) -> String {
    let config = &request.meta.config;
    format!(
        "Pictures of {} × {} pixels like those it was trained on ({}). Not for anything else: it knows no other \
         pictures, what it draws may resemble training images, and its recipe names no further purpose.",
        config.height, config.width, request.lineage.data
    )
}

fn window(window: Window) -> String {
    match window {
        Window::Global => "global".to_owned(),
        Window::Local { side } => format!("{side}×{side}"),
    }
}

fn plan(plan: Plan) -> String {
    match plan {
        Plan::Dense => "dense".to_owned(),
        Plan::Tiles(tile) => format!("tiles of {tile}"),
    }
}

fn variance(variance: Variance) -> &'static str {
    match variance {
        Variance::FixedSmall => "fixed, small",
        Variance::FixedLarge => "fixed, large",
        Variance::LearnedRange => "learned range",
    }
}
