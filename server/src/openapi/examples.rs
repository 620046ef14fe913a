//! The examples of the document: for every answer of every operation those that were recorded from a real server, and
//! beside them those that no request alone brings about (`errors.rs`). Recordings lie in `openapi/examples/`, where the
//! suite replays them; `cargo xtask openapi` records anew.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::{OpenApi, Ref, RefOr, Schema};

use super::errors::{self, Form};

/// Names and texts of these files in `openapi/examples/`.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../openapi/examples/", $name, ".json")))),*]
    };
}

/// Every file there.
#[rustfmt::skip]
const FILES: &[(&str, &str)] = files![
    "arrays",
    "arrays_npz",
    "arrays_safetensors",
    "attention",
    "attention_layer_out_of_range",
    "attention_later",
    "attention_malformed",
    "attention_not_acceptable",
    "attention_npz",
    "attention_png",
    "attention_safetensors",
    "attention_too_large",
    "attention_unknown_model",
    "attention_wrong_content_type",
    "cancel",
    "image",
    "image_bytes",
    "image_jpeg",
    "image_webp",
    "images",
    "jacobian",
    "jacobian_later",
    "jacobian_malformed",
    "jacobian_not_acceptable",
    "jacobian_npz",
    "jacobian_png",
    "jacobian_safetensors",
    "jacobian_too_many",
    "jacobian_unknown_model",
    "jacobian_wrong_content_type",
    "job",
    "job_cancel",
    "job_cancel_unknown",
    "job_done",
    "job_events",
    "job_events_over",
    "job_events_unknown",
    "job_events_wrong_id",
    "job_put",
    "job_put_again",
    "job_put_malformed",
    "job_put_missing_kind",
    "job_put_not_acceptable",
    "job_put_taken",
    "job_put_unknown_model",
    "job_put_wrong_content_type",
    "job_result",
    "job_result_beyond",
    "job_result_range",
    "job_result_unfinished",
    "job_result_unknown",
    "job_submit",
    "job_submit_malformed",
    "job_submit_not_acceptable",
    "job_submit_unknown_kind",
    "job_submit_unknown_model",
    "job_submit_webhook",
    "job_submit_wrong_content_type",
    "job_unknown",
    "jobs",
    "jobs_limit",
    "jobs_off",
    "livez",
    "malformed_body",
    "metrics",
    "model",
    "model_unknown",
    "models",
    "not_acceptable",
    "psnr_gap",
    "psnr_gap_alone",
    "psnr_gap_csv",
    "psnr_gap_later",
    "psnr_gap_malformed",
    "psnr_gap_no_reference",
    "psnr_gap_not_acceptable",
    "psnr_gap_png",
    "psnr_gap_svg",
    "psnr_gap_unknown_model",
    "psnr_gap_wrong_content_type",
    "readyz",
    "readyz_leaving",
    "readyz_loading",
    "replay",
    "replay_malformed",
    "replay_unknown_model",
    "replay_wrong_content_type",
    "seed_out_of_range",
    "startupz",
    "startupz_loading",
    "steps_out_of_range",
    "stream",
    "trajectory",
    "unfit_replay",
    "unfit_x_t",
    "unknown_field",
    "unknown_model",
    "unknown_prompt",
    "unknown_request",
    "unsupported_value",
    "v2_index",
    "v2_index_malformed",
    "v2_index_unknown_field",
    "v2_index_wrong_content_type",
    "v2_infer",
    "v2_infer_json",
    "v2_infer_malformed",
    "v2_infer_unknown",
    "v2_infer_wrong_content_type",
    "v2_live",
    "v2_load",
    "v2_load_malformed",
    "v2_load_parameters",
    "v2_load_unknown",
    "v2_load_wrong_content_type",
    "v2_missing_input",
    "v2_model",
    "v2_model_config",
    "v2_model_config_unknown",
    "v2_model_ready",
    "v2_model_ready_leaving",
    "v2_model_ready_unknown",
    "v2_model_statistics",
    "v2_model_statistics_unknown",
    "v2_model_unknown",
    "v2_model_unknown_version",
    "v2_ready",
    "v2_ready_loading",
    "v2_server",
    "v2_statistics",
    "v2_unload",
    "v2_unload_malformed",
    "v2_unload_unknown",
    "v2_unload_unknown_field",
    "v2_unload_wrong_content_type",
    "wrong_content_type",
];

/// The recordings by name.
static RECORDINGS: LazyLock<BTreeMap<&str, Recording>> = LazyLock::new(|| {
    let read = |&(name, text): &(&'static str, &str)| {
        let read = serde_json::from_str(text);
        (name, read.unwrap_or_else(|error| panic!("openapi/examples/{name}.json is a bug: {error}")))
    };
    FILES.iter().map(read).collect()
});

/// A recorded exchange. What else its file holds is for whoever replays it.
#[derive(Debug, Deserialize)]
struct Recording {
    /// What it shows, in a sentence.
    about: String,
    request: Request,
    /// None in a file that is new: it is still to be recorded.
    response: Option<Answer>,
}

#[derive(Debug, Deserialize)]
struct Request {
    method: String,
    path: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// JSON.
    body: Option<Value>,
    /// What should be JSON.
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    status: u16,
    #[serde(rename = "content-type")]
    kind: String,
    /// JSON, a list of events, or the number of bytes of a file.
    body: Value,
}

/// A kind of answer in the document.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    method: &'a str,
    path: &'a str,
    status: &'a str,
    /// The media type.
    kind: &'a str,
    /// The paths of all operations.
    paths: &'a [String],
}

/// Gives every answer that `document` describes its examples. Each is there once; the answers refer to it.
pub(super) fn describe(document: &mut OpenApi) {
    let mut all: BTreeMap<String, RefOr<Example>> = BTreeMap::new();
    let paths: Vec<String> = document.paths.paths.keys().cloned().collect();
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in [
            ("GET", &mut item.get),
            ("POST", &mut item.post),
            ("PUT", &mut item.put),
            ("DELETE", &mut item.delete),
        ] {
            let responses = operation.iter_mut().flat_map(|operation| &mut operation.responses.responses);
            for (status, response) in responses {
                let RefOr::T(response) = response else { continue };
                for (kind, content) in &mut response.content {
                    let RefOr::T(content) = content else { continue };
                    let place = Place { method, path, status, kind, paths: &paths };
                    for (word, name, example) in place.examples(form(content.schema.as_ref())) {
                        content
                            .examples
                            .insert(word, RefOr::Ref(Ref::new(format!("#/components/examples/{name}"))));
                        all.insert(name, example.into());
                    }
                }
            }
        }
    }
    document.components.get_or_insert_default().examples.extend(all);
}

/// The form of a body, by its schema's name.
fn form(schema: Option<&RefOr<Schema>>) -> Form {
    let Some(RefOr::Ref(reference)) = schema else { return Form::Other };
    match reference.ref_location.rsplit('/').next() {
        Some("ErrorBody") => Form::OpenAi,
        Some("V2Error" | "V2NotReady") => Form::V2,
        _ => Form::Other,
    }
}

// === impl Place ===

impl Place<'_> {
    /// The examples: each one's word here, its name in the document, and itself.
    fn examples(self, form: Form) -> Vec<(String, String, ExampleBuilder)> {
        let recorded = RECORDINGS.iter().filter(|(_, recording)| recording.shows(self));
        let recorded: Vec<_> = recorded.map(|(&name, recording)| (name, recording)).collect();
        let made = errors::of(self.path, self.status, form).into_iter();
        let made =
            made.filter(|(word, _)| recorded.iter().all(|(_, recording)| recording.code() != Some(*word)));
        let made = made.map(|(word, body)| {
            let name = match form {
                Form::OpenAi => format!("error_{word}"),
                Form::V2 => format!("error_v2_{word}"),
                Form::Other => word.to_owned(),
            };
            (word.to_owned(), name, ExampleBuilder::new().value(Some(body)))
        });
        let recorded = recorded
            .iter()
            .map(|(name, recording)| ((*name).to_owned(), (*name).to_owned(), recording.example()));
        recorded.chain(made).collect()
    }
}

// === impl Recording ===

impl Recording {
    /// Whether it is an exchange of this kind. What holds of a model's path holds of its only version's too.
    fn shows(&self, place: Place<'_>) -> bool {
        let Some(answer) = &self.response else { return false };
        let essence = |kind: &str| kind.split(';').next().unwrap_or_default().trim().to_owned();
        let unversioned = place.path.replace("/versions/{version}", "");
        self.request.method == place.method
            && answer.status.to_string() == place.status
            && (place.kind == "*/*" || essence(&answer.kind) == essence(place.kind))
            && pattern(place.paths, self.request.path.split('?').next().unwrap_or_default())
                .is_some_and(|path| [place.path, &unversioned].contains(&path))
    }

    /// The word of an error.
    fn code(&self) -> Option<&str> {
        let body = &self.response.as_ref()?.body;
        body["error"]["code"].as_str().or(body["code"].as_str())
    }

    /// It as the document shows it: the request in words, and the answer where it is text.
    fn example(&self) -> ExampleBuilder {
        let example = ExampleBuilder::new().summary(self.about.as_str());
        let Some(Answer { kind, body, .. }) = &self.response else { return example };
        let asked = self.request.in_words();
        if kind.starts_with("application/json") {
            return example.description(asked).value(Some(body.clone()));
        }
        if let Value::Array(events) = body {
            return example
                .description(asked)
                .value(Some(events.iter().map(written).collect::<String>().into()));
        }
        example.description(format!("{asked}\n\nThe answer has {} bytes.", body["bytes"]))
    }
}

/// The pattern of a path: one that is the path itself before one with names in it.
fn pattern<'a>(patterns: &'a [String], path: &str) -> Option<&'a str> {
    let fits = |pattern: &&String| {
        let mut parts = pattern.split('/').zip(path.split('/'));
        pattern.split('/').count() == path.split('/').count()
            && parts.all(|(pattern, part)| pattern == part || pattern.starts_with('{'))
    };
    let own = patterns.iter().find(|pattern| *pattern == path);
    own.or_else(|| patterns.iter().find(fits)).map(String::as_str)
}

/// An event of a stream as it is written.
fn written(event: &Value) -> String {
    match event["comment"].as_str() {
        Some(comment) => format!(": {comment}\n\n"),
        None => {
            let id = event["id"].as_str().map_or_else(String::new, |id| format!("id: {id}\n"));
            format!("{id}event: {}\ndata: {}\n\n", event["event"].as_str().unwrap_or_default(), event["data"])
        }
    }
}

// === impl Request ===

impl Request {
    /// It as a client writes it.
    fn in_words(&self) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        let body = self.body.as_ref().map(|body| format!("\n{body:#}\n"));
        let text = self.text.as_ref().map(|text| format!("\n{text}\n"));
        let body = body.or(text).unwrap_or_default();
        format!("```\n{} {}\n{headers}{body}```", self.method, self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_answer_of_every_operation_has_an_example() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let (mut without, mut examples) = (Vec::new(), 0);
        let paths: Vec<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    let contents = response["content"].as_object();
                    for (kind, content) in contents.into_iter().flatten() {
                        let shown = content["examples"].as_object().map_or(0, serde_json::Map::len);
                        examples += shown;
                        if shown == 0 {
                            without.push(format!("{method} {path} {status} {kind}"));
                        }
                    }
                    // An answer without a body has no place for an example, and is recorded all the same.
                    let method = method.to_uppercase();
                    let place = Place { method: &method, path, status, kind: "", paths: &paths };
                    if contents.is_none() && !RECORDINGS.values().any(|recording| recording.shows(place)) {
                        without.push(format!("{method} {path} {status}"));
                    }
                }
            }
        }
        assert!(without.is_empty(), "no example: {without:#?}");
        assert!(examples > 150, "{examples}");
    }

    #[test]
    fn every_example_has_the_fields_of_its_answer() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let named = |reference: &Value| document.pointer(reference.as_str()?.strip_prefix('#')?);
        let mut compared = 0;
        for operation in
            document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap())
        {
            for response in operation.1["responses"].as_object().unwrap().values() {
                let Some(content) = response["content"].get("application/json") else { continue };
                let schema = named(&content["schema"]["$ref"]);
                let Some(fields) = schema.and_then(|schema| schema["properties"].as_object()) else {
                    continue;
                };
                for reference in content["examples"].as_object().unwrap().values() {
                    let example = named(&reference["$ref"]).unwrap()["value"].as_object().unwrap();
                    let known = example.keys().all(|field| fields.contains_key(field));
                    assert!(known, "{}: {reference}", operation.1["operationId"]);
                    compared += 1;
                }
            }
        }
        assert!(compared > 130, "{compared}");
    }

    #[test]
    fn every_recording_is_shown_somewhere() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let shown: BTreeSet<_> =
            document["components"]["examples"].as_object().unwrap().keys().cloned().collect();
        for (name, recording) in RECORDINGS.iter() {
            let answer = recording.response.as_ref().unwrap_or_else(|| panic!("{name} is not recorded"));
            assert!(
                answer.kind.is_empty() || shown.contains(*name),
                "{name} is an answer that is not documented"
            );
        }
    }

    #[test]
    fn an_example_shows_its_request_and_its_answer() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let example = |name: &str| document["components"]["examples"][name].clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let unknown = example("unknown_model");
        assert_eq!(unknown["value"]["error"]["code"], "model_not_found");
        assert!(text(&unknown["description"]).starts_with("```\nPOST /v1/images/generations\n"), "{unknown}");
        let stream = text(&example("stream")["value"]);
        assert!(
            stream.starts_with(": x-request-id: ") && stream.contains("\n\nevent: image_generation."),
            "{stream}"
        );
        let arrays = example("arrays");
        assert!(
            arrays["value"].is_null() && text(&arrays["description"]).ends_with("The answer has 8320 bytes.")
        );
    }
}
