//! The network against somebody else's: `DiTTransformer2DModel` of the Python package diffusers, whose weights are
//! stored under the names of facebookresearch/DiT (tests/reference/dit.py wrote them).

use std::path::Path;

use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::manifest::Class;
use windowpane_diffusion::{ModelConfig, Prediction, ScheduleConfig, ScheduleKind, Variance, Window};
use windowpane_trainer::checkpoint::{Meta, load_foreign};
use windowpane_trainer::model::{Geometry, position_table};

/// The configuration in dit.py.
fn config() -> ModelConfig {
    ModelConfig {
        channels: 3,
        height: 8,
        width: 8,
        patch: 2,
        hidden: 16,
        depth: 2,
        heads: 2,
        mlp_ratio: 4,
        classes: 5,
        learn_sigma: true,
        windows: vec![Window::Global; 2],
    }
}

/// The same with what DiT's own models are trained under.
fn meta() -> Meta {
    Meta {
        config: config(),
        schedule: ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 },
        prediction: Prediction::Eps,
        variance: Variance::LearnedRange,
        classes: (0..5).map(|i| Class { name: i.to_string(), aliases: Vec::new() }).collect(),
        step: 0,
    }
}

fn read(file: &SafeTensors<'_>, name: &str) -> Tensor {
    let view = file.tensor(name).unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    let kind = match view.dtype() {
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::I64 => Kind::Int64,
        other => panic!("{name} is {other:?}"),
    };
    Tensor::from_data_size(view.data(), &shape, kind)
}

#[test]
fn a_state_dict_loads_unchanged_and_gives_the_same_prediction() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference");
    let flat = load_foreign(&folder.join("dit-weights.safetensors"), &meta(), Device::Cpu).unwrap().flat;
    let bytes = std::fs::read(folder.join("dit-io.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let net = Geometry::new(&config(), Kind::Float, Device::Cpu).bind(&flat);
    let output = net.forward(&read(&file, "x"), &read(&file, "t"), &read(&file, "y"));
    let expected = read(&file, "output");
    let error = (output - &expected).abs().max() / expected.abs().max();
    // Two f32 implementations of two blocks differ by rounding alone.
    assert!(error.double_value(&[]) < 1e-5, "{}", error.double_value(&[]));
}

#[test]
fn the_position_table_is_the_original_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/dit-weights.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let stored = read(&SafeTensors::deserialize(&bytes).unwrap(), "pos_embed");
    let ours = Tensor::from_slice(&position_table(config().grid(), 16)).view([1, 16, 16]);
    assert!((ours - stored).abs().max().double_value(&[]) < 1e-6);
}
