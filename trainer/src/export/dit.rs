//! The network as a graph: `model.rs` again, block for block, under the same names.
//!
//! Shapes as there: n batch, t tokens, d hidden, p patch; linear layers work on rows, `[n * t, d]`.

use std::collections::HashMap;

use windowpane_diffusion::{ModelConfig, Plan, Window};

use super::ExportError;
use super::attention::{Attended, Heads, WindowValues};
use super::graph::{Graph, GraphError, ValueId};
use super::ops::Op;
use super::positions::Positions;
use super::shape::{Dim, Dtype, Shape, Type};
use crate::error::Result;
use crate::model::timestep_frequencies;

/// The denoiser of `config` with one plan per layer, computing in `dtype`:
/// `x [n,c,h,w]` f32, `t [n]` f32, `y [n]` i64 -> `prediction [n,out,h,w]` f32.
pub fn denoiser(config: &ModelConfig, plans: &[Plan], dtype: Dtype) -> Result<Graph> {
    let Network { mut graph, prediction, .. } = Network::new(Graph::new(), config, plans, dtype, Dim::BATCH)?;
    graph.output(prediction);
    Ok(graph)
}

/// A network in a graph that has no outputs yet.
#[derive(Debug)]
pub struct Network {
    /// Where it is.
    pub graph: Graph,
    /// The noisy images, `[n,c,h,w]`.
    pub x: ValueId,
    /// What it says of them, `[n,out,h,w]`.
    pub prediction: ValueId,
    /// The attention of every layer.
    pub attended: Vec<Attended>,
}

// === impl Network ===

impl Network {
    /// Appends the network of `config` to a graph, over `batch` images.
    pub fn new(
        mut graph: Graph,
        config: &ModelConfig,
        plans: &[Plan],
        dtype: Dtype,
        batch: Dim,
    ) -> Result<Self> {
        if plans.len() != config.depth {
            return Err(ExportError::Plans { got: plans.len(), depth: config.depth }.into());
        }
        let grid = config.grid();
        let heads = Heads { grid, heads: config.heads, head_dim: config.head_dim(), batch, dtype };
        let one = graph.floats("one", dtype, &[], vec![1.0])?;
        let (windows, attended) = (HashMap::new(), Vec::new());
        let mut dit = Dit { graph, config, heads, one, windows, attended };
        let (x, prediction) = dit.forward(plans)?;
        Ok(Self { graph: dit.graph, x, prediction, attended: dit.attended })
    }
}

struct Dit<'a> {
    graph: Graph,
    config: &'a ModelConfig,
    heads: Heads,
    /// 1, of `1 + scale`.
    one: ValueId,
    windows: HashMap<(Window, Plan), WindowValues>,
    attended: Vec<Attended>,
}

type Built<T> = std::result::Result<T, GraphError>;

// === impl Dit ===

impl Dit<'_> {
    /// The images and the prediction.
    fn forward(&mut self, plans: &[Plan]) -> Built<(ValueId, ValueId)> {
        let config = self.config;
        let image = Shape::led_by(self.heads.batch, &[config.channels, config.height, config.width]);
        let images = self.graph.input("x", Type::new(Dtype::F32, image))?;
        let t = self.graph.input("t", Type::new(Dtype::F32, Shape::new([self.heads.batch])))?;
        let y = self.graph.input("y", Type::new(Dtype::I64, Shape::new([self.heads.batch])))?;
        let mut x = self.x_embedder(images)?; // [n, t, d]
        let t = self.t_embedder(t)?; // [n, d]
        let y = self.y_embedder(y)?; // [n, d]
        let c = self.add("c", Op::Add, &[t, y])?; // [n, d]
        let c = self.silu("c.silu", c)?; // [n, d]; every block begins with it
        for (i, &plan) in plans.iter().enumerate() {
            x = self.block(i, plan, x, c)?; // [n, t, d]
        }
        let out = self.final_layer(x, c)?; // [n * t, p * p * out]
        Ok((images, self.unpatchify(out)?)) // [n, out, h, w]
    }

    // === Embedders ===

    fn x_embedder(&mut self, x: ValueId) -> Built<ValueId> {
        let (grid, c, p, d) = (self.heads.grid, self.config.channels, self.config.patch, self.config.hidden);
        let x = self.computed("x.cast", x)?;
        let cut = [c, grid.height, p, grid.width, p];
        let x = self.reshape("x_embedder.cut", x, self.heads.batch, &cut)?;
        let x = self.add("x_embedder.patches", Op::Transpose(vec![0, 2, 4, 1, 3, 5]), &[x])?;
        let x = self.reshape("x_embedder.rows", x, self.rows(), &[c * p * p])?; // [n * t, c * p * p]
        let weight = self.parameter("x_embedder.proj.weight", &[d, c, p, p])?;
        let weight = self.reshape("x_embedder.proj.weight.rows", weight, Dim::Fixed(d), &[c * p * p])?;
        let bias = self.parameter("x_embedder.proj.bias", &[d])?;
        let x = self.add("x_embedder.proj", Op::Gemm { transpose_b: true }, &[x, weight, bias])?;
        let x = self.tokens("x_embedder", x, d)?; // [n, t, d]
        let positions = Positions::of(self.config).append(&mut self.graph, self.heads.dtype)?; // [1, t, d]
        self.add("x_embedder.positions", Op::Add, &[x, positions])
    }

    fn t_embedder(&mut self, t: ValueId) -> Built<ValueId> {
        let frequencies = timestep_frequencies();
        let (half, d) = (frequencies.len(), self.config.hidden);
        let frequencies = self.graph.floats("t_embedder.frequencies", Dtype::F32, &[half], frequencies)?;
        let t = self.reshape("t_embedder.t", t, self.heads.batch, &[1])?;
        let angles = self.add("t_embedder.angles", Op::Mul, &[t, frequencies])?; // [n, 128]
        let cos = self.add("t_embedder.cos", Op::Cos, &[angles])?;
        let sin = self.add("t_embedder.sin", Op::Sin, &[angles])?;
        let features = self.add("t_embedder.features", Op::Concat { axis: 1 }, &[cos, sin])?; // [n, 256]
        let features = self.computed("t_embedder.features.cast", features)?;
        let hidden = self.linear("t_embedder.mlp.0", features, 2 * half, d)?; // [n, d]
        let hidden = self.silu("t_embedder.mlp.1", hidden)?;
        self.linear("t_embedder.mlp.2", hidden, d, d) // [n, d]
    }

    fn y_embedder(&mut self, y: ValueId) -> Built<ValueId> {
        let table = [self.config.label_rows(), self.config.hidden];
        let table = self.parameter("y_embedder.embedding_table.weight", &table)?;
        self.add("y_embedder", Op::Gather { axis: 0 }, &[table, y]) // [n, d]
    }

    // === A block ===

    fn block(&mut self, i: usize, plan: Plan, x: ValueId, c: ValueId) -> Built<ValueId> {
        let name = &format!("blocks.{i}");
        let parts = ["shift_msa", "scale_msa", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp"];
        let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] =
            self.modulation(name, c, parts)?; // six of [n, 1, d]
        let attn = self.modulate(&format!("{name}.norm1"), x, shift_msa, scale_msa)?; // [n * t, d]
        let attn = self.attention(&format!("{name}.attn"), self.config.windows[i], plan, attn)?;
        let x = self.gated(&format!("{name}.attn"), x, attn, gate_msa)?; // [n, t, d]
        let mlp = self.modulate(&format!("{name}.norm2"), x, shift_mlp, scale_mlp)?; // [n * t, d]
        let mlp = self.mlp(&format!("{name}.mlp"), mlp)?;
        self.gated(&format!("{name}.mlp"), x, mlp, gate_mlp) // [n, t, d]
    }

    fn attention(&mut self, name: &str, window: Window, plan: Plan, x: ValueId) -> Built<ValueId> {
        let d = self.config.hidden;
        let qkv = self.linear(&format!("{name}.qkv"), x, d, 3 * d)?; // [n * t, 3 d]
        let values = self.window(window, plan)?;
        let attended = values.attend(&mut self.graph, name, qkv, &self.heads)?;
        let out = attended.out;
        self.attended.push(attended);
        let out = self.reshape(&format!("{name}.out.rows"), out, self.rows(), &[d])?; // [n * t, d]
        self.linear(&format!("{name}.proj"), out, d, d) // [n * t, d]
    }

    fn mlp(&mut self, name: &str, x: ValueId) -> Built<ValueId> {
        let (d, m) = (self.config.hidden, self.config.hidden * self.config.mlp_ratio);
        let x = self.linear(&format!("{name}.fc1"), x, d, m)?;
        let x = self.add(&format!("{name}.act"), Op::Gelu, &[x])?;
        self.linear(&format!("{name}.fc2"), x, m, d) // [n * t, d]
    }

    /// `x + gate · branch`, the branch given as rows.
    fn gated(&mut self, name: &str, x: ValueId, branch: ValueId, gate: ValueId) -> Built<ValueId> {
        let branch = self.tokens(name, branch, self.config.hidden)?; // [n, t, d]
        let branch = self.add(&format!("{name}.gated"), Op::Mul, &[branch, gate])?;
        self.add(&format!("{name}.residual"), Op::Add, &[x, branch])
    }

    // === The final layer ===

    fn final_layer(&mut self, x: ValueId, c: ValueId) -> Built<ValueId> {
        let [shift, scale] = self.modulation("final_layer", c, ["shift", "scale"])?;
        let x = self.modulate("final_layer.norm_final", x, shift, scale)?; // [n * t, d]
        let out = self.config.patch * self.config.patch * self.config.out_channels();
        self.linear("final_layer.linear", x, self.config.hidden, out) // [n * t, p * p * out]
    }

    fn unpatchify(&mut self, x: ValueId) -> Built<ValueId> {
        let (grid, p, out) = (self.heads.grid, self.config.patch, self.config.out_channels());
        let batch = self.heads.batch;
        let x = self.reshape("unpatchify.cut", x, batch, &[grid.height, grid.width, p, p, out])?;
        let x = self.add("unpatchify.pixels", Op::Transpose(vec![0, 5, 1, 3, 2, 4]), &[x])?;
        let image = [out, self.config.height, self.config.width];
        if self.heads.dtype == Dtype::F32 {
            return self.reshape("prediction", x, batch, &image);
        }
        let x = self.reshape("unpatchify.image", x, batch, &image)?;
        self.add("prediction", Op::Cast(Dtype::F32), &[x])
    }

    // === Small parts ===

    /// SiLU(c) through a linear layer, cut into `N` parts of `[n, 1, d]`.
    fn modulation<const N: usize>(
        &mut self,
        name: &str,
        c: ValueId,
        parts: [&str; N],
    ) -> Built<[ValueId; N]> {
        let d = self.config.hidden;
        let name = format!("{name}.adaLN_modulation");
        let all = self.linear(&format!("{name}.1"), c, d, N * d)?; // [n, N d]
        let all = self.reshape(&format!("{name}.parts"), all, self.heads.batch, &[N, d])?; // [n, N, d]
        let mut values = [all; N];
        for (i, part) in parts.iter().enumerate() {
            let slice = Op::Slice { axis: 1, start: i, len: 1 };
            values[i] = self.add(&format!("{name}.{part}"), slice, &[all])?; // [n, 1, d]
        }
        Ok(values)
    }

    /// LayerNorm, then `x (1 + scale) + shift`. `[n, t, d]` to rows, `[n * t, d]`.
    fn modulate(&mut self, name: &str, x: ValueId, shift: ValueId, scale: ValueId) -> Built<ValueId> {
        let x = self.add(name, Op::LayerNorm { epsilon: 1e-6 }, &[x])?; // [n, t, d]
        let scale = self.add(&format!("{name}.scale"), Op::Add, &[scale, self.one])?; // [n, 1, d]
        let x = self.add(&format!("{name}.scaled"), Op::Mul, &[x, scale])?;
        let x = self.add(&format!("{name}.shifted"), Op::Add, &[x, shift])?; // [n, t, d]
        self.reshape(&format!("{name}.rows"), x, self.rows(), &[self.config.hidden]) // [n * t, d]
    }

    fn linear(&mut self, name: &str, x: ValueId, inputs: usize, outputs: usize) -> Built<ValueId> {
        let weight = self.parameter(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.parameter(&format!("{name}.bias"), &[outputs])?;
        self.add(name, Op::Gemm { transpose_b: true }, &[x, weight, bias])
    }

    fn silu(&mut self, name: &str, x: ValueId) -> Built<ValueId> {
        let gate = self.add(&format!("{name}.sigmoid"), Op::Sigmoid, &[x])?;
        self.add(name, Op::Mul, &[x, gate])
    }

    /// The constants of a window, made once.
    fn window(&mut self, window: Window, plan: Plan) -> Built<WindowValues> {
        if let Some(values) = self.windows.get(&(window, plan)) {
            return Ok(values.clone());
        }
        let side = match window {
            Window::Global => "global".to_owned(),
            Window::Local { side } => side.to_string(),
        };
        let name = match plan {
            Plan::Dense => format!("window.{side}.dense"),
            Plan::Tiles(tile) => format!("window.{side}.tiles.{}x{}", tile.height, tile.width),
        };
        let values = WindowValues::new(&mut self.graph, &name, window, plan, &self.heads)?;
        self.windows.insert((window, plan), values.clone());
        Ok(values)
    }

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Built<ValueId> {
        let ty = Type::new(self.heads.dtype, Shape::new(shape.iter().copied()));
        self.graph.parameter(name, ty)
    }

    /// A value in the type that the network computes in.
    fn computed(&mut self, name: &str, x: ValueId) -> Built<ValueId> {
        if self.graph.ty(x).dtype == self.heads.dtype {
            return Ok(x);
        }
        self.add(name, Op::Cast(self.heads.dtype), &[x])
    }

    /// Rows back to tokens: `[n * t, d]` to `[n, t, d]`.
    fn tokens(&mut self, name: &str, x: ValueId, width: usize) -> Built<ValueId> {
        let tokens = self.heads.grid.tokens();
        self.reshape(&format!("{name}.tokens"), x, self.heads.batch, &[tokens, width])
    }

    fn rows(&self) -> Dim {
        self.heads.batch.times(self.heads.grid.tokens())
    }

    fn reshape(&mut self, name: &str, x: ValueId, first: Dim, rest: &[usize]) -> Built<ValueId> {
        self.graph.add(name, Op::Reshape(Shape::led_by(first, rest)), &[x])
    }

    fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Built<ValueId> {
        self.graph.add(name, op, inputs)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind, Tensor};
    use windowpane_diffusion::{Tile, noise};

    use super::super::eval::evaluate;
    use super::*;
    use crate::model::Geometry;
    use crate::params::Layout;

    /// Parameters without a zero among them, so that every path through the network counts. `[parameters]`
    pub(crate) fn parameters(config: &ModelConfig) -> Tensor {
        let values = noise::normal(9, 0, Layout::of(config).total());
        Tensor::from_slice(&values) * 0.15
    }

    /// Parameters and position table by name.
    pub(crate) fn by_name(config: &ModelConfig, flat: &Tensor) -> HashMap<String, Tensor> {
        let mut all = Layout::of(config).views(flat);
        let positions = Positions::of(config);
        let shape: Vec<i64> = positions.shape.iter().map(|&n| n as i64).collect();
        all.insert(Positions::NAME.to_owned(), Tensor::from_slice(&positions.values).view(&shape[..]));
        all
    }

    fn local(side: usize) -> Window {
        Window::local(side).unwrap()
    }

    fn small(height: usize, width: usize, patch: usize, windows: Vec<Window>) -> ModelConfig {
        ModelConfig {
            channels: 2,
            height: height * patch,
            width: width * patch,
            patch,
            hidden: 16,
            depth: windows.len(),
            heads: 2,
            mlp_ratio: 2,
            classes: 3,
            learn_sigma: false,
            windows,
        }
    }

    /// Largest difference between graph and model, relative to the model's largest value.
    fn difference(config: &ModelConfig, plans: &[Plan]) -> f64 {
        config.validate().unwrap();
        let flat = parameters(config);
        let net = Geometry::planned(config, |_, _| Plan::Dense, Kind::Float, Device::Cpu).bind(&flat);
        let n = 3;
        let shape = [n, config.channels as i64, config.height as i64, config.width as i64];
        let x = Tensor::from_slice(&noise::normal(1, 0, n as usize * config.elements())).view(shape);
        let t = Tensor::from_slice(&[0.0f32, 412.75, 999.0]);
        let y = Tensor::from_slice(&[0i64, config.null_class() as i64, 1]);
        let expected = net.forward(&x, &t, &y);
        let mut given = by_name(config, &flat);
        given.extend([("x", x), ("t", t), ("y", y)].map(|(name, value)| (name.to_owned(), value)));
        let graph = denoiser(config, plans, Dtype::F32).unwrap();
        let got = evaluate(&graph, &given).unwrap().remove(0);
        assert_eq!(got.size(), expected.size());
        let largest = |x: &Tensor| x.abs().max().double_value(&[]);
        assert!(largest(&expected) > 1e-2, "a network that says nothing proves nothing");
        largest(&(got - &expected)) / largest(&expected)
    }

    #[test]
    fn the_graph_is_the_model() {
        let all = vec![Window::Global, local(3), local(5), local(31)];
        let tiles = |height, width| {
            let tiles = Plan::Tiles(Tile { height, width });
            vec![Plan::Dense, tiles, tiles, tiles]
        };
        for (height, width, patch) in [(8, 8, 1), (7, 7, 2), (5, 9, 4), (9, 2, 1), (1, 6, 2)] {
            for plans in [vec![Plan::Dense; 4], tiles(2, 2), tiles(4, 4), tiles(2, 4), tiles(7, 7)] {
                for learn_sigma in [false, true] {
                    let config = ModelConfig { learn_sigma, ..small(height, width, patch, all.clone()) };
                    let difference = difference(&config, &plans);
                    // Two f32 sums in another order; 1e-4 is what a server accepts.
                    assert!(difference < 1e-5, "{height}x{width}/{patch} {plans:?}: {difference}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_window_on_any_grid(
            (height, width) in (1usize..12, 1usize..12), half in 0usize..6, tile in (1usize..9, 1usize..9), patch in 1usize..4,
        ) {
            let config = small(height, width, patch, vec![local(2 * half + 1)]);
            let tiles = difference(&config, &[Plan::Tiles(Tile { height: tile.0, width: tile.1 })]);
            let dense = difference(&config, &[Plan::Dense]);
            prop_assert!(tiles < 1e-5 && dense < 1e-5, "{} {}", tiles, dense);
        }
    }

    #[test]
    fn an_unconditional_model_has_one_label() {
        let config = ModelConfig { classes: 0, ..small(4, 4, 1, vec![local(3)]) };
        let graph = denoiser(&config, &[Plan::Dense], Dtype::F32).unwrap();
        let table = graph.values().find(|(_, value)| value.name == "y_embedder.embedding_table.weight");
        assert_eq!(table.unwrap().1.ty.shape, Shape::new([1, 16]));
    }

    #[test]
    fn half_precision_changes_types_and_nothing_else() {
        let config = small(4, 4, 2, vec![local(3), Window::Global]);
        let plans = [Plan::Tiles(Tile::square(2)), Plan::Dense];
        let types = |dtype| {
            let graph = denoiser(&config, &plans, dtype).unwrap();
            let inputs: Vec<_> = graph.inputs().map(|value| value.ty.to_string()).collect();
            let output = graph.ty(graph.outputs()[0]).to_string();
            let halves = graph.values().filter(|(_, value)| value.ty.dtype == Dtype::F16).count();
            (inputs, output, halves > 0)
        };
        let (inputs, output, _) = types(Dtype::F32);
        assert_eq!(inputs, ["f32[n,2,8,8]", "f32[n]", "i64[n]"]);
        assert_eq!(output, "f32[n,2,8,8]");
        assert_eq!(types(Dtype::F16), (inputs, output, true));
    }

    #[test]
    fn a_plan_per_layer_is_required() {
        let config = small(4, 4, 1, vec![local(3)]);
        let refused = denoiser(&config, &[], Dtype::F32).unwrap_err().to_string();
        assert!(refused.contains("0 window plans for a model of 1 blocks"), "{refused}");
    }
}
