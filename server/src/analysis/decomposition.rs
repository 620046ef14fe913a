//! What a matrix is made of: singular values and vectors, and the eigenvalues of its symmetric part. faer does the work;
//! this file knows in which order the results are told, and how far a matrix is from being symmetric. Everything is f64,
//! and runs on the thread that asks.

use faer::{Mat, MatRef, Par, Side};

/// A decomposition came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {0} decomposition did not converge")]
pub struct DecompositionError(&'static str);

/// A square matrix by rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Square {
    side: usize,
    values: Vec<f64>,
}

/// Singular triplets, the largest value first.
#[derive(Debug, Clone, PartialEq)]
pub struct Singular {
    /// The values.
    pub values: Vec<f64>,
    /// In the space of outputs, one for each of the first values.
    pub left: Vec<Vec<f64>>,
    /// In the space of inputs, likewise.
    pub right: Vec<Vec<f64>>,
}

/// Eigenpairs of a symmetric matrix, the largest value first.
#[derive(Debug, Clone, PartialEq)]
pub struct Eigen {
    /// The values.
    pub values: Vec<f64>,
    /// One for each of the first values.
    pub vectors: Vec<Vec<f64>>,
}

// === impl Square ===

impl Square {
    /// Of `side` rows. Panics: not as many values.
    pub fn new(side: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), side * side, "a square matrix has as many values: this is a bug");
        Self { side, values }
    }

    /// The same of columns, one after the other.
    pub fn of_columns(side: usize, values: Vec<f64>) -> Self {
        let mut matrix = Self::new(side, values);
        for i in 0..side {
            for j in 0..i {
                matrix.values.swap(i * side + j, j * side + i);
            }
        }
        matrix
    }

    /// An upper bidiagonal one; `above` is one shorter than `diagonal`.
    pub fn bidiagonal(diagonal: &[f64], above: &[f64]) -> Self {
        let side = diagonal.len();
        let mut values = vec![0.0; side * side];
        for (i, &value) in diagonal.iter().enumerate() {
            values[i * side + i] = value;
        }
        for (i, &value) in above.iter().take(side.saturating_sub(1)).enumerate() {
            values[i * side + i + 1] = value;
        }
        Self { side, values }
    }

    /// Rows.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// How far it is from being symmetric: ‖J − Jᵀ‖ / ‖J‖ in the Frobenius norm, 0 to 2; 0 of nothing.
    pub fn asymmetry(&self) -> f64 {
        let n = self.side;
        let each = (0..n * n).map(|i| (self.values[i] - self.values[i % n * n + i / n]).powi(2));
        let norm = self.norm();
        if norm == 0.0 { 0.0 } else { each.sum::<f64>().sqrt() / norm }
    }

    /// All singular values, and the vectors of the first `count`.
    pub fn singular(&self, count: usize) -> Result<Singular, DecompositionError> {
        let svd = self.by_rows().svd().map_err(|_| DecompositionError("singular value"))?;
        let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
        let count = count.min(values.len());
        let (left, right) = (columns(svd.U(), 0..count), columns(svd.V(), 0..count));
        Ok(Singular { values, left, right })
    }

    /// All eigenvalues of the symmetric part (J + Jᵀ)/2, and the vectors of the first `count`.
    pub fn symmetric_eigen(&self, count: usize) -> Result<Eigen, DecompositionError> {
        let matrix = self.by_rows();
        let n = self.side;
        let half = Mat::from_fn(n, n, |i, j| f64::midpoint(matrix[(i, j)], matrix[(j, i)]));
        let eigen = half.self_adjoint_eigen(Side::Lower).map_err(|_| DecompositionError("eigenvalue"))?;
        // They come in ascending order.
        let values: Vec<f64> = eigen.S().column_vector().iter().rev().copied().collect();
        let vectors = columns(eigen.U(), (0..n).rev().take(count));
        Ok(Eigen { values, vectors })
    }

    fn by_rows(&self) -> MatRef<'_, f64> {
        // One thread: the others belong to the engine.
        faer::set_global_parallelism(Par::Seq);
        MatRef::from_row_major_slice(&self.values, self.side, self.side)
    }
}

/// The columns with these numbers.
fn columns(matrix: MatRef<'_, f64>, numbers: impl Iterator<Item = usize>) -> Vec<Vec<f64>> {
    numbers.map(|number| matrix.col(number).iter().copied().collect()).collect()
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::noise;

    use super::*;

    fn random(side: usize) -> Square {
        Square::new(side, noise::normal(5, 0, side * side).into_iter().map(f64::from).collect())
    }

    fn product(matrix: &Square, x: &[f64]) -> Vec<f64> {
        matrix.values.chunks(matrix.side).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10)
    }

    fn times(factor: f64, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| factor * x).collect()
    }

    #[test]
    fn singular_triplets_are_what_they_say() {
        let matrix = random(12);
        let Singular { values, left, right } = matrix.singular(4).unwrap();
        assert!(values.len() == 12 && left.len() == 4 && right.len() == 4);
        assert!(values.is_sorted_by(|a, b| a >= b) && values[11] >= 0.0);
        for i in 0..4 {
            assert!(close(&product(&matrix, &right[i]), &times(values[i], &left[i])), "{i}");
        }
        let squares: f64 = values.iter().map(|value| value * value).sum();
        assert!((squares.sqrt() - matrix.norm()).abs() < 1e-10);
    }

    #[test]
    fn eigenpairs_of_the_symmetric_part() {
        let matrix = random(9);
        let Eigen { values, vectors } = matrix.symmetric_eigen(3).unwrap();
        assert!(values.is_sorted_by(|a, b| a >= b) && values.len() == 9 && vectors.len() == 3);
        let n = matrix.side;
        let half = (0..n * n).map(|i| f64::midpoint(matrix.values[i], matrix.values[i % n * n + i / n]));
        let half = Square::new(n, half.collect());
        assert!(half.asymmetry() < 1e-15);
        for i in 0..3 {
            assert!(close(&product(&half, &vectors[i]), &times(values[i], &vectors[i])), "{i}");
        }
    }

    #[test]
    fn closed_forms() {
        // A rotation by a right angle: orthogonal, and as far from symmetric as can be.
        let turn = Square::new(2, vec![0.0, -1.0, 1.0, 0.0]);
        assert!(close(&turn.singular(0).unwrap().values, &[1.0, 1.0]));
        assert!(
            (turn.asymmetry() - 2.0).abs() < 1e-12
                && close(&turn.symmetric_eigen(0).unwrap().values, &[0.0; 2])
        );
        // ((1, 1), (0, 1)): its singular values are the golden ratio and its inverse.
        let golden = f64::midpoint(1.0, 5f64.sqrt());
        let shear = Square::bidiagonal(&[1.0, 1.0], &[1.0]);
        assert_eq!(shear.values(), [1.0, 1.0, 0.0, 1.0]);
        assert!(close(&shear.singular(2).unwrap().values, &[golden, 1.0 / golden]));
        assert!(close(&shear.symmetric_eigen(2).unwrap().values, &[1.5, 0.5]));
        // Nothing.
        let none = Square::new(3, vec![0.0; 9]);
        assert_eq!((none.asymmetry(), none.singular(1).unwrap().values), (0.0, vec![0.0; 3]));
        assert_eq!(Square::bidiagonal(&[], &[]).singular(3).unwrap().values, Vec::<f64>::new());
    }

    #[test]
    fn what_is_no_number_is_an_error_and_no_panic() {
        let nan = Square::new(2, vec![f64::NAN; 4]);
        assert!(nan.singular(2).is_err() || nan.singular(2).unwrap().values.iter().any(|v| v.is_nan()));
    }
}
