//! An inference request: JSON alone, or JSON (the head) with the tensors behind it as bytes (the tail). Everything that
//! can be checked without a model is checked here, lengths before contents.

pub mod head;

use std::collections::BTreeSet;

use super::{Datatype, Tensor, Values, data};
use crate::error::{ApiError, Cause, words};
use head::{Head, InputTensor};

/// Inputs of a request, and outputs: more than any model here has.
const MAX_TENSORS: usize = 64;

/// Dimensions of a tensor: more than any tensor here has.
const MAX_RANK: usize = 8;

/// The header that tells how long the head is.
pub const HEAD_LENGTH: &str = "inference-header-content-length";

/// A request that holds together; whether it fits a model is still to be seen.
#[derive(Debug, Clone, PartialEq)]
pub struct InferRequest {
    /// The client's name for it, sent back.
    pub id: Option<String>,
    /// Microseconds that it may take.
    pub timeout: Option<u64>,
    /// Whether it insists on the same bits in any company.
    pub reproducible: Option<bool>,
    /// The inputs, their names different.
    pub inputs: Vec<Tensor>,
    /// The outputs it asks for, their names different; none is all of them.
    pub outputs: Vec<Wanted>,
    /// Whether an output that does not say is sent as bytes.
    pub binary: bool,
}

/// An output that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether it is sent as bytes.
    pub binary: bool,
}

// === impl InferRequest ===

impl InferRequest {
    /// Reads a body whose head has this length; without one, the body is JSON and nothing else.
    pub fn parse(body: &[u8], head_length: Option<usize>) -> Result<Self, ApiError> {
        let (json, tail) = match head_length {
            None => (body, &[][..]),
            Some(0) => {
                let message = format!(
                    "`{HEAD_LENGTH}` is 0, a request of bytes alone; expected the length of the JSON before the tensors"
                );
                return Err(ApiError::new(Cause::Unsupported, message).param(HEAD_LENGTH));
            }
            Some(length) => body.split_at_checked(length).ok_or_else(|| {
                let expected = format!("at most the body's {} bytes", body.len());
                ApiError::invalid(HEAD_LENGTH, length, expected)
            })?,
        };
        let head = read_head(json)?;
        let parameters = head.parameters.unwrap_or_default();
        parameters.check()?;
        counted("inputs", head.inputs.len(), 1)?;
        let wanted = head.outputs.unwrap_or_default();
        counted("outputs", wanted.len(), 0)?;
        distinct("inputs", head.inputs.iter().map(|input| &*input.name))?;
        distinct("outputs", wanted.iter().map(|output| &*output.name))?;
        let binary = parameters.binary_data_output.unwrap_or(false);
        let outputs = wanted.into_iter().map(|output| {
            output.check()?;
            let own = output.parameters.and_then(|parameters| parameters.binary_data);
            Ok(Wanted { name: output.name.into_owned(), binary: own.unwrap_or(binary) })
        });
        Ok(Self {
            id: head.id.map(Into::into),
            timeout: parameters.timeout,
            reproducible: parameters.reproducible,
            outputs: outputs.collect::<Result<_, ApiError>>()?,
            inputs: tensors(head.inputs, tail)?,
            binary,
        })
    }
}

/// The head. Bad syntax is malformed, a wrong field is invalid; the parser says where.
fn read_head(json: &[u8]) -> Result<Head<'_>, ApiError> {
    // Serde would read an array as a struct's fields in order, which nobody means.
    if json.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(ApiError::new(Cause::MalformedBody, "the body is not a JSON object"));
    }
    serde_json::from_slice(json).map_err(|error| words::refused(&error))
}

fn counted(what: &str, got: usize, least: usize) -> Result<(), ApiError> {
    if (least..=MAX_TENSORS).contains(&got) {
        return Ok(());
    }
    Err(ApiError::invalid(what, format!("a list of {got}"), format!("{least} to {MAX_TENSORS}")))
}

fn distinct<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), ApiError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ApiError::invalid(what, format!("`{name}` twice"), "each name once"));
        }
    }
    Ok(())
}

/// The tensors, from their `data` or from their part of the tail, which they must use up.
fn tensors(inputs: Vec<InputTensor<'_>>, tail: &[u8]) -> Result<Vec<Tensor>, ApiError> {
    let mut stated = 0_usize;
    for input in &inputs {
        let size = input.binary_size()?.unwrap_or(0);
        stated = stated.checked_add(size).filter(|&sum| sum <= tail.len()).ok_or_else(|| {
            let expected =
                format!("no more, with the inputs before it, than the {} bytes behind the JSON", tail.len());
            ApiError::invalid(&input.place("parameters.binary_data_size"), size, expected)
        })?;
    }
    if stated != tail.len() {
        let message = format!(
            "{} bytes follow the JSON, expected {stated}: the sum of every `binary_data_size`",
            tail.len()
        );
        return Err(ApiError::new(Cause::InvalidValue, message).param("inputs"));
    }
    let mut rest = tail;
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let own;
        (own, rest) = rest.split_at(input.binary_size()?.unwrap_or(0));
        tensors.push(tensor(input, own)?);
    }
    Ok(tensors)
}

/// One tensor; `bytes` are its part of the tail.
fn tensor(input: InputTensor<'_>, bytes: &[u8]) -> Result<Tensor, ApiError> {
    let datatype = datatype(&input)?;
    let (shape, count) = shape(&input)?;
    let values = match (input.data, input.binary_size()?) {
        (Some(data), None) => data::parse(datatype, &shape, data.get()).map_err(|error| {
            let place = input.place("data");
            ApiError::new(Cause::InvalidValue, format!("`{place}`: {error}")).param(place)
        })?,
        (None, Some(_)) => Values::from_binary(datatype, count, bytes).map_err(|error| {
            let message =
                format!("`inputs.{}` is {error}, as {} of shape {shape:?}", input.name, datatype.as_str());
            ApiError::new(Cause::InvalidValue, message).param(format!("inputs.{}", input.name))
        })?,
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                &input.place("data"),
                "there beside `binary_data_size`",
                "one of the two",
            ));
        }
        (None, None) => {
            return Err(ApiError::invalid(&input.place("data"), "missing", "a list, or `binary_data_size`"));
        }
    };
    Ok(Tensor { name: input.name.into_owned(), shape, values })
}

fn datatype(input: &InputTensor<'_>) -> Result<Datatype, ApiError> {
    if let Some(datatype) = Datatype::parse(&input.datatype) {
        return Ok(datatype);
    }
    let place = input.place("datatype");
    let half = matches!(&*input.datatype, "FP16" | "BF16");
    if half && input.data.is_some() {
        let message = format!("`{place}` is {}, which has no form in JSON, expected FP32", input.datatype);
        return Err(ApiError::new(Cause::InvalidValue, message).param(place));
    }
    let names = Datatype::ALL.map(Datatype::as_str).join(", ");
    let got: String = input.datatype.chars().take(32).collect();
    Err(ApiError::invalid(&place, format!("`{got}`"), format!("one of {names}")))
}

/// The shape, and how many elements it has.
fn shape(input: &InputTensor<'_>) -> Result<(Vec<usize>, usize), ApiError> {
    let place = input.place("shape");
    if !(1..=MAX_RANK).contains(&input.shape.len()) {
        let got = format!("a list of {}", input.shape.len());
        return Err(ApiError::invalid(&place, got, format!("1 to {MAX_RANK} dimensions")));
    }
    let dims = input.shape.iter().map(|&dim| {
        let known = usize::try_from(dim).ok().filter(|&dim| dim > 0);
        known
            .ok_or_else(|| ApiError::invalid(&place, format!("{:?}", input.shape), "dimensions of 1 or more"))
    });
    let dims = dims.collect::<Result<Vec<_>, _>>()?;
    let count = dims.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim));
    match count {
        Some(count) => Ok((dims, count)),
        None => Err(ApiError::invalid(&place, format!("{:?}", input.shape), "fewer than 2^64 elements")),
    }
}

#[cfg(test)]
mod tests;
