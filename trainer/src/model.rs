//! The network: a diffusion transformer with adaLN-Zero (Peebles & Xie 2023) whose blocks each have a window.
//!
//! Reads from small to large: `modulate`, the embedders, a block, the final layer, the whole. Parameter names are
//! those of facebookresearch/DiT `models.py`; `export/dit.rs` mirrors this file block for block as a graph.
//!
//! Shapes: n batch, c channels, t tokens, d hidden (`config.hidden`), p patch.

use std::collections::HashMap;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Grid, ModelConfig, Plan, Window};

use crate::attention::{WindowedAttention, trainer_plan};
use crate::params::Layout;

/// `x (1 + scale) + shift`, per image.
///
/// # Shapes
/// `x` is `[n, t, d]`, `shift` and `scale` are `[n, d]`.
fn modulate(x_ntd: &Tensor, shift_nd: &Tensor, scale_nd: &Tensor) -> Tensor {
    x_ntd * (scale_nd.unsqueeze(1) + 1.0) + shift_nd.unsqueeze(1) // (n, t, d)
}

/// LayerNorm without affine parameters over the last dimension.
fn layer_norm(x_ntd: &Tensor) -> Tensor {
    let hidden = *x_ntd.size().last().expect("tokens have a width: this is a bug");
    x_ntd.layer_norm([hidden], None::<&Tensor>, None::<&Tensor>, 1e-6, false)
}

// === Embedders ===

/// A linear layer: `x Wᵀ + b`.
#[derive(Debug)]
struct Linear {
    weight: Tensor,
    bias: Tensor,
}

/// Sinusoidal timestep features through a two-layer MLP.
#[derive(Debug)]
struct TimestepEmbedder {
    fc0: Linear,
    fc2: Linear,
    /// `10000^(-i/128)`, `[128]`.
    frequencies: Tensor,
}

impl Linear {
    fn take(params: &mut HashMap<String, Tensor>, name: &str) -> Self {
        let mut take = |part: &str| {
            params.remove(&format!("{name}.{part}")).expect("a layout names every parameter: this is a bug")
        };
        Self { weight: take("weight"), bias: take("bias") }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

impl TimestepEmbedder {
    /// # Shapes
    /// `t` is `[n]` f32 and may be fractional; the result `[n, d]`.
    fn forward(&self, t_n: &Tensor) -> Tensor {
        let angles = t_n.unsqueeze(1) * self.frequencies.unsqueeze(0); // (n, 128)
        let features = Tensor::cat(&[angles.cos(), angles.sin()], 1); // (n, 256)
        let features = features.to_kind(self.fc0.weight.kind()); // (n, 256)
        self.fc2.forward(&self.fc0.forward(&features).silu()) // (n, d)
    }
}

/// `10000^(-i/128)` for i in 0..128: the frequencies of the timestep features. `[128]`
pub fn timestep_frequencies() -> Vec<f32> {
    (0..128).map(|i| (-(10_000f64.ln()) * f64::from(i) / 128.0).exp() as f32).collect()
}

/// The frozen 2-D sin-cos position table of DiT's `get_2d_sincos_pos_embed`, `[t, d]` row by row.
///
/// The first half of a row encodes the column ("w goes first" in the original), the second the row; each half is
/// sines, then cosines, at frequencies `10000^(-i/(d/4))`.
pub fn position_table(grid: Grid, hidden: usize) -> Vec<f32> {
    let quarter = hidden / 4;
    let axis = move |at: usize| {
        let angle = move |i: usize| at as f64 / 10_000f64.powf(i as f64 / quarter as f64);
        (0..quarter).map(move |i| angle(i).sin()).chain((0..quarter).map(move |i| angle(i).cos()))
    };
    (0..grid.tokens())
        .flat_map(|token| {
            let (y, x) = grid.position(token);
            axis(x).chain(axis(y))
        })
        .map(|v| v as f32)
        .collect()
}

// === A block ===

/// Attention by arithmetic that can be differentiated twice, and what of it is put down, layer by layer.
struct Watched<'a> {
    /// The tokens whose rows are kept, if any: all rows of a layer are tokens², and of all layers more than the rest.
    tokens: Option<&'a Tensor>,
    /// `[n, h, tokens, t]` of every layer.
    seen: Vec<Tensor>,
}

/// Whether somebody watches.
type Watch<'a, 'b> = Option<&'a mut Watched<'b>>;

/// adaLN-Zero transformer block with windowed attention.
#[derive(Debug)]
struct Block {
    heads: i64,
    qkv: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
    ada: Linear,
    window: Rc<WindowedAttention>,
}

impl Block {
    /// # Shapes
    /// `x` is `[n, t, d]`, `c` is `[n, d]`; the result `[n, t, d]`.
    fn forward(&self, x_ntd: &Tensor, c_nd: &Tensor, watch: Watch<'_, '_>) -> Tensor {
        let parts = self.ada.forward(&c_nd.silu()).chunk(6, 1); // six of (n, d)
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] = &parts[..] else {
            unreachable!("chunk(6) of 6 d gives six parts");
        };
        let attn = self.attention(&modulate(&layer_norm(x_ntd), shift_msa, scale_msa), watch); // (n, t, d)
        let x_ntd = x_ntd + gate_msa.unsqueeze(1) * attn; // (n, t, d)
        let mlp = self.mlp(&modulate(&layer_norm(&x_ntd), shift_mlp, scale_mlp)); // (n, t, d)
        x_ntd + gate_mlp.unsqueeze(1) * mlp // (n, t, d)
    }

    fn attention(&self, x_ntd: &Tensor, watch: Watch<'_, '_>) -> Tensor {
        let (n, t, d) = x_ntd.size3().expect("tokens have three dimensions: this is a bug");
        let qkv = self.qkv.forward(x_ntd); // (n, t, 3 d)
        let qkv = qkv.view([n, t, 3, self.heads, d / self.heads]).permute([2, 0, 3, 1, 4]); // (3, n, h, t, d/h)
        let (q, k, v) = (qkv.get(0), qkv.get(1), qkv.get(2)); // (n, h, t, d/h)
        let out = match watch {
            None => self.window.forward(&q, &k, &v),
            Some(watched) => {
                let (out, probabilities) = self.window.watched(&q, &k, &v); // and (n, h, t, t)
                watched.seen.extend(watched.tokens.map(|tokens| probabilities.index_select(2, tokens)));
                out
            }
        }; // (n, h, t, d/h)
        self.proj.forward(&out.transpose(1, 2).reshape([n, t, d])) // (n, t, d)
    }

    fn mlp(&self, x_ntd: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(x_ntd).gelu("tanh")) // (n, t, d)
    }
}

// === The final layer ===

/// LayerNorm, modulation and a linear map to pixels.
#[derive(Debug)]
struct FinalLayer {
    linear: Linear,
    ada: Linear,
}

impl FinalLayer {
    /// # Shapes
    /// `x` is `[n, t, d]`, `c` is `[n, d]`; the result `[n, t, p * p * out_channels]`.
    fn forward(&self, x_ntd: &Tensor, c_nd: &Tensor) -> Tensor {
        let parts = self.ada.forward(&c_nd.silu()).chunk(2, 1); // two of (n, d)
        self.linear.forward(&modulate(&layer_norm(x_ntd), &parts[0], &parts[1])) // (n, t, p * p * out)
    }
}

// === The whole ===

/// What a network needs besides its parameters, made once for a device: the frozen position table and each
/// block's window.
#[derive(Debug)]
pub struct Geometry {
    config: ModelConfig,
    layout: Layout,
    kind: Kind,
    pos_embed_1td: Tensor,
    frequencies: Tensor,
    windows: Vec<Rc<WindowedAttention>>,
}

/// A diffusion transformer bound to its parameters.
#[derive(Debug)]
pub struct Dit {
    config: ModelConfig,
    x_embedder: Linear,
    t_embedder: TimestepEmbedder,
    y_embedder: Tensor,
    pos_embed_1td: Tensor,
    blocks: Vec<Block>,
    final_layer: FinalLayer,
}

impl Geometry {
    /// For a validated configuration, computing in `kind` on `device`, windows as the trainer finds cheapest.
    pub fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        Self::planned(config, trainer_plan, kind, device)
    }

    /// As [`Geometry::new`], with a plan of the caller's for each window. Same numbers, other costs.
    pub fn planned(
        config: &ModelConfig,
        plan: impl Fn(Window, Grid) -> Plan,
        kind: Kind,
        device: Device,
    ) -> Self {
        let grid = config.grid();
        let table = Tensor::from_slice(&position_table(grid, config.hidden));
        let window = |w: &Window| Rc::new(WindowedAttention::new(*w, grid, plan(*w, grid), kind, device));
        let mut windows: Vec<Rc<WindowedAttention>> = Vec::new();
        for (i, w) in config.windows.iter().enumerate() {
            // Layers with one window share its tensors.
            let same = config.windows[..i].iter().position(|earlier| earlier == w);
            windows.push(same.map_or_else(|| window(w), |at| windows[at].clone()));
        }
        Self {
            config: config.clone(),
            layout: Layout::of(config),
            kind,
            pos_embed_1td: table
                .view([1, grid.tokens() as i64, config.hidden as i64])
                .to_kind(kind)
                .to_device(device),
            frequencies: Tensor::from_slice(&timestep_frequencies()).to_device(device),
            windows,
        }
    }

    /// The layout of the parameters that [`Geometry::bind`] takes.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The network with the parameters in `flat` (`[layout.total()]`, f32), cast to this geometry's kind.
    pub fn bind(&self, flat: &Tensor) -> Dit {
        let mut params = self.layout.views(&flat.to_kind(self.kind));
        let params = &mut params;
        let y_embedder = params
            .remove("y_embedder.embedding_table.weight")
            .expect("a layout names every parameter: this is a bug");
        let block = |(i, window): (usize, &Rc<WindowedAttention>)| Block {
            heads: self.config.heads as i64,
            qkv: Linear::take(params, &format!("blocks.{i}.attn.qkv")),
            proj: Linear::take(params, &format!("blocks.{i}.attn.proj")),
            fc1: Linear::take(params, &format!("blocks.{i}.mlp.fc1")),
            fc2: Linear::take(params, &format!("blocks.{i}.mlp.fc2")),
            ada: Linear::take(params, &format!("blocks.{i}.adaLN_modulation.1")),
            window: window.clone(),
        };
        let blocks = self.windows.iter().enumerate().map(block).collect();
        Dit {
            config: self.config.clone(),
            x_embedder: Linear::take(params, "x_embedder.proj"),
            t_embedder: TimestepEmbedder {
                fc0: Linear::take(params, "t_embedder.mlp.0"),
                fc2: Linear::take(params, "t_embedder.mlp.2"),
                frequencies: self.frequencies.shallow_clone(),
            },
            y_embedder,
            pos_embed_1td: self.pos_embed_1td.shallow_clone(),
            blocks,
            final_layer: FinalLayer {
                linear: Linear::take(params, "final_layer.linear"),
                ada: Linear::take(params, "final_layer.adaLN_modulation.1"),
            },
        }
    }
}

impl Dit {
    /// The network's prediction, always f32.
    ///
    /// # Shapes
    /// `x` is `[n, c, h, w]`, `t` is `[n]` f32, `y` is `[n]` i64 in `0..label_rows`; the result
    /// `[n, out_channels, h, w]`.
    pub fn forward(&self, x_nchw: &Tensor, t_n: &Tensor, y_n: &Tensor) -> Tensor {
        self.run(x_nchw, t_n, y_n, None)
    }

    /// The same, and what some tokens see of all, `[n, heads, tokens, t]` for every layer. Only where every window is
    /// planned densely.
    ///
    /// # Shapes
    /// `tokens` is `[tokens]` i64.
    pub fn watched(&self, x: &Tensor, t: &Tensor, y: &Tensor, tokens: &Tensor) -> (Tensor, Vec<Tensor>) {
        let mut watched = Watched { tokens: Some(tokens), seen: Vec::with_capacity(self.blocks.len()) };
        let prediction = self.run(x, t, y, Some(&mut watched));
        (prediction, watched.seen)
    }

    /// The same as [`forward`](Self::forward), by arithmetic that can be differentiated twice. Only where every window is
    /// planned densely.
    pub fn differentiable(&self, x_nchw: &Tensor, t_n: &Tensor, y_n: &Tensor) -> Tensor {
        self.run(x_nchw, t_n, y_n, Some(&mut Watched { tokens: None, seen: Vec::new() }))
    }

    fn run(&self, x_nchw: &Tensor, t_n: &Tensor, y_n: &Tensor, mut watch: Watch<'_, '_>) -> Tensor {
        let kind = self.y_embedder.kind();
        let p = self.config.patch as i64;
        let conv = x_nchw.to_kind(kind).conv2d(
            &self.x_embedder.weight,
            Some(&self.x_embedder.bias),
            [p, p],
            [0, 0],
            [1, 1],
            1,
        ); // (n, d, h/p, w/p)
        let mut x = conv.flatten(2, 3).transpose(1, 2) + &self.pos_embed_1td; // (n, t, d)
        let t = self.t_embedder.forward(t_n); // (n, d)
        let y = Tensor::embedding(&self.y_embedder, y_n, -1, false, false); // (n, d)
        let c = t + y; // (n, d)
        for block in &self.blocks {
            x = block.forward(&x, &c, watch.as_deref_mut()); // (n, t, d)
        }
        let out = self.final_layer.forward(&x, &c); // (n, t, p * p * out)
        self.unpatchify(&out).to_kind(Kind::Float) // (n, out, h, w)
    }

    /// Token vectors to an image: `[n, t, p * p * out]` to `[n, out, h, w]`.
    fn unpatchify(&self, x: &Tensor) -> Tensor {
        let (grid, p) = (self.config.grid(), self.config.patch as i64);
        let (rows, cols, out) = (grid.height as i64, grid.width as i64, self.config.out_channels() as i64);
        x.view([-1, rows, cols, p, p, out]) // (n, h/p, w/p, p, p, out)
            .permute([0, 5, 1, 3, 2, 4]) // (n, out, h/p, p, w/p, p)
            .reshape([-1, out, rows * p, cols * p]) // (n, out, h, w)
    }
}
