//! `NAME`: the network as the package has it, `x, t, y -> prediction`, one call for each row, beside the images that
//! are being drawn.

use windowpane_diffusion::error::number;

use super::{
    Datatype, Port, Tensor, Values,
    port::{Inputs, moderate},
};
use crate::batcher::Sample;
use crate::error::ApiError;
use crate::model::Card;
use crate::sampler::{Evaluate, Unit};

/// What goes in: `x`, `t`, and `y` where the model has classes, which is "no class" unless given.
pub fn inputs(card: &Card) -> Vec<Port> {
    let integers = &[Datatype::Int32, Datatype::Uint32, Datatype::Uint64];
    vec![
        Port::new("x", Datatype::Fp32, &card.shape()),
        Port::new("t", Datatype::Fp32, &[]).also(&[Datatype::Fp64]),
        Port::new("y", Datatype::Int64, &[]).also(integers).optional(),
    ]
}

/// What comes out: `prediction`, which has twice the channels of `x` where the model predicts variances too.
pub fn outputs(card: &Card) -> Vec<Port> {
    let [_, height, width] = card.shape();
    vec![Port::new("prediction", Datatype::Fp32, &[card.manifest.config.out_channels(), height, width])]
}

/// The rows of a request, as work.
pub fn units(card: &Card, mut inputs: Inputs) -> Result<Vec<Unit>, ApiError> {
    let rows = checked(card, &mut inputs)?.into_iter();
    Ok(rows.map(|(x, t, y)| Unit::Evaluate(Evaluate::new(x, t, y))).collect())
}

/// Images, timesteps and labels, row by row, as the network takes them.
pub fn checked(card: &Card, inputs: &mut Inputs) -> Result<Vec<(Vec<f32>, f32, i64)>, ApiError> {
    let null = card.manifest.config.null_class() as u64;
    let last = (card.schedule.len() - 1) as f64;
    let x = inputs.rows_of("x").unwrap_or_default();
    let t = inputs.reals("t").unwrap_or_default();
    let y = inputs.naturals("y").unwrap_or_else(|| Ok(vec![null; x.len()]))?;
    let mut rows = Vec::with_capacity(x.len());
    for (row, ((x, t), y)) in x.into_iter().zip(t).zip(y).enumerate() {
        moderate("x", row, &x)?;
        if !(0.0..=last).contains(&t) {
            let got = format!("{} at row {row}", number(t));
            return Err(ApiError::invalid(
                "inputs.t",
                got,
                format!("0 to {}, the schedule's last", number(last)),
            ));
        }
        if y > null {
            let expected = format!("0 to {null}, which is no class");
            return Err(ApiError::invalid("inputs.y", format!("{y} at row {row}"), expected));
        }
        rows.push((x, t as f32, y as i64));
    }
    Ok(rows)
}

/// The predictions as the output.
pub fn answer(card: &Card, predictions: &[Sample]) -> Vec<Tensor> {
    let [port] = <[Port; 1]>::try_from(outputs(card)).expect("there is one output; this is a bug");
    vec![Tensor {
        name: port.name.clone().into_owned(),
        shape: port.shape(predictions.len()),
        values: Values::F32(predictions.iter().flat_map(|row| &row.values).copied().collect()),
    }]
}
