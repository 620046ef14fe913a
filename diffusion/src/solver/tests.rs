//! Solvers against closed forms: data that is one point, data that is Gaussian, and samplers that are the same
//! map by different names. Comparison with another program's trajectories is in `tests/reference.rs`.

use proptest::prelude::*;

use crate::schedule::{ScheduleConfig, ScheduleKind};

use super::*;

fn schedule() -> Schedule {
    ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap()
}

fn config(sampler: Sampler) -> SolverConfig {
    SolverConfig {
        sampler,
        grid: TimeGrid::Uniform,
        steps: 10,
        eta: 0.0,
        clip_x0: false,
        prediction: Prediction::Eps,
        variance: Variance::FixedSmall,
    }
}

/// The evaluations of `config`, and how they differ from those of `other`: the largest difference of a coefficient.
fn difference(config: SolverConfig, other: SolverConfig) -> f64 {
    let (a, b) = (config.build(&schedule()).unwrap(), other.build(&schedule()).unwrap());
    assert_eq!(a.len(), b.len());
    let noise = |scale| match scale {
        NoiseScale::None => 0.0,
        NoiseScale::Fixed(scale) => scale,
        NoiseScale::LearnedRange { .. } => f64::NAN,
    };
    let pairs = a.iter().zip(&b).flat_map(|(a, b)| {
        assert_eq!((a.t, a.step), (b.t, b.step));
        [a.x - b.x, a.x0 - b.x0, a.x_prev - b.x_prev, a.x0_prev - b.x0_prev, noise(a.noise) - noise(b.noise)]
    });
    pairs.fold(0.0, |worst: f64, difference| worst.max(difference.abs()))
}

// === the list of evaluations ===

#[test]
fn calls_and_steps_are_counted() {
    for sampler in Sampler::ALL {
        for grid in TimeGrid::ALL {
            let steps: Vec<usize> = SolverConfig { grid, ..config(sampler) }
                .build(&schedule())
                .unwrap()
                .iter()
                .map(|evaluation| evaluation.step)
                .collect();
            let twice = sampler == Sampler::Heun;
            let expected = (0..10).flat_map(|step| vec![step; if twice && step < 9 { 2 } else { 1 }]);
            assert_eq!(steps, expected.collect::<Vec<_>>(), "{sampler} {grid}");
        }
    }
}

#[test]
fn the_last_evaluation_is_the_clean_estimate_without_noise() {
    for sampler in Sampler::ALL {
        for (steps, variance) in [(1, Variance::FixedLarge), (10, Variance::LearnedRange)] {
            let built = SolverConfig { steps, variance, ..config(sampler) }.build(&schedule()).unwrap();
            let last = built.last().unwrap();
            // In f32, as it is applied; a part in 1e15 is left of DDPM's quotient in f64.
            assert_eq!((last.x as f32, last.x0 as f32), (0.0, 1.0), "{sampler}");
            assert_eq!((last.x_prev, last.x0_prev, last.noise), (0.0, 0.0, NoiseScale::None), "{sampler}");
        }
    }
}

#[test]
fn only_samplers_with_noise_ask_for_it() {
    for sampler in Sampler::ALL {
        let built = config(sampler).build(&schedule()).unwrap();
        let noisy = built.iter().filter(|evaluation| evaluation.noise != NoiseScale::None).count();
        let ancestral = matches!(sampler, Sampler::Ddpm | Sampler::EulerAncestral);
        assert_eq!(noisy, if ancestral { 9 } else { 0 }, "{sampler}");
    }
}

#[test]
fn one_step_starts_from_pure_noise() {
    for sampler in Sampler::ALL {
        for grid in TimeGrid::ALL {
            let built = SolverConfig { grid, steps: 1, ..config(sampler) }.build(&schedule()).unwrap();
            assert_eq!((built.len(), built[0].t), (1, 999.0), "{sampler} {grid}");
        }
    }
}

#[test]
fn the_learned_range_lies_between_the_fixed_variances() {
    let built = |variance| SolverConfig { variance, ..config(Sampler::Ddpm) }.build(&schedule()).unwrap();
    let (small, large) = (built(Variance::FixedSmall), built(Variance::FixedLarge));
    for (i, evaluation) in built(Variance::LearnedRange).iter().enumerate().take(9) {
        let (NoiseScale::Fixed(small), NoiseScale::Fixed(large)) = (small[i].noise, large[i].noise) else {
            panic!("noise at every step but the last");
        };
        let NoiseScale::LearnedRange { log_min, log_max } = evaluation.noise else {
            panic!("a learned variance at every step but the last");
        };
        assert!((log_min - 2.0 * small.ln()).abs() < 1e-12 && (log_max - 2.0 * large.ln()).abs() < 1e-12);
        assert!(log_min < log_max);
    }
}

#[test]
fn bad_values_are_refused_with_their_name() {
    let error = |config: SolverConfig| config.build(&schedule()).unwrap_err().to_string();
    for eta in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
        for sampler in Sampler::ALL {
            let message = error(SolverConfig { eta, ..config(sampler) });
            assert!(message.contains("`eta`") && message.contains("0 to 1"), "{message}");
        }
    }
    for sampler in Sampler::ALL.into_iter().filter(|&sampler| sampler != Sampler::Ddim) {
        let message = error(SolverConfig { eta: 0.5, ..config(sampler) });
        assert!(message.contains("`eta`") && message.contains(sampler.as_str()), "{message}");
    }
    for steps in [0, 1001, usize::MAX] {
        let message = error(SolverConfig { steps, ..config(Sampler::Ddim) });
        assert!(message.contains("`steps`") && message.contains("1 to 1000"), "{message}");
    }
}

#[test]
fn names_are_read_and_written_alike() {
    for sampler in Sampler::ALL {
        assert_eq!(sampler.to_string().parse::<Sampler>().unwrap(), sampler);
        assert_eq!(serde_json::to_string(&sampler).unwrap(), format!("\"{sampler}\""));
    }
    for grid in TimeGrid::ALL {
        assert_eq!(grid.to_string().parse::<TimeGrid>().unwrap(), grid);
        assert_eq!(serde_json::to_string(&grid).unwrap(), format!("\"{grid}\""));
    }
    assert!("plms".parse::<Sampler>().unwrap_err().to_string().contains("dpmpp_2m"));
    assert!("cubic".parse::<TimeGrid>().unwrap_err().to_string().contains("karras"));
}

// === one map, several names ===

#[test]
fn euler_is_ddim_without_noise() {
    for grid in TimeGrid::ALL {
        let at = |sampler| SolverConfig { grid, ..config(sampler) };
        assert!(difference(at(Sampler::Euler), at(Sampler::Ddim)) < 1e-12, "{grid}");
    }
}

#[test]
fn ddim_with_eta_one_is_ancestral() {
    for grid in TimeGrid::ALL {
        let ddim = SolverConfig { grid, eta: 1.0, ..config(Sampler::Ddim) };
        for sampler in [Sampler::Ddpm, Sampler::EulerAncestral] {
            // DDPM's 1 - ratio loses digits where levels lie close together.
            assert!(difference(ddim, SolverConfig { grid, ..config(sampler) }) < 1e-9, "{sampler} {grid}");
        }
    }
}

// === data that is one point ===

/// The true prediction where all data is `x0`: x determines the noise.
fn truth(prediction: Prediction, evaluation: &Evaluation, x: f64, x0: f64) -> f64 {
    let eps = (x - evaluation.alpha * x0) / evaluation.sigma;
    match prediction {
        Prediction::Eps => eps,
        Prediction::X0 => x0,
        Prediction::V => evaluation.alpha * eps - evaluation.sigma * x0,
    }
}

/// Samples image `seed` of a network that knows that the data is one point.
fn sample_point(config: SolverConfig, seed: u64, point: &[f32]) -> State {
    let mut state = State::start(seed, point.len());
    for (i, evaluation) in config.build(&schedule()).unwrap().iter().enumerate() {
        let of = |(&x, &x0): (&f32, &f32)| {
            truth(config.prediction, evaluation, f64::from(x), f64::from(x0)) as f32
        };
        let mut prediction: Vec<f32> = state.x.iter().zip(point).map(of).collect();
        prediction.resize(2 * point.len(), 0.5); // a variance, for whoever reads it
        state.advance(evaluation, i as u32, seed, &prediction);
    }
    state
}

proptest! {
    /// Whatever the sampler, grid, parameterisation, variance and noise: the end is the point.
    #[test]
    fn a_perfect_denoiser_of_a_point_ends_there(
        (sampler, grid) in (0usize..6, 0usize..3),
        (prediction, variance) in (0usize..3, 0usize..3),
        steps in 1usize..40,
        eta in 0.0f64..=1.0,
        clip_x0: bool,
        seed: u64,
        point in prop::collection::vec(-1.0f32..1.0, 1..9),
    ) {
        let sampler = Sampler::ALL[sampler];
        let config = SolverConfig {
            sampler,
            grid: TimeGrid::ALL[grid],
            steps,
            eta: if sampler == Sampler::Ddim { eta } else { 0.0 },
            clip_x0,
            prediction: [Prediction::Eps, Prediction::X0, Prediction::V][prediction],
            variance: [Variance::FixedSmall, Variance::FixedLarge, Variance::LearnedRange][variance],
        };
        let state = sample_point(config, seed, &point);
        prop_assert_eq!(&state.x, state.x0());
        for (&got, &wanted) in state.x.iter().zip(&point) {
            // One step from the noisiest level takes x0 = (x - sigma eps) / alpha with alpha = 1/160, in f32; from
            // the last grid point on there is no such loss, and the estimate is good to f32.
            let tolerance = if steps == 1 { 1e-4 } else { 4e-6 };
            prop_assert!((got - wanted).abs() < tolerance, "{config:?}: {got} is not {wanted}");
        }
    }
}

// === data that is Gaussian ===

/// Mean and variance of what `config` samples from Gaussian data N(mean, variance), exactly: the true denoiser is
/// linear, so every x is a constant plus a sum of independent normals, whose coefficients are carried along.
fn sample_gaussian(config: SolverConfig, mean: f64, variance: f64) -> (f64, f64) {
    let evaluations = config.build(&schedule()).unwrap();
    let normals = evaluations.len() + 2; // the constant, x_T, one per evaluation
    let mut x = vec![0.0; normals];
    x[1] = 1.0;
    let (mut x_prev, mut x0_prev) = (vec![0.0; normals], vec![0.0; normals]);
    for (i, e) in evaluations.iter().enumerate() {
        // E[x0 | x] = mean + gain (x - alpha mean).
        let gain = e.alpha * variance / (e.alpha * e.alpha * variance + e.sigma * e.sigma);
        let mut x0: Vec<f64> = x.iter().map(|c| gain * c).collect();
        x0[0] += mean * (1.0 - gain * e.alpha);
        let mut next: Vec<f64> = (0..normals)
            .map(|k| e.x * x[k] + e.x0 * x0[k] + e.x_prev * x_prev[k] + e.x0_prev * x0_prev[k])
            .collect();
        if let NoiseScale::Fixed(scale) = e.noise {
            next[i + 2] += scale;
        }
        (x_prev, x0_prev, x) = (x, x0, next);
    }
    (x[0], x[1..].iter().map(|c| c * c).sum())
}

/// Relative error of the sampled variance at `steps` steps, for data of mean 0.4 and variance 0.25.
fn variance_error(config: SolverConfig, steps: usize) -> f64 {
    let (mean, variance) = sample_gaussian(SolverConfig { steps, ..config }, 0.4, 0.25);
    // Two biases that no step size removes: x_T is N(0, 1), not the noised data, and the last step takes the
    // denoiser's word at t = 0. Their size is alpha_T and sigma_0², 0.6 % and 0.01 % of the scale.
    assert!((mean - 0.4).abs() < 0.05, "{config:?}: mean {mean}");
    (variance / 0.25 - 1.0).abs()
}

#[test]
fn the_variance_of_gaussian_data_converges() {
    for grid in TimeGrid::ALL {
        for sampler in Sampler::ALL {
            for variance in [Variance::FixedSmall, Variance::FixedLarge] {
                let config = SolverConfig { grid, variance, ..config(sampler) };
                let errors = [20, 40, 80, 160].map(|steps| variance_error(config, steps));
                // The order of the method: half the step is half the error, or a quarter. (The finest second-order
                // steps already reach the biases above, so the order is read off before.)
                let halved = if matches!(sampler, Sampler::Heun | Sampler::DpmppTwoM) { 3.0 } else { 1.5 };
                let what = format!("{sampler} {variance} {grid}: {errors:?}");
                assert!(errors[1] > halved * errors[2], "{what}");
                assert!(errors[0] > errors[1] && errors[2] > errors[3], "{what}");
                assert!(errors[3] < if halved > 2.0 { 0.02 } else { 0.15 }, "{what}");
            }
        }
    }
}

#[test]
fn second_order_samplers_converge_faster() {
    let at =
        |sampler, steps| variance_error(SolverConfig { grid: TimeGrid::Karras, ..config(sampler) }, steps);
    // The same number of network calls: Heun's steps take two.
    let first = at(Sampler::Euler, 80);
    for (sampler, steps) in [(Sampler::Heun, 40), (Sampler::DpmppTwoM, 80)] {
        let second = at(sampler, steps);
        assert!(3.0 * second < first, "{sampler}: {second} against {first}");
    }
}

#[test]
fn sampled_images_have_the_variance_that_is_computed() {
    let (config, elements, v) = (config(Sampler::Ddpm), 20_000, 0.25);
    let mut state = State::start(3, elements);
    for (i, e) in config.build(&schedule()).unwrap().iter().enumerate() {
        let gain = e.alpha * v / (e.alpha * e.alpha * v + e.sigma * e.sigma);
        let eps: Vec<f32> = state
            .x
            .iter()
            .map(|&x| ((f64::from(x) - e.alpha * gain * f64::from(x)) / e.sigma) as f32)
            .collect();
        state.advance(e, i as u32, 3, &eps);
    }
    let sampled = state.x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / elements as f64;
    let (_, computed) = sample_gaussian(config, 0.0, v);
    // Five standard errors of a sample variance.
    assert!((sampled / computed - 1.0).abs() < 5.0 * (2.0 / elements as f64).sqrt(), "{sampled} {computed}");
}

// === the arithmetic of a state ===

#[test]
fn clipping_holds_the_estimate_and_not_the_image() {
    let evaluation = SolverConfig { clip_x0: true, prediction: Prediction::X0, ..config(Sampler::Ddim) }
        .build(&schedule())
        .unwrap()[0];
    let mut state = State::from_x(vec![3.0, -3.0, 0.5, 0.0]);
    state.advance(&evaluation, 0, 0, &[7.0, -7.0, 0.25, f32::NAN]);
    assert_eq!(state.x0()[..3], [1.0, -1.0, 0.25]);
    assert!(state.x0()[3].is_nan(), "clipping does not hide a broken network");
    assert!(state.x[0] > 1.0);
}

#[test]
fn the_order_of_the_arithmetic_is_fixed() {
    let built = SolverConfig { clip_x0: true, ..config(Sampler::Heun) }.build(&schedule()).unwrap();
    let evaluation = Evaluation { noise: NoiseScale::Fixed(0.3), ..built[1] };
    let [x, first, second, noise] = [0, 1, 2, 3].map(|step| crate::noise::normal(9, step, 64));
    let mut state = State::from_x(x.clone());
    state.advance_with(&built[0], &[], &first);
    let (input, x0) = (state.x.clone(), state.x0().to_vec());
    state.advance_with(&evaluation, &noise, &second);
    let e = &evaluation;
    for i in 0..x.len() {
        let estimate = (e.to_x0.0 as f32 * input[i] + e.to_x0.1 as f32 * second[i]).clamp(-1.0, 1.0);
        let mut expected = e.x as f32 * input[i];
        expected += e.x0 as f32 * estimate;
        expected += e.x_prev as f32 * x[i];
        expected += e.x0_prev as f32 * x0[i];
        expected += 0.3 * noise[i];
        assert_eq!(state.x[i].to_bits(), expected.to_bits());
    }
}

#[test]
fn noise_belongs_to_seed_and_evaluation() {
    let evaluation = config(Sampler::Ddpm).build(&schedule()).unwrap()[0];
    let advanced = |index, seed| {
        let mut state = State::from_x(vec![0.0; 8]);
        state.advance(&evaluation, index, seed, &[0.0; 8]);
        state.x
    };
    assert_eq!(advanced(0, 5), advanced(0, 5));
    assert_ne!(advanced(0, 5), advanced(1, 5));
    assert_ne!(advanced(0, 5), advanced(0, 6));
    let NoiseScale::Fixed(scale) = evaluation.noise else { panic!("DDPM's first step has noise") };
    let expected = crate::noise::normal(5, 0, 8).into_iter().map(|n| scale as f32 * n);
    assert_eq!(advanced(0, 5), expected.collect::<Vec<_>>());
}

#[test]
fn a_state_shows_no_estimate_before_the_first_evaluation() {
    let mut state = State::start(1, 4);
    assert!(state.x0().is_empty());
    assert_eq!(state.x, crate::noise::normal(1, crate::noise::INITIAL, 4));
    state.advance(&config(Sampler::Euler).build(&schedule()).unwrap()[0], 0, 1, &[0.0; 4]);
    assert_eq!(state.x0().len(), 4);
}

#[test]
fn a_learned_variance_of_one_is_the_larger_and_of_minus_one_the_smaller() {
    let evaluation = SolverConfig { variance: Variance::LearnedRange, ..config(Sampler::Ddpm) }
        .build(&schedule())
        .unwrap()[3];
    let NoiseScale::LearnedRange { log_min, log_max } = evaluation.noise else {
        panic!("a learned variance")
    };
    let mut state = State::from_x(vec![0.0; 3]);
    state.advance_with(&evaluation, &[1.0; 3], &[0.0, 0.0, 0.0, -1.0, 1.0, 0.0]);
    let logs = [log_min, log_max, 0.5 * (log_min + log_max)];
    for (&x, log) in state.x.iter().zip(logs) {
        assert!((f64::from(x) - (0.5 * log).exp()).abs() < 1e-6, "{x} {log}");
    }
}
