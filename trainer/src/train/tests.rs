//! What one step learns from: its batches, and the gradient of their mean loss.

use super::feed::Maker;
use super::*;
use crate::attention::trainer_plan;
use crate::config::Recipe;
use crate::data;
use crate::export::dit::tests::parameters;

/// The tests' run of `batch` images `accumulate` times a step.
fn small((batch, accumulate): (usize, usize), flip: bool) -> (TrainConfig, ImageSet) {
    let mut recipe = Recipe::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/small.toml")).unwrap();
    let table = &mut recipe.train;
    (table.batch, table.accumulate, table.flip) = (batch, accumulate, flip);
    let images = data::load(&recipe.data).unwrap();
    (TrainConfig::new(recipe, &images).unwrap(), images)
}

/// What `ask` says of a run that has just begun.
fn begun<T>((config, images): &(TrainConfig, ImageSet), ask: impl FnOnce(&mut Run<'_>) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let options = RunOptions {
        dir: dir.path().to_owned(),
        device: Device::Cpu,
        precision: Precision::F32,
        plan: trainer_plan,
        resume: false,
        from: None,
        time_limit: None,
        keep: 1,
    };
    ask(&mut Run::begin(config, images, &options).unwrap())
}

#[test]
fn batches_of_one_step_add_up_to_one_of_their_size() {
    let learnt = |batches, step| {
        begun(&small(batches, true), |run| {
            // As it begins, the last layer is zero, and nothing else has a gradient.
            run.flat = parameters(&run.config.model).set_requires_grad(true);
            let mut maker = Maker::new(run.config, run.images, Device::Cpu);
            let accumulate = run.config.recipe.train.accumulate;
            let loss = run.backward(&mut (0..accumulate).map(|micro| maker.batch(step, micro)));
            let loss = loss.double_value(&[]);
            (loss, run.flat.grad().copy())
        })
    };
    let close = |a: &(f64, Tensor), b: &(f64, Tensor)| {
        let error = (&a.1 - &b.1).abs().max() / a.1.abs().max();
        (a.0 - b.0).abs() < 1e-5 * a.0 && error.double_value(&[]) < 1e-4
    };
    for step in [0, 7] {
        let whole = learnt((8, 1), step);
        assert!(whole.0 > 0.1, "a loss of {}", whole.0);
        for parts in [(4, 2), (2, 4)] {
            assert!(close(&whole, &learnt(parts, step)), "{parts:?} is another step {step} than 8 × 1");
        }
        assert!(!close(&whole, &learnt((4, 1), step)), "half of the images are the same step");
        assert!(!close(&whole, &learnt((8, 1), step + 1)), "the next step is the same");
    }
}

#[test]
fn half_of_the_images_are_seen_mirrored() {
    let seen = |flip| {
        let (config, images) = small((32, 2), flip);
        let mut maker = Maker::new(&config, &images, Device::Cpu);
        let steps: Vec<_> = (0..8).map(|i| maker.batch(i / 2, i as usize % 2).x0_nchw).collect();
        Tensor::cat(&steps, 0)
    };
    let (plain, flipped) = (seen(false), seen(true));
    let mirrored = plain.flip([3]);
    let (mut turned, count) = (0, plain.size()[0]);
    for i in 0..count {
        let image = flipped.get(i);
        assert!(!plain.get(i).equal(&mirrored.get(i)), "image {i} is its own mirror image");
        turned += i32::from(image.equal(&mirrored.get(i)));
        assert!(image.equal(&plain.get(i)) || image.equal(&mirrored.get(i)), "image {i} is neither");
    }
    assert!((96..160).contains(&turned), "{turned} of {count}");
}

#[test]
fn batches_come_in_order_from_the_step_where_a_run_goes_on() {
    let (mut config, images) = small((4, 2), true);
    config.recipe.train.steps = 9;
    let mut maker = Maker::new(&config, &images, Device::Cpu);
    let expected: Vec<_> = (3..9).flat_map(|step| [(step, 0), (step, 1)]).collect();
    std::thread::scope(|scope| {
        let batches = Maker::new(&config, &images, Device::Cpu).start(scope, 3).unwrap();
        let mut count = 0;
        for (batch, &(step, micro)) in batches.iter().zip(&expected) {
            let other = maker.batch(step, micro);
            for (a, b) in [
                (&batch.x0_nchw, &other.x0_nchw),
                (&batch.eps_nchw, &other.eps_nchw),
                (&batch.t_n, &other.t_n),
                (&batch.y_n, &other.y_n),
            ] {
                assert!(a.equal(b), "step {step}, part {micro}");
            }
            count += 1;
        }
        assert_eq!(count, expected.len());
        assert!(batches.recv().is_err(), "there are no batches after the last step");
        // Whoever takes no more of them lets their thread end, and the scope with it.
        drop(Maker::new(&config, &images, Device::Cpu).start(scope, 0).unwrap());
    });
}
