//! The trainable parameters: their names, shapes and first values, laid end to end in one flat f32 buffer.
//!
//! Names and shapes are those of the state dict of facebookresearch/DiT `models.py`, so a checkpoint can be
//! loaded there and back. One buffer makes the optimiser, the moving average, gradient clipping and a checkpoint
//! a handful of kernels over one tensor instead of hundreds over small ones.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::ModelConfig;
use windowpane_diffusion::noise::{self, Domain};

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Init {
    /// All zero: biases, adaLN and the last layer, so that every block begins as the identity (DiT, section 3.2).
    Zero,
    /// Uniform in ±sqrt(6 / (fan_in + fan_out)) over the weight flattened to two dimensions.
    Xavier,
    /// Normal with this standard deviation.
    Normal(f32),
}

/// One parameter's place in the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name in the checkpoint.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<i64>,
    init: Init,
}

/// All parameters of a configuration, in the order of the buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// The parameters.
    pub entries: Vec<Entry>,
}

// === impl Entry ===

impl Entry {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// Whether it holds no value; no parameter of a valid configuration does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

// === impl Layout ===

impl Layout {
    /// The layout of a configuration.
    pub fn of(config: &ModelConfig) -> Self {
        let size = |n: usize| n as i64;
        let (h, m, p) = (size(config.hidden), size(config.hidden * config.mlp_ratio), size(config.patch));
        let out = p * p * size(config.out_channels());
        let mut layout = Self { entries: Vec::new() };
        layout.linear("x_embedder.proj", &[h, size(config.channels), p, p], Init::Xavier);
        layout.linear("t_embedder.mlp.0", &[h, 256], Init::Normal(0.02));
        layout.linear("t_embedder.mlp.2", &[h, h], Init::Normal(0.02));
        layout.push("y_embedder.embedding_table.weight", &[size(config.label_rows()), h], Init::Normal(0.02));
        for i in 0..config.depth {
            layout.linear(&format!("blocks.{i}.attn.qkv"), &[3 * h, h], Init::Xavier);
            layout.linear(&format!("blocks.{i}.attn.proj"), &[h, h], Init::Xavier);
            layout.linear(&format!("blocks.{i}.mlp.fc1"), &[m, h], Init::Xavier);
            layout.linear(&format!("blocks.{i}.mlp.fc2"), &[h, m], Init::Xavier);
            layout.linear(&format!("blocks.{i}.adaLN_modulation.1"), &[6 * h, h], Init::Zero);
        }
        layout.linear("final_layer.linear", &[out, h], Init::Zero);
        layout.linear("final_layer.adaLN_modulation.1", &[2 * h, h], Init::Zero);
        layout
    }

    /// Values in the buffer.
    pub fn total(&self) -> usize {
        self.entries.iter().map(Entry::len).sum()
    }

    /// The first values, a pure function of the seed. `[total]`
    pub fn initial(&self, seed: u64) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.total());
        for (index, entry) in self.entries.iter().enumerate() {
            let (seed_step, len) = (index as u32, entry.len());
            match entry.init {
                Init::Zero => flat.resize(flat.len() + len, 0.0),
                Init::Xavier => {
                    let (rows, columns) = (entry.shape[0] as usize, len / entry.shape[0] as usize);
                    let bound = (6.0 / (rows + columns) as f32).sqrt();
                    flat.extend(
                        (0..len as u64)
                            .map(|e| bound * (2.0 * noise::uniform(Domain::Init, seed, seed_step, e) - 1.0)),
                    );
                }
                Init::Normal(std) => {
                    let start = flat.len();
                    flat.resize(start + len, 0.0);
                    noise::fill_normal_in(Domain::Init, seed, seed_step, &mut flat[start..]);
                    flat[start..].iter_mut().for_each(|v| *v *= std);
                }
            }
        }
        flat
    }

    /// The parameters by name, as views of the flat buffer `[total]`; gradients of all of them arrive in the
    /// buffer's one gradient.
    pub fn views(&self, flat: &Tensor) -> HashMap<String, Tensor> {
        let sizes: Vec<i64> = self.entries.iter().map(|e| e.len() as i64).collect();
        let parts = flat.split_with_sizes(&sizes, 0);
        let shaped =
            self.entries.iter().zip(parts).map(|(e, part)| (e.name.clone(), part.view(&e.shape[..])));
        shaped.collect()
    }

    /// The first values as a tensor on `device`. `[total]`
    pub fn initial_tensor(&self, seed: u64, device: Device) -> Tensor {
        Tensor::from_slice(&self.initial(seed)).to_kind(Kind::Float).to_device(device)
    }

    fn push(&mut self, name: &str, shape: &[i64], init: Init) {
        self.entries.push(Entry { name: name.to_owned(), shape: shape.to_vec(), init });
    }

    fn linear(&mut self, name: &str, weight: &[i64], init: Init) {
        self.push(&format!("{name}.weight"), weight, init);
        self.push(&format!("{name}.bias"), &weight[..1], Init::Zero);
    }
}
