//! AdamW, its learning rate, gradient clipping and the moving average of the weights, each a few kernels over the
//! one flat buffer of parameters.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use windowpane_diffusion::error::number;

/// What the optimiser needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Steps of linear warm-up from 0.
    pub warmup: u64,
    /// Steps of linear decay to 0 at the end of the run; 0 keeps the rate constant.
    pub cooldown: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, of all parameters.
    pub weight_decay: f64,
    /// The gradient's norm is clipped to this; 0 leaves it alone.
    pub clip: f64,
    /// Decay of the weights' moving average, warmed up as `min(decay, (1 + step) / (10 + step))`.
    pub ema: f64,
}

/// The moments and the average. All tensors are `[parameters]` f32.
#[derive(Debug)]
pub struct Optimiser {
    config: OptimConfig,
    /// First moment.
    pub m: Tensor,
    /// Second moment.
    pub v: Tensor,
    /// Moving average of the weights.
    pub ema: Tensor,
}

// === impl OptimConfig ===

impl Default for OptimConfig {
    /// DiT's: AdamW at 1e-4, no decay, EMA 0.9999; clipping and warm-up off.
    fn default() -> Self {
        Self {
            lr: 1e-4,
            warmup: 0,
            cooldown: 0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 0.0,
            ema: 0.9999,
        }
    }
}

impl OptimConfig {
    /// The learning rate of step `step` of `steps`, counted from 0.
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        // 1. warm-up: linear from lr/warmup
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        // 2. cool-down: linear to zero over the last steps
        let left = steps.saturating_sub(step);
        if left < self.cooldown {
            return self.lr * left as f64 / self.cooldown as f64;
        }
        // 3. in between: constant
        self.lr
    }

    /// The moving average's decay at a step.
    pub fn ema_at(&self, step: u64) -> f64 {
        self.ema.min((1.0 + step as f64) / (10.0 + step as f64))
    }

    /// The first field that is out of range, and what is accepted.
    pub fn problem(&self) -> Option<String> {
        let checks = [
            ("lr", self.lr, 0.0..=10.0),
            ("beta1", self.beta1, 0.0..=0.999_999),
            ("beta2", self.beta2, 0.0..=0.999_999_9),
            ("epsilon", self.epsilon, 1e-30..=1.0),
            ("weight_decay", self.weight_decay, 0.0..=10.0),
            ("clip", self.clip, 0.0..=1e9),
            ("ema", self.ema, 0.0..=1.0),
        ];
        checks.into_iter().find(|(_, got, range)| !range.contains(got)).map(|(field, got, range)| {
            let [got, low, high] = [got, *range.start(), *range.end()].map(number);
            format!("`optim.{field}` is {got}, expected {low} to {high}")
        })
    }
}

// === impl Optimiser ===

impl Optimiser {
    /// Fresh moments; the average begins as the weights. `flat` is `[parameters]`.
    pub fn new(config: OptimConfig, flat: &Tensor) -> Self {
        let flat = flat.detach();
        Self { config, m: flat.zeros_like(), v: flat.zeros_like(), ema: flat.copy() }
    }

    /// One step of AdamW (Loshchilov & Hutter 2019, Algorithm 2) on `flat` with `gradient`, then the average.
    /// Returns the gradient's norm before clipping, as a scalar on the device.
    pub fn step(&mut self, flat: &mut Tensor, gradient: &Tensor, step: u64, steps: u64) -> Tensor {
        tch::no_grad(|| {
            let c = &self.config;
            let norm = gradient.norm();
            let clipped = if c.clip > 0.0 {
                gradient * (c.clip / (&norm + 1e-6)).clamp_max(1.0)
            } else {
                gradient.shallow_clone()
            };
            let _ = self.m.lerp_(&clipped, 1.0 - c.beta1);
            let _ = self.v.g_mul_scalar_(c.beta2);
            let _ = self.v.addcmul_(&clipped, &(&clipped * (1.0 - c.beta2)));
            let n = (step + 1) as f64;
            let (bias1, bias2) = (1.0 - c.beta1.powf(n), 1.0 - c.beta2.powf(n));
            let lr = c.lr_at(step, steps);
            let denominator = (&self.v / bias2).sqrt_() + c.epsilon;
            if c.weight_decay > 0.0 {
                let _ = flat.g_mul_scalar_(1.0 - lr * c.weight_decay);
            }
            let _ = flat.addcdiv_(&(&self.m * (-lr / bias1)), &denominator);
            let _ = self.ema.lerp_(flat, 1.0 - c.ema_at(step));
            norm.to_kind(Kind::Float)
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use tch::nn::{self, OptimizerConfig};

    use super::*;

    #[test]
    fn adamw_equals_libtorchs() {
        let _draws = crate::testing::seeded(5);
        let start = Tensor::randn([7], (Kind::Float, Device::Cpu));
        let config = OptimConfig { lr: 0.05, weight_decay: 0.1, ..OptimConfig::default() };
        let vs = nn::VarStore::new(Device::Cpu);
        let mut theirs = vs.root().var_copy("w", &start);
        let mut adam = nn::AdamW { beta1: 0.9, beta2: 0.999, wd: 0.1, eps: 1e-8, amsgrad: false }
            .build(&vs, 0.05)
            .unwrap();
        let mut ours = start.copy().set_requires_grad(true);
        let mut optimiser = Optimiser::new(config, &ours);
        let loss = |w: &Tensor| (w.square() * 3.0 + w.sin()).sum(Kind::Float);
        for step in 0..20 {
            adam.backward_step(&loss(&theirs));
            ours.zero_grad();
            loss(&ours).backward();
            let gradient = ours.grad();
            let _ = optimiser.step(&mut ours, &gradient, step, 20);
        }
        theirs = theirs.detach();
        let gap = (theirs - ours.detach()).abs().max().double_value(&[]);
        assert!(gap < 1e-6, "{gap}");
    }

    #[test]
    fn the_rate_warms_up_holds_and_cools_down() {
        let c = OptimConfig { lr: 1.0, warmup: 10, cooldown: 20, ..OptimConfig::default() };
        assert_eq!((c.lr_at(0, 100), c.lr_at(9, 100), c.lr_at(50, 100)), (0.1, 1.0, 1.0));
        assert_eq!((c.lr_at(90, 100), c.lr_at(100, 100)), (0.5, 0.0));
    }

    #[test]
    fn the_average_warms_up() {
        let c = OptimConfig::default();
        assert_eq!(c.ema_at(0), 0.1);
        assert!(c.ema_at(100) < 0.92 && c.ema_at(10_000_000) == 0.9999);
    }

    #[test]
    fn clipping_bounds_the_step_and_reports_the_norm() {
        let mut w = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let mut optimiser = Optimiser::new(OptimConfig { clip: 1.0, ..OptimConfig::default() }, &w);
        let norm = optimiser.step(&mut w, &Tensor::full([4], 50.0, (Kind::Float, Device::Cpu)), 0, 1);
        assert_eq!(norm.double_value(&[]), 100.0);
        assert!((optimiser.m.norm().double_value(&[]) - 0.1).abs() < 1e-5);
    }
}
