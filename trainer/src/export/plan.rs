//! Which plan is cheapest in ONNX Runtime? The exporter's own measured costs; the trainer has others, since
//! libtorch's backward pass makes tiles dearer there.

use windowpane_diffusion::window::CostModel;
use windowpane_diffusion::{ModelConfig, Plan};

/// Nanoseconds in ONNX Runtime 1.30 on the CPU, per head of 64.
pub const CPU_COST: CostModel = CostModel {
    dense_pair: 1.5,
    mask_pair: 0.3,
    tile_pair: 1.9,
    gathered_key: 60.0,
    query: 40.0,
    tile: 500.0,
};

/// The cheapest plan of every layer.
pub fn plans(config: &ModelConfig) -> Vec<Plan> {
    config.windows.iter().map(|window| window.plan(config.grid(), &CPU_COST)).collect()
}
