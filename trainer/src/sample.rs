//! Sampling with the trainer's own network: the same solver, noise and guidance as the server, over libtorch.

use tch::{Device, Tensor};
use windowpane_diffusion::guidance::{guide, needs_unconditional};
use windowpane_diffusion::solver::{SolverConfig, State};
use windowpane_diffusion::{ModelConfig, Schedule};

use crate::error::Result;
use crate::model::Dit;

/// What to sample.
#[derive(Debug, Clone)]
pub struct SampleRequest {
    /// The label of each image; the null class for none.
    pub labels: Vec<usize>,
    /// Seed of the first image; image `i` has seed `seed + i`.
    pub seed: u64,
    /// The solver.
    pub solver: SolverConfig,
    /// Classifier-free guidance; 1 is none.
    pub guidance_scale: f64,
    /// Rows in one pass of the network.
    pub batch: usize,
}

/// Images as bytes, planar `[n, c, h, w]`. `progress` is told how many rows a pass of the network finished.
pub fn sample(
    net: &Dit,
    (config, schedule): (&ModelConfig, &Schedule),
    device: Device,
    request: &SampleRequest,
    progress: &dyn Fn(usize),
) -> Result<Vec<u8>> {
    let _guard = tch::no_grad_guard();
    let evaluations = request.solver.build(schedule)?;
    let guided = needs_unconditional(request.guidance_scale) && config.classes > 0;
    let (elements, out) = (config.elements(), config.out_channels() * config.height * config.width);
    let mut pixels = Vec::with_capacity(request.labels.len() * elements);
    for (chunk, labels) in request.labels.chunks(request.batch.max(1)).enumerate() {
        let first = request.seed + (chunk * request.batch.max(1)) as u64;
        let mut states: Vec<State> =
            (0..labels.len()).map(|i| State::start(first + i as u64, elements)).collect();
        let mut rows: Vec<i64> = labels.iter().map(|&l| l as i64).collect();
        if guided {
            rows.extend(std::iter::repeat_n(config.null_class() as i64, labels.len()));
        }
        let y = Tensor::from_slice(&rows).to_device(device);
        for (index, evaluation) in evaluations.iter().enumerate() {
            let x: Vec<f32> = states.iter().flat_map(|s| s.x.iter().copied()).collect();
            let shape =
                [labels.len() as i64, config.channels as i64, config.height as i64, config.width as i64];
            let x = Tensor::from_slice(&x).view(shape).to_device(device);
            let x = if guided { Tensor::cat(&[&x, &x], 0) } else { x };
            let t = Tensor::from_slice(&vec![evaluation.t; rows.len()]).to_device(device);
            let output = Vec::<f32>::try_from(&net.forward(&x, &t, &y).to_device(Device::Cpu).view([-1]))?;
            let (conditional, unconditional) = output.split_at(labels.len() * out);
            for (i, state) in states.iter_mut().enumerate() {
                let mut prediction = conditional[i * out..(i + 1) * out].to_vec();
                if guided {
                    let null = &unconditional[i * out..(i + 1) * out];
                    guide(&mut prediction, null, request.guidance_scale as f32, elements);
                }
                state.advance(evaluation, index as u32, first + i as u64, &prediction);
            }
            progress(labels.len());
        }
        pixels.extend(states.iter().flat_map(|s| s.x.iter().map(|&v| to_byte(v))));
    }
    Ok(pixels)
}

/// A value in [-1, 1] to a byte.
pub fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
}
