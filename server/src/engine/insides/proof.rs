//! Whether a graph of the insides answers as the trainer's network did. Attention is compared on the rows of a few tokens:
//! those of every token would be megabytes.

use safetensors::{Dtype, SafeTensors};
use windowpane_diffusion::manifest::Graph;

use super::{Inside, Insides, Look, Wanted};
use crate::engine::StepBatch;
use crate::engine::check::{CheckError, relative};
use crate::model::Card;

/// A case of the golden.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    name: String,
    look: Look,
    /// What the trainer's network said of each wanted part.
    reference: Vec<Vec<f32>>,
    tolerance: f64,
}

/// The tensors of one case.
struct Tensors<'a> {
    case: &'a str,
    all: &'a SafeTensors<'a>,
}

// === impl Proof ===

impl Proof {
    /// The cases of a graph, from the bytes of the golden's file, in the manifest's order.
    pub fn all(card: &Card, inside: Inside, graph: &Graph, golden: &[u8]) -> Result<Vec<Self>, CheckError> {
        let all = SafeTensors::deserialize(golden).map_err(|error| CheckError::Golden {
            case: "golden.safetensors".to_owned(),
            what: error.to_string(),
        })?;
        let one = |case: &String| Self::read(card, inside, graph, &Tensors { case, all: &all });
        graph.golden.iter().map(one).collect()
    }

    fn read(card: &Card, inside: Inside, graph: &Graph, tensors: &Tensors<'_>) -> Result<Self, CheckError> {
        let image = card.shape();
        let (n, x) = tensors.floats("x", &image)?;
        let (n_t, t) = tensors.floats("t", &[])?;
        let (n_y, y) = tensors.integers("y")?;
        if [n_t, n_y] != [n; 2] || (inside != Inside::Attention && n != 1) {
            return Err(tensors.bad(format!("x, t and y have {n}, {n_t} and {n_y} rows")));
        }
        let batch = StepBatch { shape: image, x, t, y };
        let mut look = Look { inside, batch, vectors: Vec::new(), wanted: Vec::new() };
        let mut reference = Vec::new();
        if inside == Inside::Attention {
            let config = &card.manifest.config;
            let out = [config.out_channels(), image[1], image[2]];
            look.wanted.push(Wanted::all("prediction"));
            reference.push(tensors.floats("prediction", &out)?.1);
            let (grid, (_, tokens)) = (config.grid(), tensors.integers("tokens")?);
            let tokens: Option<Vec<usize>> = tokens
                .iter()
                .map(|&token| usize::try_from(token).ok().filter(|&token| token < grid.tokens()))
                .collect();
            let tokens =
                tokens.ok_or_else(|| tensors.bad("a token that the grid does not have".to_owned()))?;
            for (i, (window, plan)) in config.windows.iter().zip(&graph.plan).enumerate() {
                let (name, tiles) = (format!("attention.{i}"), window.realised(grid, *plan));
                let rows = tensors.floats(&name, &[config.heads, tokens.len(), grid.tokens()])?.1;
                let mut ranges = Vec::new();
                let mut expected = Vec::new();
                for (of, row) in rows.chunks_exact(grid.tokens()).enumerate() {
                    let (map, token) = (of / tokens.len(), tokens[of % tokens.len()]);
                    let first = (map * tiles.tiles * tiles.queries + tiles.output_index[token]) * tiles.keys;
                    ranges.push(first..first + tiles.keys);
                    expected.extend(tiles.keys_of(token).iter().map(|&key| row[key]));
                }
                look.wanted.push(Wanted { output: name, ranges: Some(ranges) });
                reference.push(expected);
            }
        } else {
            let (k, vectors) = tensors.floats("vectors", &image)?;
            let (k_out, products) = tensors.floats("products", &image)?;
            if k != k_out {
                return Err(tensors.bad(format!("{k} vectors have {k_out} products")));
            }
            look.vectors = vectors;
            look.wanted.push(Wanted::all("products"));
            reference.push(products);
        }
        Ok(Self { name: tensors.case.to_owned(), look, reference, tolerance: graph.tolerance })
    }

    /// Runs it: the largest max|Δ| / max|reference| of its parts, if that is allowed.
    pub fn replay(&self, insides: &mut dyn Insides) -> Result<f64, CheckError> {
        let got = insides.look(&self.look)?;
        let mut worst = 0.0_f64;
        for (got, reference) in got.iter().zip(&self.reference) {
            for (whose, values) in [("the stored answer", reference), ("the graph's output", got)] {
                if values.iter().any(|value| !value.is_finite()) {
                    return Err(CheckError::NotFinite { case: self.name.clone(), whose });
                }
            }
            let (error, tolerance) = (relative(got, reference), self.tolerance);
            if error.is_nan() || error >= tolerance {
                return Err(CheckError::Differs { case: self.name.clone(), error, tolerance });
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }
}

// === impl Tensors ===

impl Tensors<'_> {
    fn bad(&self, what: String) -> CheckError {
        CheckError::Golden { case: self.case.to_owned(), what }
    }

    /// Rows of f32 of this shape, and how many.
    fn floats(&self, part: &str, row: &[usize]) -> Result<(usize, Vec<f32>), CheckError> {
        let (n, bytes) = self.rows(part, Dtype::F32, row)?;
        let (four, _) = bytes.as_chunks::<4>();
        Ok((n, four.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
    }

    /// A list of i64, and how many.
    fn integers(&self, part: &str) -> Result<(usize, Vec<i64>), CheckError> {
        let (n, bytes) = self.rows(part, Dtype::I64, &[])?;
        let (eight, _) = bytes.as_chunks::<8>();
        Ok((n, eight.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect()))
    }

    fn rows(&self, part: &str, dtype: Dtype, row: &[usize]) -> Result<(usize, &[u8]), CheckError> {
        let view =
            self.all.tensor(&format!("{}.{part}", self.case)).map_err(|error| self.bad(error.to_string()))?;
        match view.shape().split_first() {
            Some((&n, rest)) if view.dtype() == dtype && rest == row && n > 0 => Ok((n, view.data())),
            _ => {
                let got = format!("`{part}` is {:?} {:?}", view.dtype(), view.shape());
                Err(self.bad(format!("{got}, expected {dtype:?} [n, {row:?}]")))
            }
        }
    }
}
