//! Our numbers against somebody else's: schedules, timesteps and whole trajectories of the Python package
//! diffusers, and noise computed a second time in Python. `tests/reference/generate.py` at the root wrote the
//! stored files, and says in comments where diffusers had to be led onto our grid.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use windowpane_diffusion::noise::{self, Domain};
use windowpane_diffusion::{
    Prediction, Sampler, ScheduleConfig, ScheduleKind, SolverConfig, State, TimeGrid, Variance,
};

fn read<T: DeserializeOwned>(text: &str) -> Vec<T> {
    let items: Vec<T> = serde_json::from_str(text).expect("a stored reference file reads");
    assert!(!items.is_empty());
    items
}

#[test]
fn schedules() {
    #[derive(Deserialize)]
    struct Table {
        kind: ScheduleKind,
        steps: usize,
        t: Vec<usize>,
        beta: Vec<f64>,
        alpha_bar: Vec<f64>,
    }
    for table in read::<Table>(include_str!("reference/schedules.json")) {
        let schedule = ScheduleConfig { kind: table.kind, steps: table.steps }.build().unwrap();
        for (i, &t) in table.t.iter().enumerate() {
            let what = format!("{:?} {} at {t}", table.kind, table.steps);
            // Their betas are f32: half an ulp is 6e-8, and torch.linspace adds a few.
            let relative = 3e-7;
            assert_close(schedule.beta(t), table.beta[i], relative * table.beta[i], &what);
            // alpha_bar is the product of 1 - beta: the relative errors of the factors add up.
            let factors = (0..=t).map(|s| schedule.beta(s) / (1.0 - schedule.beta(s)));
            let tolerance = relative * factors.sum::<f64>() * table.alpha_bar[i] + 1e-9; // nine digits stored
            assert_close(schedule.alpha_bar(t), table.alpha_bar[i], tolerance, &what);
        }
    }
}

#[test]
fn respacings() {
    #[derive(Deserialize)]
    struct Respacing {
        timesteps: usize,
        steps: usize,
        kept: Vec<usize>,
    }
    for case in read::<Respacing>(include_str!("reference/respacings.json")) {
        let config = ScheduleConfig { kind: ScheduleKind::Cosine, steps: case.timesteps };
        assert_eq!(config.build().unwrap().respaced(case.steps).unwrap(), case.kept);
    }
}

#[test]
fn noise_golden_vectors() {
    #[derive(Deserialize)]
    struct Noise {
        domain: u32,
        seed: u64,
        step: u32,
        bits: Vec<u32>,
    }
    for case in read::<Noise>(include_str!("reference/noise.json")) {
        let domain = [Domain::Sample, Domain::TrainNoise, Domain::Toy]
            .into_iter()
            .find(|&domain| domain as u32 == case.domain)
            .expect("one of the stored domains");
        let mut out = vec![0.0; case.bits.len()];
        noise::fill_normal_in(domain, case.seed, case.step, &mut out);
        // To the bit: f64's rounding leaves the two programs no room to differ in f32.
        assert_eq!(
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            case.bits,
            "{domain:?} {}",
            case.seed
        );
    }
}

/// A trajectory: how to sample, and `x` before every evaluation and after the last.
#[derive(Deserialize)]
struct Trajectory {
    schedule: ScheduleKind,
    timesteps: usize,
    sampler: Sampler,
    grid: TimeGrid,
    steps: usize,
    eta: f64,
    clip_x0: bool,
    prediction: Prediction,
    variance: Variance,
    /// The step it begins at.
    #[serde(default)]
    first: usize,
    t: Vec<f64>,
    x: Vec<Vec<f64>>,
}

#[test]
fn trajectories() {
    let mut samplers = Vec::new();
    for case in read::<Trajectory>(include_str!("reference/trajectories.json")) {
        let what = format!(
            "{} {} from step {} on {:?}, {} predicted, {} variance, eta {}, clip {}",
            case.sampler,
            case.grid,
            case.first,
            case.schedule,
            case.prediction,
            case.variance,
            case.eta,
            case.clip_x0
        );
        follow(&case, &what);
        samplers.push((case.sampler, case.first > 0));
    }
    for late in [false, true] {
        let all = Sampler::ALL.iter().all(|&sampler| samplers.contains(&(sampler, late)));
        assert!(
            all,
            "every sampler has a reference that begins at its first step, and one that begins later"
        );
    }
}

#[test]
fn strengths() {
    #[derive(Deserialize)]
    struct Strength {
        steps: usize,
        strength: f64,
        first: usize,
    }
    let schedule = ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap();
    for case in read::<Strength>(include_str!("reference/strengths.json")) {
        let config = SolverConfig {
            sampler: Sampler::Ddim,
            grid: TimeGrid::Uniform,
            steps: case.steps,
            eta: 0.0,
            clip_x0: false,
            prediction: Prediction::Eps,
            variance: Variance::FixedSmall,
        };
        let what = format!("{} steps, strength {}", case.steps, case.strength);
        // Where nothing is left they fail later; we say so at once.
        match config.first_step(case.strength) {
            Ok(first) => {
                assert_eq!(first, case.first, "{what}");
                let evaluations = config.build_from(&schedule, first).unwrap();
                assert_eq!(evaluations.len(), case.steps - first, "{what}");
                assert_eq!(evaluations[0].step, first, "{what}");
            }
            Err(error) => {
                assert_eq!(case.first, case.steps, "{what}");
                assert!(error.to_string().contains("`strength` is"), "{error}");
                assert!(config.build_from(&schedule, case.first).is_err(), "{what}");
            }
        }
        assert!([0.0, -0.5, 1.0 + 1e-9, f64::NAN].iter().all(|&bad| config.first_step(bad).is_err()));
    }
}

/// Samples as the case says and compares at every evaluation.
fn follow(case: &Trajectory, what: &str) {
    let schedule = ScheduleConfig { kind: case.schedule, steps: case.timesteps }.build().unwrap();
    let config = SolverConfig {
        sampler: case.sampler,
        grid: case.grid,
        steps: case.steps,
        eta: case.eta,
        clip_x0: case.clip_x0,
        prediction: case.prediction,
        variance: case.variance,
    };
    let evaluations = config.build_from(&schedule, case.first).unwrap();
    assert_eq!(evaluations.len(), case.t.len(), "{what}: network calls");
    let mut state =
        State::from_x((0..ELEMENTS).map(|i| (1.3 * (1.0 + 2.0 * i as f64).sin()) as f32).collect());
    for (i, evaluation) in evaluations.iter().enumerate() {
        compare(&state.x, &case.x[i], &format!("{what}: before evaluation {i}"));
        // Theirs is interpolated between sigmas rounded to f32.
        assert_close(f64::from(evaluation.t), case.t[i], 1e-3, &format!("{what}: timestep {i}"));
        let mut prediction = network(&state.x, f64::from(evaluation.t));
        if case.variance == Variance::LearnedRange {
            prediction.extend(learned(&state.x, f64::from(evaluation.t)));
        }
        state.advance_with(evaluation, &noise(i), &prediction);
    }
    compare(&state.x, &case.x[evaluations.len()], &format!("{what}: the result"));
}

/// Where x is large (an unclipped estimate from a network that knows nothing), relative to its largest element.
///
/// Both sides compute in f32 or better; the error of a step, 6e-8, is magnified where x0 is taken from the noisiest
/// levels (1/alpha is 160 on this schedule) and by the network's slope, 1.8, at each further evaluation.
fn compare(ours: &[f32], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = theirs.iter().fold(1.0f64, |scale, v| scale.max(v.abs()));
    for (&ours, &theirs) in ours.iter().zip(theirs) {
        assert_close(f64::from(ours), theirs, 1e-5 * scale, what);
    }
}

fn assert_close(ours: f64, theirs: f64, tolerance: f64, what: &str) {
    assert!((ours - theirs).abs() <= tolerance, "{what}: {ours} is not {theirs} to {tolerance:e}");
}

// The closed forms of generate.py.

const ELEMENTS: usize = 4;

fn noise(evaluation: usize) -> Vec<f32> {
    let angle = |i: usize| 0.3 + 1.7 * evaluation as f64 + 0.9 * i as f64;
    (0..ELEMENTS).map(|i| (2f64.sqrt() * angle(i).sin()) as f32).collect()
}

fn network(x: &[f32], t: f64) -> Vec<f32> {
    let x = x.iter().map(|&x| f64::from(x));
    x.enumerate().map(|(i, x)| (0.9 * x + 0.3 * (3.0 * x + 0.002 * t + i as f64).sin()) as f32).collect()
}

fn learned(x: &[f32], t: f64) -> Vec<f32> {
    x.iter().map(|&x| (5.0 * f64::from(x) - 0.003 * t).sin() as f32).collect()
}
