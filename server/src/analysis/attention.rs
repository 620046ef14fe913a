//! What do a network's layers attend to? The study: the way to the noise level, where it is sampled, then one call of the
//! instrumented graph; and what comes of it: maps of layers and heads, and how local they are.

use windowpane_diffusion::locality::{Locality, LocalityNumbers};
use windowpane_diffusion::{Plan, TilePlan, Window};

use super::selection::{Layout, Selection};
use super::subject::{Subject, Way};
use super::{Study, StudyError};
use crate::batcher::study::{Ask, Findings};
use crate::engine::StepBatch;
use crate::engine::insides::{Inside, Look, Wanted};
use crate::model::Card;

/// The study.
#[derive(Debug)]
pub struct AttentionStudy {
    way: Way,
    /// The timestep and the label that the network is told.
    told: (f32, i64),
    selection: Selection,
    shape: [usize; 3],
    windows: Vec<Window>,
    plans: Vec<Plan>,
    /// The noisy image, once it is there.
    x: Vec<f32>,
    asked: bool,
    prediction: Vec<f32>,
    layers: Vec<LayerMaps>,
}

/// What it comes to.
#[derive(Debug)]
pub struct Attention {
    /// The noisy image that was looked at, `[channels, height, width]`.
    pub x: Vec<f32>,
    /// Channels, height and width of it.
    pub shape: [usize; 3],
    /// What the network predicts of it.
    pub prediction: Vec<f32>,
    /// What was asked for.
    pub selection: Selection,
    /// One for each layer that was.
    pub layers: Vec<LayerMaps>,
}

/// What the tokens of a layer attend to.
#[derive(Debug)]
pub struct LayerMaps {
    /// The layer.
    pub layer: usize,
    /// Its window.
    pub window: Window,
    tiles: TilePlan,
    /// `[heads, tokens, keys]` of the selection, keys as the tiles have them.
    rows: Vec<f32>,
}

// === impl AttentionStudy ===

impl AttentionStudy {
    /// Of a model whose graph has these plans.
    pub fn new(subject: Subject, selection: Selection, card: &Card, plans: &[Plan]) -> Self {
        let shape = card.shape();
        Self {
            told: (subject.level.t as f32, subject.label),
            way: Way::new(subject.start, shape),
            selection,
            shape,
            windows: card.manifest.config.windows.clone(),
            plans: plans.to_vec(),
            x: Vec::new(),
            asked: false,
            prediction: Vec::new(),
            layers: Vec::new(),
        }
    }
}

impl Study for AttentionStudy {
    type Findings = Attention;

    fn left(&self) -> usize {
        self.way.left() + usize::from(!self.asked)
    }

    fn next(&mut self) -> Option<Ask> {
        if let Some(ask) = self.way.next_call() {
            return Some(ask);
        }
        if std::mem::replace(&mut self.asked, true) {
            return None;
        }
        self.x = self.way.arrive();
        let mut batch = StepBatch::new(self.shape);
        batch.push(&self.x, self.told.0, self.told.1);
        let mut wanted = vec![Wanted::all("prediction")];
        for &layer in &self.selection.layers {
            let window = self.windows[layer];
            let tiles = window.realised(self.selection.grid, self.plans[layer]);
            let ranges = Some(self.selection.rows(&tiles));
            wanted.push(Wanted { output: format!("attention.{layer}"), ranges });
            self.layers.push(LayerMaps { layer, window, tiles, rows: Vec::new() });
        }
        Some(Ask::Look(Look { inside: Inside::Attention, batch, vectors: Vec::new(), wanted }))
    }

    fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        if !self.asked {
            return self.way.take(findings);
        }
        let mut findings = findings.into_iter();
        let missing = || StudyError::Shape("the engine gave fewer outputs than were asked for".to_owned());
        let first = findings.next().ok_or_else(missing)?;
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let mut is_finite = finite(&first);
        self.prediction = first;
        for layer in &mut self.layers {
            layer.rows = findings.next().ok_or_else(missing)?;
            is_finite &= finite(&layer.rows);
        }
        if is_finite { Ok(()) } else { Err(StudyError::NotFinite) }
    }

    fn finish(self) -> Attention {
        let Self { x, shape, prediction, selection, layers, .. } = self;
        Attention { x, shape, prediction, selection, layers }
    }
}

// === impl Attention ===

impl Attention {
    /// Maps of a layer, `[heads, tokens, height, width]`, in the layout that was asked for.
    pub fn of_heads(&self, layer: &LayerMaps) -> Vec<f32> {
        let heads = 0..self.selection.heads.len();
        self.drawn(layer, heads.map(|head| (1.0, head..head + 1)))
    }

    /// Their mean over the heads, `[tokens, height, width]`.
    pub fn of_mean(&self, layer: &LayerMaps) -> Vec<f32> {
        let heads = self.selection.heads.len();
        self.drawn(layer, [(1.0 / heads as f32, 0..heads)])
    }

    /// Channels, height and width of the prediction.
    pub fn out_shape(&self) -> [usize; 3] {
        let [_, height, width] = self.shape;
        [self.prediction.len() / (height * width), height, width]
    }

    /// Height and width of a layer's maps.
    pub fn sides(&self, layer: &LayerMaps) -> [usize; 2] {
        self.selection.layout.sides(layer.window, self.selection.grid)
    }

    /// How local a layer is, all heads together where none is named.
    pub fn locality(&self, layer: &LayerMaps, head: Option<usize>) -> LocalityNumbers {
        let mut locality = Locality::new(self.selection.grid);
        let heads = head.map_or(0..self.selection.heads.len(), |head| head..head + 1);
        for head in heads {
            for (query, &token) in self.selection.tokens.iter().enumerate() {
                let keys = layer.tiles.keys_of(token).iter().copied();
                locality.add(token, keys.zip(self.row(layer, head, query).iter().copied()));
            }
        }
        locality.numbers()
    }

    /// What a token attends to, as its tile has it.
    fn row<'a>(&self, layer: &'a LayerMaps, head: usize, query: usize) -> &'a [f32] {
        let keys = layer.tiles.keys;
        let first = (head * self.selection.tokens.len() + query) * keys;
        layer.rows.get(first..first + keys).unwrap_or_default()
    }

    /// Maps one behind another; each adds up some heads, by a factor.
    fn drawn(
        &self,
        layer: &LayerMaps,
        maps: impl IntoIterator<Item = (f32, std::ops::Range<usize>)>,
    ) -> Vec<f32> {
        let (grid, [height, width]) = (self.selection.grid, self.sides(layer));
        let compact = self.selection.layout == Layout::Compact && layer.window != Window::Global;
        let mut drawn = Vec::new();
        for (factor, heads) in maps {
            for (query, &token) in self.selection.tokens.iter().enumerate() {
                let first = drawn.len();
                drawn.resize(first + height * width, 0.0_f32);
                let map = &mut drawn[first..];
                let (y, x) = grid.position(token);
                let keys = layer.tiles.keys_of(token);
                for head in heads.clone() {
                    for (&key, &probability) in keys.iter().zip(self.row(layer, head, query)) {
                        let (ky, kx) = grid.position(key);
                        // A tile holds more keys than the window sees; those are 0.
                        let place = if compact {
                            let (dy, dx) = (ky + height / 2, kx + width / 2);
                            let within = (y..y + height).contains(&dy) && (x..x + width).contains(&dx);
                            if !within {
                                continue;
                            }
                            (dy - y) * width + dx - x
                        } else {
                            key
                        };
                        map[place] += factor * probability;
                    }
                }
            }
        }
        drawn
    }
}
