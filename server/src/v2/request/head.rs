//! The JSON of an inference request, as it is written. Unknown fields are refused; fields that other servers know and
//! this one does not are refused by what they would mean.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::call::MAX_TIMEOUT_MS;
use crate::error::ApiError;
use crate::v2::Datatype;

/// An inference request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2InferRequest, example = json!({
    "inputs": [
        {"name": "seed", "shape": [2], "datatype": "INT64", "data": [7, 8]},
        {"name": "class", "shape": [2], "datatype": "BYTES", "data": ["sneaker", "ankle boot"]},
        {"name": "steps", "shape": [2], "datatype": "INT32", "data": [10, 20]}
    ],
    "outputs": [{"name": "images"}]
}))]
pub struct Head<'a> {
    /// The client's name for the request, sent back.
    #[serde(borrow)]
    #[schema(value_type = Option<String>)]
    pub id: Option<Cow<'a, str>>,
    /// About the request.
    pub parameters: Option<RequestParameters>,
    /// The inputs: those of the model's metadata, each once; optional ones may be left out.
    #[serde(borrow)]
    #[schema(max_items = 16, min_items = 1)]
    pub inputs: Vec<InputTensor<'a>>,
    /// The outputs that are wanted; all of them, unless given.
    #[schema(max_items = 16)]
    pub outputs: Option<Vec<OutputTensor<'a>>>,
}

/// Parameters of a request.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2RequestParameters)]
pub struct RequestParameters {
    /// Whether outputs that do not say so themselves are sent as bytes behind the JSON.
    #[schema(default = false)]
    pub binary_data_output: Option<bool>,
    /// Microseconds that the request may take, at most an hour; counted in whole milliseconds.
    #[schema(minimum = 1, maximum = 3_600_000_000_u64)]
    pub timeout: Option<u64>,
    /// Whether the numbers must be the same bits in any company; refused where the model cannot promise that.
    #[schema(default = false)]
    pub reproducible: Option<bool>,
    #[schema(ignore)]
    priority: Option<IgnoredAny>,
    #[schema(ignore)]
    sequence_id: Option<IgnoredAny>,
    #[schema(ignore)]
    sequence_start: Option<IgnoredAny>,
    #[schema(ignore)]
    sequence_end: Option<IgnoredAny>,
}

/// An input.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2InputTensor)]
pub struct InputTensor<'a> {
    /// Its name.
    #[serde(borrow)]
    #[schema(value_type = String, example = "seed")]
    pub name: Cow<'a, str>,
    /// Its dimensions; the first is the number of rows.
    #[schema(example = json!([2]), max_items = 8, min_items = 1)]
    pub shape: Vec<i64>,
    /// The type of its elements.
    #[schema(value_type = Datatype)]
    pub datatype: Cow<'a, str>,
    /// About the input.
    pub parameters: Option<InputParameters>,
    /// Its elements, flat or nested as the shape says, row-major; left out where they are bytes behind the JSON.
    #[serde(borrow)]
    #[schema(value_type = Option<Vec<serde_json::Value>>, example = json!([7, 8]))]
    pub data: Option<&'a RawValue>,
}

/// Parameters of an input.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2InputParameters)]
pub struct InputParameters {
    /// Bytes of the input behind the JSON.
    pub binary_data_size: Option<u64>,
    #[schema(ignore)]
    shared_memory_region: Option<IgnoredAny>,
    #[schema(ignore)]
    shared_memory_byte_size: Option<IgnoredAny>,
    #[schema(ignore)]
    shared_memory_offset: Option<IgnoredAny>,
}

/// An output that is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2WantedOutput)]
pub struct OutputTensor<'a> {
    /// Its name.
    #[serde(borrow)]
    #[schema(value_type = String, example = "images")]
    pub name: Cow<'a, str>,
    /// About the output.
    pub parameters: Option<OutputParameters>,
}

/// Parameters of an output.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
#[schema(as = V2OutputParameters)]
pub struct OutputParameters {
    /// Whether it is sent as bytes behind the JSON.
    pub binary_data: Option<bool>,
    #[schema(ignore)]
    classification: Option<IgnoredAny>,
    #[schema(ignore)]
    shared_memory_region: Option<IgnoredAny>,
    #[schema(ignore)]
    shared_memory_byte_size: Option<IgnoredAny>,
    #[schema(ignore)]
    shared_memory_offset: Option<IgnoredAny>,
}

// === impl RequestParameters ===

impl RequestParameters {
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.priority.is_some() {
            return Err(unsupported("parameters.priority", "no priority; every caller has the same turn"));
        }
        if self.sequence_id.is_some() || self.sequence_start.is_some() || self.sequence_end.is_some() {
            return Err(unsupported("parameters.sequence_id", "no sequences; a request stands alone"));
        }
        let most = MAX_TIMEOUT_MS * 1000;
        match self.timeout {
            Some(got) if !(1..=most).contains(&got) => {
                Err(ApiError::invalid("parameters.timeout", got, format!("1 to {most} microseconds")))
            }
            _ => Ok(()),
        }
    }
}

// === impl InputTensor ===

impl InputTensor<'_> {
    /// The path of a field of this input, for an error.
    pub(super) fn place(&self, field: &str) -> String {
        format!("inputs.{}.{field}", self.name)
    }

    /// Bytes of the tail that belong to it.
    pub(super) fn binary_size(&self) -> Result<Option<usize>, ApiError> {
        let Some(parameters) = &self.parameters else { return Ok(None) };
        let shared = [
            parameters.shared_memory_region.is_some(),
            parameters.shared_memory_byte_size.is_some(),
            parameters.shared_memory_offset.is_some(),
        ];
        if shared.contains(&true) {
            return Err(unsupported(&self.place("parameters.shared_memory_region"), SHARED));
        }
        // A size beyond usize is beyond every body.
        Ok(parameters.binary_data_size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)))
    }
}

// === impl OutputTensor ===

impl OutputTensor<'_> {
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let Some(parameters) = &self.parameters else { return Ok(()) };
        let place = |field: &str| format!("outputs.{}.parameters.{field}", self.name);
        if parameters.classification.is_some() {
            return Err(unsupported(
                &place("classification"),
                "no classification; an output is sent as it is",
            ));
        }
        let shared = [
            parameters.shared_memory_region.is_some(),
            parameters.shared_memory_byte_size.is_some(),
            parameters.shared_memory_offset.is_some(),
        ];
        if shared.contains(&true) {
            return Err(unsupported(&place("shared_memory_region"), SHARED));
        }
        Ok(())
    }
}

/// Why tensors come with the request.
const SHARED: &str = "no shared memory; tensors come with the request, as JSON or as bytes";

fn unsupported(place: &str, supported: &str) -> ApiError {
    ApiError::unsupported(place, "is given and", supported)
}
