//! The Jacobian: what does the network make of small changes of the noisy image?

mod request;
mod response;

use axum::extract::State;
use axum::response::Response;
use windowpane_diffusion::Prediction;
use windowpane_diffusion::error::number;

use super::analyse::{Analysis, Resolved, analyse};
use super::output::{File, Output};
use crate::analysis::Study;
use crate::analysis::jacobian::{Function, JacobianStudy, Method};
use crate::analysis::sheet::Sheet;
use crate::analysis::subject::Subject;
use crate::app::App;
use crate::call::Call;
use crate::config::Config;
use crate::engine::insides::Inside;
use crate::error::{ApiError, Cause, ErrorBody};
use crate::extract::{Accept, ApiFields, Prefer};
use crate::jobs::Kind;
use crate::jobs::object::JobObject;
use crate::model::{Card, Model};
use crate::spec::{FileBytes, Seed, shown};
pub use request::{JacobianForm, JacobianRequest};
pub use response::JacobianResponse;
use response::{About, Told, Vectors};

/// Singular vectors that are told unless asked otherwise.
const VECTORS: u64 = 8;

/// How far a singular value may be off unless asked otherwise, as a share of the largest.
const TOLERANCE: f64 = 1e-3;

/// Steps of a bidiagonalisation at most: what it is made of is taken apart again and again.
const MOST_STEPS: usize = 512;

/// Values of an image whose whole Jacobian may be asked for: its decomposition holds ten times its square in f64.
const MOST_ELEMENTS: usize = 4096;

/// Look at the Jacobian.
///
/// What small changes of the noisy image make of the network's estimate, exactly: singular values with their directions, and
/// how harmonic those are (the share of a direction's energy in its leading ring of frequencies). `top-k` finds the largest
/// by Golub-Kahan-Lanczos bidiagonalisation, each with a bound on its error; `full` has every column, the eigenvalues of the
/// symmetric part, and how far the matrix is from being symmetric.
///
/// JSON with the numbers, unless `output_format` or `accept` ask for a file: `npz` and `safetensors` hold the directions as
/// well, and `png` is a sheet of them, colours apart. The work gives way to images, and how much it is, is known before it
/// begins: with `x-request-timeout-ms` or `timeout_ms` it is refused at once where it would take longer.
#[utoipa::path(
    post,
    path = "/v1/analysis/jacobian",
    tag = "analysis",
    params(
        ("prefer" = Option<String>, Header, description = "`wait=N`: the seconds that the client waits, after which the answer is a job; `respond-async`: it does not wait at all. A request with a timeout waits in any case.", example = "wait=60"),
    ),
    request_body(content(
        (JacobianRequest = "application/json"),
        (JacobianForm = "multipart/form-data"),
    ), description = "Where to look, and what of it is told."),
    responses(
        (status = 200, description = "The spectrum.", content(
            (JacobianResponse = "application/json"),
            (FileBytes = "application/x-npz"),
            (FileBytes = "application/vnd.safetensors"),
            (FileBytes = "image/png"),
        ), headers(
            ("x-about" = String, description = "What was looked at, as JSON, with raw bytes."),
        )),
        (status = 202, description = "It takes longer than the client waits, and is a job: its result will be this answer.", body = JobObject, headers(
            ("location" = String, description = "Where the job is."),
        )),
        (status = 400, description = "The body is neither JSON nor a form.", body = ErrorBody),
        (status = 401, description = "No key that is known here.", body = ErrorBody),
        (status = 403, description = "The key may not do that.", body = ErrorBody),
        (status = 404, description = "No such model.", body = ErrorBody),
        (status = 406, description = "Nothing that `accept` allows can be produced.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 409, description = "Somebody cancelled the request.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body's type is neither JSON nor a form.", body = ErrorBody),
        (status = 422, description = "A field is unknown or holds what is not accepted; `param` names it. The model has no such graphs, or the answer would be too large.", body = ErrorBody),
        (status = 429, description = "As many looks as a caller may have are under way, or it cannot be done in time, or answers have no memory left; `retry-after` says when the first of them will be done.", body = ErrorBody,
            headers(("retry-after" = u64, description = "Seconds until there is room for this request."))),
        (status = 500, description = "The engine failed.", body = ErrorBody),
        (status = 503, description = "Loading, shutting down, or too many bodies at a time.", body = ErrorBody),
        (status = 504, description = "The time given for the request has passed.", body = ErrorBody),
    )
)]
pub async fn jacobian(
    State(app): State<App>,
    call: Call,
    Ok(prefer): Result<Prefer, std::convert::Infallible>,
    Ok(accept): Result<Accept, std::convert::Infallible>,
    ApiFields(request): ApiFields<JacobianRequest>,
) -> Result<Response, ApiError> {
    analyse::<Jacobian>(&app, call, (prefer, accept), request).await
}

/// A request that is in order, but for its study.
#[derive(Debug)]
pub(crate) struct Jacobian {
    told: Told,
    output: Output,
    about: About,
}

// === impl Jacobian ===

impl Analysis for Jacobian {
    const KIND: Kind = Kind::Jacobian;
    type Request = JacobianRequest;
    type Study = JacobianStudy;

    fn model(request: &JacobianRequest) -> Option<&str> {
        request.model.as_deref()
    }

    fn timeout_ms(request: &JacobianRequest) -> Option<u64> {
        request.timeout_ms
    }

    fn pin(request: &mut JacobianRequest, seed: u64) {
        // What is looked at as it is has none.
        if request.x_t.is_none() {
            request.seed.get_or_insert(Seed(seed));
        }
    }

    fn resolve(
        request: &JacobianRequest,
        accept: &Accept,
        model: &Model,
        config: &Config,
    ) -> Result<Resolved<Self>, ApiError> {
        let card = &model.card;
        let shape = card.shape();
        let elements: usize = shape.iter().product();
        let output = Output::resolve(request.output_format.as_deref(), accept)?;
        let count = count(request, elements)?;
        let method = method(request, elements, count)?;
        for inside in [Inside::Jvp, Inside::Vjp] {
            // Columns of the whole matrix take one of them.
            let is_needed = inside == Inside::Jvp || method != Method::Full;
            if is_needed && inside.graph(&card.manifest, model.served.provider).is_none() {
                let message = format!(
                    "the package of `{}` has no {inside} graph; export it with this version's trainer to look at its \
                     Jacobian",
                    card.manifest.name
                );
                return Err(ApiError::new(Cause::Unsupported, message).param("model"));
            }
        }
        let told = told(request, output, method, count)?;
        let (bytes, held) = (fits(&told, output, shape, config.study_limit)?, method.held(elements));
        let subject = Subject::resolve(&request.subject(), card)?;
        let of = of(request)?;
        let function = function(request, of, &subject, card)?;
        let about = About::new(card, &subject, of, request.guided, method);
        let study = JacobianStudy::new(subject, shape, function, method, count)
            .map_err(|error| ApiError::internal(error.to_string()))?;
        Ok(Resolved { study, told: bytes, held, analysis: Self { told, output, about } })
    }

    fn respond(self, model: &Model, found: <JacobianStudy as Study>::Findings) -> Result<Response, ApiError> {
        let found = found.map_err(|error| ApiError::internal(error.to_string()))?;
        response::respond(model, self.about, &found, &self.told, self.output)
    }
}

/// How many vectors.
fn count(request: &JacobianRequest, elements: usize) -> Result<usize, ApiError> {
    let k = request.k.unwrap_or(VECTORS.min(elements as u64));
    let found = usize::try_from(k).ok().filter(|k| (1..=elements).contains(k));
    found.ok_or_else(|| ApiError::invalid("k", k, format!("1 to {elements}, the values of an image")))
}

fn method(request: &JacobianRequest, elements: usize, count: usize) -> Result<Method, ApiError> {
    let is_full = match request.method.as_deref() {
        None | Some("top-k") => false,
        Some("full") => true,
        Some(word) => return Err(ApiError::invalid("method", shown(word), "`top-k` or `full`")),
    };
    let misplaced = if is_full {
        [("tolerance", request.tolerance.is_some()), ("iterations", request.iterations.is_some())]
    } else {
        [("matrix", request.matrix == Some(true)), ("vectors", request.vectors.as_deref() == Some("eigen"))]
    };
    if let Some((field, _)) = misplaced.into_iter().find(|(_, given)| *given) {
        let (other, own) = if is_full { ("top-k", "full") } else { ("full", "top-k") };
        let message = format!("`{field}` as it is given is for `method` {other}, and this is {own}");
        return Err(ApiError::new(Cause::InvalidValue, message).param(field));
    }
    if is_full {
        if elements > MOST_ELEMENTS {
            let message = format!(
                "`method` is full, and an image of `{}` values has a matrix of {} numbers; the most values are \
                 {MOST_ELEMENTS}, beyond them there is top-k",
                elements,
                elements.saturating_mul(elements)
            );
            return Err(ApiError::new(Cause::InvalidValue, message).param("method"));
        }
        return Ok(Method::Full);
    }
    let tolerance = request.tolerance.unwrap_or(TOLERANCE);
    if !(1e-6..=0.5).contains(&tolerance) {
        return Err(ApiError::invalid("tolerance", number(tolerance), "0.000001 to 0.5"));
    }
    let most = elements.min(MOST_STEPS);
    if count > most {
        let expected = format!("1 to {most} for `method` top-k; full has more");
        return Err(ApiError::invalid("k", count, expected));
    }
    let steps = request.iterations.unwrap_or_else(|| (4 * count + 20).min(most) as u64);
    let found = usize::try_from(steps).ok().filter(|steps| (count..=most).contains(steps));
    let expected = || format!("{count} to {most}, from `k` on");
    let steps = found.ok_or_else(|| ApiError::invalid("iterations", steps, expected()))?;
    Ok(Method::TopK { steps, tolerance })
}

/// What is differentiated.
fn of(request: &JacobianRequest) -> Result<Prediction, ApiError> {
    let all = [Prediction::X0, Prediction::Eps, Prediction::V];
    let Some(word) = request.of.as_deref() else { return Ok(Prediction::X0) };
    let found = all.into_iter().find(|known| known.as_str() == word);
    found.ok_or_else(|| ApiError::invalid("of", shown(word), "`x0`, `eps` or `v`"))
}

/// The function at this subject, as a sum of what the network predicts.
fn function(
    request: &JacobianRequest,
    of: Prediction,
    subject: &Subject,
    card: &Card,
) -> Result<Function, ApiError> {
    let (identity, factor) = card.manifest.prediction.to(of, subject.level.alpha, subject.level.sigma);
    let Some(scale) = request.guided else {
        return Ok(Function { identity, predictions: vec![(subject.label, factor)] });
    };
    if !(0.0..=100.0).contains(&scale) {
        return Err(ApiError::invalid("guided", number(scale), "0 to 100"));
    }
    let null = card.manifest.config.null_class() as i64;
    if subject.class.is_none() || card.manifest.config.classes == 0 {
        let message =
            "`guided` needs a class to be guided to: `prompt` or `class` of a model that has classes";
        return Err(ApiError::new(Cause::InvalidValue, message).param("guided"));
    }
    let predictions = vec![(null, factor * (1.0 - scale)), (subject.label, factor * scale)];
    Ok(Function { identity, predictions })
}

/// What of it is told.
fn told(request: &JacobianRequest, output: Output, method: Method, count: usize) -> Result<Told, ApiError> {
    let vectors = match request.vectors.as_deref() {
        None | Some("right") => Vectors::Right,
        Some("left") => Vectors::Left,
        Some("eigen") => Vectors::Eigen,
        Some(word) => return Err(ApiError::invalid("vectors", shown(word), "`right`, `left` or `eigen`")),
    };
    let is_picture = output.file == Some(File::Picture);
    for (field, given) in [("vectors", request.vectors.is_some()), ("show", request.show.is_some())] {
        if given && !is_picture {
            let message = format!("`{field}` is for a picture; a file of numbers has all that there are");
            return Err(ApiError::new(Cause::InvalidValue, message).param(field));
        }
    }
    let matrix = request.matrix == Some(true);
    if matrix && !matches!(output.file, Some(File::Arrays(_))) {
        let message = "`matrix` is for a file: `output_format` npz or safetensors";
        return Err(ApiError::new(Cause::InvalidValue, message).param("matrix"));
    }
    let number = |&number: &u64| {
        let found = usize::try_from(number).ok().filter(|&number| number < count);
        found.ok_or_else(|| {
            let expected = format!("0 to {}, those of the first `k`", count - 1);
            ApiError::invalid("show", format!("a list with {number}"), expected)
        })
    };
    let show: Vec<usize> = match &request.show {
        None => (0..count).collect(),
        Some(show) if show.is_empty() || show.len() > count => {
            let expected = format!("1 to {count} numbers of the first `k`");
            return Err(ApiError::invalid("show", format!("a list of {}", show.len()), expected));
        }
        Some(show) => show.iter().map(number).collect::<Result<_, _>>()?,
    };
    Ok(Told { vectors, show, matrix, is_full: method == Method::Full, count })
}

/// The most bytes that are held at a time for the answer. Refuses what is larger than `limit`.
fn fits(told: &Told, output: Output, shape: [usize; 3], limit: usize) -> Result<usize, ApiError> {
    let elements: usize = shape.iter().product();
    let bytes = match output.file {
        // Vectors are held, and are not told.
        None => told.count.saturating_mul(2 * elements).saturating_mul(size_of::<f32>()),
        Some(File::Picture) => Sheet::new(shape, told.show.len()).bytes(),
        Some(File::Arrays(_)) => {
            let sets = if told.is_full { 3 } else { 2 };
            let matrix = if told.matrix { elements.saturating_mul(elements) } else { 0 };
            told.count.saturating_mul(sets * elements).saturating_add(matrix).saturating_mul(size_of::<f32>())
        }
    };
    if bytes <= limit {
        return Ok(bytes);
    }
    let (param, narrow) = match output.file {
        Some(File::Arrays(_)) if told.matrix => ("matrix", "leave out `matrix`, or ask for a smaller `k`"),
        Some(File::Picture) => ("show", "name fewer in `show`"),
        _ => ("k", "ask for a smaller `k`"),
    };
    let message = format!(
        "the answer would have {bytes} bytes, more than {limit}, the most there may be (`--study-limit`); {narrow}"
    );
    Err(ApiError::new(Cause::InvalidValue, message).param(param))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Faults;
    use crate::metrics::Metrics;
    use crate::testing::{manifest, with_insides};

    /// What a request is resolved to, of a model of grey pixels.
    fn resolve([height, width]: [usize; 2], fields: &str) -> Result<Method, ApiError> {
        let mut manifest = with_insides(manifest("shoes", &["sneaker", "boot"]));
        (manifest.config.height, manifest.config.width) = (height, width);
        let config = Config::default();
        let model = Model::fake(manifest, Faults::default(), &config, &Metrics::new()).unwrap();
        let request: JacobianRequest = serde_json::from_str(fields).unwrap();
        Jacobian::resolve(&request, &Accept::default(), &model, &config)?;
        let elements = height * width;
        method(&request, elements, count(&request, elements)?)
    }

    #[test]
    fn a_whole_matrix_that_would_be_too_large_is_refused_with_its_size() {
        let full = r#"{"class": 1, "timestep": 30, "method": "full"}"#;
        assert_eq!(resolve([64, 64], full).unwrap(), Method::Full);
        let error = resolve([64, 66], full).unwrap_err();
        assert_eq!((error.cause, error.param.as_deref()), (Cause::InvalidValue, Some("method")));
        let said = "an image of `4224` values has a matrix of 17842176 numbers; the most values are 4096, beyond them there is \
                    top-k";
        assert!(error.message.ends_with(said), "{}", error.message);
        // Which looks at such an image.
        let top = resolve([64, 66], r#"{"class": 1, "timestep": 30}"#).unwrap();
        assert!(matches!(top, Method::TopK { .. }), "{top:?}");
    }
}
