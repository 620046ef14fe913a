//! `NAME.sampler`: images from seeds. What a request to `/v1/images/generations` says once, a tensor says for each row:
//! one call carries many different samples. Row i is the image of that request with its values, bit for bit.

use std::sync::Arc;

use super::{
    Datatype, Port, Tensor, Values,
    port::{Inputs, moderate},
};
use crate::batcher::Sample;
use crate::encode::Picture;
use crate::error::ApiError;
use crate::extract::Accept;
use crate::model::Card;
use crate::routes::images::ImageRequest;
use crate::sampler::{Trajectory, Unit};
use crate::spec::{ClassRef, MAX_SEED, Order, Seed};

const INTEGERS: &[Datatype] = &[Datatype::Int32, Datatype::Int64, Datatype::Uint32, Datatype::Uint64];

/// What goes in: a seed, and a class where the model has classes; the rest has the package's defaults.
pub fn inputs(card: &Card) -> Vec<Port> {
    let number = |name, datatype| Port::new(name, datatype, &[]).also(INTEGERS).optional();
    let real = |name| Port::new(name, Datatype::Fp32, &[]).also(&[Datatype::Fp64]).optional();
    let mut ports = vec![Port::new("seed", Datatype::Int64, &[]).also(INTEGERS)];
    if !card.manifest.classes.is_empty() {
        let also = &[Datatype::Int32, Datatype::Uint32, Datatype::Uint64, Datatype::Bytes];
        ports.push(Port::new("class", Datatype::Int64, &[]).also(also));
    }
    ports.extend([
        number("steps", Datatype::Int32),
        real("guidance"),
        real("eta"),
        Port::new("sampler", Datatype::Bytes, &[]).optional(),
        Port::new("x_T", Datatype::Fp32, &card.shape()).optional(),
    ]);
    ports
}

/// What comes out: `images` to look at, 0 to 255, and `samples` to count with, in the model's own range.
pub fn outputs(card: &Card) -> Vec<Port> {
    let [channels, height, width] = card.shape();
    vec![
        Port::new("images", Datatype::Uint8, &[height, width, channels]),
        Port::new("samples", Datatype::Fp32, &card.shape()),
    ]
}

/// The rows of a request, as work. `x_T` is where a row starts instead of from its seed's noise.
pub fn units(card: &Card, mut inputs: Inputs) -> Result<Vec<Unit>, ApiError> {
    let rows = inputs.rows();
    let mut requests = vec![ImageRequest::default(); rows];
    for (row, seed) in inputs.naturals("seed").unwrap_or_else(|| Ok(Vec::new()))?.into_iter().enumerate() {
        if seed > MAX_SEED {
            let got = format!("{seed} at row {row}");
            return Err(ApiError::invalid("inputs.seed", got, format!("0 to {MAX_SEED}")));
        }
        requests[row].seed = Some(Seed(seed));
    }
    each(&mut requests, inputs.strings("class").transpose()?, |request, name| {
        request.class = Some(ClassRef::Name(name));
    });
    each(&mut requests, inputs.naturals("class").transpose()?, |request, index| {
        request.class = Some(ClassRef::Index(index));
    });
    each(&mut requests, inputs.naturals("steps").transpose()?, |request, steps| request.steps = Some(steps));
    each(&mut requests, inputs.reals("guidance"), |request, scale| request.guidance_scale = Some(scale));
    each(&mut requests, inputs.reals("eta"), |request, eta| request.eta = Some(eta));
    each(&mut requests, inputs.strings("sampler").transpose()?, |request, name| request.sampler = Some(name));
    let mut starts = vec![None; rows];
    let noise = inputs.rows_of("x_T");
    noise.iter().flatten().enumerate().try_for_each(|(row, x)| moderate("x_T", row, x))?;
    each(&mut starts, noise, |start, x| *start = Some(x));
    let elements = card.shape().iter().product();
    let mut units = Vec::with_capacity(rows);
    for (row, (request, start)) in requests.iter().zip(starts).enumerate() {
        let order = Order::resolve(request, &Accept::default(), card).map_err(|error| of_row(error, row))?;
        for &seed in &order.seeds {
            let image = Trajectory::new(Arc::clone(&order.spec), seed, elements);
            units.push(Unit::Sample(match &start {
                Some(x) => image.from_x(x.clone()),
                None => image,
            }));
        }
    }
    Ok(units)
}

/// Gives each row its value, where there are values.
fn each<R, T>(rows: &mut [R], values: Option<Vec<T>>, set: impl Fn(&mut R, T)) {
    rows.iter_mut().zip(values.into_iter().flatten()).for_each(|(row, value)| set(row, value));
}

/// An error about a field of an image, as one about a row of a tensor.
fn of_row(mut error: ApiError, row: usize) -> ApiError {
    let renamed = |text: String| text.replace("guidance_scale", "guidance");
    error.message = format!("row {row}: {}", renamed(error.message));
    error.param = error.param.map(|param| format!("inputs.{}", renamed(param)));
    error
}

/// The images as the outputs.
pub fn answer(card: &Card, samples: &[Sample]) -> Vec<Tensor> {
    let [images, values] =
        <[Port; 2]>::try_from(outputs(card)).expect("there are two outputs; this is a bug");
    let config = &card.manifest.config;
    let picture = |sample: &Sample| {
        let (colour, range) = (card.colour, card.manifest.value_range);
        Picture::from_planar(&sample.values, colour, config.height, config.width, range).pixels
    };
    let planar = samples.iter().flat_map(|sample| &sample.values).copied().collect();
    let tensor = |port: &Port, values| Tensor {
        name: port.name.clone().into_owned(),
        shape: port.shape(samples.len()),
        values,
    };
    vec![
        tensor(&images, Values::U8(samples.iter().flat_map(picture).collect())),
        tensor(&values, Values::F32(planar)),
    ]
}
