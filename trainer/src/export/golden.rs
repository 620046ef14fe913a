//! The proof that a package travels with: inputs, and what libtorch's f32 forward pass makes of them with the
//! weights as they are stored. The reference is `model.rs` with dense attention; it shares neither the graph nor
//! the tiles with what it checks.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};
use windowpane_diffusion::noise::{self, Domain};
use windowpane_diffusion::{ModelConfig, Plan};

use super::ExportError;
use crate::error::{Error, Result};
use crate::model::{Dit, Geometry};

/// Seed of the inputs. Any will do; it never changes, so that two exports of one checkpoint are equal.
const SEED: u64 = 2;

/// Batch sizes of the cases: alone, a pair, and a number that no vector width divides.
const BATCHES: [usize; 3] = [1, 2, LARGEST_BATCH];
pub(crate) const LARGEST_BATCH: usize = 3;

/// Batch size of the case for attention, as a server looks at it, and the tokens whose rows are kept: all of them would be
/// megabytes.
const ATTENTION_BATCH: usize = 1;
const TOKENS: usize = 2;

/// Numbers of vectors of the cases for products with the Jacobian: several share an image, one has nothing beside it. In
/// this order the pair is seen with a class, and the other with none.
const VECTORS: [usize; 2] = [2, 1];

/// One stored example.
#[derive(Debug)]
pub struct Case {
    /// Prefix of its tensors in the file.
    pub name: String,
    /// Its tensors, f32 or i64, by the last part of their names.
    pub parts: Vec<(String, Tensor)>,
}

/// Every case of a package, by what it proves.
#[derive(Debug)]
pub struct Cases {
    /// `x [n,c,h,w]`, `t [n]`, `y [n]` -> `prediction [n,out,h,w]`; fractional timesteps and the null class among them.
    pub denoiser: Vec<Case>,
    /// The same, and `attention.i [n,heads,tokens,t]`, the rows of the tokens that `tokens` lists.
    pub attention: Vec<Case>,
    /// `x [1,c,h,w]`, `t [1]`, `y [1]`, `vectors [k,c,h,w]` -> `products [k,c,h,w]`.
    pub jvp: Vec<Case>,
    /// The same of the transposed Jacobian.
    pub vjp: Vec<Case>,
}

/// What goes into the network.
struct Input {
    x: Tensor,
    t: Tensor,
    y: Tensor,
}

/// What the cases are drawn from: the network, its images, and how many of them have been drawn.
struct Golden<'a> {
    net: Dit,
    config: &'a ModelConfig,
    times: [f32; 7],
    labels: Vec<i64>,
    drawn: usize,
}

/// The cases of a model with parameters `flat` (`[parameters]`, rounded as stored), trained with `steps` timesteps; those
/// of its insides where they are asked for. Errors: a prediction that is not finite proves nothing.
pub fn cases(config: &ModelConfig, steps: usize, flat: &Tensor, insides: bool) -> Result<Cases> {
    let net = Geometry::planned(config, |_, _| Plan::Dense, Kind::Float, Device::Cpu).bind(flat);
    let mut golden = Golden { net, config, times: times(steps), labels: labels(config), drawn: 0 };
    let denoiser = BATCHES.iter().map(|&n| golden.denoiser(n)).collect::<Result<_>>()?;
    let mut cases = Cases { denoiser, attention: Vec::new(), jvp: Vec::new(), vjp: Vec::new() };
    if insides {
        cases.attention.push(golden.attention()?);
        for k in VECTORS {
            let (jvp, vjp) = golden.products(k)?;
            cases.jvp.push(jvp);
            cases.vjp.push(vjp);
        }
    }
    Ok(cases)
}

// === impl Golden ===

impl Golden<'_> {
    /// Images that no case had before, `[n, c, h, w]`.
    fn images(&mut self, n: usize) -> Result<Tensor> {
        let mut values = Vec::with_capacity(n * self.config.elements());
        for image in self.drawn..self.drawn + n {
            let mut noise = vec![0.0; self.config.elements()];
            noise::fill_normal_in(Domain::Eval, SEED, image as u32, &mut noise);
            values.extend(noise);
        }
        self.drawn += n;
        let [c, h, w] = [self.config.channels, self.config.height, self.config.width].map(|n| n as i64);
        Ok(Tensor::from_slice(&values).f_reshape([n as i64, c, h, w])?)
    }

    /// Rows that no case had before.
    fn input(&mut self, n: usize) -> Result<Input> {
        let rows = self.drawn..self.drawn + n;
        let t: Vec<_> = rows.clone().map(|i| self.times[i % self.times.len()]).collect();
        let y: Vec<_> = rows.map(|i| self.labels[i % self.labels.len()]).collect();
        Ok(Input { x: self.images(n)?, t: Tensor::from_slice(&t), y: Tensor::from_slice(&y) })
    }

    fn denoiser(&mut self, n: usize) -> Result<Case> {
        let _guard = tch::no_grad_guard();
        let input = self.input(n)?;
        let prediction = self.net.forward(&input.x, &input.t, &input.y);
        case(format!("batch{n}"), input, vec![("prediction".to_owned(), prediction)])
    }

    fn attention(&mut self) -> Result<Case> {
        let _guard = tch::no_grad_guard();
        let input = self.input(ATTENTION_BATCH)?;
        // A corner, whose patch of keys is clamped, and the middle, where windows are whole.
        let grid = self.config.grid();
        let tokens: [i64; TOKENS] = [0, (grid.height / 2 * grid.width + grid.width / 2) as i64];
        let tokens = Tensor::from_slice(&tokens);
        let (prediction, seen) = self.net.watched(&input.x, &input.t, &input.y, &tokens);
        let mut parts = vec![("prediction".to_owned(), prediction)];
        parts.extend(seen.into_iter().enumerate().map(|(i, rows)| (format!("attention.{i}"), rows)));
        parts.push(("tokens".to_owned(), tokens));
        case("attention".to_owned(), input, parts)
    }

    /// J·v and Jᵀ·v.
    fn products(&mut self, k: usize) -> Result<(Case, Case)> {
        let Input { x, t, y } = self.input(1)?;
        let vectors = self.images(k)?;
        let at = x.set_requires_grad(true);
        let prediction = self.net.differentiable(&at, &t, &y);
        let mean = prediction.f_narrow(1, 0, self.config.channels as i64)?;
        let [jvp, vjp] = products(&mean, &at, &vectors)?;
        let of = |name: &str, products: Tensor| {
            let input = Input { x: at.detach(), t: t.shallow_clone(), y: y.shallow_clone() };
            let parts =
                vec![("vectors".to_owned(), vectors.shallow_clone()), ("products".to_owned(), products)];
            case(format!("{name}{k}"), input, parts)
        };
        Ok((of("jvp", jvp)?, of("vjp", vjp)?))
    }
}

/// J·v and Jᵀ·v by autograd, of what `mean` is of `at`, for each of the vectors. The first is the derivative of the second,
/// `(Jᵀ u)·v`, with respect to `u`.
pub(super) fn products(mean: &Tensor, at: &Tensor, vectors: &Tensor) -> Result<[Tensor; 2]> {
    let (mut jvp, mut vjp) = (Vec::new(), Vec::new());
    for i in 0..vectors.size()[0] {
        let v = vectors.f_narrow(0, i, 1)?;
        let u = Tensor::f_zeros_like(mean)?.set_requires_grad(true);
        let pulled = gradient(&(mean * &u), at, true)?;
        jvp.push(gradient(&(pulled * &v), &u, false)?);
        vjp.push(gradient(&(mean * &v), at, false)?);
    }
    Ok([Tensor::f_cat(&jvp, 0)?, Tensor::f_cat(&vjp, 0)?])
}

/// The gradient of the sum of `values`; one that can be differentiated again holds on to what it was computed from.
fn gradient(values: &Tensor, with_respect_to: &Tensor, again: bool) -> Result<Tensor> {
    let sum = values.f_sum(Kind::Float)?;
    Ok(Tensor::f_run_backward(&[sum], &[with_respect_to], true, again)?.remove(0))
}

/// A case of its input and what came out.
fn case(name: String, input: Input, out: Vec<(String, Tensor)>) -> Result<Case> {
    let finite = |tensor: &Tensor| tensor.isfinite().all().f_int64_value(&[]).is_ok_and(|all| all == 1);
    if !out.iter().all(|(_, tensor)| finite(tensor)) {
        return Err(ExportError::NotFinite { case: name }.into());
    }
    let Input { x, t, y } = input;
    let mut parts: Vec<_> = [("x", x), ("t", t), ("y", y)].map(|(part, x)| (part.to_owned(), x)).into();
    parts.extend(out);
    Ok(Case { name, parts })
}

/// Timesteps from clean to noise; every other one lies between two entries of the table.
fn times(steps: usize) -> [f32; 7] {
    let last = (steps - 1) as f64;
    [0.5, 0.0, 0.031, 1.0, 0.25, 0.77, 0.004].map(|share| {
        let t = share * last;
        (if share == 0.5 || share == 0.25 { t.floor() } else { t }) as f32
    })
}

/// Labels in an order that meets the null class early and then walks the classes.
fn labels(config: &ModelConfig) -> Vec<i64> {
    let null = config.null_class() as i64;
    let spread = (0..7).filter(|_| null > 0).map(|i| i * 3 % null);
    std::iter::once(0).chain([null]).chain(spread).collect()
}

/// Writes the cases' tensors as `NAME.PART`.
pub fn write<'a>(path: &Path, cases: impl IntoIterator<Item = &'a Case>) -> Result<()> {
    let mut tensors = Vec::new();
    for case in cases {
        for (part, tensor) in &case.parts {
            let flat = tensor.f_reshape([-1])?;
            let (dtype, bytes) = if tensor.kind() == Kind::Int64 {
                let values = Vec::<i64>::try_from(&flat)?;
                (Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
            } else {
                let values = Vec::<f32>::try_from(&flat)?;
                (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            };
            let shape: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
            tensors.push((format!("{}.{part}", case.name), dtype, shape, bytes));
        }
    }
    let failed = |e: safetensors::SafeTensorError| Error::file(path, e);
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    // Not `serialize_to_file`, whose file only its owner may read: a package is for whoever may read its folder.
    let bytes = safetensors::serialize(views, None).map_err(failed)?;
    std::fs::write(path, bytes).map_err(Error::io(path))
}
