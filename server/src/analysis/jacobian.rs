//! What does a small change of the noisy image change? The Jacobian of the network at one image and noise level, by exact
//! products: column by column, and then decomposed as a whole; or its largest singular values alone, by Golub-Kahan-Lanczos
//! bidiagonalisation. Guidance and the choice between eps, x0 and v are linear in the network's prediction, so they are
//! sums here, and the graphs know nothing of them.

use std::time::Duration;

use bytes::Bytes;
use windowpane_diffusion::harmonicity::{Harmonicity, harmonicity};
use windowpane_diffusion::noise;
use windowpane_diffusion::spectrum::{self, Bidiagonalisation};

use super::decomposition::{DecompositionError, Eigen, Singular, Square};
use super::subject::{Subject, Way};
use super::{Study, StudyError};
use crate::batcher::study::{Ask, Findings, Like};
use crate::engine::StepBatch;
use crate::engine::insides::{Inside, Look, Wanted};

/// Vectors that one call multiplies with. By more each costs less, by 32 a fifth to a third, and images wait longer for the call:
/// `server/benches/README.md` has the figures.
pub const CHUNK: usize = 4;

/// Products with single vectors in a piece.
const PIECE: usize = 4;

/// Products with many vectors in a piece: eight columns, as servers that took eight at once kept them.
const PIECE_OF_COLUMNS: usize = 2;

/// Nanoseconds in which a whole matrix of side n is taken apart, by n³: its singular values and vectors and the eigenvalues
/// of its symmetric part, on one core as servers have them in 2026.
const APART: f64 = 2.0;

/// The output of the graphs.
const PRODUCTS: &str = "products";

/// The seed of the first direction: results do not depend on it but for rounding.
const START: u64 = 0x5eed;

/// The function whose Jacobian it is: `identity · x + Σ weight · prediction(x, label)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// The factor of the noisy image itself.
    pub identity: f64,
    /// Labels that the network is told, each with its prediction's factor.
    pub predictions: Vec<(i64, f64)>,
}

/// How much of the spectrum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// All of it, from the whole matrix.
    Full,
    /// The largest singular values.
    TopK {
        /// Steps of the bidiagonalisation at most.
        steps: usize,
        /// A triplet has converged whose residual is at most so much of the largest singular value.
        tolerance: f64,
    },
}

/// The study.
#[derive(Debug)]
pub struct JacobianStudy {
    way: Way,
    t: f32,
    function: Function,
    /// Vectors that are told.
    count: usize,
    shape: [usize; 3],
    x: Vec<f32>,
    work: Work,
    /// Calls that may still come, beside those on the way.
    left: usize,
    /// The product under way.
    product: Option<Product>,
    /// What is kept in pieces.
    kept: Kept,
    outcome: Option<Spectrum>,
}

/// What the products are for.
#[derive(Debug)]
enum Work {
    /// Columns of the matrix so far.
    Full(Vec<f64>),
    /// Largest values.
    TopK { lanczos: Box<Bidiagonalisation>, steps: usize, tolerance: f64 },
}

/// What is kept, and what is not yet.
#[derive(Debug, Default)]
struct Kept {
    /// Whether the noisy image is.
    has_x: bool,
    /// Products since the latest piece, and what they came to.
    products: usize,
    sums: Vec<f64>,
}

/// One product with the function's Jacobian: a call for each of its predictions.
#[derive(Debug)]
struct Product {
    inside: Inside,
    vectors: Vec<f32>,
    sum: Vec<f64>,
    calls: usize,
}

/// What it comes to.
#[derive(Debug)]
pub struct Spectrum {
    /// The noisy image that it is at, `[channels, height, width]`.
    pub x: Vec<f32>,
    /// Channels, height and width.
    pub shape: [usize; 3],
    /// Singular values and the first vectors.
    pub singular: Singular,
    /// How harmonic the right vectors are.
    pub harmonicity: Vec<Harmonicity>,
    /// What is known only of the whole matrix.
    pub whole: Option<Whole>,
    /// What is known only of a part.
    pub part: Option<Part>,
}

/// What is known of the whole matrix.
#[derive(Debug)]
pub struct Whole {
    /// The matrix.
    pub matrix: Square,
    /// Eigenvalues of the symmetric part and the first vectors.
    pub eigen: Eigen,
    /// How harmonic those vectors are.
    pub harmonicity: Vec<Harmonicity>,
}

/// What is known of a part.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// |Jᵀu − σv| of each triplet: a singular value lies within this of σ. Jv = σu holds to rounding.
    pub residuals: Vec<f64>,
    /// The first triplets, as many as have converged.
    pub converged: usize,
    /// Steps of the bidiagonalisation.
    pub steps: usize,
}

// === impl Function ===

impl Function {
    /// Calls of the network that one evaluation of it takes.
    pub fn calls(&self) -> usize {
        self.predictions.len()
    }
}

// === impl Method ===

impl Method {
    /// Calls that it takes at most of a function of `elements`.
    pub fn calls(self, elements: usize, function: &Function) -> usize {
        let products = match self {
            Self::Full => elements.div_ceil(CHUNK),
            // The first direction, then one each way a step.
            Self::TopK { steps, .. } => 1 + 2 * steps,
        };
        products * function.calls()
    }

    /// Bytes that it holds on the way, beside what is told: the matrix, or the directions of all steps.
    pub fn held(self, elements: usize) -> usize {
        let vectors = match self {
            Self::Full => elements,
            Self::TopK { steps, .. } => 2 * steps,
        };
        vectors.saturating_mul(elements).saturating_mul(size_of::<f64>())
    }
}

// === impl JacobianStudy ===

impl JacobianStudy {
    /// At a subject, of the function; `count` vectors are told.
    pub fn new(
        subject: Subject,
        shape: [usize; 3],
        function: Function,
        method: Method,
        count: usize,
    ) -> Result<Self, StudyError> {
        let elements = shape.iter().product();
        let left = method.calls(elements, &function);
        let work = match method {
            Method::Full => Work::Full(Vec::new()),
            Method::TopK { steps, tolerance } => {
                let start = noise::normal(START, 0, elements).into_iter().map(f64::from).collect();
                let lanczos = Bidiagonalisation::new(start).map_err(|_| StudyError::NotFinite)?;
                Work::TopK { lanczos: Box::new(lanczos), steps, tolerance }
            }
        };
        let t = subject.level.t as f32;
        let way = Way::new(subject.start, shape);
        let (x, product, kept, outcome) = (Vec::new(), None, Kept::default(), None);
        Ok(Self { way, t, function, count, shape, x, work, left, product, kept, outcome })
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Products that make a piece.
    fn in_piece(&self) -> usize {
        match self.work {
            Work::Full(_) => PIECE_OF_COLUMNS,
            Work::TopK { .. } => PIECE,
        }
    }

    /// The next product; `None`: there are enough.
    fn begin(&self) -> Option<Product> {
        let elements = self.elements();
        let single = |vector: Vec<f64>| vector.into_iter().map(|value| value as f32).collect();
        let (inside, vectors): (_, Vec<f32>) = match &self.work {
            // Columns, in which a matrix is held: for so many vectors J·v is the cheaper of the two modes on every network that
            // the same bench measured. Always this one, so that no clock decides about the bits of an answer.
            Work::Full(columns) => {
                let first = columns.len() / elements;
                let count = CHUNK.min(elements - first);
                let mut vectors = vec![0.0; count * elements];
                for column in 0..count {
                    vectors[column * elements + first + column] = 1.0;
                }
                (Inside::Jvp, vectors)
            }
            Work::TopK { lanczos, .. } => match lanczos.ask()? {
                spectrum::Ask::Forward(vector) => (Inside::Jvp, single(vector)),
                spectrum::Ask::Reverse(vector) => (Inside::Vjp, single(vector)),
            },
        };
        let sum = vectors.iter().map(|&value| self.function.identity * f64::from(value)).collect();
        (!vectors.is_empty()).then_some(Product { inside, vectors, sum, calls: 0 })
    }

    /// A product is whole.
    fn end(&mut self, product: Product) -> Result<(), StudyError> {
        match &mut self.work {
            Work::Full(columns) => columns.extend(product.sum),
            Work::TopK { lanczos, .. } => {
                lanczos.answer(product.sum).map_err(|_| StudyError::NotFinite)?;
                self.outcome = self.part()?;
            }
        }
        Ok(())
    }

    /// The whole matrix of all its columns, decomposed.
    fn whole(&self, columns: Vec<f64>) -> Result<Spectrum, StudyError> {
        let matrix = Square::of_columns(self.elements(), columns);
        let (singular, eigen) = (matrix.singular(self.count)?, matrix.symmetric_eigen(self.count)?);
        let harmonicity = self.harmonicity(&eigen.vectors);
        let whole = Some(Whole { matrix, eigen, harmonicity });
        Ok(self.spectrum(singular, whole, None))
    }

    /// The largest singular values, if they are good enough or as good as they get.
    fn part(&mut self) -> Result<Option<Spectrum>, StudyError> {
        let Work::TopK { lanczos, steps, tolerance } = &self.work else { return Ok(None) };
        let size = lanczos.size();
        let at_end = lanczos.ask().is_none();
        // The rest of a step is known once its way back is.
        let is_whole = at_end || matches!(lanczos.ask(), Some(spectrum::Ask::Forward(_)));
        // Now and then: taking B apart costs far more than a step once it is large.
        let is_due = at_end || size == *steps || (size >= self.count && size.is_multiple_of(1 + size / 8));
        if !is_whole || !is_due {
            return Ok(None);
        }
        let (diagonal, above) = lanczos.bidiagonal();
        let small = Square::bidiagonal(diagonal, above).singular(self.count)?;
        let rest = if at_end { 0.0 } else { lanczos.rest() };
        let largest = small.values.first().copied().unwrap_or(0.0);
        // Products come in f32: nothing is known better than that.
        let bound = |p: &Vec<f64>| {
            (rest * p.last().copied().unwrap_or(0.0).abs()).max(f64::from(f32::EPSILON) * largest)
        };
        let residuals: Vec<f64> = small.left.iter().map(bound).collect();
        let limit = tolerance * largest;
        let converged = residuals.iter().take_while(|&&residual| residual <= limit).count();
        if !at_end && converged < self.count && size < *steps {
            return Ok(None);
        }
        let singular = Singular {
            left: small.left.iter().map(|p| lanczos.output(p)).collect(),
            right: small.right.iter().map(|q| lanczos.input(q)).collect(),
            values: small.values.into_iter().take(self.count).collect(),
        };
        let part = Some(Part { residuals, converged, steps: size });
        Ok(Some(self.spectrum(singular, None, part)))
    }

    fn spectrum(&self, singular: Singular, whole: Option<Whole>, part: Option<Part>) -> Spectrum {
        let harmonicity = self.harmonicity(&singular.right);
        Spectrum { x: self.x.clone(), shape: self.shape, singular, harmonicity, whole, part }
    }

    fn harmonicity(&self, vectors: &[Vec<f64>]) -> Vec<Harmonicity> {
        let single = |vector: &Vec<f64>| vector.iter().map(|&value| value as f32).collect::<Vec<_>>();
        // Vectors have length 1, so each has one.
        vectors.iter().filter_map(|vector| harmonicity(&single(vector), self.shape).ok()).collect()
    }
}

impl Study for JacobianStudy {
    const KIND: &'static str = "jacobian";
    type Findings = Result<Spectrum, StudyError>;

    fn left(&self) -> usize {
        self.way.left() + if self.outcome.is_some() { 0 } else { self.left }
    }

    fn like(&self) -> Like {
        match self.work {
            Work::Full(_) => Like::inside(Inside::Jvp, CHUNK.min(self.elements())),
            // Half of them go the other way, and take as long.
            Work::TopK { .. } => Like::inside(Inside::Jvp, 1),
        }
    }

    fn end(&self) -> Duration {
        match self.work {
            Work::Full(_) => Duration::from_secs_f64(APART * 1e-9 * (self.elements() as f64).powi(3)),
            Work::TopK { .. } => Duration::ZERO,
        }
    }

    /// The noisy image, and all products.
    fn kept(&self) -> usize {
        let elements = self.elements();
        let products = match self.work {
            Work::Full(_) => elements,
            Work::TopK { steps, .. } => 1 + 2 * steps,
        };
        (size_of::<f32>() + products.saturating_mul(size_of::<f64>())).saturating_mul(elements)
    }

    fn next(&mut self) -> Option<Ask> {
        if let Some(ask) = self.way.next_call() {
            return Some(ask);
        }
        if self.x.is_empty() {
            self.x = self.way.arrive();
        }
        if self.outcome.is_some() {
            return None;
        }
        if self.product.is_none() {
            self.product = self.begin();
        }
        let product = self.product.as_ref()?;
        let mut batch = StepBatch::new(self.shape);
        batch.push(&self.x, self.t, self.function.predictions[product.calls].0);
        let wanted = vec![Wanted::all(PRODUCTS)];
        Some(Ask::Look(Look { inside: product.inside, batch, vectors: product.vectors.clone(), wanted }))
    }

    fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        let Some(mut product) = self.product.take() else { return self.way.take(findings) };
        let found = findings.into_iter().next().unwrap_or_default();
        if found.len() != product.sum.len() {
            let shape = format!("{} values are no products of {} vectors", found.len(), product.sum.len());
            return Err(StudyError::Shape(shape));
        }
        if found.iter().any(|value| !value.is_finite()) {
            return Err(StudyError::NotFinite);
        }
        let (_, weight) = self.function.predictions[product.calls];
        for (sum, value) in product.sum.iter_mut().zip(found) {
            *sum += weight * f64::from(value);
        }
        product.calls += 1;
        self.left = self.left.saturating_sub(1);
        if product.calls < self.function.calls() {
            self.product = Some(product);
            return Ok(());
        }
        self.kept.products += 1;
        self.kept.sums.extend(&product.sum);
        self.end(product)
    }

    /// First the noisy image in f32, then what some products came to in f64, little-endian.
    fn piece(&mut self) -> Option<Bytes> {
        if self.x.is_empty() {
            return None;
        }
        if !self.kept.has_x {
            self.kept.has_x = true;
            return Some(Way::piece(&self.x));
        }
        if self.kept.products < self.in_piece() {
            return None;
        }
        self.kept.products = 0;
        Some(self.kept.sums.drain(..).flat_map(f64::to_le_bytes).collect())
    }

    fn resume(&mut self, pieces: &[Bytes]) -> Result<(), StudyError> {
        let other = || StudyError::Shape("a piece of another study".to_owned());
        let Some((x, products)) = pieces.split_first() else { return Ok(()) };
        self.x = self.way.resume(x)?;
        self.kept.has_x = true;
        for piece in products {
            let sums: Vec<f64> = piece.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
            let (mut sums, mut count) = (sums.as_slice(), 0);
            while !sums.is_empty() {
                let mut product = self.begin().filter(|_| self.outcome.is_none()).ok_or_else(other)?;
                let (sum, rest) = sums.split_at_checked(product.sum.len()).ok_or_else(other)?;
                count += 1;
                // What has more is of a server that took rows, sixteen at once.
                if count > self.in_piece() {
                    return Err(other());
                }
                product.sum = sum.to_vec();
                sums = rest;
                self.left = self.left.saturating_sub(self.function.calls());
                self.end(product)?;
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Self::Findings {
        let elements = self.elements();
        match &mut self.work {
            Work::Full(columns) if columns.len() == elements * elements => {
                let columns = std::mem::take(columns);
                self.whole(columns)
            }
            _ => self
                .outcome
                .ok_or_else(|| StudyError::Shape("the study ended before its last call".to_owned())),
        }
    }
}

impl From<DecompositionError> for StudyError {
    fn from(error: DecompositionError) -> Self {
        Self::Shape(error.to_string())
    }
}

#[cfg(test)]
mod tests;
