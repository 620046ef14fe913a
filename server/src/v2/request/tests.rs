//! Bodies that are requests, bodies that are not with the words of each refusal, and bodies of any bytes at all.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A body of this head and this tail, and the head's length.
fn body(head: &serde_json::Value, tail: &[u8]) -> (Vec<u8>, Option<usize>) {
    let head = head.to_string().into_bytes();
    let length = head.len();
    ([&head, tail].concat(), Some(length))
}

fn refused(body: &[u8], head_length: Option<usize>) -> (Cause, String, String) {
    let error = InferRequest::parse(body, head_length).unwrap_err();
    (error.cause, error.param.unwrap_or_default(), error.message)
}

#[test]
fn json_alone_is_read() {
    let text = json!({
        "id": "42",
        "parameters": {"binary_data_output": true, "timeout": 1500, "reproducible": true},
        "inputs": [
            {"name": "a", "shape": [2, 1], "datatype": "FP32", "data": [[1], [2.5]], "parameters": {}},
            {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["ü"]},
        ],
        "outputs": [{"name": "x"}, {"name": "y", "parameters": {"binary_data": false}}],
    });
    let request = InferRequest::parse(text.to_string().as_bytes(), None).unwrap();
    let tensor =
        |name: &str, shape: &[usize], values| Tensor { name: name.to_owned(), shape: shape.to_vec(), values };
    let wanted = |name: &str, binary| Wanted { name: name.to_owned(), binary };
    assert_eq!(
        request,
        InferRequest {
            id: Some("42".to_owned()),
            timeout: Some(1500),
            reproducible: Some(true),
            inputs: vec![
                tensor("a", &[2, 1], Values::F32(vec![1.0, 2.5])),
                tensor("b", &[1], Values::Bytes(vec!["ü".into()])),
            ],
            outputs: vec![wanted("x", true), wanted("y", false)],
            binary: true,
        }
    );
}

#[test]
fn tensors_behind_the_json_are_read_in_order_and_mixed_with_others() {
    let (bytes, length) = body(
        &json!({"inputs": [
            {"name": "a", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}},
            {"name": "b", "shape": [2], "datatype": "INT64", "data": [3, 4]},
            {"name": "c", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}},
        ]}),
        b"\x07\0\0\0\x02\0\0\0hi\0\0\0\0",
    );
    let request = InferRequest::parse(&bytes, length).unwrap();
    let values: Vec<_> = request.inputs.into_iter().map(|input| input.values).collect();
    assert_eq!(
        values,
        [Values::I32(vec![7]), Values::I64(vec![3, 4]), Values::Bytes(vec![b"hi".to_vec(), vec![]])]
    );
    assert!(!request.binary && request.outputs.is_empty() && request.id.is_none());
}

/// What a head with this one input is told; `tail` bytes follow.
fn of_input(input: &serde_json::Value, tail: &[u8]) -> (Cause, String, String) {
    let (bytes, length) = body(&json!({"inputs": [input]}), tail);
    refused(&bytes, length)
}

#[test]
fn a_wrong_input_is_told_what_is_wrong_with_it() {
    use Cause::{InvalidValue as I, Unsupported as U};
    let input = |shape: serde_json::Value, datatype: &str, more: serde_json::Value| {
        let mut input = json!({"name": "a", "shape": shape, "datatype": datatype});
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    };
    let binary = |size: u64| json!({"parameters": {"binary_data_size": size}});
    let max = i64::MAX;
    for (input, tail, (cause, param, message)) in [
        (
            input(json!([0]), "FP32", json!({"data": []})),
            0,
            (I, "shape", "is [0], expected dimensions of 1 or more"),
        ),
        (input(json!([-1]), "FP32", binary(0)), 0, (I, "shape", "is [-1], expected dimensions of 1 or more")),
        (input(json!([]), "FP32", binary(0)), 0, (I, "shape", "is a list of 0, expected 1 to 8 dimensions")),
        (
            input(json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), "FP32", binary(4)),
            4,
            (I, "shape", "is a list of 9, expected 1 to 8 dimensions"),
        ),
        (
            input(json!([max, max, 4]), "FP32", binary(4)),
            4,
            (
                I,
                "shape",
                "is [9223372036854775807, 9223372036854775807, 4], expected fewer than 2^64 elements",
            ),
        ),
        (
            input(json!([max]), "FP32", binary(4)),
            4,
            (I, "", "is 4 bytes, expected 9223372036854775807 × 4, as FP32 of shape [9223372036854775807]"),
        ),
        (input(json!([2]), "FP32", binary(4)), 4, (I, "", "is 4 bytes, expected 8, as FP32 of shape [2]")),
        (
            input(json!([1]), "FP32", binary(8)),
            4,
            (
                I,
                "parameters.binary_data_size",
                "is 8, expected no more, with the inputs before it, than the 4 bytes behind the JSON",
            ),
        ),
        (
            input(json!([1]), "FP32", binary(u64::MAX)),
            4,
            (
                I,
                "parameters.binary_data_size",
                "is 18446744073709551615, expected no more, with the inputs before it, than the 4 bytes behind the JSON",
            ),
        ),
        (
            input(json!([1]), "FP32", json!({"data": [1], "parameters": {"binary_data_size": 4}})),
            4,
            (I, "data", "is there beside `binary_data_size`, expected one of the two"),
        ),
        (
            input(json!([1]), "FP32", json!({})),
            0,
            (I, "data", "is missing, expected a list, or `binary_data_size`"),
        ),
        (
            input(json!([1]), "FP16", json!({"data": [1]})),
            0,
            (I, "datatype", "is FP16, which has no form in JSON, expected FP32"),
        ),
        (
            input(json!([1]), "BF16", json!({"data": [1]})),
            0,
            (I, "datatype", "is BF16, which has no form in JSON, expected FP32"),
        ),
        (
            input(json!([1]), "FP16", binary(2)),
            2,
            (
                I,
                "datatype",
                "is `FP16`, expected one of UINT8, UINT32, UINT64, INT32, INT64, FP32, FP64, BYTES",
            ),
        ),
        (
            input(json!([1]), "BOOL", json!({"data": [true]})),
            0,
            (
                I,
                "datatype",
                "is `BOOL`, expected one of UINT8, UINT32, UINT64, INT32, INT64, FP32, FP64, BYTES",
            ),
        ),
        (
            input(
                json!([1]),
                "FP32",
                json!({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}}),
            ),
            0,
            (
                U,
                "parameters.shared_memory_region",
                "is given and is not supported; supported: no shared memory; tensors come with the request, as JSON or as bytes",
            ),
        ),
        (
            input(json!([3]), "INT64", json!({"data": [1, 2]})),
            0,
            (I, "data", ": a list of 2, expected a list of 3 (line 1, byte 5)"),
        ),
        (
            input(json!([1]), "INT64", json!({"data": [1.5]})),
            0,
            (I, "data", ": the number `1.5`, expected INT64 (line 1, byte 4)"),
        ),
    ] {
        let got = of_input(&input, &vec![0; tail]);
        let place = if param.is_empty() { "inputs.a".to_owned() } else { format!("inputs.a.{param}") };
        assert_eq!((got.0, got.1.as_str()), (cause, place.as_str()), "{input}: {}", got.2);
        let said = got.2.strip_prefix(&format!("`{place}`")).unwrap_or_else(|| panic!("{}", got.2));
        assert_eq!(said.trim_start(), message, "{input}");
    }
}

#[test]
fn a_number_that_is_none_is_refused_in_both_forms() {
    let input = json!({"name": "a", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}});
    let (cause, _, message) = of_input(&input, &f32::NAN.to_le_bytes());
    assert_eq!(cause, Cause::InvalidValue);
    assert_eq!(
        message,
        "`inputs.a` is not finite at element 0, expected finite numbers, as FP32 of shape [1]"
    );
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let text =
            format!(r#"{{"inputs":[{{"name":"a","shape":[1],"datatype":"FP32","data":[{number}]}}]}}"#);
        let (cause, _, message) = refused(text.as_bytes(), None);
        let known = [Cause::MalformedBody, Cause::InvalidValue].contains(&cause);
        assert!(known && !message.is_empty(), "{number}: {cause:?} {message}");
    }
}

#[test]
fn a_wrong_head_is_told_what_is_wrong_with_it() {
    use Cause::{InvalidValue as I, MalformedBody as M, UnknownField as F, Unsupported as U};
    let a = r#"{"name":"a","shape":[1],"datatype":"UINT8","data":[1]}"#;
    let with = |more: &str| format!(r#"{{"inputs":[{a}]{more}}}"#);
    for (text, (cause, param, message)) in [
        (String::new(), (M, "", "the body is not valid JSON: it ends too early")),
        ("[]".to_owned(), (M, "", "the body is not a JSON object")),
        ("{".to_owned(), (M, "", "the body is not valid JSON: it ends too early")),
        ("{}".to_owned(), (I, "inputs", "`inputs` is missing")),
        (r#"{"inputs":[]}"#.to_owned(), (I, "inputs", "`inputs` is a list of 0, expected 1 to 64")),
        (
            format!(r#"{{"inputs":[{}]}}"#, vec![a; 65].join(",")),
            (I, "inputs", "`inputs` is a list of 65, expected 1 to 64"),
        ),
        (
            format!(r#"{{"inputs":[{a},{a}]}}"#),
            (I, "inputs", "`inputs` is `a` twice, expected each name once"),
        ),
        (
            with(r#","outputs":[{"name":"o"},{"name":"o"}]"#),
            (I, "outputs", "`outputs` is `o` twice, expected each name once"),
        ),
        (
            with(r#","model":"x""#),
            (F, "model", "unknown field `model`, expected one of `id`, `parameters`, `inputs`, `outputs`"),
        ),
        (
            with(r#","parameters":{"timeout":0}"#),
            (I, "parameters.timeout", "`parameters.timeout` is 0, expected 1 to 3600000000 microseconds"),
        ),
        (
            with(r#","parameters":{"timeout":[1]}"#),
            (I, "", "the body holds a list, expected a whole number, 0 or more (line 1, byte 91)"),
        ),
        (
            with(r#","parameters":{"priority":1}"#),
            (
                U,
                "parameters.priority",
                "`parameters.priority` is given and is not supported; supported: no priority; every caller has the same turn",
            ),
        ),
        (
            with(r#","parameters":{"sequence_id":1,"sequence_start":true,"sequence_end":false}"#),
            (
                U,
                "parameters.sequence_id",
                "`parameters.sequence_id` is given and is not supported; supported: no sequences; a request stands alone",
            ),
        ),
        (
            with(r#","outputs":[{"name":"o","parameters":{"classification":3}}]"#),
            (
                U,
                "outputs.o.parameters.classification",
                "`outputs.o.parameters.classification` is given and is not supported; supported: no classification; an output is sent as it is",
            ),
        ),
    ] {
        let got = refused(text.as_bytes(), None);
        assert_eq!((got.0, got.1.as_str(), got.2.as_str()), (cause, param, message), "{text}");
    }
}

#[test]
fn head_and_tail_must_add_up() {
    let head = json!({"inputs": [{"name": "a", "shape": [1], "datatype": "UINT8", "data": [1]}]});
    let (bytes, length) = body(&head, b"xyz");
    let length = length.unwrap();
    let told = |head_length| refused(&bytes, Some(head_length));
    assert_eq!(told(length).2, "3 bytes follow the JSON, expected 0: the sum of every `binary_data_size`");
    let long = bytes.len() + 1;
    assert_eq!(
        told(long).2,
        format!("`{HEAD_LENGTH}` is {long}, expected at most the body's {} bytes", bytes.len())
    );
    assert_eq!(told(usize::MAX).0, Cause::InvalidValue);
    assert_eq!(told(length - 1).0, Cause::MalformedBody);
    let (cause, _, message) = told(0);
    assert_eq!(cause, Cause::Unsupported);
    assert!(
        message.ends_with("a request of bytes alone; expected the length of the JSON before the tensors"),
        "{message}"
    );
    assert_eq!(refused(&bytes, None).0, Cause::MalformedBody, "JSON alone ends with the body");
}

#[test]
fn deep_nesting_harms_nobody() {
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    for text in [
        deep.clone(),
        format!(r#"{{"inputs":[{{"name":"a","shape":[1],"datatype":"FP32","data":{deep}}}]}}"#),
        format!(r#"{{"inputs":{deep}}}"#),
        format!(r#"{{"parameters":{{"priority":{deep}}}}}"#),
        format!(r#"{{"parameters":{{"x":{deep}}}}}"#),
    ] {
        refused(text.as_bytes(), None);
    }
}

/// Any values, and the shape that they have.
fn values() -> impl Strategy<Value = (Vec<usize>, Values)> {
    let dims = prop::collection::vec(1_usize..4, 1..4);
    dims.prop_flat_map(|dims| {
        let n: usize = dims.iter().product();
        let finite = prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::SUBNORMAL;
        let double = prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL;
        let values = prop_oneof![
            prop::collection::vec(any::<u8>(), n).prop_map(Values::U8),
            prop::collection::vec(any::<u32>(), n).prop_map(Values::U32),
            prop::collection::vec(any::<u64>(), n).prop_map(Values::U64),
            prop::collection::vec(any::<i32>(), n).prop_map(Values::I32),
            prop::collection::vec(any::<i64>(), n).prop_map(Values::I64),
            prop::collection::vec(finite, n).prop_map(Values::F32),
            prop::collection::vec(double, n).prop_map(Values::F64),
            prop::collection::vec(".{0,5}".prop_map(String::into_bytes), n).prop_map(Values::Bytes),
        ];
        (Just(dims), values)
    })
}

/// A request of these tensors, written as a client would, those with `true` as bytes.
fn written(tensors: &[(Tensor, bool)]) -> (Vec<u8>, Option<usize>) {
    let mut tail = Vec::new();
    let mut input = |(tensor, binary): &(Tensor, bool)| {
        let datatype = tensor.values.datatype().as_str();
        let mut input = json!({"name": tensor.name, "shape": tensor.shape, "datatype": datatype});
        if *binary {
            input["parameters"] = json!({"binary_data_size": tensor.values.binary_size()});
            tensor.values.write_binary(&mut tail);
        } else {
            input["data"] = serde_json::to_value(&tensor.values).unwrap();
        }
        input
    };
    let inputs: Vec<_> = tensors.iter().map(&mut input).collect();
    body(&json!({ "inputs": inputs }), &tail)
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(tensors in prop::collection::vec((values(), any::<bool>()), 1..5)) {
        let named = |(i, ((shape, values), binary)): (usize, ((Vec<usize>, Values), bool))| {
            (Tensor { name: format!("t{i}"), shape, values }, binary)
        };
        let tensors: Vec<_> = tensors.into_iter().enumerate().map(named).collect();
        let (bytes, length) = written(&tensors);
        let read = InferRequest::parse(&bytes, length).unwrap().inputs;
        prop_assert_eq!(read, tensors.into_iter().map(|(tensor, _)| tensor).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), length in prop::option::of(0_usize..400)) {
        let _ = InferRequest::parse(&bytes, length);
    }

    #[test]
    fn a_damaged_request_is_answered(
        tensors in prop::collection::vec((values(), any::<bool>()), 1..3),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let named = |(i, ((shape, values), binary)): (usize, ((Vec<usize>, Values), bool))| {
            (Tensor { name: format!("t{i}"), shape, values }, binary)
        };
        let tensors: Vec<_> = tensors.into_iter().enumerate().map(named).collect();
        let (mut bytes, length) = written(&tensors);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let _ = InferRequest::parse(&bytes, length);
        bytes.truncate(cut.index(bytes.len()));
        let _ = InferRequest::parse(&bytes, length);
    }

    /// What is kept of a body is in proportion to it, whatever lengths it states.
    #[test]
    fn no_more_is_kept_than_came(shape in prop::collection::vec(any::<i64>(), 1..4), size in any::<u64>(), tail in prop::collection::vec(any::<u8>(), 0..64)) {
        let input = json!({"name": "a", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": size}});
        let (bytes, length) = body(&json!({"inputs": [input]}), &tail);
        if let Ok(request) = InferRequest::parse(&bytes, length) {
            prop_assert!(request.inputs[0].values.binary_size() <= tail.len());
        }
    }
}
