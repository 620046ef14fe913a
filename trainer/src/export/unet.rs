//! A small convolutional UNet with random weights: what no transformer here has (convolutions that skip pixels, their
//! transposes, group norms, pixels that are doubled), so that a runtime can be held to what is written of it. Its graphs travel
//! with what libtorch says of the same inputs, by layers of its own and by autograd, which share no graph with what they check.

use std::path::Path;

use prost::Message;
use tch::Tensor;
use windowpane_diffusion::manifest::{GOLDEN_FILE, WEIGHTS_FILE};
use windowpane_diffusion::noise;

use super::ExportError;
use super::adjoint::pull_back;
use super::golden::{self, Case};
use super::graph::{Graph, GraphError, ValueId};
use super::lower::lower;
use super::ops::{Op, Stride};
use super::shape::{Dim, Dtype, Shape, Type};
use super::tangent::push_forward;
use super::weights::WeightFile;
use crate::error::{Error, Result};

/// Height and width of its images, which have one channel, as those of models/tiny have.
const SIDE: usize = 32;

/// Classes, beside which there is a label for none.
const CLASSES: usize = 4;

/// Channels of the coarsest image.
const DEEP: usize = 8;

/// Added to a group's variance.
const EPSILON: f32 = 1e-5;

/// Images of the prediction's case, and vectors of the products'.
const ROWS: usize = 3;

/// Pixel by pixel, and every second one.
const SAME: Stride = Stride { step: 1, padding: 1 };
const HALF: Stride = Stride { step: 2, padding: 1 };

/// Names and shapes of the weights. Two kernels are wider than they are high: a stride leaves over one row and no column.
const WEIGHTS: [(&str, &[usize]); 15] = [
    ("class.weight", &[CLASSES + 1, DEEP]),
    ("in.weight", &[4, 1, 3, 3]),
    ("norm1.weight", &[4]),
    ("norm1.bias", &[4]),
    ("down1.weight", &[6, 4, 3, 4]),
    ("norm2.weight", &[6]),
    ("norm2.bias", &[6]),
    ("down2.weight", &[DEEP, 6, 3, 3]),
    ("norm3.weight", &[DEEP]),
    ("norm3.bias", &[DEEP]),
    ("middle.weight", &[6, DEEP + 6, 3, 3]),
    ("norm4.weight", &[6]),
    ("norm4.bias", &[6]),
    ("up2.weight", &[6, 4, 3, 4]),
    ("prediction.weight", &[1, 4, 3, 3]),
];

/// Writes `denoiser.f32.onnx`, `jvp.f32.onnx` and `vjp.f32.onnx` into `dir`, with the ports that graphs of these names have in a
/// package, `weights.bin`, and `golden.safetensors` with a case of each, as a package holds them. Returns the number of graphs.
pub fn write(dir: &Path) -> Result<usize> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let weights = weights()?;
    let graphs = [("denoiser", denoiser()?), ("jvp", products(push_forward)?), ("vjp", products(reverse)?)];
    for (name, graph) in &graphs {
        let model = lower(graph, &weights, "unet", "a small UNet with random weights")?;
        let path = dir.join(format!("{name}.f32.onnx"));
        std::fs::write(&path, model.encode_to_vec()).map_err(Error::io(&path))?;
    }
    let (path, mut bytes) = (dir.join(WEIGHTS_FILE), Vec::new());
    let written = weights.write(&mut bytes).and_then(|()| std::fs::write(&path, bytes));
    written.map_err(Error::io(&path))?;
    golden::write(&dir.join(GOLDEN_FILE), &cases(&weights)?)?;
    Ok(graphs.len())
}

/// Random weights, smaller the more of them a value is the sum of.
fn weights() -> Result<WeightFile> {
    let mut file = WeightFile::new();
    for ((name, shape), number) in WEIGHTS.into_iter().zip(0..) {
        let summed: usize = shape[1..].iter().product();
        let values = Tensor::from_slice(&noise::normal(9, number, shape.iter().product()));
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let scaled = values.f_reshape(sizes)?.f_div_scalar((summed as f64).sqrt())?;
        file.add(name, &scaled, Dtype::F32)?;
    }
    Ok(file)
}

// === The graphs ===

/// `x [n,1,h,w]`, `t [n]`, `y [n]` -> `prediction [n,1,h,w]`.
fn denoiser() -> Result<Graph> {
    let mut unet = Unet { graph: Graph::new(), batch: Dim::BATCH };
    let (_, prediction) = unet.forward()?;
    unet.graph.output(prediction);
    Ok(unet.graph)
}

/// Forward or reverse mode: graph, input, vectors and output to the products.
type Mode = fn(&mut Graph, ValueId, ValueId, ValueId) -> std::result::Result<ValueId, ExportError>;

fn reverse(
    graph: &mut Graph,
    x: ValueId,
    vectors: ValueId,
    y: ValueId,
) -> std::result::Result<ValueId, ExportError> {
    pull_back(graph, x, vectors, y, &[])
}

/// `x [1,1,h,w]`, `t [1]`, `y [1]`, `vectors [k,1,h,w]` -> `products [k,1,h,w]`.
fn products(mode: Mode) -> Result<Graph> {
    let mut unet = Unet { graph: Graph::over("k"), batch: Dim::Fixed(1) };
    let (x, prediction) = unet.forward()?;
    let mut graph = unet.graph;
    let shape = Shape::led_by(Dim::BATCH, &[1, SIDE, SIDE]);
    let vectors = graph.input("vectors", Type::new(Dtype::F32, shape.clone()))?;
    let products = mode(&mut graph, x, vectors, prediction)?;
    let products = graph.add("products", Op::Reshape(shape), &[products])?;
    graph.output(products);
    Ok(graph)
}

/// The network in a graph, over so many images.
struct Unet {
    graph: Graph,
    batch: Dim,
}

type Built<T> = std::result::Result<T, GraphError>;

// === impl Unet ===

impl Unet {
    /// The images and the prediction.
    fn forward(&mut self) -> Built<(ValueId, ValueId)> {
        let x = self.input("x", Dtype::F32, &[1, SIDE, SIDE])?;
        let fine = self.conv("in", SAME, x)?; // [n, 4, 32, 32]
        let h = self.norm("norm1", 2, fine)?;
        let coarse = self.conv("down1", HALF, h)?; // [n, 6, 16, 16]
        let h = self.norm("norm2", 3, coarse)?;
        let h = self.conv("down2", HALF, h)?; // [n, 8, 8, 8]
        let told = self.told()?; // [n, 8, 1, 1]
        let h = self.add("conditioned", Op::Add, &[h, told])?;
        let h = self.norm("norm3", 4, h)?;
        let twice = (0..SIDE as i64 / 2).map(|i| i / 2).collect();
        let twice = self.graph.indices("up1.twice", &[SIDE / 2], twice)?;
        let h = self.add("up1.rows", Op::Gather { axis: 2 }, &[h, twice])?;
        let h = self.add("up1", Op::Gather { axis: 3 }, &[h, twice])?; // [n, 8, 16, 16]
        let h = self.add("joined", Op::Concat { axis: 1 }, &[h, coarse])?; // [n, 14, 16, 16]
        let h = self.conv("middle", SAME, h)?; // [n, 6, 16, 16]
        let h = self.norm("norm4", 3, h)?;
        let weight = self.weight("up2.weight")?;
        let up = Op::ConvTranspose { stride: HALF, extra: [1, 0] };
        let h = self.add("up2", up, &[h, weight])?; // [n, 4, 32, 32]
        let h = self.add("skipped", Op::Add, &[h, fine])?;
        Ok((x, self.conv("prediction", SAME, h)?))
    }

    /// What timestep and class say to every pixel: waves of the one, a row of a table for the other.
    fn told(&mut self) -> Built<ValueId> {
        let t = self.input("t", Dtype::F32, &[])?;
        let y = self.input("y", Dtype::I64, &[])?;
        let frequencies = self.graph.floats("frequencies", Dtype::F32, &[DEEP], frequencies())?;
        let t = self.reshape("t.column", &[1], t)?; // [n, 1]
        let angles = self.add("angles", Op::Mul, &[t, frequencies])?; // [n, 8]
        let waves = self.add("waves", Op::Sin, &[angles])?;
        let table = self.weight("class.weight")?;
        let class = self.add("class", Op::Gather { axis: 0 }, &[table, y])?; // [n, 8]
        let told = self.add("told", Op::Add, &[waves, class])?;
        self.reshape("told.image", &[DEEP, 1, 1], told)
    }

    fn conv(&mut self, name: &str, stride: Stride, x: ValueId) -> Built<ValueId> {
        let weight = self.weight(&format!("{name}.weight"))?;
        self.add(name, Op::Conv(stride), &[x, weight])
    }

    /// A group norm, then SiLU. The norm by what there is: a layer norm over each group's channels and pixels, then a scale and
    /// a shift a channel.
    fn norm(&mut self, name: &str, groups: usize, x: ValueId) -> Built<ValueId> {
        let shape = self.graph.ty(x).shape.clone();
        let &[_, Dim::Fixed(channels), Dim::Fixed(height), Dim::Fixed(width)] = shape.dims() else {
            unreachable!("images have channels, rows and columns: this is a bug");
        };
        let grouped = [groups, channels / groups * height * width];
        let x = self.reshape(&format!("{name}.groups"), &grouped, x)?;
        let x = self.add(&format!("{name}.normalised"), Op::LayerNorm { epsilon: EPSILON }, &[x])?;
        let mut x = self.reshape(&format!("{name}.image"), &[channels, height, width], x)?;
        for (part, op) in [("weight", Op::Mul), ("bias", Op::Add)] {
            let value = self.weight(&format!("{name}.{part}"))?;
            let column = Op::Reshape(Shape::new([channels, 1, 1]));
            let value = self.add(&format!("{name}.{part}.column"), column, &[value])?;
            x = self.add(&format!("{name}.{part}.applied"), op, &[x, value])?;
        }
        let gate = self.add(&format!("{name}.gate"), Op::Sigmoid, &[x])?;
        self.add(&format!("{name}.silu"), Op::Mul, &[x, gate])
    }

    fn weight(&mut self, name: &str) -> Built<ValueId> {
        let found = WEIGHTS.iter().find(|(known, _)| *known == name);
        let (_, shape) = found.expect("the table has every weight: this is a bug");
        self.graph.parameter(name, Type::new(Dtype::F32, Shape::new(shape.iter().copied())))
    }

    fn input(&mut self, name: &str, dtype: Dtype, rest: &[usize]) -> Built<ValueId> {
        self.graph.input(name, Type::new(dtype, Shape::led_by(self.batch, rest)))
    }

    fn reshape(&mut self, name: &str, rest: &[usize], x: ValueId) -> Built<ValueId> {
        self.add(name, Op::Reshape(Shape::led_by(self.batch, rest)), &[x])
    }

    fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Built<ValueId> {
        self.graph.add(name, op, inputs)
    }
}

/// Of the waves of the timestep, in radians.
fn frequencies() -> Vec<f32> {
    (1..=DEEP).map(|i| i as f32 / 100.0).collect()
}

// === libtorch ===

/// The same network by libtorch's own layers.
fn forward(weights: &WeightFile, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Tensor> {
    let weight = |name: &str| Ok::<_, Error>(weights.get(name)?.tensor());
    let conv = |name: &str, step: i64, x: &Tensor| -> Result<Tensor> {
        let weight = weight(&format!("{name}.weight"))?;
        Ok(x.f_conv2d(&weight, None::<&Tensor>, [step; 2], [1, 1], [1, 1], 1)?)
    };
    let norm = |name: &str, groups: i64, x: &Tensor| -> Result<Tensor> {
        let (scale, shift) = (weight(&format!("{name}.weight"))?, weight(&format!("{name}.bias"))?);
        let normalised = x.f_group_norm(groups, Some(scale), Some(shift), f64::from(EPSILON), false)?;
        Ok(normalised.f_silu()?)
    };
    let fine = conv("in", 1, x)?;
    let coarse = conv("down1", 2, &norm("norm1", 2, &fine)?)?;
    let waves = t.f_unsqueeze(1)?.f_mul(&Tensor::from_slice(&frequencies()))?.f_sin()?;
    let told = waves.f_add(&weight("class.weight")?.f_index_select(0, y)?)?;
    let h = conv("down2", 2, &norm("norm2", 3, &coarse)?)?;
    let h = norm("norm3", 4, &h.f_add(&told.f_unsqueeze(2)?.f_unsqueeze(3)?)?)?;
    let h = h.f_upsample_nearest2d([SIDE as i64 / 2; 2], None, None)?;
    let h = norm("norm4", 3, &conv("middle", 1, &Tensor::f_cat(&[h, coarse], 1)?)?)?;
    let up = weight("up2.weight")?;
    let h = h.f_conv_transpose2d(&up, None::<&Tensor>, [2, 2], [1, 1], [1, 0], 1, [1, 1])?;
    conv("prediction", 1, &h.f_add(&fine)?)
}

/// Its cases: a batch in which no two rows are alike, and products with the Jacobian at an image of a class.
fn cases(weights: &WeightFile) -> Result<Vec<Case>> {
    let images = |number: u32, n: usize| -> Result<Tensor> {
        let side = SIDE as i64;
        let values = noise::normal(10, number, n * SIDE * SIDE);
        Ok(Tensor::from_slice(&values).f_reshape([n as i64, 1, side, side])?)
    };
    let case = |name: &str, parts: &[(&str, &Tensor)]| Case {
        name: name.to_owned(),
        parts: parts.iter().map(|&(part, tensor)| (part.to_owned(), tensor.shallow_clone())).collect(),
    };
    let (x, vectors) = (images(0, ROWS)?, images(1, ROWS)?);
    let (t, y) = (Tensor::from_slice(&[0.5f32, 412.75, 999.0]), Tensor::from_slice(&[0i64, 4, 2]));
    let prediction = tch::no_grad(|| forward(weights, &x, &t, &y))?;
    let batch = case("batch3", &[("x", &x), ("t", &t), ("y", &y), ("prediction", &prediction)]);
    let at = images(2, 1)?.set_requires_grad(true);
    let (t, y) = (Tensor::from_slice(&[31.5f32]), Tensor::from_slice(&[3i64]));
    let [jvp, vjp] = golden::products(&forward(weights, &at, &t, &y)?, &at, &vectors)?;
    let at = at.detach();
    let [jvp, vjp] = [("jvp3", jvp), ("vjp3", vjp)].map(|(name, products)| {
        case(name, &[("x", &at), ("t", &t), ("y", &y), ("vectors", &vectors), ("products", &products)])
    });
    Ok(vec![batch, jvp, vjp])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::eval::evaluate;
    use super::*;

    #[test]
    fn the_graphs_mean_what_libtorch_computes() {
        let weights = weights().unwrap();
        let graphs = [denoiser().unwrap(), products(push_forward).unwrap(), products(reverse).unwrap()];
        for (case, graph) in cases(&weights).unwrap().into_iter().zip(&graphs) {
            let mut given: HashMap<String, Tensor> = case.parts.into_iter().collect();
            let expected = given.remove("prediction").or_else(|| given.remove("products")).unwrap();
            given.extend(WEIGHTS.map(|(name, _)| (name.to_owned(), weights.get(name).unwrap().tensor())));
            let got = evaluate(graph, &given).unwrap().remove(0);
            assert_eq!(got.size(), expected.size());
            let largest = |x: &Tensor| x.abs().max().double_value(&[]);
            // Roundings of f32, summed over a network.
            let error = largest(&(got - &expected)) / largest(&expected);
            assert!(largest(&expected) > 0.1 && error < 2e-5, "{}: {error}", case.name);
        }
    }

    #[test]
    fn all_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path()).unwrap(), 3);
        let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<_> = files.map(|name| name.into_string().unwrap()).collect();
        files.sort();
        let expected =
            ["denoiser.f32.onnx", "golden.safetensors", "jvp.f32.onnx", "vjp.f32.onnx", "weights.bin"];
        assert_eq!(files, expected);
    }
}
