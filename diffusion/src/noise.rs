//! Counter-based Gaussian noise: element `e` of step `s` of the image with seed `k` is a pure function of
//! `(k, s, e)`. No stream is shared, so an image's noise does not depend on its neighbours in a batch.
//!
//! Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by the seed, its
//! counter made of step and element, then Box-Muller. Four uniforms make four normals. Transcendental functions
//! come from `libm`, so the bits do not depend on the machine.

/// Step number of the initial noise `x_T`; a sampler's own steps count from 0.
pub const INITIAL: u32 = u32::MAX;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Ten rounds of Philox4x32: 128 random bits from a 128-bit counter and a 64-bit key.
pub fn philox(counter: [u32; 4], key: u64) -> [u32; 4] {
    let mut c = counter;
    let mut k = [key as u32, (key >> 32) as u32];
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Fills `out` with the standard normal noise of `(seed, step)`, elements 0, 1, 2, …
pub fn fill_normal(seed: u64, step: u32, out: &mut [f32]) {
    fill_normal_in(Domain::Sample, seed, step, out);
}

/// The standard normal noise of `(seed, step)` as a vector of `len` elements.
pub fn normal(seed: u64, step: u32, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    fill_normal(seed, step, &mut out);
    out
}

/// What a random number is for. Domains never share a counter, so that no two uses see the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Noise of a sampling trajectory.
    Sample = 0,
    /// Noise added to training images.
    TrainNoise = 1,
    /// Timesteps drawn in training.
    TrainTime = 2,
    /// Order of the training images.
    Shuffle = 3,
    /// Augmentation: flips.
    Augment = 4,
    /// Labels dropped for classifier-free guidance.
    LabelDrop = 5,
    /// Initial weights.
    Init = 6,
    /// Noise of evaluations.
    Eval = 7,
    /// Procedural data.
    Toy = 8,
}

/// [`fill_normal`] in another domain than sampling.
pub fn fill_normal_in(domain: Domain, seed: u64, step: u32, out: &mut [f32]) {
    fill_normal_from(domain, (seed, step), 0, out);
}

/// [`fill_normal_in`] for the elements `first`, `first + 1`, … of `(seed, step)`: a part of the same numbers.
pub fn fill_normal_from(domain: Domain, (seed, step): (u64, u32), first: u64, out: &mut [f32]) {
    let (mut block, mut lane, mut rest) = (first / 4, (first % 4) as usize, out);
    while !rest.is_empty() {
        let bits = philox([block as u32, (block >> 32) as u32, step, domain as u32], seed);
        let (a, b) = box_muller(bits[0], bits[1]);
        let (c, d) = box_muller(bits[2], bits[3]);
        let (now, later) = rest.split_at_mut((4 - lane).min(rest.len()));
        now.copy_from_slice(&[a, b, c, d][lane..lane + now.len()]);
        (block, lane, rest) = (block + 1, 0, later);
    }
}

/// Uniform numbers in [0, 1), 24 bits each: element `index` of `(domain, seed, step)`.
pub fn uniform(domain: Domain, seed: u64, step: u32, index: u64) -> f32 {
    let bits = philox([(index >> 2) as u32, (index >> 34) as u32, step, domain as u32], seed);
    (bits[(index & 3) as usize] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A seeded permutation of `0..len`: Fisher-Yates over counter-based numbers.
pub fn permutation(domain: Domain, seed: u64, step: u32, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    for i in (1..len).rev() {
        let bits = philox([i as u32, (i as u64 >> 32) as u32, step, domain as u32], seed);
        let wide = u64::from(bits[0]) << 32 | u64::from(bits[1]);
        // Multiply-shift maps 64 bits onto 0..=i; its bias is below 2^-32 for any set of images.
        order.swap(i, ((u128::from(wide) * (i as u128 + 1)) >> 64) as usize);
    }
    order
}

/// Two independent standard normals from two 32-bit words (Box & Muller 1958). The radius is never infinite:
/// the first uniform lies in (0, 1].
fn box_muller(a: u32, b: u32) -> (f32, f32) {
    let u = (f64::from(a) + 1.0) * (1.0 / 4_294_967_296.0);
    let v = f64::from(b) * (1.0 / 4_294_967_296.0);
    let radius = libm::sqrt(-2.0 * libm::log(u));
    let (sin, cos) = libm::sincos(2.0 * std::f64::consts::PI * v);
    ((radius * cos) as f32, (radius * sin) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        // Known-answer tests of Random123 (kat_vectors, philox4x32 10).
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_prefix_is_the_same_whatever_the_length() {
        let long = normal(7, 3, 101);
        for len in [1, 2, 3, 4, 5, 50] {
            assert_eq!(normal(7, 3, len), long[..len]);
        }
    }

    #[test]
    fn a_part_is_the_same_wherever_it_begins() {
        let long = normal(7, 3, 101);
        for (first, len) in [(0, 101), (1, 2), (1, 3), (3, 1), (4, 8), (5, 7), (6, 95), (100, 1), (101, 0)] {
            let mut part = vec![0.0; len];
            fill_normal_from(Domain::Sample, (7, 3), first as u64, &mut part);
            assert_eq!(part, long[first..first + len], "from {first}");
        }
    }

    #[test]
    fn it_is_standard_normal() {
        let x: Vec<f64> = normal(11, 0, 100_000).into_iter().map(f64::from).collect();
        let n = x.len() as f64;
        let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / n;
        // Five standard errors of each sample moment.
        assert!(moment(1).abs() < 5.0 / n.sqrt(), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt(), "kurtosis {}", moment(4));
    }

    #[test]
    fn seeds_steps_and_domains_differ() {
        let a = normal(1, 0, 64);
        assert_ne!(a, normal(2, 0, 64));
        assert_ne!(a, normal(1, 1, 64));
        let mut other = vec![0.0; 64];
        fill_normal_in(Domain::Eval, 1, 0, &mut other);
        assert_ne!(a, other);
    }

    #[test]
    fn a_permutation_holds_everything_once() {
        let order = permutation(Domain::Shuffle, 5, 2, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_ne!(order, sorted);
    }
}
