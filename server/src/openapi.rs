//! The OpenAPI document: title, groups, and what `router.rs` collects from the handlers.

mod access;
mod errors;
mod examples;

use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use crate::router::{self, MetricsAre};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "windowpane",
        description = "Images from diffusion transformers with local attention windows, sampled through ONNX Runtime.\n\n\
            An image is a pure function of the model's digest, the request's fields and the seed: the same request gives \
            the same bytes, alone or in any company, where `determinism` says `bitwise`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "images", description = "Generate images."),
        (name = "analysis", description = "What a model looks like inside."),
        (name = "jobs", description = "Orders that outlive their call: big ones, and those that take long."),
        (name = "models", description = "What is served, and how to ask for it."),
        (name = "inference", description = "The Open Inference Protocol, version 2, with the binary tensor extension: a \
            package `NAME` is the model `NAME`, its network, the model `NAME.sampler`, which draws images, and where it has their \
            graphs `NAME.attention`, `NAME.jvp` and `NAME.vjp`, which show its insides and need a key of the role `analyse`."),
        (name = "operations", description = "Is it alive, is it ready, what does it do?"),
    )
)]
struct Preamble;

/// The document before any route.
pub(crate) fn preamble() -> OpenApi {
    Preamble::openapi()
}

/// Completes a document that has all routes.
pub(crate) fn complete(document: &mut OpenApi) {
    // Before the examples, which are found for whatever is described.
    access::describe(document);
    examples::describe(document);
}

/// The whole document, as /openapi.json serves it.
pub fn document() -> OpenApi {
    router::routes(MetricsAre::Here).into_openapi()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_documented_and_every_reference_resolves() {
        let document = serde_json::to_value(document()).unwrap();
        let paths: Vec<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let others: Vec<_> = paths.iter().copied().filter(|path| !path.starts_with("/v2")).collect();
        assert_eq!(
            others,
            [
                "/livez",
                "/metrics",
                "/readyz",
                "/startupz",
                "/v1/analysis/attention",
                "/v1/analysis/jacobian",
                "/v1/analysis/psnr-gap",
                "/v1/images/generations",
                "/v1/jobs",
                "/v1/jobs/{id}",
                "/v1/jobs/{id}/events",
                "/v1/jobs/{id}/result",
                "/v1/models",
                "/v1/models/{id}",
                "/v1/replay",
                "/v1/requests/{id}",
            ]
        );
        let of_a_model = ["", "/config", "/infer", "/ready", "/stats"];
        for base in ["/v2/models/{name}", "/v2/models/{name}/versions/{version}"] {
            for rest in of_a_model {
                assert!(paths.contains(&format!("{base}{rest}").as_str()), "{base}{rest}");
            }
        }
        let text = document.to_string();
        for reference in text.split("\"#/components/").skip(1) {
            let (kind, name) = reference.split('"').next().unwrap().split_once('/').unwrap();
            assert!(document["components"][kind].get(name).is_some(), "{kind} {name}");
        }
    }

    #[test]
    fn every_operation_has_an_id_of_its_own_and_says_what_its_path_holds() {
        let document = serde_json::to_value(document()).unwrap();
        let mut ids = std::collections::BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for operation in methods.as_object().unwrap().values() {
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{path}");
                let names = operation["parameters"].as_array().into_iter().flatten();
                let names: Vec<_> = names.map(|parameter| parameter["name"].as_str().unwrap()).collect();
                for part in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                    assert!(names.contains(&part), "{path}: {part}");
                }
            }
        }
    }

    #[test]
    fn unknown_fields_are_ruled_out_in_the_document_too() {
        let document = serde_json::to_value(document()).unwrap();
        assert_eq!(document["components"]["schemas"]["ImageRequest"]["additionalProperties"], false);
    }
}
