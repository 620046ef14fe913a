//! The checks against networks that pass them, and networks that should not.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use super::*;
use crate::batcher::device::Device;
use crate::testing::{golden, manifest};

/// `prediction = factor · x`, and a bias that grows with the batch.
struct Linear {
    factor: f32,
    per_row: f32,
}

impl Denoiser for Linear {
    fn denoise(&mut self, batch: &StepBatch, prediction: &mut Vec<f32>) -> Result<(), EngineError> {
        let bias = self.per_row * batch.rows() as f32;
        prediction.clear();
        prediction.extend(batch.x.iter().map(|x| self.factor * x + bias));
        Ok(())
    }
}

fn card() -> Card {
    Card::new(manifest("shoes", &["Sneaker"]), String::new(), 0).unwrap()
}

fn replay_with(factor: f32, golden: &[u8]) -> Result<GoldenReport, CheckError> {
    let card = card();
    let cases = Case::all(&card, &card.manifest.graphs[0], golden)?;
    replay(&mut Linear { factor, per_row: 0.0 }, &Device::default().join(), &cases)
}

#[test]
fn the_same_network_passes() {
    let report = replay_with(0.5, &golden(|x| 0.5 * x)).unwrap();
    assert_eq!(report, GoldenReport { relative_error: 0.0, tolerance: 1e-4, cases: 2 });
    let report = replay_with(0.500_01, &golden(|x| 0.5 * x)).unwrap();
    assert!(report.relative_error > 1e-5 && report.relative_error < 3e-5);
}

#[test]
fn another_network_does_not() {
    for other in [0.51, -0.5] {
        let error = replay_with(other, &golden(|x| 0.5 * x)).unwrap_err();
        assert!(matches!(&error, CheckError::Differs { case, .. } if case == "a"), "{error}");
    }
    for other in [f32::NAN, f32::INFINITY] {
        let error = replay_with(other, &golden(|x| 0.5 * x)).unwrap_err().to_string();
        assert_eq!(error, "golden case `a`: the model's output is not finite");
    }
    let error = replay_with(0.5, &golden(|_| f32::NAN)).unwrap_err().to_string();
    assert_eq!(error, "golden case `a`: the stored prediction is not finite");
}

#[test]
fn a_broken_golden_file_is_an_error() {
    let whole = golden(|x| 0.5 * x);
    for cut in [0, 7, 100, whole.len() - 1] {
        let error = replay_with(0.5, &whole[..cut]).unwrap_err().to_string();
        assert!(error.contains("golden.safetensors"), "{error}");
    }
    let mut card = card();
    card.manifest.graphs[0].golden.push("c".to_owned());
    let error = Case::all(&card, &card.manifest.graphs[0], &whole).unwrap_err().to_string();
    assert!(error.contains("`c`"), "{error}");
}

#[test]
fn batch_invariance_is_measured_not_assumed() {
    let card = card();
    let of = |per_row: f32, max_rows: usize| {
        measure(&mut Linear { factor: 0.5, per_row }, &Device::default().join(), &card, max_rows).unwrap()
    };
    let Measured { determinism, costs, .. } = of(0.0, 16);
    assert_eq!((determinism.class, determinism.relative_difference), (DeterminismClass::Bitwise, 0.0));
    assert!(
        [1, 2, 3, 4, 8, 12, 16].iter().all(|size| determinism.batch_sizes.contains(size)),
        "{determinism:?}"
    );
    assert_eq!(determinism.pinned_rows, None);
    assert_eq!(costs.buckets().map(|(rows, _)| rows).collect::<Vec<_>>(), [1, 2, 3, 4, 8, 16]);
    // A batch of another size gives other bits, one of the same size the same.
    let Measured { determinism, .. } = of(1e-3, 6);
    assert_eq!((determinism.class, determinism.pinned_rows), (DeterminismClass::Tolerance, Some(6)));
    assert!(determinism.relative_difference > 1e-4 && determinism.relative_difference < 1e-2);
    assert_eq!(determinism.batch_sizes, [1, 2, 3, 4, 6]);
}

#[test]
fn a_model_that_loads_waits_its_turn_and_does_not_count_the_waiting() {
    let (device, stop) = (Device::default(), AtomicBool::new(false));
    let measured = thread::scope(|scope| {
        scope.spawn(|| {
            let seat = device.join();
            while !stop.load(SeqCst) {
                seat.run(|| thread::sleep(Duration::from_millis(15)));
            }
        });
        let seat = device.join();
        let measured = measure(&mut Linear { factor: 0.5, per_row: 0.0 }, &seat, &card(), 4);
        stop.store(true, SeqCst);
        measured.unwrap()
    });
    let slowest = measured.costs.buckets().map(|(_, time)| time).max().unwrap();
    assert!(slowest < Duration::from_millis(10), "{slowest:?}");
}

/// `prediction = x / 2`, with other bits in batches of one size. A call takes the same time up to `fast` rows, and beyond them
/// ten times that.
struct Odd {
    size: usize,
    fast: usize,
}

impl Denoiser for Odd {
    fn denoise(&mut self, batch: &StepBatch, prediction: &mut Vec<f32>) -> Result<(), EngineError> {
        thread::sleep(Duration::from_millis(if batch.rows() <= self.fast { 1 } else { 10 }));
        let factor = if batch.rows() == self.size { 0.5 + f32::EPSILON } else { 0.5 };
        prediction.clear();
        prediction.extend(batch.x.iter().map(|x| factor * x));
        Ok(())
    }
}

#[test]
fn every_size_that_a_tick_can_have_is_compared() {
    let of = |size, fast, max_rows| {
        let measured = measure(&mut Odd { size, fast }, &Device::default().join(), &card(), max_rows);
        let determinism = measured.unwrap().determinism;
        (determinism.class, determinism.pinned_rows)
    };
    // Of these some are timed as well, and the others found last; whichever it is, twelve rows give the same bits always.
    for size in 2..=12 {
        assert_eq!(of(size, 12, 12), (DeterminismClass::Tolerance, Some(12)), "{size}");
    }
    assert_eq!(of(13, 12, 12), (DeterminismClass::Bitwise, None));
    // Sixteen rows run in two calls, and what was measured of one says nothing of them.
    assert_eq!(of(5, 8, 16), (DeterminismClass::Tolerance, Some(8)));
}

#[test]
fn large_batches_run_in_the_pieces_that_are_fastest() {
    let ms = |costs: &[(usize, u64)]| {
        piece(&costs.iter().map(|&(rows, ms)| (rows, Duration::from_millis(ms))).collect::<Vec<_>>())
    };
    // Past the cache at 8; a card, which gets faster; and a tick too small to be split.
    assert_eq!(ms(&[(1, 20), (2, 36), (4, 68), (8, 136), (16, 350), (32, 800)]), 8);
    assert_eq!(ms(&[(1, 10), (4, 10), (8, 10), (16, 11), (32, 20)]), 32);
    assert_eq!(ms(&[(1, 10), (2, 20)]), usize::MAX);
    // One row is fastest: four are taken.
    assert_eq!(ms(&[(1, 10), (4, 60), (8, 160)]), 4);
}
