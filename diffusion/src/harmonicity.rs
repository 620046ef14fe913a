//! How harmonic is a picture? The eigenvectors of a denoiser that generalises oscillate: at each rank they are waves of
//! about one frequency, along contours and within uniform regions (Kadkhodaie et al., arXiv 2310.02557, call them
//! geometry-adaptive harmonic bases; An et al., arXiv 2410.21273, Figures 1 and 3, show those of UNets and transformers).
//! Here that is a number: the share of a picture's energy that lies in the ring of frequencies where most of it lies.

use crate::error::{Error, Result};

/// A picture's leading ring of frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Harmonicity {
    /// The ring: cycles along the picture's longer side, rounded; 0 is what does not oscillate.
    pub band: usize,
    /// Share of the energy in it, 0 to 1. A single wave has 1; noise about the ring's share of all frequencies.
    pub share: f64,
}

/// The harmonicity of a picture `[channels, height, width]`; the energy of its channels is added up. Errors: values that
/// do not fill the shape, or are not finite, or are all zero.
pub fn harmonicity(values: &[f32], [channels, height, width]: [usize; 3]) -> Result<Harmonicity> {
    let plane = height * width;
    if plane == 0 || channels == 0 || values.len() != channels * plane {
        let expected = format!("{channels} × {height} × {width} values");
        return Err(Error::bad_value("picture", format!("{} values", values.len()), expected));
    }
    let mut bands = vec![0.0; 2 * height.max(width)];
    for channel in values.chunks_exact(plane) {
        let real: Vec<Wave> = channel.iter().map(|&v| (f64::from(v), 0.0)).collect();
        let rows = transform(&real, width);
        let columns = transform(&transposed(&rows, width), height);
        // Column by column: [width, height].
        for (at, (re, im)) in columns.into_iter().enumerate() {
            let band = radius(at % height, at / height, height, width);
            bands[band] += re * re + im * im;
        }
    }
    let total: f64 = bands.iter().sum();
    if !(total.is_finite() && total > 0.0) {
        return Err(Error::bad_value(
            "picture",
            "without energy, or not finite",
            "finite values, not all zero",
        ));
    }
    let (band, energy) = bands
        .into_iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .expect("a picture has a frequency: this is a bug");
    Ok(Harmonicity { band, share: energy / total })
}

/// Real and imaginary part.
type Wave = (f64, f64);

/// The discrete Fourier transform of every row of length `len`.
fn transform(values: &[Wave], len: usize) -> Vec<Wave> {
    let turn: Vec<Wave> = (0..len)
        .map(|i| {
            let (sin, cos) = libm::sincos(-2.0 * std::f64::consts::PI * i as f64 / len as f64);
            (cos, sin)
        })
        .collect();
    let mut all = Vec::with_capacity(values.len());
    for row in values.chunks_exact(len) {
        for frequency in 0..len {
            let mut sum = (0.0, 0.0);
            for (i, &(re, im)) in row.iter().enumerate() {
                let (cos, sin) = turn[i * frequency % len];
                sum.0 += re * cos - im * sin;
                sum.1 += re * sin + im * cos;
            }
            all.push(sum);
        }
    }
    all
}

/// Rows of length `width` as columns.
fn transposed(values: &[Wave], width: usize) -> Vec<Wave> {
    let height = values.len() / width;
    (0..values.len()).map(|i| values[i % height * width + i / height]).collect()
}

/// The ring of a frequency, in cycles along the longer side. Frequencies above half a cycle a pixel are negative ones.
fn radius(fy: usize, fx: usize, height: usize, width: usize) -> usize {
    let longer = height.max(width) as f64;
    let cycles = |f: usize, len: usize| f.min(len - f) as f64 / len as f64 * longer;
    libm::round(libm::sqrt(cycles(fy, height).powi(2) + cycles(fx, width).powi(2))) as usize
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;
    use crate::noise;

    fn wave(height: usize, width: usize, fy: f64, fx: f64) -> Vec<f32> {
        let at =
            |y: usize, x: usize| (fy * y as f64 / height as f64 + fx * x as f64 / width as f64) * 2.0 * PI;
        (0..height).flat_map(|y| (0..width).map(move |x| at(y, x).cos() as f32)).collect()
    }

    #[test]
    fn a_wave_is_all_in_its_own_ring() {
        for (fy, fx, band) in [(0.0, 0.0, 0), (3.0, 4.0, 5), (0.0, 7.0, 7), (6.0, 0.0, 6)] {
            let found = harmonicity(&wave(16, 16, fy, fx), [1, 16, 16]).unwrap();
            assert!(found.band == band && (found.share - 1.0).abs() < 1e-9, "{fy} {fx}: {found:?}");
        }
        // On a picture twice as wide as high a cycle down counts twice.
        let found = harmonicity(&wave(8, 16, 2.0, 3.0), [1, 8, 16]).unwrap();
        assert_eq!(found.band, 5);
    }

    #[test]
    fn two_waves_share_and_channels_add_up() {
        let (large, small) = (wave(16, 16, 0.0, 5.0), wave(16, 16, 2.0, 0.0));
        let both: Vec<f32> = large.iter().zip(&small).map(|(a, b)| 2.0 * a + b).collect();
        let found = harmonicity(&both, [1, 16, 16]).unwrap();
        assert!(found.band == 5 && (found.share - 0.8).abs() < 1e-6, "{found:?}");
        let channels: Vec<f32> = large.iter().chain(&small).chain(&small).copied().collect();
        let found = harmonicity(&channels, [3, 16, 16]).unwrap();
        assert!(found.band == 2 && (found.share - 2.0 / 3.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn noise_is_everywhere() {
        let found = harmonicity(&noise::normal(4, 0, 1024), [1, 32, 32]).unwrap();
        assert!(found.share < 0.15, "{found:?}");
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for (values, shape) in [
            (vec![1.0; 5], [1, 2, 3]),
            (vec![0.0; 6], [1, 2, 3]),
            (vec![f32::NAN; 6], [1, 2, 3]),
            (vec![], [1, 0, 3]),
        ] {
            assert!(harmonicity(&values, shape).unwrap_err().to_string().starts_with("`picture` is "));
        }
    }
}
