//! Against the arithmetic done by hand, image by image.

use windowpane_diffusion::{Prediction, ScheduleConfig, ScheduleKind};

use super::*;

const SHAPE: [usize; 3] = [1, 2, 3];

fn levels(timesteps: usize) -> Vec<Denoising> {
    let schedule = ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap();
    Denoising::respaced(&schedule, Prediction::X0, timesteps).unwrap()
}

fn side(images: usize, salt: f32) -> Side {
    let values = (0..6 * images).map(|i| ((i as f32 + salt) * 0.37).sin());
    Side { images: values.collect(), labels: (0..images as i64).collect() }
}

/// A network that predicts half of what it sees and a little of what it is told; a variance comes behind.
fn network(x: &[f32], t: f32, y: i64) -> Vec<f32> {
    let mean = x.iter().map(|value| value * 0.5 + t * 1e-4 + y as f32 * 1e-3);
    mean.chain(std::iter::repeat_n(9.0, x.len())).collect()
}

/// Answers the study's calls until `calls` of them were; it is never told fewer than there are.
fn run(study: &mut PsnrGapStudy, mut calls: usize) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    while calls > 0 {
        let left = study.left();
        let Some(ask) = study.next() else { break };
        let Ask::Denoise(batch) = ask else { panic!("{ask:?}") };
        assert!(batch.t.len() <= 4);
        let rows = batch.x.chunks_exact(6).zip(&batch.t).zip(&batch.y);
        study.take(vec![rows.flat_map(|((x, &t), &y)| network(x, t, y)).collect()]).unwrap();
        assert_eq!(study.left(), left - 1);
        pieces.extend(std::iter::from_fn(|| study.piece()));
        calls -= 1;
    }
    pieces
}

fn by_hand(side: &Side, level: &Denoising) -> Vec<f64> {
    let images = side.images.chunks_exact(6).zip(&side.labels).enumerate();
    let one = |(number, (clean, &label)): (usize, (&[f32], &i64))| {
        let noisy = level.noisy(clean, 5, number);
        level.psnr(clean, &noisy, &network(&noisy, level.t() as f32, label))
    };
    images.map(one).collect()
}

#[test]
fn two_sets_are_told_apart_whatever_call_they_share() {
    let (train, test) = (side(5, 0.0), side(2, 3.0));
    let mut study = PsnrGapStudy::new(vec![train.clone(), test.clone()], SHAPE, levels(3), 5, 4);
    assert_eq!(study.left(), 3 * 2);
    let pieces = run(&mut study, usize::MAX);
    assert_eq!((study.left(), pieces.len()), (0, 3));
    let tables = [&train, &test].map(|side| levels(3).iter().map(|level| by_hand(side, level)).collect());
    let timesteps = vec![0, 500, 999];
    assert_eq!(levels(3).iter().map(Denoising::t).collect::<Vec<_>>(), timesteps);
    let expected = PsnrGap::of([&tables[0], &tables[1]], timesteps.clone(), 5, RESAMPLES);
    assert_eq!(study.finish(), Measured::Two(expected));

    let mut alone = PsnrGapStudy::new(vec![train], SHAPE, levels(3), 5, 4);
    run(&mut alone, usize::MAX);
    let psnr = Psnr::of(&tables[0], 5, RESAMPLES);
    assert_eq!(alone.finish(), Measured::One { timesteps, psnr });
}

#[test]
fn whoever_begins_anew_with_the_pieces_ends_the_same() {
    let sides = || vec![side(5, 0.0), side(2, 3.0)];
    let whole = {
        let mut study = PsnrGapStudy::new(sides(), SHAPE, levels(4), 5, 4);
        run(&mut study, usize::MAX);
        study.finish()
    };
    for calls in 0..8 {
        let mut first = PsnrGapStudy::new(sides(), SHAPE, levels(4), 5, 4);
        let mut pieces = run(&mut first, calls);
        assert_eq!(pieces.len(), calls / 2);
        let mut second = PsnrGapStudy::new(sides(), SHAPE, levels(4), 5, 4);
        second.resume(&pieces).unwrap();
        assert_eq!(second.left(), 2 * (4 - calls / 2));
        pieces.extend(run(&mut second, usize::MAX));
        assert_eq!((pieces.len(), second.finish()), (4, whole.clone()));
    }
    let mut other = PsnrGapStudy::new(vec![side(5, 0.0)], SHAPE, levels(4), 5, 4);
    assert!(other.resume(&[Bytes::from_static(&[0; 56])]).is_err(), "seven images, and not five");
}

#[test]
fn what_is_no_prediction_is_told() {
    let mut study = PsnrGapStudy::new(vec![side(2, 0.0)], SHAPE, levels(2), 5, 4);
    study.next().unwrap();
    assert!(matches!(study.take(vec![vec![0.0; 11]]), Err(StudyError::Shape(_))));
    let mut values = vec![0.0; 12];
    values[3] = f32::INFINITY;
    assert_eq!(study.take(vec![values]), Err(StudyError::NotFinite));
}
