//! `NAME.attention`, `NAME.jvp` and `NAME.vjp`: the graphs of a network's insides as the package has them. They are studies:
//! their calls have the turns that images leave, one row of attention or a few vectors of a product each.

use std::collections::VecDeque;

use super::denoiser::{self, checked};
use super::port::{Inputs, Lead, moderate};
use super::{Datatype, Port, Tensor, Values};
use crate::analysis::{Study, StudyError};
use crate::batcher::study::{Ask, Findings, Like};
use crate::engine::insides::{Inside, Look, Wanted};
use crate::engine::{Provider, StepBatch};
use crate::error::{ApiError, Cause};
use crate::model::Card;

/// Vectors of one call: with their derivatives they take about as long as a tick of images.
const VECTORS: usize = 4;

/// The calls of one request, and what they brought.
#[derive(Debug)]
pub struct InferStudy {
    looks: VecDeque<Look>,
    /// The outputs that are wanted, and one row of each.
    outputs: Vec<Output>,
    rows: usize,
}

/// An output as it fills up.
#[derive(Debug)]
struct Output {
    port: Port,
    values: Vec<f32>,
}

/// What goes in: as the network itself, and for a product the vectors, of one image.
pub fn inputs(inside: Inside, card: &Card) -> Vec<Port> {
    let ports = denoiser::inputs(card);
    if inside == Inside::Attention {
        return ports;
    }
    let mut ports: Vec<_> = ports.into_iter().map(|port| port.led_by(Lead::One)).collect();
    ports.push(Port::new("vectors", Datatype::Fp32, &card.shape()));
    ports
}

/// What comes out: the prediction and `attention.L` of every layer, tiles as the graph has them; or the products.
pub fn outputs(inside: Inside, card: &Card) -> Vec<Port> {
    if inside != Inside::Attention {
        return vec![Port::new("products", Datatype::Fp32, &card.shape())];
    }
    let config = &card.manifest.config;
    let plans = inside.graph(&card.manifest, Provider::Cuda).map_or(&[][..], |graph| &graph.plan);
    let mut ports = denoiser::outputs(card);
    for (i, (window, plan)) in config.windows.iter().zip(plans).enumerate() {
        let (tiles, queries, keys) = window.tile_counts(config.grid(), *plan);
        ports.push(Port::new(
            format!("attention.{i}"),
            Datatype::Fp32,
            &[config.heads, tiles, queries, keys],
        ));
    }
    ports
}

/// The rows of a request as a study, of which these outputs are wanted and at most `limit` bytes come.
pub fn study(
    inside: Inside,
    card: &Card,
    mut inputs: Inputs,
    wanted: &[String],
    limit: usize,
) -> Result<InferStudy, ApiError> {
    let rows = inputs.rows();
    let ports: Vec<_> = outputs(inside, card)
        .into_iter()
        .filter(|port| wanted.iter().any(|name| *name == port.name))
        .collect();
    let row: usize = ports.iter().map(|port| port.row.iter().product::<usize>() * size_of::<f32>()).sum();
    let bytes = row.saturating_mul(rows);
    if bytes > limit {
        let message = format!(
            "the answer would have {bytes} bytes, more than {limit}, the most there may be (`--study-limit`); ask for fewer \
             rows ({rows} now) or fewer `outputs`"
        );
        return Err(ApiError::new(Cause::InvalidValue, message).param("outputs"));
    }
    let wanted: Vec<_> = ports.iter().map(|port| Wanted::all(&port.name)).collect();
    let shape = card.shape();
    let mut looks = VecDeque::new();
    if inside == Inside::Attention {
        for (x, t, y) in checked(card, &mut inputs)? {
            let mut batch = StepBatch::new(shape);
            batch.push(&x, t, y);
            looks.push_back(Look { inside, batch, vectors: Vec::new(), wanted: wanted.clone() });
        }
    } else {
        let vectors = inputs.rows_of("vectors").unwrap_or_default();
        vectors.iter().enumerate().try_for_each(|(row, vector)| moderate("vectors", row, vector))?;
        let mut batch = StepBatch::new(shape);
        for (x, t, y) in checked(card, &mut inputs)? {
            batch.push(&x, t, y);
        }
        for vectors in vectors.chunks(VECTORS) {
            let (batch, wanted) = (batch.clone(), wanted.clone());
            looks.push_back(Look { inside, batch, vectors: vectors.concat(), wanted });
        }
    }
    let outputs = ports.into_iter().map(|port| Output { port, values: Vec::new() }).collect();
    Ok(InferStudy { looks, outputs, rows })
}

impl Study for InferStudy {
    const KIND: &'static str = "infer";
    type Findings = Vec<Tensor>;

    fn left(&self) -> usize {
        self.looks.len()
    }

    fn like(&self) -> Like {
        self.looks.front().map_or(Like::denoiser(1), Like::look)
    }

    fn next(&mut self) -> Option<Ask> {
        self.looks.pop_front().map(Ask::Look)
    }

    fn take(&mut self, findings: Findings) -> Result<(), StudyError> {
        if findings.len() != self.outputs.len() {
            return Err(StudyError::Shape(format!("{} outputs of {}", findings.len(), self.outputs.len())));
        }
        for (output, values) in self.outputs.iter_mut().zip(findings) {
            if values.iter().any(|value| !value.is_finite()) {
                return Err(StudyError::NotFinite);
            }
            output.values.extend(values);
        }
        Ok(())
    }

    fn finish(self) -> Vec<Tensor> {
        let rows = self.rows;
        let tensor = |Output { port, values }: Output| Tensor {
            shape: port.shape(rows),
            name: port.name.into_owned(),
            values: Values::F32(values),
        };
        self.outputs.into_iter().map(tensor).collect()
    }
}
