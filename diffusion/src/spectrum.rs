//! Which few directions matter most? Golub-Kahan-Lanczos bidiagonalisation (Golub & Kahan 1965; Golub & Van Loan, Matrix
//! Computations, 4th edition, section 10.4.4) with full reorthogonalisation, as a state machine: it asks for products with
//! a matrix and its transpose, whoever computes them, and keeps what comes of it. After m steps
//!
//! ```text
//! J V = U B,    Jᵀ U = V Bᵀ + beta v e_mᵀ
//! ```
//!
//! with orthonormal columns in U and V and an upper bidiagonal B of m rows. Of a singular triplet (p, sigma, q) of B the
//! triplet (U p, sigma, V q) of J satisfies J v = sigma u exactly, and |Jᵀ u - sigma v| = beta |p_m|: the bound within
//! which a singular value of J lies.

use crate::error::{Error, Result};

/// Products that the method needs next.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// J times this vector.
    Forward(Vec<f64>),
    /// The transpose of J times this vector.
    Reverse(Vec<f64>),
}

/// A vector that is shorter than this, relative to the largest so far, is nothing but rounding.
const NOTHING: f64 = 1e-10;

/// A bidiagonalisation under way.
#[derive(Debug, Clone)]
pub struct Bidiagonalisation {
    /// What the first direction is made of, until it is.
    start: Option<Vec<f64>>,
    /// Orthonormal, in the space of inputs.
    v: Vec<Vec<f64>>,
    /// Orthonormal, in the space of outputs.
    u: Vec<Vec<f64>>,
    /// The diagonal of B.
    alpha: Vec<f64>,
    /// Above the diagonal of B, and one more.
    beta: Vec<f64>,
    largest: f64,
    ended: bool,
}

// === impl Bidiagonalisation ===

impl Bidiagonalisation {
    /// Begins with a vector `y` of the space of outputs: the first direction is Jᵀ y, so that nothing is looked for which J
    /// does not see. Errors: a vector that is zero or not finite.
    pub fn new(start: Vec<f64>) -> Result<Self> {
        let length = norm(&start);
        if !(length.is_finite() && length > 0.0) {
            return Err(Error::bad_value("start", "zero or not finite", "a vector of some length"));
        }
        let start = Some(start.into_iter().map(|x| x / length).collect());
        let (v, u, alpha, beta) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { start, v, u, alpha, beta, largest: 0.0, ended: false })
    }

    /// What to compute next; `None` when the vectors span all that J has.
    pub fn ask(&self) -> Option<Ask> {
        if let Some(start) = &self.start {
            return Some(Ask::Reverse(start.clone()));
        }
        match (self.ended, self.u.len() < self.v.len()) {
            (true, _) => None,
            (_, true) => self.v.last().cloned().map(Ask::Forward),
            (_, false) => self.u.last().cloned().map(Ask::Reverse),
        }
    }

    /// Takes the product that was asked for. Errors: values that are not finite.
    pub fn answer(&mut self, mut product: Vec<f64>) -> Result<()> {
        if product.iter().any(|x| !x.is_finite()) {
            return Err(Error::bad_value("product", "not finite", "finite values"));
        }
        if self.start.take().is_some() {
            self.largest = norm(&product);
            self.ended = self.largest == 0.0;
            if !self.ended {
                self.v.push(product.into_iter().map(|x| x / self.largest).collect());
            }
            return Ok(());
        }
        let forward = self.u.len() < self.v.len();
        let basis = if forward { &self.u } else { &self.v };
        // Twice is enough (Parlett 1998, section 6.9).
        for _ in 0..2 {
            for other in basis {
                let share = dot(&product, other);
                product.iter_mut().zip(other).for_each(|(x, o)| *x -= share * o);
            }
        }
        let length = norm(&product);
        self.largest = self.largest.max(length);
        let is_nothing = length <= NOTHING * self.largest;
        let length = if is_nothing { 0.0 } else { length };
        if is_nothing {
            self.ended = true;
        } else {
            product.iter_mut().for_each(|x| *x /= length);
        }
        match (forward, is_nothing) {
            (true, false) => {
                self.alpha.push(length);
                self.u.push(product);
            }
            // J v lies in what is spanned already: v adds nothing.
            (true, true) => drop(self.v.pop()),
            (false, false) => {
                self.beta.push(length);
                self.v.push(product);
            }
            (false, true) => self.beta.push(0.0),
        }
        Ok(())
    }

    /// Columns of U so far: the size of B.
    pub fn size(&self) -> usize {
        self.u.len()
    }

    /// Diagonal and superdiagonal of B, the latter one shorter.
    pub fn bidiagonal(&self) -> (&[f64], &[f64]) {
        let size = self.size();
        (&self.alpha, &self.beta[..size.saturating_sub(1).min(self.beta.len())])
    }

    /// What is left over after the last column: the bound of a triplet is this times |p_m|.
    pub fn rest(&self) -> f64 {
        if self.beta.len() >= self.size() { self.beta.last().copied().unwrap_or(0.0) } else { self.largest }
    }

    /// The combination of U's columns with these weights.
    pub fn output(&self, weights: &[f64]) -> Vec<f64> {
        combined(&self.u, weights)
    }

    /// The combination of V's columns with these weights.
    pub fn input(&self, weights: &[f64]) -> Vec<f64> {
        combined(&self.v, weights)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    libm::sqrt(dot(a, a))
}

fn combined(basis: &[Vec<f64>], weights: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; basis.first().map_or(0, Vec::len)];
    for (column, weight) in basis.iter().zip(weights) {
        sum.iter_mut().zip(column).for_each(|(x, c)| *x += weight * c);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    /// A matrix by rows.
    struct Matrix(Vec<Vec<f64>>);

    impl Matrix {
        fn random(rows: usize, cols: usize) -> Self {
            let values = noise::normal(3, 0, rows * cols);
            Self(values.chunks(cols).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect())
        }

        fn forward(&self, x: &[f64]) -> Vec<f64> {
            self.0.iter().map(|row| dot(row, x)).collect()
        }

        fn reverse(&self, x: &[f64]) -> Vec<f64> {
            combined(&self.0, x)
        }

        fn run(&self, steps: usize) -> Bidiagonalisation {
            let start = noise::normal(4, 0, self.0.len()).into_iter().map(f64::from).collect();
            let mut lanczos = Bidiagonalisation::new(start).unwrap();
            while let Some(ask) = lanczos.ask() {
                let product = match &ask {
                    Ask::Forward(_) if lanczos.size() == steps => return lanczos,
                    Ask::Forward(x) => self.forward(x),
                    Ask::Reverse(x) => self.reverse(x),
                };
                lanczos.answer(product).unwrap();
            }
            lanczos
        }
    }

    fn unit(i: usize, of: usize) -> Vec<f64> {
        (0..of).map(|j| f64::from(u8::from(i == j))).collect()
    }

    #[test]
    fn the_recurrence_holds_and_the_columns_are_orthonormal() {
        let matrix = Matrix::random(30, 20);
        let lanczos = matrix.run(8);
        let (size, (alpha, beta)) = (lanczos.size(), lanczos.bidiagonal());
        assert_eq!((size, alpha.len(), beta.len()), (8, 8, 7));
        for i in 0..size {
            for j in 0..size {
                let expected = f64::from(u8::from(i == j));
                assert!((dot(&lanczos.u[i], &lanczos.u[j]) - expected).abs() < 1e-12);
                assert!((dot(&lanczos.v[i], &lanczos.v[j]) - expected).abs() < 1e-12);
            }
            // J V = U B.
            let mut weights: Vec<f64> = unit(i, size).iter().map(|x| x * alpha[i]).collect();
            if i > 0 {
                weights[i - 1] = beta[i - 1];
            }
            let (left, right) = (matrix.forward(&lanczos.v[i]), lanczos.output(&weights));
            assert!(left.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-12));
            // Transposed, the last column has a rest of the length that is told.
            let mut rest = matrix.reverse(&lanczos.u[i]);
            let mut weights: Vec<f64> = unit(i, size).iter().map(|x| x * alpha[i]).collect();
            if i + 1 < size {
                weights[i + 1] = beta[i];
            }
            rest.iter_mut().zip(lanczos.input(&weights)).for_each(|(x, y)| *x -= y);
            let expected = if i + 1 < size { 0.0 } else { lanczos.rest() };
            assert!((norm(&rest) - expected).abs() < 1e-10, "{i}: {} {expected}", norm(&rest));
        }
    }

    #[test]
    fn it_ends_where_the_matrix_has_no_more() {
        // Of rank 3, 5 outputs and 6 inputs.
        let (left, right) = (Matrix::random(5, 3), Matrix::random(3, 6));
        let product: Vec<Vec<f64>> = left.0.iter().map(|row| right.reverse(row)).collect();
        let lanczos = Matrix(product).run(100);
        assert_eq!(lanczos.size(), 3);
        assert!(lanczos.rest() < 1e-9);
    }

    #[test]
    fn nothing_begins_with_nothing_and_goes_on_with_no_number() {
        assert!(Bidiagonalisation::new(vec![0.0; 4]).is_err());
        assert!(Bidiagonalisation::new(vec![f64::NAN; 4]).is_err());
        let mut lanczos = Bidiagonalisation::new(vec![1.0; 4]).unwrap();
        assert!(lanczos.answer(vec![f64::INFINITY; 4]).is_err());
        // A matrix of zeros has no singular value but zero.
        lanczos.answer(vec![0.0; 4]).unwrap();
        assert_eq!((lanczos.ask(), lanczos.size(), lanczos.rest()), (None, 0, 0.0));
    }
}
