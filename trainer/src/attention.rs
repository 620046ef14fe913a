//! Attention inside a window, on tensors. Queries, keys and values are `[n, heads, tokens, head_dim]` (`nhtd`).
//!
//! The window's mask or tiles come from `diffusion::window`, where the border rule lives. Which of the two is used
//! here is the trainer's own choice: libtorch's backward pass of a gather is a scatter, which makes larger tiles the
//! cheaper ones, and masked attention on small grids (see [`trainer_plan`]).

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Grid, Plan, Tile, Window};

/// A window made ready for one device: the tensors that its plan needs.
#[derive(Debug)]
pub enum WindowedAttention {
    /// No pair is hidden.
    Global,
    /// All scores, the hidden ones masked.
    Masked {
        /// 0 or very negative, `[tokens, tokens]`.
        bias_qk: Tensor,
    },
    /// Tiles of queries against patches of keys.
    Tiled {
        /// Tiles.
        tiles: i64,
        /// Token of each query, `[tiles * queries]`.
        query_index: Tensor,
        /// Token of each key, `[tiles * keys]`.
        key_index: Tensor,
        /// Place of each token among the queries, `[tokens]`.
        output_index: Tensor,
        /// 0 or very negative, `[1, tiles, queries, keys]`.
        bias_1tqk: Tensor,
    },
}

/// The plan that is fastest forward and backward in libtorch on the CPU.
///
/// Measured by `examples/attention_plans.rs` on two cores, six heads of 64, batch 4, against masked
/// scaled-dot-product attention. At 32×32 tokens tiles of 8×8 are 3.9× as fast at window 3, 3.0× at 5, 2.3× at 7, 1.8×
/// at 9, 1.4× at 11 and 1.3× at 13. At 16×16 tokens tiles of 4×4 are 3.2× as fast at window 3, and dense attention is
/// cheap enough to win from window 5 on.
pub fn trainer_plan(window: Window, grid: Grid) -> Plan {
    let side = match window {
        Window::Local { side } if grid.tokens() >= 1024 && side <= 13 => 8,
        Window::Local { side } if grid.tokens() >= 256 && side <= 3 => 4,
        _ => return Plan::Dense,
    };
    if window.covers(grid) { Plan::Dense } else { Plan::Tiles(Tile::square(side)) }
}

// === impl WindowedAttention ===

impl WindowedAttention {
    /// Prepares `window` on `grid` as `plan` for tensors of `kind` on `device`.
    pub fn new(window: Window, grid: Grid, plan: Plan, kind: Kind, device: Device) -> Self {
        let floats = |values: &[f32]| Tensor::from_slice(values).to_kind(kind).to_device(device);
        let indices = |values: &[usize]| {
            let values: Vec<i64> = values.iter().map(|&v| v as i64).collect();
            Tensor::from_slice(&values).to_device(device)
        };
        let tokens = grid.tokens() as i64;
        match plan {
            _ if window.covers(grid) => Self::Global,
            Plan::Dense => Self::Masked { bias_qk: floats(&window.dense_bias(grid)).view([tokens, tokens]) },
            Plan::Tiles(tile) => {
                let tiled = window.tile_plan(grid, tile);
                let shape = [1, tiled.tiles as i64, tiled.queries as i64, tiled.keys as i64];
                Self::Tiled {
                    tiles: tiled.tiles as i64,
                    query_index: indices(&tiled.query_index),
                    key_index: indices(&tiled.key_index),
                    output_index: indices(&tiled.output_index),
                    bias_1tqk: floats(&tiled.bias()).view(shape),
                }
            }
        }
    }

    /// The same as [`forward`](Self::forward) by libtorch's plain arithmetic, which can be differentiated twice, and what
    /// every query sees of every key. Only of a dense plan.
    ///
    /// # Shapes
    /// As there; the probabilities are `[n, heads, tokens, tokens]`.
    pub fn watched(&self, q_nhtd: &Tensor, k_nhtd: &Tensor, v_nhtd: &Tensor) -> (Tensor, Tensor) {
        let bias = match self {
            Self::Global => None,
            Self::Masked { bias_qk } => Some(bias_qk),
            Self::Tiled { .. } => unreachable!("only dense attention is watched: this is a bug"),
        };
        Tensor::internal_scaled_dot_product_attention_math(
            q_nhtd,
            k_nhtd,
            v_nhtd,
            bias,
            0.0,
            false,
            None::<&Tensor>,
            None,
            false,
        )
    }

    /// `softmax(q kᵀ / sqrt(head_dim) + window) v`.
    ///
    /// # Shapes
    /// `q`, `k`, `v` and the result are `[n, heads, tokens, head_dim]`.
    pub fn forward(&self, q_nhtd: &Tensor, k_nhtd: &Tensor, v_nhtd: &Tensor) -> Tensor {
        match self {
            Self::Global => attend(q_nhtd, k_nhtd, v_nhtd, None),
            Self::Masked { bias_qk } => attend(q_nhtd, k_nhtd, v_nhtd, Some(bias_qk)),
            Self::Tiled { tiles, query_index, key_index, output_index, bias_1tqk } => {
                let (n, heads, _, dim) =
                    q_nhtd.size4().expect("attention takes four dimensions: this is a bug");
                let tile = |x: &Tensor, index: &Tensor| {
                    x.index_select(2, index).view([n * heads, *tiles, -1, dim]) // (n*heads, tiles, queries, dim)
                };
                let q = tile(q_nhtd, query_index);
                let (k, v) = (tile(k_nhtd, key_index), tile(v_nhtd, key_index));
                let out = attend(&q, &k, &v, Some(bias_1tqk)); // (n*heads, tiles, queries, dim)
                out.reshape([n, heads, -1, dim]).index_select(2, output_index) // (n, heads, tokens, dim)
            }
        }
    }
}

/// Scaled-dot-product attention with an optional bias on the scores.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Tensor {
    // On a GPU the fused kernels that take a bias want heads whose width is a multiple of eight; DiT-XS has heads of 63, and
    // would get the one that writes all scores down.
    let to = if q.device().is_cuda() && bias.is_some() { 8 } else { 1 };
    attend_padded(q, k, v, bias, to)
}

/// The same, heads padded with zeros to a multiple of `to`: they add nothing to a score, and are cut off the values.
fn attend_padded(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, to: i64) -> Tensor {
    let dim = *q.size().last().expect("attention takes four dimensions: this is a bug");
    let padding = (to - dim % to) % to;
    let pad = |x: &Tensor| if padding > 0 { x.constant_pad_nd([0, padding]) } else { x.shallow_clone() };
    let scale = 1.0 / (dim as f64).sqrt();
    let out = Tensor::scaled_dot_product_attention(&pad(q), &pad(k), &pad(v), bias, 0.0, false, scale, false);
    if padding > 0 { out.narrow(-1, 0, dim) } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dense attention with its mask written here from the definition: |Δy| ≤ w/2 and |Δx| ≤ w/2.
    fn by_definition(q: &Tensor, k: &Tensor, v: &Tensor, (height, width): (i64, i64), side: i64) -> Tensor {
        let tokens = height * width;
        let mut hidden = vec![false; (tokens * tokens) as usize];
        for a in 0..tokens {
            for b in 0..tokens {
                let (dy, dx) = ((a / width - b / width).abs(), (a % width - b % width).abs());
                hidden[(a * tokens + b) as usize] = dy > side / 2 || dx > side / 2;
            }
        }
        let hidden = Tensor::from_slice(&hidden).view([tokens, tokens]);
        let scale = 1.0 / (q.size()[3] as f64).sqrt();
        let scores = q.matmul(&k.transpose(-2, -1)) * scale;
        scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Float).matmul(v)
    }

    #[test]
    fn padded_heads_are_the_same_attention_forward_and_backward() {
        let _draws = crate::testing::seeded(4);
        let leaf = || Tensor::randn([2, 3, 9, 7], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (q, k, v) = (leaf(), leaf(), leaf());
        let weight = Tensor::randn([2, 3, 9, 7], (Kind::Float, Device::Cpu));
        let bias = Tensor::randn([9, 9], (Kind::Float, Device::Cpu));
        for bias in [None, Some(&bias)] {
            let of = |to| {
                let out = attend_padded(&q, &k, &v, bias, to);
                let loss = (&out * &weight).sum(Kind::Float);
                let grads = Tensor::run_backward(&[loss], &[&q, &k, &v], false, false);
                std::iter::once(out).chain(grads).collect::<Vec<_>>()
            };
            // Seven is padded to eight, and is a multiple of one and of itself.
            for (to, expected) in of(8).iter().zip(of(1)).chain(of(7).iter().zip(of(1))) {
                assert_eq!(to.size(), expected.size());
                assert!((to - expected).abs().max().double_value(&[]) < 1e-5);
            }
        }
    }

    #[test]
    fn every_plan_equals_the_definition_forward_and_backward() {
        let _draws = crate::testing::seeded(3);
        for (height, width) in [(7, 7), (14, 14), (5, 9), (12, 3), (1, 6)] {
            for side in [1, 3, 5, 9, 31] {
                let grid = Grid::new(height as usize, width as usize);
                let shape = [2, 3, height * width, 4];
                let leaf = || Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
                let (q, k, v) = (leaf(), leaf(), leaf());
                let weight = Tensor::randn(shape, (Kind::Float, Device::Cpu));
                let grads = |out: &Tensor| {
                    let loss = (out * &weight).sum(Kind::Float);
                    Tensor::run_backward(&[loss], &[&q, &k, &v], false, false)
                };
                let expected = by_definition(&q, &k, &v, (height, width), side);
                let expected_grads = grads(&expected);
                let window = Window::local(side as usize).unwrap();
                let tiles = [(2, 2), (4, 4), (4, 2), (7, 7)].map(|(height, width)| Tile { height, width });
                for plan in std::iter::once(Plan::Dense).chain(tiles.map(Plan::Tiles)) {
                    let attention = WindowedAttention::new(window, grid, plan, Kind::Float, Device::Cpu);
                    let got = attention.forward(&q, &k, &v);
                    let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
                    assert!(close(&got, &expected), "{height}x{width} window {side} {plan:?}");
                    for (g, e) in grads(&got).iter().zip(&expected_grads) {
                        assert!(close(g, e), "gradient, {height}x{width} window {side} {plan:?}");
                    }
                }
            }
        }
    }
}
