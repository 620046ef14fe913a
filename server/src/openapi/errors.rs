//! The examples of errors: for every status of every operation, those that it can be answered with, each made by the
//! code that makes the real ones.

use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::{OpenApi, RefOr, Schema};

use crate::app::shutting_down;
use crate::error::{ApiError, Cause};

/// The id in every example.
const ID: &str = "req_5f0c1b9a7d3e42f8";

/// Gives every error that `document` describes its examples.
pub(super) fn describe(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let operations = [&mut item.get, &mut item.post, &mut item.delete];
        operations.into_iter().flatten().for_each(|operation| describe_one(path, operation));
    }
}

fn describe_one(path: &str, operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        for content in response.content.values_mut() {
            let RefOr::T(content) = content else { continue };
            let v2 = match name(content.schema.as_ref()) {
                Some("ErrorBody") => false,
                Some("V2Error") => true,
                _ => continue,
            };
            for error in all().into_iter().filter(|error| fits(error.cause, path)) {
                if error.cause.status().as_str() != status {
                    continue;
                }
                let body = if v2 {
                    serde_json::to_value(error.v2_body(ID))
                } else {
                    serde_json::to_value(error.body(ID))
                };
                let example = ExampleBuilder::new().value(body.ok()).build();
                content.examples.insert(error.cause.code().to_owned(), example.into());
            }
        }
    }
}

/// The name of the schema that is referred to.
fn name(schema: Option<&RefOr<Schema>>) -> Option<&str> {
    match schema? {
        RefOr::Ref(reference) => reference.ref_location.rsplit('/').next(),
        RefOr::T(_) => None,
    }
}

/// One error of each cause that an operation may be answered with, as a client of the shipped models would read it.
fn all() -> Vec<ApiError> {
    let new = |cause, message: &str| ApiError::new(cause, message);
    let rate = |cause, message| new(cause, message).retry_after(3);
    vec![
        new(
            Cause::MalformedBody,
            "the body is not valid JSON: EOF while parsing an object at line 1 column 18",
        ),
        new(Cause::Unauthenticated, "no key that is known here; send `authorization: Bearer KEY`"),
        new(Cause::Forbidden, "this key may not do that"),
        ApiError::model_not_found("fashion", &["fashion-dit", "tiny"]),
        new(Cause::NotFound, "no request of this id is under way").param("id"),
        new(
            Cause::NotAcceptable,
            "nothing that `accept` allows can be produced; application/json, image/png, image/webp, image/jpeg, \
             application/x-npy, application/x-npz, application/vnd.safetensors can",
        ),
        new(Cause::BodyTimeout, "the body took longer than 10 s"),
        new(Cause::Cancelled, "the request was cancelled"),
        new(
            Cause::ModelChanged,
            "the image is of `tiny` with digest ee170dcf…; the one served here has 5b1f0c22…",
        )
        .param("image"),
        new(Cause::BodyTooLarge, "the body is larger than 1048576 bytes, the most accepted"),
        new(
            Cause::UnsupportedMediaType,
            "content-type is `application/x-www-form-urlencoded`, expected `application/json`",
        ),
        ApiError::invalid("steps", 0, "1 to 1000"),
        new(Cause::UnknownField, "unknown field `step`, expected `steps`").param("step"),
        ApiError::unsupported("quality", "`hd`", "`auto`; `steps` decides quality here"),
        rate(Cause::Overloaded, "too much is waiting for this model; come back in 3 s"),
        rate(Cause::DeadlineUnmeetable, "it would take 4.2 s, and 1 s was given"),
        new(Cause::Engine, "the model failed on a batch that held this request"),
        ApiError::internal(""),
        new(Cause::LoadFailed, "the package `tiny` does not load; the server's log says why"),
        new(Cause::Loading, "the models are still loading").retry_after(1),
        shutting_down(),
        new(Cause::DeadlinePassed, "the time given for the request has passed"),
    ]
}

/// Whether an operation can fail in this way.
fn fits(cause: Cause, path: &str) -> bool {
    let images = path == "/v1/images/generations";
    let generates = images || path == "/v1/replay" || path.ends_with("/infer");
    let (cancels, loads) = (path.starts_with("/v1/requests/"), path.ends_with("/load"));
    match cause {
        Cause::NotFound => cancels,
        Cause::ModelNotFound => !cancels,
        Cause::ModelChanged => path == "/v1/replay",
        Cause::Unsupported => images,
        Cause::Engine | Cause::ShuttingDown => generates,
        Cause::LoadFailed => loads,
        Cause::Internal => !loads,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    #[test]
    fn every_error_has_an_example_of_its_own_status() {
        let document = serde_json::to_value(crate::openapi::document()).unwrap();
        let mut codes = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                    let content = &response["content"]["application/json"];
                    let schema = content["schema"]["$ref"].as_str().and_then(|name| name.rsplit('/').next());
                    if !matches!(schema, Some("ErrorBody" | "V2Error")) {
                        continue;
                    }
                    let examples = content["examples"].as_object();
                    let examples = examples.unwrap_or_else(|| panic!("{method} {path} {status}: no example"));
                    for (code, example) in examples {
                        let kind = &example["value"]["error"];
                        assert!(kind.is_object() || kind.is_string(), "{method} {path} {status}: {example}");
                        codes.insert((status.clone(), code.clone()));
                    }
                }
            }
        }
        // A word belongs to one status.
        let words: BTreeSet<&String> = codes.iter().map(|(_, code)| code).collect();
        assert_eq!(words.len(), codes.len(), "{codes:?}");
        assert!(words.len() >= 20, "{words:?}");
        let of = |status: &str| {
            let examples = &document["paths"]["/v1/replay"]["post"]["responses"][status]["content"]["application/json"]
                ["examples"];
            examples
                .as_object()
                .map_or_else(Vec::new, |all| all.keys().map(String::as_str).collect::<Vec<_>>())
        };
        assert_eq!(of("409"), ["cancelled", "model_changed"]);
        assert_eq!(of("404"), ["model_not_found"]);
        assert_ne!(document["components"]["schemas"]["ErrorBody"], Value::Null);
    }
}
