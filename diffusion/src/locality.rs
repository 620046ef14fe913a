//! How local is attention? What tokens attend to, as numbers: how far away it is, how much of it lies within a square
//! around the token, how spread it is (An et al., arXiv 2410.21273, section 3.2 and Figure 4, show it as pictures).

use crate::patch::Grid;

/// A window holds attention where at least so much of its mass lies within.
pub const EFFECTIVE_MASS: f64 = 0.95;

/// Adds up the attention of tokens of one grid, as many as are given.
#[derive(Debug, Clone)]
pub struct Locality {
    grid: Grid,
    queries: usize,
    distance: f64,
    entropy: f64,
    /// Mass at each Chebyshev distance, from 0.
    mass: Vec<f64>,
}

/// The numbers, each a mean over the tokens that were given.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityNumbers {
    /// Mean Euclidean distance of what is attended to, in tokens.
    pub distance: f64,
    /// Entropy of a token's attention, in nats; 0 where it is all at one place, ln of the number of keys where it is the
    /// same everywhere.
    pub entropy: f64,
    /// Share of the mass within the square of side 1, 3, 5, … around a token, up to the first that holds every grid's
    /// token from anywhere.
    pub within: Vec<f64>,
    /// The least odd side of a square that holds [`EFFECTIVE_MASS`].
    pub effective_window: usize,
}

// === impl Locality ===

impl Locality {
    /// Nothing yet.
    pub fn new(grid: Grid) -> Self {
        let reach = grid.height.max(grid.width);
        Self { grid, queries: 0, distance: 0.0, entropy: 0.0, mass: vec![0.0; reach] }
    }

    /// Adds what token `query` makes of the tokens `keys`: their probabilities, which sum to one. What is beyond a window
    /// need not be given. Panics on a token that the grid does not have.
    pub fn add(&mut self, query: usize, keys: impl IntoIterator<Item = (usize, f32)>) {
        let (y, x) = self.grid.position(query);
        self.queries += 1;
        for (key, probability) in keys {
            let p = f64::from(probability);
            if p <= 0.0 {
                continue;
            }
            let (ky, kx) = self.grid.position(key);
            let (dy, dx) = (y.abs_diff(ky), x.abs_diff(kx));
            self.mass[dy.max(dx)] += p;
            self.distance += p * libm::sqrt((dy * dy + dx * dx) as f64);
            self.entropy -= p * libm::log(p);
        }
    }

    /// The numbers so far; of no tokens all are zero, and the window is 1.
    pub fn numbers(&self) -> LocalityNumbers {
        let count = self.queries.max(1) as f64;
        let mut sum = 0.0;
        let within: Vec<f64> = self
            .mass
            .iter()
            .map(|mass| {
                sum += mass / count;
                sum
            })
            .collect();
        // Of rows that sum to a little less than one.
        let enough = EFFECTIVE_MASS * sum;
        let reach = within.iter().position(|&mass| mass >= enough).unwrap_or(0);
        LocalityNumbers {
            distance: self.distance / count,
            entropy: self.entropy / count,
            within,
            effective_window: 2 * reach + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn whoever_attends_to_itself_is_as_local_as_can_be() {
        let grid = Grid::new(5, 3);
        let mut locality = Locality::new(grid);
        (0..grid.tokens()).for_each(|token| locality.add(token, [(token, 1.0)]));
        let numbers = locality.numbers();
        assert_eq!(numbers.within, vec![1.0; 5]);
        assert_eq!((numbers.distance, numbers.entropy, numbers.effective_window), (0.0, 0.0, 1));
    }

    #[test]
    fn the_same_everywhere_has_the_numbers_of_the_grid() {
        let grid = Grid::new(4, 6);
        let (tokens, mut locality) = (grid.tokens(), Locality::new(grid));
        let share = 1.0 / tokens as f32;
        (0..tokens).for_each(|q| locality.add(q, (0..tokens).map(|k| (k, share))));
        let numbers = locality.numbers();
        assert!(close(numbers.entropy, (tokens as f64).ln()), "{numbers:?}");
        // Pairs within a square of side 3: (3 h - 2)(3 w - 2).
        assert!(close(numbers.within[1], (10.0 * 16.0) / (tokens * tokens) as f64), "{numbers:?}");
        assert!(close(numbers.within[5], 1.0));
        let mut distance = 0.0;
        for (a, b) in (0..tokens).flat_map(|a| (0..tokens).map(move |b| (a, b))) {
            let ((ay, ax), (by, bx)) = (grid.position(a), grid.position(b));
            let square = ay.abs_diff(by).pow(2) + ax.abs_diff(bx).pow(2);
            distance += (square as f64).sqrt() / (tokens * tokens) as f64;
        }
        assert!(close(numbers.distance, distance), "{numbers:?}");
        // 34 of 36 pairs of columns are less than five apart, which is not enough.
        assert_eq!(numbers.effective_window, 11);
    }

    #[test]
    fn a_window_holds_all_and_the_effective_one_most() {
        let grid = Grid::new(9, 9);
        let mut locality = Locality::new(grid);
        let middle = grid.token(4, 4);
        locality.add(middle, [(middle, 0.9), (grid.token(4, 5), 0.06), (grid.token(2, 4), 0.04)]);
        let numbers = locality.numbers();
        assert!(
            close(numbers.within[0], 0.9) && close(numbers.within[1], 0.96) && close(numbers.within[2], 1.0)
        );
        assert_eq!(numbers.effective_window, 3);
        assert!(close(numbers.distance, 0.06 + 2.0 * 0.04));
    }

    #[test]
    fn of_nothing_there_is_nothing_to_tell() {
        let numbers = Locality::new(Grid::new(2, 2)).numbers();
        assert_eq!((numbers.distance, numbers.effective_window), (0.0, 1));
        assert_eq!(numbers.within, [0.0, 0.0]);
    }
}
