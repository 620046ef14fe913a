//! Inference: rows in, rows out. The rows of a request join the same ticks as every other image; those of a graph of the
//! insides have the turns of a study.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use utoipa::IntoParams;

use super::{find, max_rows};
use crate::app::App;
use crate::batcher::Sample;
use crate::call::{Call, Nobody};
use crate::engine::check::DETERMINISM_HEADER;
use crate::error::{ApiError, Cause, V2ErrorBody};
use crate::extract::{self, Compression, VersionedModel};
use crate::keys::Role;
use crate::middleware::access::forbidden;
use crate::middleware::track::Stages;
use crate::model::{Card, Model};
use crate::routes::images::stages;
use crate::spec::FileBytes;
use crate::v2::face::Work;
use crate::v2::port::Inputs;
use crate::v2::request::head::Head;
use crate::v2::request::{HEAD_LENGTH, Wanted};
use crate::v2::response::{Encoded, ResponseParameters};
use crate::v2::statistics::Times;
use crate::v2::{Face, InferRequest, InferResponse, Tensor};

/// Headers of an inference request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "they are read one by one; this is what the document says of them")]
struct InferHeaders {
    /// Bytes of the JSON, where tensors follow it.
    #[param(rename = "inference-header-content-length", required = false)]
    head_length: u64,
    /// How the body is compressed, where it is.
    #[param(rename = "content-encoding", required = false, pattern = "^(gzip|deflate|identity)$")]
    content_encoding: String,
    /// `gzip` or `deflate`, for an answer that is compressed.
    #[param(rename = "accept-encoding", required = false)]
    accept_encoding: String,
}

/// Run a model on the rows of the inputs.
///
/// The body is JSON, or JSON with tensors behind it as bytes; then the header `inference-header-content-length` says how
/// long the JSON is. The answer is JSON unless the request asks for bytes, and then has the same header.
#[utoipa::path(
    post,
    path = "/infer",
    operation_id = "v2_infer",
    tag = "inference",
    params(
        ("name" = String, Path, description = "The model.", example = "fashion-dit.sampler"),
        InferHeaders,
    ),
    request_body(content(
        (Head = "application/json"),
        (FileBytes = "application/octet-stream"),
    ), description = "The inputs, and the outputs that are wanted."),
    responses(
        (status = 200, description = "The outputs.", content(
            (InferResponse = "application/json"),
            (FileBytes = "application/octet-stream"),
        ), headers(
            ("inference-header-content-length" = u64, description = "Bytes of the JSON, where tensors follow it."),
            ("x-determinism" = String, description = "`bitwise`, or `tolerance` and the largest relative difference that was measured at load."),
            ("server-timing" = String, description = "Milliseconds of `queue`, `denoise`, `encode` and `total`."),
        )),
        (status = 400, description = "The body is not JSON, or not compressed as it says.", body = V2ErrorBody),
        (status = 401, description = "No key that is known here.", body = V2ErrorBody),
        (status = 403, description = "The key may not do that.", body = V2ErrorBody),
        (status = 404, description = "No such model or version.", body = V2ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = V2ErrorBody),
        (status = 409, description = "Somebody cancelled the request.", body = V2ErrorBody),
        (status = 413, description = "The body is too large, before or after it was expanded.", body = V2ErrorBody),
        (status = 415, description = "The body's type or compression is not taken.", body = V2ErrorBody),
        (status = 422, description = "A field or a tensor is not accepted; `param` names it.", body = V2ErrorBody),
        (status = 429, description = "Too much is waiting, or it cannot be done in time; `retry-after` says when there will be room. Where the work that waits is too much, the room is kept for whoever comes back with the same request.", body = V2ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = V2ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = V2ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = V2ErrorBody),
    )
)]
pub async fn infer(
    State(app): State<App>,
    call: Call,
    VersionedModel(name): VersionedModel,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let (model, face) = find(&app, &name)?;
    // Not of the route, which is the network's too.
    if face.is_inside() && call.identity.role < Role::Analyse {
        return Err(forbidden(true));
    }
    let answer = answer(&app, call, &model, face, request).await;
    let name = face.name(model.name());
    match &answer {
        Ok((_, rows, times)) => {
            app.statistics().succeeded(&name, *rows, Times { total: arrived.elapsed(), ..*times });
        }
        Err(_) => app.statistics().failed(&name, arrived.elapsed()),
    }
    answer.map(|(response, ..)| response)
}

/// From a body to a body; the rows between, and how long the parts took.
async fn answer(
    app: &App,
    call: Call,
    model: &Arc<Model>,
    face: Face,
    request: Request,
) -> Result<(Response, usize, Times), ApiError> {
    let compression = Compression::wanted(request.headers());
    let (mut request, fingerprint) = extract::infer(request, app).await?;
    let start = Instant::now();
    let card = Arc::clone(&model.card);
    let inputs =
        Inputs::check(&face.inputs(&card), std::mem::take(&mut request.inputs), max_rows(app.config()))?;
    let wanted = wanted(face, &card, &mut request)?;
    let rows = inputs.rows();
    let ports = face.outputs(&card);
    let told = |wanted: &Wanted| {
        let port = ports.iter().find(|port| port.name == wanted.name);
        port.map_or(0, |port| port.bytes(rows, wanted.binary))
    };
    let bytes = wanted.iter().map(told).fold(0, usize::saturating_add);
    let (of, limit) = (Arc::clone(&card), app.config().study_limit);
    let names: Vec<String> = wanted.iter().map(|wanted| wanted.name.clone()).collect();
    // Up to as many solvers as rows.
    let bench = app.workbench(call.identity.caller);
    let work = bench.compute(move || face.work(&of, inputs, &names, limit)).await??;
    let timeout = request.timeout.map(|microseconds| microseconds.div_ceil(1000));
    let call = call.answering(bytes).asking(&fingerprint).within("parameters.timeout", timeout)?;
    let call = call.reproducible(request.reproducible, model)?;
    let input = start.elapsed();
    let admitted = Instant::now();
    let (done, Stages { queue, denoise, .. }, job) = match work {
        Work::Units(units) => {
            let running = call.submit(app, model, units)?;
            let job = running.job();
            let samples = running.finish().await?;
            let stages = stages(&samples);
            (Done::Samples(samples), stages, job)
        }
        Work::Study(study) => {
            let studying = call.study(app, model, &study)?;
            let job = studying.job();
            let tensors = studying.watched(study, &mut Nobody).await?;
            (Done::Tensors(tensors), Stages { denoise: admitted.elapsed(), ..Stages::default() }, job)
        }
    };
    let start = Instant::now();
    let (determinism, id) = (model.served.determinism.class, request.id);
    let write = move || {
        let about = ResponseParameters { digest: &card.digest, determinism };
        let name = face.name(&card.manifest.name);
        let tensors = match done {
            Done::Samples(samples) => face.answer(&card, &samples),
            Done::Tensors(tensors) => tensors,
        };
        write(InferResponse::new(&name, id.as_deref(), about), &tensors, &wanted, compression)
    };
    let mut response = bench.compute(write).await??;
    response.headers_mut().insert(DETERMINISM_HEADER, model.served.determinism.header());
    let output = start.elapsed();
    app.metrics().encode.with_label_values(&[model.name()]).observe(output.as_secs_f64());
    response.extensions_mut().insert(Stages { queue, denoise, encode: output });
    response.extensions_mut().insert(job);
    Ok((response, rows, Times { total: Duration::ZERO, queue, input, infer: denoise, output }))
}

/// What became of the work.
enum Done {
    Samples(Vec<Sample>),
    Tensors(Vec<Tensor>),
}

/// The outputs that are wanted, in the order of the answer: those that the request names, or all.
fn wanted(face: Face, card: &Card, request: &mut InferRequest) -> Result<Vec<Wanted>, ApiError> {
    let ports = face.outputs(card);
    let unknown = |wanted: &&Wanted| ports.iter().all(|port| port.name != wanted.name);
    if let Some(unknown) = request.outputs.iter().find(unknown) {
        let names = ports.iter().map(|port| &*port.name).collect::<Vec<_>>().join(", ");
        let got: String = unknown.name.chars().take(64).collect();
        let message = format!("no output `{got}`; the outputs are {names}");
        return Err(ApiError::new(Cause::UnknownField, message).param(format!("outputs.{got}")));
    }
    if request.outputs.is_empty() {
        let binary = request.binary;
        return Ok(ports
            .iter()
            .map(|port| Wanted { name: port.name.clone().into_owned(), binary })
            .collect());
    }
    Ok(std::mem::take(&mut request.outputs))
}

/// The body, and the headers that say what it is.
fn write<'a>(
    mut answer: InferResponse<'a>,
    tensors: &'a [Tensor],
    wanted: &[Wanted],
    compression: Option<Compression>,
) -> Result<Response, ApiError> {
    for Wanted { name, binary } in wanted {
        let tensor = tensors.iter().find(|tensor| tensor.name == *name);
        let tensor = tensor.ok_or_else(|| ApiError::internal(format!("no output {name}")))?;
        answer.push(tensor, *binary);
    }
    let not_finite = |_| ApiError::new(Cause::Engine, "the model put out values that are not finite");
    let Encoded { body, head_length } = answer.encode().map_err(not_finite)?;
    let mut headers = HeaderMap::new();
    let kind = if head_length.is_some() { "application/octet-stream" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = head_length {
        headers.insert(HEAD_LENGTH, HeaderValue::from(length));
    }
    let body = match compression {
        None => body,
        Some(compression) => {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(compression.as_str()));
            let failed = |error| ApiError::internal(format!("compressing the answer: {error}"));
            compression.compress(&body).map_err(failed)?
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    Ok(response)
}
