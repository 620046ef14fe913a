//! The insides of the fake network, for tests that need no package: attention that falls off with the distance from the
//! token within its window, and the derivative of the closed form, which is a multiple of the identity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use windowpane_diffusion::manifest::Graph;
use windowpane_diffusion::{Grid, Plan, Window};

use super::{Inside, Insides, Look, Wanted};
use crate::engine::fake::FakeDenoiser;
use crate::engine::{Denoiser, EngineError, Provider};
use crate::model::Card;

/// The graphs that the manifest says there are.
#[derive(Debug)]
pub struct FakeInsides {
    card: Arc<Card>,
    denoiser: FakeDenoiser,
    faults: InsideFaults,
    open: BTreeSet<Inside>,
}

/// What goes wrong with the insides. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct InsideFaults {
    /// A graph that does not open.
    pub unopened: Option<Inside>,
    /// Looks that return an error: those with this label.
    pub error_for: Option<i64>,
    /// Looks that panic: those with this label.
    pub panic_for: Option<i64>,
    /// Every look takes at least this long.
    pub delay: Duration,
}

// === impl FakeInsides ===

impl FakeInsides {
    /// Those of a fake network.
    pub fn new(card: Arc<Card>, denoiser: FakeDenoiser, faults: InsideFaults) -> Self {
        Self { card, denoiser, faults, open: BTreeSet::new() }
    }

    fn graph(&self, inside: Inside) -> Result<&Graph, EngineError> {
        inside.graph(&self.card.manifest, Provider::Fake).ok_or(EngineError::Missing(inside.as_str()))
    }

    /// Every output in full, by name.
    fn outputs(&mut self, look: &Look) -> Result<BTreeMap<String, Vec<f32>>, EngineError> {
        let mut outputs = BTreeMap::new();
        if look.inside == Inside::Attention {
            let mut prediction = Vec::new();
            self.denoiser.denoise(&look.batch, &mut prediction)?;
            outputs.insert("prediction".to_owned(), prediction);
            let (config, graph) = (&self.card.manifest.config, self.graph(look.inside)?);
            for (i, (window, plan)) in config.windows.iter().zip(&graph.plan).enumerate() {
                let map = attention(*window, *plan, config.grid());
                let maps = config.heads * look.batch.rows();
                outputs.insert(format!("attention.{i}"), map.repeat(maps));
            }
        } else {
            let slope = self.denoiser.slope(look.batch.t[0]) as f32;
            let products = look.vectors.iter().map(|value| slope * value).collect();
            outputs.insert("products".to_owned(), products);
        }
        Ok(outputs)
    }
}

impl Insides for FakeInsides {
    fn open(&mut self, inside: Inside) -> Result<(), EngineError> {
        let file = self.graph(inside)?.file.clone();
        if self.faults.unopened == Some(inside) {
            return Err(EngineError::Unopened { file, reason: "asked not to open".to_owned() });
        }
        self.open.insert(inside);
        Ok(())
    }

    fn close(&mut self, inside: Inside) {
        self.open.remove(&inside);
    }

    fn look(&mut self, look: &Look) -> Result<Vec<Vec<f32>>, EngineError> {
        let graph = self.graph(look.inside)?.clone();
        if !self.open.contains(&look.inside) {
            return Err(EngineError::Unopened { file: graph.file, reason: "not open".to_owned() });
        }
        std::thread::sleep(self.faults.delay);
        let asked = |label: Option<i64>| label.is_some_and(|label| look.batch.y.contains(&label));
        if asked(self.faults.panic_for) {
            panic!("asked to panic");
        }
        if asked(self.faults.error_for) {
            return Err(EngineError::Runtime("asked to fail".to_owned()));
        }
        let outputs = self.outputs(look)?;
        let part = |wanted: &Wanted| {
            let spec = graph.outputs.iter().find(|spec| spec.name == wanted.output);
            let missing = EngineError::OutputSize { got: 0, expected: 1 };
            let (spec, values) = spec.zip(outputs.get(&wanted.output)).ok_or(missing)?;
            wanted.of(values, look.elements(spec))
        };
        look.wanted.iter().map(part).collect()
    }
}

/// What every token of a layer attends to, as its tiles have it: `exp(-distance²)` within the window.
fn attention(window: Window, plan: Plan, grid: Grid) -> Vec<f32> {
    let tiles = window.realised(grid, plan);
    let mut all = Vec::new();
    for &query in &tiles.query_index {
        let (y, x) = grid.position(query);
        let weight = |&key: &usize| {
            let (ky, kx) = grid.position(key);
            let square = y.abs_diff(ky).pow(2) + x.abs_diff(kx).pow(2);
            if window.sees((y, x), (ky, kx)) { (-(square as f64)).exp() } else { 0.0 }
        };
        let weights: Vec<f64> = tiles.keys_of(query).iter().map(weight).collect();
        let sum: f64 = weights.iter().sum();
        all.extend(weights.iter().map(|weight| (weight / sum) as f32));
    }
    all
}
