//! Networks whose gap is known: one that knows the answer, one that knows nothing, one that has learnt by heart.

use windowpane_diffusion::noise::{self, Domain};
use windowpane_diffusion::{ScheduleConfig, ScheduleKind};

use super::*;

fn schedule() -> Schedule {
    ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap()
}

/// `n` grey images of 2×3 pixels, different for every `salt`.
fn set(n: usize, salt: u64) -> ImageSet {
    let pixel = |i| (noise::uniform(Domain::Toy, salt, 0, i as u64) * 256.0) as u8;
    ImageSet::new((1, 2, 3), (0..n * 6).map(pixel).collect(), vec![], vec![])
}

const SMALL: GapConfig =
    GapConfig { images: 40, timesteps: 7, seed: 3, batch: 16, resamples: 200, classes: 0 };

/// Measures a network that predicts x0.
fn measure(denoise: &Denoise<'_>, train: &ImageSet, test: &ImageSet, config: &GapConfig) -> Result<PsnrGap> {
    psnr_gap(denoise, (train, test), (&schedule(), Prediction::X0), config, &|_| ())
}

/// A network that has learnt a set by heart: it answers with the nearest of its images.
fn memory(set: &ImageSet) -> impl Fn(&Tensor, &[f32], &[i64]) -> Tensor {
    let known: Vec<f32> = set.pixels.iter().map(|&p| f32::from(p) / 127.5 - 1.0).collect();
    let known = Tensor::from_slice(&known).view([-1, 6]);
    let schedule = schedule();
    move |x, t, _| {
        let alpha = schedule.level(t[0] as usize).alpha;
        let distance = (x.view([-1, 1, 6]) - known.unsqueeze(0) * alpha).square().sum_dim_intlist(
            [2i64].as_slice(),
            false,
            Kind::Float,
        );
        known.index_select(0, &distance.argmin(1, false)).view_as(x)
    }
}

#[test]
fn a_constant_network_has_the_psnr_of_the_definition() {
    let (train, test) = (set(20, 1), set(30, 2));
    let gap = measure(&|x, _, _| x.zeros_like(), &train, &test, &SMALL).unwrap();
    // x0_hat = 0: the error is the mean square of the image itself, at every timestep.
    let by_hand = |set: &ImageSet| {
        let psnr = |i| {
            let squares = set.image(i).iter().map(|&p| (f64::from(p) / 127.5 - 1.0).powi(2));
            10.0 * (4.0 / (squares.sum::<f64>() / 6.0)).log10()
        };
        (0..set.len()).map(psnr).sum::<f64>() / set.len() as f64
    };
    for i in 0..7 {
        assert!((gap.train.curve[i] - by_hand(&train)).abs() < 1e-5);
        assert!((gap.test.curve[i] - by_hand(&test)).abs() < 1e-5);
    }
    assert_eq!(
        ([gap.train.images, gap.test.images], gap.timesteps.len(), gap.timesteps[6]),
        ([20, 30], 7, 999)
    );
    assert!((gap.gap - (by_hand(&train) - by_hand(&test)).max(0.0)).abs() < 1e-5);
}

#[test]
fn what_is_learnt_by_heart_has_a_gap_and_the_interval_holds_it() {
    let (train, test) = (set(40, 1), set(40, 2));
    let gap = measure(&memory(&train), &train, &test, &SMALL).unwrap();
    assert!(gap.gap > 10.0, "{gap}");
    assert!(gap.interval[0] < gap.gap && gap.gap < gap.interval[1], "{gap}");
    assert!(gap.interval[1] - gap.interval[0] < gap.gap, "{gap}");
    // Seen from the other side the difference is negative nearly everywhere: it is clipped, not averaged away.
    let other = measure(&memory(&test), &train, &test, &SMALL).unwrap();
    assert!(other.train.mean < other.test.mean - 10.0 && other.gap < 2.0, "{other}");
    assert!(other.curve.iter().all(|&db| db >= 0.0));
}

#[test]
fn a_network_that_predicts_the_noise_is_understood() {
    let (train, test) = (set(8, 1), set(8, 2));
    // The best guess of the noise for images of zeros.
    let schedule = schedule();
    let denoise = |x: &Tensor, t: &[f32], _: &[i64]| x / schedule.level(t[0] as usize).sigma;
    let config = GapConfig { images: 8, ..SMALL };
    let eps = psnr_gap(&denoise, (&train, &test), (&schedule, Prediction::Eps), &config, &|_| ()).unwrap();
    let x0 = measure(&|x, _, _| x.zeros_like(), &train, &test, &config).unwrap();
    for (a, b) in eps.train.curve.iter().zip(&x0.train.curve) {
        assert!((a - b).abs() < 1e-2, "{a} {b}");
    }
}

#[test]
fn neither_batch_nor_further_images_change_an_image() {
    let (train, test) = (set(40, 1), set(40, 2));
    let denoise = |x: &Tensor, _: &[f32], _: &[i64]| x * 0.9;
    let whole = measure(&denoise, &train, &test, &SMALL).unwrap();
    for batch in [1, 7, 100] {
        let other = measure(&denoise, &train, &test, &GapConfig { batch, ..SMALL }).unwrap();
        assert_eq!((other.curve, other.interval), (whole.curve.clone(), whole.interval), "{batch}");
    }
    let few = measure(&denoise, &train, &test, &GapConfig { images: 10, ..SMALL }).unwrap();
    let first = measure(&denoise, &train.first(10).unwrap(), &test.first(10).unwrap(), &SMALL).unwrap();
    assert_eq!(few.curve, first.curve);
    let seed = measure(&denoise, &train, &test, &GapConfig { seed: 4, ..SMALL }).unwrap();
    assert_ne!(seed.train.curve, whole.train.curve);
}

#[test]
fn labels_reach_a_conditional_network_and_the_variance_is_ignored() {
    let label = |set: ImageSet| {
        let labels = (0..set.len() as i64).map(|i| i % 3).collect();
        ImageSet::new((1, 2, 3), set.pixels, labels, vec![])
    };
    let (train, test) = (label(set(5, 1)), label(set(4, 2)));
    let seen = std::cell::RefCell::new(Vec::new());
    let denoise = |x: &Tensor, t: &[f32], y: &[i64]| {
        seen.borrow_mut().push((t.to_vec(), y.to_vec()));
        Tensor::cat(&[x.zeros_like(), x.full_like(f64::NAN)], 1)
    };
    let config = GapConfig { classes: 3, timesteps: 2, ..SMALL };
    measure(&denoise, &train, &test, &config).unwrap();
    assert_eq!(seen.borrow()[0], (vec![0.0; 5], vec![0, 1, 2, 0, 1]));
    assert_eq!(seen.borrow()[3], (vec![999.0; 4], vec![0, 1, 2, 0]));
    assert!(measure(&denoise, &set(5, 1), &test, &config).is_err(), "labels are missing");
    assert!(
        measure(&denoise, &train, &test, &GapConfig { classes: 2, ..config }).is_err(),
        "a label is beyond"
    );
}

#[test]
fn nonsense_is_refused() {
    let (train, test) = (set(3, 1), set(3, 2));
    let zero = |x: &Tensor, _: &[f32], _: &[i64]| x.zeros_like();
    for config in [
        GapConfig { images: 0, ..SMALL },
        GapConfig { batch: 0, ..SMALL },
        GapConfig { resamples: 0, ..SMALL },
        GapConfig { timesteps: 0, ..SMALL },
        GapConfig { timesteps: 1001, ..SMALL },
    ] {
        assert!(measure(&zero, &train, &test, &config).is_err(), "{config:?}");
    }
    let wide = ImageSet::new((1, 3, 2), vec![0; 6], vec![], vec![]);
    assert!(measure(&zero, &train, &wide, &SMALL).is_err());
    assert!(measure(&|x, _, _| x.full_like(f64::NAN), &train, &test, &SMALL).is_err());
    assert!(measure(&|x, _, _| x.transpose(2, 3), &train, &test, &SMALL).is_err());
}

#[test]
fn it_is_drawn() {
    let gap = measure(&|x, _, _| x.zeros_like(), &set(4, 1), &set(4, 2), &SMALL).unwrap();
    let svg = svg(&gap);
    assert!(
        svg.starts_with("<svg") && svg.matches("<polyline").count() == 2 && !svg.contains("NaN"),
        "{svg}"
    );
}
