//! Networks whose Jacobian is known: a matrix, by rows.

use std::f64::consts::PI;

use windowpane_diffusion::Level;

use super::*;
use crate::analysis::subject::Start;

const SHAPE: [usize; 3] = [1, 4, 5];
const SIDE: usize = 20;

fn subject() -> Subject {
    Subject {
        start: Start::At(vec![0.5; SIDE]),
        level: Level { t: 412.0, alpha: 0.8, sigma: 0.6 },
        class: Some(1),
        label: 1,
        seed: None,
        kind: "x_t",
    }
}

fn plain() -> Function {
    Function { identity: 0.0, predictions: vec![(1, 1.0)] }
}

fn random(salt: u64) -> Square {
    Square::new(SIDE, noise::normal(salt, 0, SIDE * SIDE).into_iter().map(f64::from).collect())
}

/// A product with the matrix or its transpose, as a graph gives it.
fn product(matrix: &Square, inside: Inside, vectors: &[f32]) -> Vec<f32> {
    let (n, values) = (matrix.side(), matrix.values());
    let entry =
        |i: usize, j: usize| if inside == Inside::Jvp { values[i * n + j] } else { values[j * n + i] };
    let of = |vector: &[f32]| -> Vec<f32> {
        (0..n).map(|i| (0..n).map(|j| entry(i, j) * f64::from(vector[j])).sum::<f64>() as f32).collect()
    };
    vectors.chunks_exact(n).flat_map(of).collect()
}

/// Takes a study to its end, with a matrix for each label; it is never told fewer calls than there are.
fn run(mut study: JacobianStudy, of: impl Fn(i64) -> Square) -> Result<Spectrum, StudyError> {
    let mut left = study.left();
    while let Some(ask) = study.next() {
        assert!(left > 0, "more calls than it said");
        let Ask::Look(look) = ask else { panic!("{ask:?}") };
        assert_eq!(
            (look.batch.x.as_slice(), look.batch.t.as_slice()),
            ([0.5; SIDE].as_slice(), [412.0].as_slice())
        );
        assert_eq!(look.wanted, [Wanted::all("products")]);
        study.take(vec![product(&of(look.batch.y[0]), look.inside, &look.vectors)])?;
        assert!(study.left() < left, "{} of {left}", study.left());
        left = study.left();
    }
    assert_eq!(left, 0);
    study.finish()
}

fn full(function: Function, count: usize) -> JacobianStudy {
    JacobianStudy::new(subject(), SHAPE, function, Method::Full, count).unwrap()
}

fn top(function: Function, count: usize, steps: usize, tolerance: f64) -> JacobianStudy {
    JacobianStudy::new(subject(), SHAPE, function, Method::TopK { steps, tolerance }, count).unwrap()
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < tolerance)
}

#[test]
fn the_whole_matrix_comes_column_by_column() {
    let matrix = random(1);
    let found = run(full(plain(), 3), |label| {
        assert_eq!(label, 1);
        matrix.clone()
    })
    .unwrap();
    let whole = found.whole.unwrap();
    assert!(close(whole.matrix.values(), matrix.values(), 1e-6));
    assert!(close(&found.singular.values, &matrix.singular(0).unwrap().values, 1e-5));
    assert!(close(&whole.eigen.values, &matrix.symmetric_eigen(0).unwrap().values, 1e-5));
    assert_eq!((found.singular.left.len(), found.singular.right.len(), whole.eigen.vectors.len()), (3, 3, 3));
    assert_eq!((found.harmonicity.len(), whole.harmonicity.len(), found.part), (3, 3, None));
}

#[test]
fn the_largest_values_are_those_of_the_whole_within_their_bounds() {
    let matrix = random(2);
    let all = matrix.singular(SIDE).unwrap();
    for (steps, tolerance) in [(SIDE, 1e-6), (12, 1e-6), (5, 0.5)] {
        let found = run(top(plain(), 4, steps, tolerance), |_| matrix.clone()).unwrap();
        let part = found.part.unwrap();
        assert!(part.steps <= steps && part.residuals.len() == 4 && found.whole.is_none());
        for (i, (&value, &residual)) in found.singular.values.iter().zip(&part.residuals).enumerate() {
            // Some singular value lies within the bound, and rounding of f32.
            let nearest = all.values.iter().map(|exact| (exact - value).abs()).fold(f64::INFINITY, f64::min);
            assert!(nearest <= residual + 1e-4, "{i} of {steps} steps: {nearest} {residual}");
            // J v = sigma u.
            let single: Vec<f32> = found.singular.right[i].iter().map(|&value| value as f32).collect();
            let image: Vec<f64> = product(&matrix, Inside::Jvp, &single).into_iter().map(f64::from).collect();
            let left: Vec<f64> = found.singular.left[i].iter().map(|x| value * x).collect();
            assert!(close(&image, &left, 1e-4), "{i} of {steps} steps");
        }
        let limit = tolerance * found.singular.values[0];
        assert!(part.residuals.iter().take(part.converged).all(|&residual| residual <= limit));
    }
    // With all steps everything has converged, and is as of the whole.
    let found = run(top(plain(), 4, SIDE, 1e-5), |_| matrix.clone()).unwrap();
    let part = found.part.unwrap();
    assert_eq!(part.converged, 4);
    assert!(close(&found.singular.values, &all.values[..4], 1e-4));
    // So is the space of the first directions, on either side: single vectors may turn within a cluster. It is as sharp as
    // the gap to the next value allows (Wedin's theorem).
    let projector = |vectors: &[Vec<f64>]| -> Vec<f64> {
        let entry = |i: usize| vectors[..4].iter().map(|v| v[i / SIDE] * v[i % SIDE]).sum();
        (0..SIDE * SIDE).map(entry).collect()
    };
    let gap = all.values[3] - all.values[4];
    let residual = part.residuals.iter().copied().fold(1e-4, f64::max);
    assert!(gap > 10.0 * residual, "{gap} {residual}");
    for (ours, exact) in [(&found.singular.left, &all.left), (&found.singular.right, &all.right)] {
        let (ours, exact) = (projector(ours), projector(exact));
        let apart = ours.iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        assert!(apart < 4.0 * residual / gap, "{apart}, {residual} of {gap}");
    }
}

#[test]
fn guidance_and_the_choice_of_what_is_differentiated_are_sums() {
    let (guided, free) = (random(3), random(4));
    let function = Function { identity: 0.25, predictions: vec![(3, -1.5), (1, 2.5)] };
    let sum = |i: usize| {
        let identity = if i.is_multiple_of(SIDE + 1) { 0.25 } else { 0.0 };
        identity - 1.5 * free.values()[i] + 2.5 * guided.values()[i]
    };
    let expected = Square::new(SIDE, (0..SIDE * SIDE).map(sum).collect());
    let of = |label| if label == 1 { guided.clone() } else { free.clone() };
    let whole = run(full(function.clone(), 1), of).unwrap().whole.unwrap();
    assert!(close(whole.matrix.values(), expected.values(), 1e-5));
    let found = run(top(function, 2, SIDE, 1e-5), of).unwrap();
    assert!(close(&found.singular.values, &expected.singular(0).unwrap().values[..2], 1e-3));
}

#[test]
fn what_has_no_more_ends_early_and_nothing_has_nothing() {
    // Of rank one: 3 u vᵀ.
    let unit: Vec<f64> = (0..SIDE).map(|i| if i < 4 { 0.5 } else { 0.0 }).collect();
    let values = (0..SIDE * SIDE).map(|i| 3.0 * unit[i / SIDE] * unit[i % SIDE]).collect();
    let one = Square::new(SIDE, values);
    let found = run(top(plain(), 5, SIDE, 1e-3), |_| one.clone()).unwrap();
    let part = found.part.unwrap();
    assert!(part.steps < 5 && (found.singular.values[0] - 3.0).abs() < 1e-5, "{part:?}");
    assert!(found.singular.values.iter().skip(1).all(|&value| value < 1e-5));
    let none = Square::new(SIDE, vec![0.0; SIDE * SIDE]);
    let found = run(top(plain(), 5, SIDE, 1e-3), |_| none.clone()).unwrap();
    assert!(found.singular.values.is_empty() && found.singular.right.is_empty());
    let found = run(full(plain(), 2), |_| none.clone()).unwrap();
    assert_eq!((found.whole.unwrap().matrix.norm(), found.singular.values), (0.0, vec![0.0; SIDE]));
}

#[test]
fn a_denoiser_of_a_stationary_process_is_harmonic_in_every_direction() {
    // The best linear denoiser of a stationary Gaussian process is a filter: its directions are waves, each ring of
    // frequencies with a value of its own.
    let (height, width) = (8, 8);
    let n = height * width;
    let ring = |f: usize, len: usize| f.min(len - f) as f64;
    let entry = |i: usize, j: usize| {
        let (dy, dx) = ((i / width) as f64 - (j / width) as f64, (i % width) as f64 - (j % width) as f64);
        let mut sum = 0.0;
        for fy in 0..height {
            for fx in 0..width {
                let radius = (ring(fy, height).powi(2) + ring(fx, width).powi(2)).sqrt().round();
                let phase = 2.0 * PI * (fy as f64 * dy / height as f64 + fx as f64 * dx / width as f64);
                sum += phase.cos() / (1.0 + radius * radius) / n as f64;
            }
        }
        sum
    };
    let matrix = Square::new(n, (0..n * n).map(|i| entry(i / n, i % n)).collect());
    let subject = Subject { start: Start::At(vec![0.5; n]), ..subject() };
    let study = JacobianStudy::new(subject, [1, height, width], plain(), Method::Full, 16).unwrap();
    let mut study = study;
    while let Some(Ask::Look(look)) = study.next() {
        study.take(vec![product(&matrix, look.inside, &look.vectors)]).unwrap();
    }
    let found = study.finish().unwrap();
    let whole = found.whole.unwrap();
    assert!(whole.matrix.asymmetry() < 1e-5);
    let (bands, shares): (Vec<_>, Vec<_>) = whole.harmonicity.iter().map(|one| (one.band, one.share)).unzip();
    assert!(shares.iter().all(|&share| share > 0.999), "{shares:?}");
    // One constant, then the rings of radius 1 (8 frequencies round to it) and 2.
    assert_eq!((bands[0], bands[1], bands[8], bands[9]), (0, 1, 1, 2), "{bands:?}");
    assert!((whole.eigen.values[0] - 1.0).abs() < 1e-5 && (whole.eigen.values[1] - 0.5).abs() < 1e-5);
}

#[test]
fn what_is_no_number_or_no_product_ends_it() {
    let mut study = full(plain(), 1);
    assert!(study.next().is_some());
    assert_eq!(study.take(vec![vec![f32::NAN; CHUNK * SIDE]]), Err(StudyError::NotFinite));
    let mut study = top(plain(), 1, 4, 0.1);
    assert!(study.next().is_some());
    assert!(matches!(study.take(vec![vec![0.0; 3]]), Err(StudyError::Shape(_))));
    assert!(full(plain(), 1).finish().is_err(), "before its end there is nothing");
}

/// A study that goes on from each of its pieces is the one that was never broken off.
#[test]
fn whoever_goes_on_from_the_pieces_comes_to_the_same() {
    let matrices = [random(1), random(2)];
    let function = || Function { identity: 0.25, predictions: vec![(0, -0.5), (1, 1.5)] };
    type Make<'a> = &'a dyn Fn() -> JacobianStudy;
    let makes: [Make<'_>; 2] = [&|| full(function(), 3), &|| top(function(), 2, 12, 1e-6)];
    for make in makes {
        let whole = run(make(), |label| matrices[label as usize].clone()).unwrap();
        let mut study = make();
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut begun = 0;
        // Broken off behind every piece.
        let found = 'done: loop {
            begun += 1;
            assert!(begun < 99, "it gets no further");
            while let Some(ask) = study.next() {
                let Ask::Look(look) = ask else { panic!("{ask:?}") };
                let matrix = &matrices[look.batch.y[0] as usize];
                study.take(vec![product(matrix, look.inside, &look.vectors)]).unwrap();
                if let Some(piece) = study.piece() {
                    pieces.push(piece);
                    let left = study.left();
                    study = make();
                    study.resume(&pieces).unwrap();
                    // A piece of products leaves as much as there was.
                    assert!(study.left() == left || pieces.len() == 1, "{} of {left}", study.left());
                    continue 'done;
                }
            }
            break study.finish().unwrap();
        };
        assert!(pieces.len() > 2, "{} pieces", pieces.len());
        assert_eq!(found.singular.values, whole.singular.values);
        assert_eq!(found.singular.right, whole.singular.right);
        assert_eq!(found.x, whole.x);
    }
    let mut study = full(plain(), 1);
    // As servers kept them that took rows.
    let rows = vec![0; 8 * 16 * SIDE];
    for wrong in [vec![vec![0; 3]], vec![vec![0; 4 * SIDE], vec![0; 8 * 7]], vec![vec![0; 4 * SIDE], rows]] {
        let pieces: Vec<Bytes> = wrong.into_iter().map(Bytes::from).collect();
        assert!(study.resume(&pieces).is_err());
    }
}
