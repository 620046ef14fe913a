//! An inference response: JSON alone, or JSON with those outputs behind it as bytes that were asked for so.

use serde::Serialize;
use utoipa::ToSchema;

use super::{Datatype, Tensor, VERSION, Values};
use crate::engine::check::DeterminismClass;

/// The answer to an inference request. It is read as the protocol says, or printed as JSON.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2InferResponse)]
pub struct InferResponse<'a> {
    /// The model that was asked.
    #[schema(example = "fashion-dit.sampler")]
    pub model_name: &'a str,
    /// `1`.
    #[schema(example = "1")]
    pub model_version: &'static str,
    /// The request's `id`, where it had one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// About the answer.
    pub parameters: ResponseParameters<'a>,
    /// The outputs, in the order that was asked for, or in that of the metadata.
    pub outputs: Vec<OutputValue<'a>>,
}

/// Parameters of a response.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ResponseParameters)]
pub struct ResponseParameters<'a> {
    /// The model's identity: the sha256 of its manifest.
    pub digest: &'a str,
    /// Whether the same row gives the same numbers whatever else the server does, as measured at load.
    pub determinism: DeterminismClass,
}

/// An output.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2OutputTensor)]
pub struct OutputValue<'a> {
    /// Its name.
    #[schema(example = "images")]
    pub name: &'a str,
    /// The type of its elements.
    #[schema(value_type = Datatype)]
    pub datatype: &'static str,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// About the output, where it is sent as bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<SizeParameter>,
    /// Its elements, flat and row-major, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    pub data: Option<&'a Values>,
    /// The elements that follow the JSON.
    #[serde(skip)]
    #[schema(ignore)]
    tail: Option<&'a Values>,
}

/// How many bytes behind the JSON are an output's.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2SizeParameter)]
pub struct SizeParameter {
    /// Bytes.
    pub binary_data_size: usize,
}

/// A response's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The bytes.
    pub body: Vec<u8>,
    /// How many of them are the JSON, where there are others.
    pub head_length: Option<usize>,
}

// === impl InferResponse ===

impl<'a> InferResponse<'a> {
    /// An answer without outputs yet.
    pub fn new(model_name: &'a str, id: Option<&'a str>, parameters: ResponseParameters<'a>) -> Self {
        Self { model_name, model_version: VERSION, id, parameters, outputs: Vec::new() }
    }

    /// Adds an output, as bytes or not.
    pub fn push(&mut self, tensor: &'a Tensor, binary: bool) {
        let values = &tensor.values;
        self.outputs.push(OutputValue {
            name: &tensor.name,
            datatype: values.datatype().as_str(),
            shape: &tensor.shape,
            parameters: binary.then(|| SizeParameter { binary_data_size: values.binary_size() }),
            data: (!binary).then_some(values),
            tail: binary.then_some(values),
        });
    }

    /// The body. Errors: values in JSON that JSON cannot hold.
    pub fn encode(&self) -> serde_json::Result<Encoded> {
        let mut body = serde_json::to_vec(self)?;
        let length = body.len();
        let tails = || self.outputs.iter().filter_map(|output| output.tail);
        body.reserve_exact(tails().map(Values::binary_size).sum());
        tails().for_each(|values| values.write_binary(&mut body));
        Ok(Encoded { head_length: tails().next().map(|_| length), body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: ResponseParameters<'_> =
        ResponseParameters { digest: "d", determinism: DeterminismClass::Bitwise };

    #[test]
    fn outputs_are_bytes_or_json_each_as_asked() {
        let a = Tensor { name: "a".to_owned(), shape: vec![2], values: Values::U8(vec![1, 2]) };
        let b = Tensor { name: "b".to_owned(), shape: vec![1, 1], values: Values::F32(vec![0.5]) };
        let mut mixed = InferResponse::new("m", Some("7"), ABOUT);
        mixed.push(&a, true);
        mixed.push(&b, false);
        let encoded = mixed.encode().unwrap();
        let (head, tail) = encoded.body.split_at(encoded.head_length.unwrap());
        assert_eq!(tail, [1, 2]);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(head).unwrap(),
            serde_json::json!({
                "model_name": "m", "model_version": "1", "id": "7",
                "parameters": {"digest": "d", "determinism": "bitwise"},
                "outputs": [
                    {"name": "a", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
                    {"name": "b", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
                ],
            })
        );
        let mut plain = InferResponse::new("m", None, ABOUT);
        plain.push(&b, false);
        let encoded = plain.encode().unwrap();
        assert_eq!(encoded.head_length, None);
        assert!(!String::from_utf8(encoded.body).unwrap().contains("\"id\""));
    }

    #[test]
    fn what_json_cannot_hold_goes_as_bytes_only() {
        let nan = Tensor { name: "a".to_owned(), shape: vec![1], values: Values::F32(vec![f32::NAN]) };
        let encode = |binary| {
            let mut response = InferResponse::new("m", None, ABOUT);
            response.push(&nan, binary);
            response.encode()
        };
        assert!(encode(false).is_err());
        assert!(encode(true).is_ok());
    }
}
