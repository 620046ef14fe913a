//! Geometric C^α images: smooth regions, and a smooth contour between them where the brightness jumps. They need no
//! download, so tests and first tries use them.
//!
//! The class is that of Kadkhodaie et al. 2024 ("Generalization in diffusion models arises from geometry-adaptive
//! harmonic representations", section 4), whose optimal bases are known: regularity α on either side of a contour
//! that is itself C^α. The synthesis is ours: random Fourier series, whose coefficients fall as `k^-(α + 1/2)` along
//! the contour and as `|k|^-(α + 1)` in the plane, the decay at which a series is just C^α (up to logarithms).
//! An image is a pure function of (seed, side, index).

use serde::{Deserialize, Serialize};
use windowpane_diffusion::error::number;
use windowpane_diffusion::noise::{Domain, fill_normal_in};

use super::collect::Collector;
use super::decode::Decoded;
use super::error::{DataError, Result};
use super::{DataSource, ImageSet, Split};

/// The table `[data.toy]`. Unknown keys are errors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Toy {
    /// Regularity of regions and contours, 0.1 to 8.
    pub alpha: f64,
    /// Height and width in pixels, 4 to 256.
    pub size: usize,
    /// Images of each side of the split.
    pub count: usize,
    /// 1 or 3.
    pub channels: usize,
    /// 0 for no labels, or 1 to 4: that many of the shapes, each a class.
    pub classes: usize,
    /// Decides every image.
    pub seed: u64,
}

/// What the contour encloses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Everything below a wavy horizontal line.
    Ground,
    /// Everything right of a wavy vertical line.
    Curtain,
    /// A blob around the centre.
    Blob,
    /// A ring around the centre.
    Ring,
}

/// Shapes in the order of their labels, with their names.
const SHAPES: [(Shape, &str); 4] =
    [(Shape::Ground, "ground"), (Shape::Curtain, "curtain"), (Shape::Blob, "blob"), (Shape::Ring, "ring")];

/// Held-out images are numbered from here.
const FIRST_HELD_OUT: u32 = 1 << 31;

/// Makes one side of the set.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    let toy = source.toy.unwrap_or_default();
    toy.validate()?;
    let first = match source.split {
        Split::Train => 0,
        Split::Test => FIRST_HELD_OUT,
    };
    let wanted = source.images.map_or(toy.count, |n| n.min(toy.count));
    let names = SHAPES[..toy.classes].iter().map(|(_, name)| (*name).to_owned()).collect();
    let mut set = Collector::new(source, wanted, names);
    let basis = cosines(toy.size);
    for i in 0..wanted {
        let (shape, label) = match toy.classes {
            0 => (SHAPES[i % SHAPES.len()].0, None),
            classes => (SHAPES[i % classes].0, Some((i % classes) as i64)),
        };
        let image = toy.image(first + i as u32, shape, &basis);
        set.push(image, label, || format!("toy image {i}"))?;
    }
    set.finish()
}

// === impl Toy ===

impl Default for Toy {
    fn default() -> Self {
        Self { alpha: 2.0, size: 32, count: 1000, channels: 1, classes: 0, seed: 0 }
    }
}

impl Toy {
    /// Errors name the key and what is accepted.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, got: String, accepted: &str| {
            Err(DataError::source(field, format!("is {got}, expected {accepted}")))
        };
        if !(0.1..=8.0).contains(&self.alpha) {
            return fail("toy.alpha", number(self.alpha), "0.1 to 8");
        }
        if !(4..=256).contains(&self.size) {
            return fail("toy.size", self.size.to_string(), "4 to 256");
        }
        if !(1..=10_000_000).contains(&self.count) {
            return fail("toy.count", self.count.to_string(), "1 to 10000000");
        }
        if !matches!(self.channels, 1 | 3) {
            return fail("toy.channels", self.channels.to_string(), "1 or 3");
        }
        if self.classes > SHAPES.len() {
            return fail("toy.classes", self.classes.to_string(), "0 to 4");
        }
        Ok(())
    }

    /// Image `index`, `[channels, size, size]`.
    fn image(&self, index: u32, shape: Shape, basis: &[f64]) -> Decoded {
        let (size, waves) = (self.size, self.size / 2);
        let mut noise = vec![0.0; 2 * waves + self.channels * (1 + 2 * size * size)];
        fill_normal_in(Domain::Toy, self.seed, index, &mut noise);
        let (contour, mut rest) = noise.split_at(2 * waves);
        let inside = self.inside(shape, contour);
        let mut pixels = Vec::with_capacity(self.channels * size * size);
        for _ in 0..self.channels {
            let (contrast, fields) = (f64::from(rest[0]), &rest[1..]);
            // Half of the brightness range lies between the regions, on average, whichever is the brighter.
            let level = (0.5 + 0.1 * contrast.abs()).min(0.8) * contrast.signum();
            let front = self.field(&fields[..size * size], basis);
            let back = self.field(&fields[size * size..2 * size * size], basis);
            pixels.extend(inside.iter().zip(front.iter().zip(&back)).map(|(share, (front, back))| {
                let value = share * (level / 2.0 + 0.2 * front) + (1.0 - share) * (0.2 * back - level / 2.0);
                ((value + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8
            }));
            rest = &rest[1 + 2 * size * size..];
        }
        Decoded { channels: self.channels, height: size, width: size, pixels }
    }

    /// The share of each pixel that lies inside the contour, 0 to 1: an edge one pixel wide.
    fn inside(&self, shape: Shape, noise: &[f32]) -> Vec<f64> {
        let waves: Vec<(f64, f64, f64)> = noise
            .chunks_exact(2)
            .zip(1..)
            .map(|(pair, k)| {
                let fall = libm::pow(f64::from(k), -(self.alpha + 0.5));
                (f64::from(k), fall * f64::from(pair[0]), fall * f64::from(pair[1]))
            })
            .collect();
        // Standard deviation of about 1, whatever alpha: the first wave's share is 1/2 + 1/2 of a normal.
        let wave = |angle: f64| -> f64 {
            waves.iter().map(|&(k, a, b)| a * libm::cos(k * angle) + b * libm::sin(k * angle)).sum()
        };
        let centre = (self.size as f64 - 1.0) / 2.0;
        let half = self.size as f64 / 2.0;
        let mut shares = Vec::with_capacity(self.size * self.size);
        for y in 0..self.size {
            for x in 0..self.size {
                let (u, v) = ((x as f64 - centre) / half, (y as f64 - centre) / half);
                let radius = libm::hypot(u, v);
                let depth = match shape {
                    Shape::Ground => v - 0.2 * wave(std::f64::consts::PI * u),
                    Shape::Curtain => u - 0.2 * wave(std::f64::consts::PI * v),
                    Shape::Blob => 0.55 + 0.08 * wave(libm::atan2(v, u)) - radius,
                    Shape::Ring => 0.18 - (0.6 + 0.08 * wave(libm::atan2(v, u)) - radius).abs(),
                };
                shares.push((depth * half + 0.5).clamp(0.0, 1.0));
            }
        }
        shares
    }

    /// A random field of about unit variance on the grid, from one normal per frequency.
    fn field(&self, noise: &[f32], basis: &[f64]) -> Vec<f64> {
        let size = self.size;
        let coefficient = |i: usize, j: usize| {
            let fall = libm::pow(1.0 + (i * i + j * j) as f64, -(self.alpha + 1.0) / 2.0);
            fall * f64::from(noise[i * size + j])
        };
        // Separable: first along columns for every row frequency, then along rows.
        let mut half = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..size {
                let c = coefficient(i, j);
                for x in 0..size {
                    half[i * size + x] += c * basis[j * size + x];
                }
            }
        }
        let mut field = vec![0.0; size * size];
        for i in 0..size {
            for y in 0..size {
                let b = basis[i * size + y];
                for x in 0..size {
                    field[y * size + x] += b * half[i * size + x];
                }
            }
        }
        field
    }
}

/// `cos(π k (x + 1/2) / size)`, `[size, size]`, frequency first.
fn cosines(size: usize) -> Vec<f64> {
    let at = |k: usize, x: usize| std::f64::consts::PI * k as f64 * (x as f64 + 0.5) / size as f64;
    (0..size * size).map(|i| libm::cos(at(i / size, i % size))).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};
    use windowpane_diffusion::harmonicity::{Harmonicity, harmonicity};
    use windowpane_diffusion::noise::permutation;

    use super::*;
    use crate::data::load as load_any;

    const SMALL: Toy = Toy { alpha: 2.0, size: 16, count: 12, channels: 3, classes: 4, seed: 5 };

    #[test]
    fn images_depend_on_seed_side_and_index_alone() {
        let set = load_any(&DataSource::toy(SMALL)).unwrap();
        assert_eq!((set.len(), set.channels, set.height, set.width), (12, 3, 16, 16));
        assert_eq!((&set.labels[..5], set.names[2].as_str()), (&[0, 1, 2, 3, 0][..], "blob"));
        assert_eq!(
            set.first(5).unwrap(),
            load_any(&DataSource { images: Some(5), ..DataSource::toy(SMALL) }).unwrap()
        );
        assert_eq!(set, load_any(&DataSource::toy(SMALL)).unwrap());
        let other = load_any(&DataSource::toy(Toy { seed: 6, ..SMALL })).unwrap();
        let held_out = load_any(&DataSource { split: Split::Test, ..DataSource::toy(SMALL) }).unwrap();
        for i in 0..12 {
            assert!(set.image(i) != other.image(i) && set.image(i) != held_out.image(i), "{i}");
        }
    }

    #[test]
    fn regions_are_smooth_and_contours_are_not() {
        let set = load_any(&DataSource::toy(Toy { channels: 1, count: 100, classes: 1, ..SMALL })).unwrap();
        // Along the top rows there is one region; down a column the brightness jumps at the contour.
        let (mut along, mut across) = (0, 0);
        for i in 0..100 {
            let image = set.image(i);
            along += (1..16).map(|x| image[x].abs_diff(image[x - 1])).max().map_or(0, u32::from);
            across += (1..16).map(|y| image[y * 16].abs_diff(image[(y - 1) * 16])).max().map_or(0, u32::from);
        }
        assert!(across > 2 * along, "along {along}, across {across}");
        assert!(across / 100 > 20, "jumps of {} levels on average", across / 100);
    }

    /// Eigenvectors of the covariance of so many pictures of 16 by 16, that of the largest value first.
    fn vectors(pictures: &[f32]) -> Vec<f32> {
        let pictures = Tensor::from_slice(pictures).view([-1, 256]); // (n, pixels)
        let covariance = pictures.tr().matmul(&pictures); // (pixels, pixels)
        let (_, vectors) = covariance.to_kind(Kind::Double).linalg_eigh("L");
        let vectors = vectors.tr().flip([0]).to_kind(Kind::Float).contiguous(); // (pixels, pixels), a row a vector
        Vec::<f32>::try_from(vectors.narrow(0, 0, 10).reshape([-1])).unwrap()
    }

    /// How harmonic they are.
    fn directions(pictures: &[f32]) -> Vec<Harmonicity> {
        vectors(pictures).chunks_exact(256).map(|v| harmonicity(v, [1, 16, 16]).unwrap()).collect()
    }

    /// What the best denoiser of the fields does not shrink is known: their cosines, in the order of their coefficients. So
    /// is how harmonic that is, and of noise, of which no direction is better than another, that none is.
    #[test]
    fn the_bases_of_fields_are_harmonic_and_those_of_noise_are_not() {
        let (size, count) = (16, 4000);
        let mut normals = vec![0.0; count * size * size];
        fill_normal_in(Domain::Toy, 5, 0, &mut normals);
        let basis = cosines(size);
        let fields: Vec<f32> = normals
            .chunks_exact(size * size)
            .flat_map(|noise| SMALL.field(noise, &basis))
            .map(|value| value as f32)
            .collect();
        // Half a wave along the picture for each step of a cosine's number.
        let cycles = |i: usize, j: usize| ((i * i + j * j) as f64).sqrt() / 2.0;
        let numbers = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0)];
        let found = directions(&fields);
        for (one, (i, j)) in found.iter().zip(numbers) {
            assert!((one.band as f64 - cycles(i, j)).abs() <= 0.51, "{i}, {j}: {one:?}");
            // A wave that does not end where it began is spread over two rings.
            let least = if i % 2 + j % 2 == 0 { 0.99 } else { 0.5 };
            assert!(one.share > least, "{i}, {j}: {one:?}");
        }
        for one in directions(&normals) {
            assert!(one.share < 0.3, "{one:?}");
        }
    }

    /// Pictures of one shape, around nothing.
    fn pictures(shape: Shape) -> Vec<f32> {
        let (toy, basis) = (Toy { channels: 1, ..SMALL }, cosines(16));
        let image = |i| toy.image(i, shape, &basis).pixels.into_iter().map(|pixel| f32::from(pixel) - 127.5);
        (0..1000).flat_map(image).collect()
    }

    /// A contour makes of the pictures no stationary process, and their best bases are waves all the same. Shuffled, each in
    /// the same way, they have the same covariance but for the order of its rows, and nothing that is near anything.
    #[test]
    fn the_bases_of_images_with_contours_are_harmonic_and_those_of_shuffled_ones_are_not() {
        let order = permutation(Domain::Toy, 5, 0, 256);
        for (shape, name) in SHAPES {
            let pictures = pictures(shape);
            let shuffled: Vec<f32> =
                pictures.chunks_exact(256).flat_map(|picture| order.iter().map(|&i| picture[i])).collect();
            let [own, other] = [&pictures, &shuffled]
                .map(|pictures| directions(pictures).iter().map(|one| one.share).sum::<f64>() / 10.0);
            // Of ten the shuffled ones keep what is the same everywhere, which no order changes.
            assert!(own > 0.4 && other < 0.3 && own > 1.6 * other, "{name}: {own}, shuffled {other}");
        }
    }

    /// A wave of the contour moves a jump to and fro: what comes of it lies along the contour alone, and oscillates there once
    /// as the wave does. The waves fall as `k^-(α + 1/2)`, so that of one length is far ahead of the next.
    #[test]
    fn the_bases_of_images_with_a_contour_follow_it() {
        let count = |pictures: &[f32]| {
            let along = |vector: &&[f32]| {
                // Six rows of sixteen, as far as most contours come.
                let near: f32 = vector[5 * 16..11 * 16].iter().map(|value| value * value).sum();
                let found = harmonicity(vector, [1, 16, 16]).unwrap();
                near > 0.95 && found.band == 1 && found.share > 0.7
            };
            vectors(pictures).chunks_exact(256).filter(along).count()
        };
        // A cosine and a sine. Of a contour that is upright none.
        assert_eq!((count(&pictures(Shape::Ground)), count(&pictures(Shape::Curtain))), (2, 0));
    }

    #[test]
    fn classes_have_shapes_that_a_mean_can_tell_apart() {
        let shares = |shape| {
            let noise = vec![0.0; 16];
            SMALL.inside(shape, &noise)
        };
        let (ground, curtain, blob, ring) =
            (shares(Shape::Ground), shares(Shape::Curtain), shares(Shape::Blob), shares(Shape::Ring));
        let corner = 0;
        let (middle, top, left) = (8 * 16 + 8, 8, 8 * 16);
        assert_eq!((ground[top], ground[left + 5 * 16]), (0.0, 1.0));
        assert_eq!((curtain[left], curtain[15]), (0.0, 1.0));
        assert_eq!((blob[middle], blob[corner]), (1.0, 0.0));
        assert_eq!((ring[middle], ring[corner]), (0.0, 0.0));
        assert!(ring.contains(&1.0));
    }

    #[test]
    fn nonsense_is_refused() {
        for (toy, field) in [
            (Toy { alpha: f64::NAN, ..SMALL }, "toy.alpha"),
            (Toy { alpha: 0.0, ..SMALL }, "toy.alpha"),
            (Toy { size: 3, ..SMALL }, "toy.size"),
            (Toy { size: usize::MAX, ..SMALL }, "toy.size"),
            (Toy { count: 0, ..SMALL }, "toy.count"),
            (Toy { channels: 2, ..SMALL }, "toy.channels"),
            (Toy { classes: 5, ..SMALL }, "toy.classes"),
        ] {
            let error = load_any(&DataSource::toy(toy)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
