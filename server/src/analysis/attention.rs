//! What do a network's layers attend to? The study: the way to the noise level, where it is sampled, then one call of the
//! instrumented graph; and what comes of it: maps of layers and heads, and how local they are.

use bytes::Bytes;
use windowpane_diffusion::locality::{Locality, LocalityNumbers};
use windowpane_diffusion::{Plan, TilePlan, Window};

use super::selection::{Layout, Selection};
use super::subject::{Start, Subject, Way};
use super::{Study, StudyError};
use crate::batcher::study::{Ask, Findings, Like};
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
    /// Whether it is kept already, or was given.
    has_x: bool,
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
    /// How its tokens are cut into tiles.
    pub(super) tiles: TilePlan,
    /// `[heads, tokens, keys]` of the selection, keys as the tiles have them.
    pub(super) rows: Vec<f32>,
}

// === impl AttentionStudy ===

impl AttentionStudy {
    /// Of a model whose graph has these plans.
    pub fn new(subject: Subject, selection: Selection, card: &Card, plans: &[Plan]) -> Self {
        let shape = card.shape();
        let has_x = matches!(subject.start, Start::At(_));
        Self {
            has_x,
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
    const KIND: &'static str = "attention";
    type Findings = Attention;

    fn left(&self) -> usize {
        self.way.left() + usize::from(!self.asked)
    }

    fn like(&self) -> Like {
        if self.way.left() == 0 { Like::inside(Inside::Attention, 1) } else { Like::denoiser(1) }
    }

    fn kept(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }

    fn next(&mut self) -> Option<Ask> {
        if let Some(ask) = self.way.next_call() {
            return Some(ask);
        }
        if std::mem::replace(&mut self.asked, true) {
            return None;
        }
        if self.x.is_empty() {
            self.x = self.way.arrive();
        }
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
            self.way.take(findings)?;
            if self.way.left() == 0 {
                self.x = self.way.arrive();
            }
            return Ok(());
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

    /// The noisy image that was sampled: all calls but one.
    fn piece(&mut self) -> Option<Bytes> {
        if self.x.is_empty() || std::mem::replace(&mut self.has_x, true) {
            return None;
        }
        Some(Way::piece(&self.x))
    }

    fn resume(&mut self, pieces: &[Bytes]) -> Result<(), StudyError> {
        match pieces {
            [] => Ok(()),
            [x] => {
                self.x = self.way.resume(x)?;
                self.has_x = true;
                Ok(())
            }
            _ => Err(StudyError::Shape("more pieces than it has".to_owned())),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::analysis::attention::AttentionRequest;
    use crate::testing::manifest;

    /// A look at a sample, by a network that knows image, time and label.
    fn study(card: &Card) -> AttentionStudy {
        let request = serde_json::json!({"class": 1, "seed": 7, "timestep": 30, "maps": "mean"});
        let request: AttentionRequest = serde_json::from_value(request).unwrap();
        let subject = Subject::resolve(&request.subject(), card).unwrap();
        let selection = Selection::resolve(&request, card).unwrap();
        let plans = vec![Plan::Dense; card.manifest.config.windows.len()];
        AttentionStudy::new(subject, selection, card, &plans)
    }

    fn answer(ask: Ask) -> Findings {
        match ask {
            Ask::Denoise(batch) => {
                let rows = batch.x.chunks_exact(24).zip(&batch.t).zip(&batch.y);
                let of = |((x, &t), &y): ((&[f32], &f32), &i64)| -> Vec<f32> {
                    x.iter().map(|x| x * 0.3 + t * 0.001 + y as f32 * 0.1).collect()
                };
                vec![rows.flat_map(of).collect()]
            }
            Ask::Look(look) => {
                let len = |wanted: &Wanted| {
                    wanted
                        .ranges
                        .as_ref()
                        .map_or(24, |ranges| ranges.iter().map(ExactSizeIterator::len).sum())
                };
                look.wanted.iter().map(|wanted| vec![look.batch.x[0]; len(wanted)]).collect()
            }
        }
    }

    #[test]
    fn whoever_goes_on_from_the_sampled_image_sees_the_same() {
        let card = Card::new(manifest("shoes", &["sneaker", "boot"]), "0".repeat(64), 0).unwrap();
        let mut whole = study(&card);
        let (mut pieces, mut calls) = (Vec::new(), 0);
        while let Some(ask) = whole.next() {
            calls += 1;
            whole.take(answer(ask)).unwrap();
            pieces.extend(whole.piece());
        }
        assert!(calls > 2 && pieces.len() == 1, "{calls} calls, {} pieces", pieces.len());
        let mut rest = study(&card);
        rest.resume(&pieces).unwrap();
        assert_eq!(rest.left(), 1);
        let ask = rest.next().unwrap();
        rest.take(answer(ask)).unwrap();
        assert!(rest.next().is_none() && rest.piece().is_none());
        let (whole, rest) = (whole.finish(), rest.finish());
        assert_eq!((&whole.x, &whole.prediction), (&rest.x, &rest.prediction));
        assert!(whole.layers.iter().zip(&rest.layers).all(|(a, b)| a.rows == b.rows && !a.rows.is_empty()));
        for wrong in [vec![pieces[0].slice(1..)], vec![pieces[0].clone(); 2]] {
            assert!(study(&card).resume(&wrong).is_err());
        }
    }
}
