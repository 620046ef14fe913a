//! The PSNR gap: how much better does a network denoise the images it has seen than images it has not?
//!
//! After Kadkhodaie et al. 2024 and An et al. 2024 (arXiv 2410.21273, equation 4). For K training and K held-out
//! images and each of 50 respaced timesteps, `x_t = alpha x0 + sigma eps` is denoised in one step, and
//!
//! ```text
//! PSNR(t) = mean over images of 10 log10(4 / mean((x0 - x0_hat)²))     [dB]
//! Gap(t)  = max(0, PSNR_train(t) - PSNR_test(t)),   gap = mean of Gap(t) over t
//! ```
//!
//! Choices where the paper is silent: the average is of dB, not of errors; `x0_hat` is clipped to [-1, 1]; 4 is the
//! squared range of that interval. Each Gap(t) is clipped at 0 *before* it is averaged, which the paper's printed
//! numbers imply; so the gap may exceed the difference of the average PSNRs, and noise alone makes it positive. The
//! difference without clipping is told beside it.
//!
//! What runs the network is not here: a [`Denoising`] says what to ask of it and what its answer is worth.

use std::fmt;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::noise::{self, Domain};
use crate::{Level, Prediction, Schedule};

/// PSNR of every image at every timestep, in dB: `[timesteps][images]`, at least one of each.
pub type Table = Vec<Vec<f64>>;

/// Images of each side in the paper, K.
pub const IMAGES: usize = 300;

/// Respaced timesteps.
pub const TIMESTEPS: usize = 50;

/// Bootstrap resamples of a confidence interval.
pub const RESAMPLES: usize = 1000;

/// Squared range of the data.
const RANGE_SQUARED: f64 = 4.0;

/// Errors below this count as this: a perfect estimate has 106 dB, not infinitely many.
const FLOOR: f64 = 1e-10;

/// Noise steps from here on draw resamples instead of noise; timesteps lie far below.
const RESAMPLE: u32 = 1 << 31;

/// A pixel as the value that is measured: 0 to 255 becomes -1 to 1.
pub fn value(pixel: u8) -> f32 {
    f32::from(pixel) / 127.5 - 1.0
}

/// One timestep: `x = alpha x0 + sigma eps`, `x0_hat = a x + b prediction`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoising {
    t: usize,
    level: Level,
    a: f64,
    b: f64,
}

/// One set of images. Curves have one entry a timestep; everything is in dB, and every interval one of 95 % by bootstrap
/// over the images (percentiles).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Psnr {
    /// Images measured.
    pub images: usize,
    /// Mean over timesteps.
    pub mean: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// The mean over images at each timestep.
    pub curve: Vec<f64>,
    /// Their intervals.
    pub intervals: Vec<[f64; 2]>,
}

/// The gap between two sets, and what it is made of. In dB; intervals as in [`Psnr`]: they know nothing of other training
/// runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PsnrGap {
    /// The mean of [`PsnrGap::curve`].
    pub gap: f64,
    /// Its interval.
    pub interval: [f64; 2],
    /// The difference of the two means, which is the gap where nothing is clipped.
    pub unclipped: f64,
    /// Its interval.
    pub unclipped_interval: [f64; 2],
    /// Timesteps of the schedule, ascending: the more noise, the later.
    pub timesteps: Vec<usize>,
    /// Gap at each, clipped at 0.
    pub curve: Vec<f64>,
    /// The images that were seen.
    pub train: Psnr,
    /// The images that were not.
    pub test: Psnr,
}

/// Bootstrap over the images of a set.
#[derive(Debug, Clone, Copy)]
struct Bootstrap {
    seed: u64,
    resamples: usize,
}

// === impl Denoising ===

impl Denoising {
    /// At each of `timesteps` respaced ones, ascending. Errors: more of them than the schedule has, or none.
    pub fn respaced(schedule: &Schedule, prediction: Prediction, timesteps: usize) -> Result<Vec<Self>> {
        let at = |t: usize| {
            let level = schedule.level(t);
            let (a, b) = prediction.to_x0(level.alpha, level.sigma);
            Self { t, level, a, b }
        };
        Ok(schedule.respaced(timesteps)?.into_iter().map(at).collect())
    }

    /// The timestep.
    pub fn t(&self) -> usize {
        self.t
    }

    /// `x_t` of image number `image` of a set. Its noise is a function of (seed + image, t): all sets see the same, and
    /// more images change nothing about those before them.
    pub fn noisy(&self, clean: &[f32], seed: u64, image: usize) -> Vec<f32> {
        let mut x = vec![0.0; clean.len()];
        noise::fill_normal_in(Domain::Eval, seed.wrapping_add(image as u64), self.t as u32, &mut x);
        for (x, &x0) in x.iter_mut().zip(clean) {
            *x = self.level.alpha as f32 * x0 + self.level.sigma as f32 * *x;
        }
        x
    }

    /// PSNR in dB of the estimate that follows from the network's prediction; further channels of that are not looked
    /// at. NaN, if one of its values is.
    pub fn psnr(&self, clean: &[f32], noisy: &[f32], predicted: &[f32]) -> f64 {
        let squares = clean.iter().zip(noisy).zip(predicted).map(|((&x0, &x), &p)| {
            let estimate = (self.a * f64::from(x) + self.b * f64::from(p)).clamp(-1.0, 1.0);
            (estimate - f64::from(x0)).powi(2)
        });
        let error = squares.sum::<f64>() / clean.len() as f64;
        // `max` would make the best of what is no number.
        let error = if error < FLOOR { FLOOR } else { error };
        10.0 * libm::log10(RANGE_SQUARED / error)
    }
}

// === impl Psnr ===

impl Psnr {
    /// Of one set. `seed` and `resamples` (at least one) are the bootstrap's.
    pub fn of(table: &Table, seed: u64, resamples: usize) -> Self {
        let draws = Bootstrap { seed, resamples }.means(table, 0);
        Self::with(table, &draws)
    }

    /// The curve at these timesteps as CSV: `timestep,psnr_db,low_db,high_db`.
    pub fn csv(&self, timesteps: &[usize]) -> String {
        let mut text = "timestep,psnr_db,low_db,high_db\n".to_owned();
        for ((t, db), [low, high]) in timesteps.iter().zip(&self.curve).zip(&self.intervals) {
            writeln!(text, "{t},{db:.6},{low:.6},{high:.6}")
                .expect("a string takes what is written: this is a bug");
        }
        text
    }

    /// With the means of resamples: `[resamples][timesteps]`.
    fn with(table: &Table, draws: &[Vec<f64>]) -> Self {
        let curve: Vec<f64> = table.iter().map(|row| mean(row.iter().copied())).collect();
        let at = |t: usize| interval(draws.iter().map(|draw| draw[t]).collect());
        Self {
            images: table[0].len(),
            mean: mean(curve.iter().copied()),
            interval: interval(draws.iter().map(|draw| mean(draw.iter().copied())).collect()),
            intervals: (0..curve.len()).map(at).collect(),
            curve,
        }
    }
}

// === impl PsnrGap ===

impl PsnrGap {
    /// Of two sets at the same timesteps. `seed` and `resamples` (at least one) are the bootstrap's.
    pub fn of([train, test]: [&Table; 2], timesteps: Vec<usize>, seed: u64, resamples: usize) -> Self {
        let bootstrap = Bootstrap { seed, resamples };
        // The held-out images draw behind the training images, of the same counter.
        let draws = [bootstrap.means(train, 0), bootstrap.means(test, train[0].len())];
        let (train, test) = (Psnr::with(train, &draws[0]), Psnr::with(test, &draws[1]));
        let each = |of: fn(&[f64], &[f64]) -> f64| {
            interval(draws[0].iter().zip(&draws[1]).map(|(train, test)| of(train, test)).collect())
        };
        let curve: Vec<f64> = clipped(&train.curve, &test.curve).collect();
        Self {
            gap: mean(curve.iter().copied()),
            interval: each(|train, test| mean(clipped(train, test))),
            unclipped: train.mean - test.mean,
            unclipped_interval: each(|train, test| mean(train.iter().copied()) - mean(test.iter().copied())),
            timesteps,
            curve,
            train,
            test,
        }
    }

    /// The curves as CSV, the gap clipped at 0 and as it is:
    /// `timestep,train_db,train_low_db,train_high_db,test_db,test_low_db,test_high_db,gap_db,unclipped_gap_db`.
    pub fn csv(&self) -> String {
        let mut text =
            "timestep,train_db,train_low_db,train_high_db,test_db,test_low_db,test_high_db".to_owned();
        text.push_str(",gap_db,unclipped_gap_db\n");
        for (i, t) in self.timesteps.iter().enumerate() {
            write!(text, "{t}").expect("a string takes what is written: this is a bug");
            for side in [&self.train, &self.test] {
                let [low, high] = side.intervals[i];
                write!(text, ",{:.6},{low:.6},{high:.6}", side.curve[i])
                    .expect("a string takes what is written: this is a bug");
            }
            let unclipped = self.train.curve[i] - self.test.curve[i];
            writeln!(text, ",{:.6},{unclipped:.6}", self.curve[i])
                .expect("a string takes what is written: this is a bug");
        }
        text
    }
}

impl fmt::Display for PsnrGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gap, interval: [low, high], train, test, .. } = self;
        write!(f, "PSNR gap {gap:.2} dB (95 % interval {low:.2} to {high:.2}): ")?;
        write!(f, "{:.2} dB on {} training images, ", train.mean, train.images)?;
        write!(f, "{:.2} dB on {} held-out images", test.mean, test.images)
    }
}

// === impl Bootstrap ===

impl Bootstrap {
    /// Means over images of resamples: `[resamples][timesteps]`. The set's draws begin at `skip` of each resample's.
    fn means(self, table: &Table, skip: usize) -> Vec<Vec<f64>> {
        let n = table[0].len();
        let one = |resample: u32| {
            let pick = |i: usize| {
                let uniform = noise::uniform(Domain::Eval, self.seed, RESAMPLE + resample, (skip + i) as u64);
                ((f64::from(uniform) * n as f64) as usize).min(n - 1)
            };
            let picked: Vec<usize> = (0..n).map(pick).collect();
            table.iter().map(|row| mean(picked.iter().map(|&i| row[i]))).collect()
        };
        (0..self.resamples as u32).map(one).collect()
    }
}

/// The middle 95 %.
fn interval(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share: f64| values[libm::round(share * (values.len() - 1) as f64) as usize])
}

fn clipped<'a>(train: &'a [f64], test: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    train.iter().zip(test).map(|(train, test)| (train - test).max(0.0))
}

/// Mean of at least one value.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ScheduleConfig, ScheduleKind};

    fn schedule() -> Schedule {
        ScheduleConfig { kind: ScheduleKind::Linear, steps: 1000 }.build().unwrap()
    }

    /// Two timesteps of `n` images around a mean.
    fn table(n: usize, centre: f64, salt: u64) -> Table {
        let row = |t: u32| noise::normal(salt, t, n).into_iter().map(|x| centre + f64::from(x)).collect();
        vec![row(0), row(1)]
    }

    #[test]
    fn an_estimate_that_is_off_by_a_tenth_has_26_db() {
        // 10 log10(4 / 0.01).
        let clean = [0.5, -0.5, 0.25];
        let off = clean.map(|x| x + 0.1);
        let all = Denoising::respaced(&schedule(), Prediction::X0, 50).unwrap();
        assert_eq!((all.len(), all[0].t(), all[49].t()), (50, 0, 999));
        let noisy = all[20].noisy(&clean, 3, 0);
        assert!((all[20].psnr(&clean, &noisy, &off) - 26.0206).abs() < 1e-4);
        assert!((all[20].psnr(&clean, &noisy, &clean) - 106.0206).abs() < 1e-4, "perfect, and finite");
        assert!(all[20].psnr(&clean, &noisy, &[0.5, f32::NAN, 0.25]).is_nan());
        // Beyond the range of the data is as good as at its end.
        assert_eq!(all[20].psnr(&[1.0], &[0.0], &[7.0]), all[20].psnr(&[1.0], &[0.0], &[1.0]));
    }

    #[test]
    fn the_noise_itself_gives_the_image_back() {
        let clean = [0.5, -0.25, 0.125, 0.75];
        for one in Denoising::respaced(&schedule(), Prediction::Eps, 5).unwrap() {
            let noisy = one.noisy(&clean, 3, 7);
            let of = |x: f32, x0: f32| (x - one.level.alpha as f32 * x0) / one.level.sigma as f32;
            let eps: Vec<f32> = noisy.iter().zip(&clean).map(|(&x, &x0)| of(x, x0)).collect();
            assert!(one.psnr(&clean, &noisy, &eps) > 60.0, "t {}", one.t());
            assert_eq!(noisy, one.noisy(&clean, 10, 0), "image 7 of seed 3 is image 0 of seed 10");
        }
    }

    #[test]
    fn an_interval_holds_the_mean_and_narrows_with_more_images() {
        let few = Psnr::of(&table(20, 30.0, 1), 5, 400);
        let many = Psnr::of(&table(2000, 30.0, 1), 5, 400);
        for psnr in [&few, &many] {
            let [low, high] = psnr.interval;
            assert!(low < psnr.mean && psnr.mean < high, "{psnr:?}");
            for (mean, [low, high]) in psnr.curve.iter().zip(&psnr.intervals) {
                assert!(low < mean && mean < high);
            }
        }
        // The mean of n standard normals lies within 1.96 / sqrt(n) in 95 % of all cases.
        let width = many.intervals[0][1] - many.intervals[0][0];
        assert!((width / (2.0 * 1.96 / 2000f64.sqrt()) - 1.0).abs() < 0.2, "{width}");
        assert!(few.interval[1] - few.interval[0] > 5.0 * (many.interval[1] - many.interval[0]));
    }

    #[test]
    fn the_gap_is_clipped_at_each_timestep_and_told_without_as_well() {
        let (mut train, mut test) = (table(50, 30.0, 1), table(50, 28.0, 2));
        let gap = PsnrGap::of([&train, &test], vec![0, 999], 1, 200);
        assert!((gap.gap - gap.unclipped).abs() < 1e-12 && (gap.gap - 2.0).abs() < 0.5, "{gap}");
        assert!(gap.interval[0] < gap.gap && gap.gap < gap.interval[1]);
        assert_eq!((gap.train.images, gap.test.images), (50, 50));
        // Better on what it has not seen, at one of the two.
        std::mem::swap(&mut train[1], &mut test[1]);
        let gap = PsnrGap::of([&train, &test], vec![0, 999], 1, 200);
        assert!(gap.curve[1] == 0.0 && (gap.gap - gap.curve[0] / 2.0).abs() < 1e-12, "{gap}");
        assert!((gap.unclipped - (gap.train.mean - gap.test.mean)).abs() < 1e-12, "{gap}");
        assert!(gap.unclipped.abs() < 0.5 && gap.gap > 0.5, "{gap}");
        let csv = gap.csv();
        assert!(csv.lines().count() == 3 && csv.lines().all(|line| line.matches(',').count() == 8), "{csv}");
        let last: Vec<f64> = csv.lines().last().unwrap().split(',').map(|n| n.parse().unwrap()).collect();
        let difference = gap.train.curve[1] - gap.test.curve[1];
        assert!(last[7] == 0.0 && difference < -1.0 && (last[8] - difference).abs() < 1e-6, "{csv}");
        assert_eq!(gap.train.csv(&[0, 999]).lines().nth(2).unwrap().split(',').next(), Some("999"));
        let json = serde_json::to_string(&gap).unwrap();
        assert_eq!(serde_json::from_str::<PsnrGap>(&json).unwrap().timesteps, [0, 999]);
    }
}
