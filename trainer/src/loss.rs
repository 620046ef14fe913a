//! What the network is asked to predict, and how wrong it was.
//!
//! The forward process `x_t = alpha x_0 + sigma eps` (Ho et al. 2020, eq. 4), the target of each
//! parameterisation, the mean squared error on it, and for networks that also predict the variance the hybrid
//! loss of Nichol & Dhariwal 2021 (eq. 16): the error plus a variational bound on a detached mean.

use tch::{Device, Kind, Tensor};
use windowpane_diffusion::{Prediction, Schedule, Variance};

/// A noise schedule on a device, with what the network predicts under it.
#[derive(Debug)]
pub struct Process {
    prediction: Prediction,
    variance: Variance,
    steps: usize,
    alpha: Tensor,
    sigma: Tensor,
    beta: Tensor,
    alpha_bar_before: Tensor,
    /// `log beta~_t`, its first entry replaced by the second (Nichol & Dhariwal: it is 0 at t = 0). `[T]`
    log_posterior: Tensor,
}

// === impl Process ===

impl Process {
    /// Puts `schedule`'s tables on `device`, each `[T]`.
    pub fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, device: Device) -> Self {
        let steps = schedule.len();
        let table = |f: &dyn Fn(usize) -> f64| {
            let values: Vec<f32> = (0..steps).map(|t| f(t) as f32).collect();
            Tensor::from_slice(&values).to_device(device)
        };
        let before = |t: usize| if t == 0 { 1.0 } else { schedule.alpha_bar(t - 1) };
        let posterior = |t: usize| schedule.beta(t) * (1.0 - before(t)) / (1.0 - schedule.alpha_bar(t));
        let clipped = |t: usize| if t == 0 && steps > 1 { posterior(1) } else { posterior(t) };
        Self {
            prediction,
            variance,
            steps,
            alpha: table(&|t| schedule.level(t).alpha),
            sigma: table(&|t| schedule.level(t).sigma),
            beta: table(&|t| schedule.beta(t)),
            alpha_bar_before: table(&before),
            log_posterior: table(&|t| clipped(t).max(1e-20).ln()),
        }
    }

    /// `x_t` for integer timesteps. `x0`, `eps` and the result `[n, c, h, w]`, `t` `[n]` i64.
    pub fn noisy(&self, x0: &Tensor, eps: &Tensor, t: &Tensor) -> Tensor {
        at(&self.alpha, t) * x0 + at(&self.sigma, t) * eps
    }

    /// What the network should say at `x_t`: eps, x0, or `v = alpha eps - sigma x0` (Salimans & Ho 2022).
    pub fn target(&self, x0: &Tensor, eps: &Tensor, t: &Tensor) -> Tensor {
        match self.prediction {
            Prediction::Eps => eps.shallow_clone(),
            Prediction::X0 => x0.shallow_clone(),
            Prediction::V => at(&self.alpha, t) * eps - at(&self.sigma, t) * x0,
        }
    }

    /// The clean image that a prediction at `x_t` implies.
    pub fn to_x0(&self, x_t: &Tensor, prediction: &Tensor, t: &Tensor) -> Tensor {
        let (alpha, sigma) = (at(&self.alpha, t), at(&self.sigma, t));
        match self.prediction {
            Prediction::Eps => (x_t - sigma * prediction) / alpha,
            Prediction::X0 => prediction.shallow_clone(),
            Prediction::V => alpha * x_t - sigma * prediction,
        }
    }

    /// The training loss of one batch, a scalar.
    ///
    /// # Shapes
    /// `output` is `[n, out_channels, h, w]`, the images `[n, c, h, w]`, `t` `[n]` i64.
    pub fn loss(&self, output: &Tensor, x0: &Tensor, eps: &Tensor, t: &Tensor) -> Tensor {
        let target = self.target(x0, eps, t);
        if self.variance != Variance::LearnedRange {
            return output.mse_loss(&target, tch::Reduction::Mean);
        }
        let parts = output.chunk(2, 1); // two of (n, c, h, w)
        let mse = parts[0].mse_loss(&target, tch::Reduction::Mean);
        let x_t = self.noisy(x0, eps, t);
        let bound = self.variational_bound((&parts[0].detach(), &parts[1]), x0, &x_t, t).mean(Kind::Float);
        // As improved-diffusion's RESCALED_MSE: a thousandth of the sum over T terms.
        mse + bound * (self.steps as f64 / 1000.0)
    }

    /// One term of the variational bound in bits per dimension, `[n]` (Nichol & Dhariwal 2021, eqs. 4-7, 15).
    fn variational_bound(
        &self,
        (pred, v): (&Tensor, &Tensor),
        x0: &Tensor,
        x_t: &Tensor,
        t: &Tensor,
    ) -> Tensor {
        let (beta, before) = (at(&self.beta, t), at(&self.alpha_bar_before, t));
        let variance_t = at(&self.sigma, t).square();
        let log_posterior = at(&self.log_posterior, t);
        let coefficient_x0 = before.sqrt() * &beta / &variance_t;
        let coefficient_xt = (1f64 - &before) * (1f64 - &beta).sqrt() / &variance_t;
        let mean = |x0: &Tensor| &coefficient_x0 * x0 + &coefficient_xt * x_t;
        let true_mean = mean(x0);
        let mean = mean(&self.to_x0(x_t, pred, t).clamp(-1.0, 1.0));
        let fraction = (v + 1.0) / 2.0;
        let log_variance = &fraction * beta.log() + (1f64 - &fraction) * &log_posterior;
        let kl = (&log_variance - &log_posterior - 1.0
            + (&log_posterior - &log_variance).exp()
            + (&true_mean - &mean).square() * (-&log_variance).exp())
            * 0.5;
        let nll = -discretised_gaussian_log_likelihood(x0, &mean, &(&log_variance * 0.5));
        let is_first = t.eq(0).view([-1, 1, 1, 1]);
        nll.where_self(&is_first, &kl).mean_dim([1i64, 2, 3].as_slice(), false, Kind::Float) / 2f64.ln()
    }
}

/// The table's entries at `t`, shaped to multiply images: `[n, 1, 1, 1]`.
fn at(table: &Tensor, t: &Tensor) -> Tensor {
    table.index_select(0, t).view([-1, 1, 1, 1])
}

/// Log-likelihood of 8-bit pixels under a Gaussian, each pixel being a bin of width 2/255 (Ho et al. 2020, eq. 13).
fn discretised_gaussian_log_likelihood(x: &Tensor, mean: &Tensor, log_scale: &Tensor) -> Tensor {
    let cdf = |z: Tensor| ((z * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let (centred, inverse) = (x - mean, (-log_scale).exp());
    let above = cdf((&centred + 1.0 / 255.0) * &inverse);
    let below = cdf((&centred - 1.0 / 255.0) * &inverse);
    let safe_log = |p: Tensor| p.clamp_min(1e-12).log();
    let inside = safe_log(&above - &below);
    let left = safe_log(above);
    let right = safe_log(1f64 - below);
    left.where_self(&x.lt(-0.999), &right.where_self(&x.gt(0.999), &inside))
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::{ScheduleConfig, ScheduleKind};

    use super::*;

    fn process(prediction: Prediction, variance: Variance) -> Process {
        let schedule = ScheduleConfig { kind: ScheduleKind::Cosine, steps: 1000 }.build().unwrap();
        Process::new(&schedule, prediction, variance, Device::Cpu)
    }

    fn batch() -> (Tensor, Tensor, Tensor) {
        let _draws = crate::testing::seeded(1);
        let x0 = Tensor::rand([4, 2, 3, 3], (Kind::Float, Device::Cpu)) * 2.0 - 1.0;
        (
            x0,
            Tensor::randn([4, 2, 3, 3], (Kind::Float, Device::Cpu)),
            Tensor::from_slice(&[0i64, 10, 500, 900]),
        )
    }

    #[test]
    fn the_target_leads_back_to_the_image() {
        let (x0, eps, t) = batch();
        for prediction in [Prediction::Eps, Prediction::X0, Prediction::V] {
            let process = process(prediction, Variance::FixedSmall);
            let target = process.target(&x0, &eps, &t);
            let back = process.to_x0(&process.noisy(&x0, &eps, &t), &target, &t);
            assert!((back - &x0).abs().max().double_value(&[]) < 1e-4, "{prediction:?}");
            assert!(process.loss(&target, &x0, &eps, &t).double_value(&[]) == 0.0);
        }
    }

    #[test]
    fn the_bound_is_zero_for_the_true_posterior_and_grows_away_from_it() {
        let (x0, eps, _) = batch();
        let t = Tensor::from_slice(&[5i64, 10, 500, 900]);
        let process = process(Prediction::X0, Variance::LearnedRange);
        let x_t = process.noisy(&x0, &eps, &t);
        let bound = |v: f64| {
            let v = Tensor::full_like(&x0, v);
            process.variational_bound((&x0, &v), &x0, &x_t, &t).mean(Kind::Float).double_value(&[])
        };
        // v = -1 is the posterior's own variance: with the true mean the KL divergence vanishes.
        assert!(bound(-1.0).abs() < 1e-5, "{}", bound(-1.0));
        assert!(bound(1.0) > bound(0.0) && bound(0.0) > bound(-1.0));
    }

    #[test]
    fn the_bound_does_not_train_the_mean() {
        let (x0, eps, t) = batch();
        let process = process(Prediction::Eps, Variance::LearnedRange);
        let output = Tensor::cat(&[&eps, &Tensor::zeros_like(&eps)], 1).set_requires_grad(true);
        process.loss(&output, &x0, &eps, &t).backward();
        let grad = output.grad().chunk(2, 1);
        assert_eq!(grad[0].abs().max().double_value(&[]), 0.0);
        assert!(grad[1].abs().max().double_value(&[]) > 0.0);
    }
}
