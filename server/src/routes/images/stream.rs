//! Images as they come: server-sent events in the words of OpenAI's images API. Nothing runs ahead of the client: an
//! event is made when it is asked for, and a client that goes away takes its rows with it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use serde::Serialize;
use utoipa::ToSchema;

use super::outputs::{self, Made};
use super::response::{now, shown_size};
use crate::app::workbench::Workbench;
use crate::app::{Job, Room};
use crate::batcher::Event;
use crate::call::Running;
use crate::error::ApiError;
use crate::extract::Form;
use crate::middleware::request_id::RequestId;
use crate::middleware::track::{Fate, Stages};
use crate::model::Model;
use crate::provenance::Provenance;
use crate::spec::{Order, Seed};

/// Silence after which a comment is sent, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What every event says of its picture.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventPicture {
    /// The picture file, base64.
    pub b64_json: String,
    /// When, in seconds since 1970.
    pub created_at: u64,
    /// Width × height in pixels.
    #[schema(example = "28x28")]
    pub size: String,
    /// `auto`: `steps` decides quality here.
    #[schema(example = "auto")]
    pub quality: &'static str,
    /// `opaque`: no picture has an alpha channel.
    #[schema(example = "opaque")]
    pub background: &'static str,
    /// `png`, `webp` or `jpeg`.
    #[schema(example = "png")]
    pub output_format: &'static str,
    /// Which image of the request, from 0.
    pub image_index: usize,
    /// The effective seed, a decimal string.
    #[schema(value_type = String, example = "7")]
    pub seed: Seed,
    /// The id of the request, as in the header `x-request-id`: `DELETE /v1/requests/{id}` cancels it.
    pub request_id: String,
}

/// An event: its name is its `type`. An `error` holds what the body of an error would.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum ImageEvent {
    /// A preview: what the model takes the clean image to be.
    #[serde(rename = "image_generation.partial_image")]
    Partial {
        /// Which preview of the image, from 0.
        partial_image_index: usize,
        /// Solver steps done.
        step: usize,
        /// The picture.
        #[serde(flatten)]
        picture: EventPicture,
    },
    /// A finished image.
    #[serde(rename = "image_generation.completed")]
    Completed {
        /// Nothing is counted in tokens here.
        usage: Usage,
        /// How the image came about.
        provenance: Box<Provenance>,
        /// The picture.
        #[serde(flatten)]
        picture: EventPicture,
    },
}

/// OpenAI's count of tokens: all 0, since an image costs steps here.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Usage {
    /// 0.
    pub input_tokens: u64,
    /// 0.
    pub output_tokens: u64,
    /// 0.
    pub total_tokens: u64,
    /// 0 and 0.
    pub input_tokens_details: TokenDetails,
}

/// Kinds of tokens: none.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct TokenDetails {
    /// 0.
    pub image_tokens: u64,
    /// 0.
    pub text_tokens: u64,
}

/// A stream under way.
struct Stream {
    bench: Workbench,
    model: Arc<Model>,
    /// Whatever more is to come; nothing after an error.
    running: Option<Running>,
    order: Order,
    id: RequestId,
    /// Previews sent of each image.
    previews: Vec<usize>,
    /// The stages of the images that are done, if any is.
    stages: Option<Stages>,
    /// How it ended.
    fate: Fate,
    /// For the previews that wait for the client; none after an error.
    frames: Room,
    /// The drain waits until the client has the end of it, be it an error.
    _job: Job,
}

/// The answer whose body is the stream. Its head goes out at once.
pub(super) fn respond(
    bench: Workbench,
    running: Running,
    order: Order,
    id: RequestId,
    frames: Room,
) -> Response {
    let previews = vec![0; order.seeds.len()];
    let eta = running.eta().as_millis().min(u128::from(u64::MAX)) as u64;
    let begun = begun(&id);
    let fate = Fate::default();
    let (stages, its_fate) = (None, fate.clone());
    let (model, job) = (Arc::clone(running.model()), running.job());
    let running = Some(running);
    let stream =
        Stream { bench, model, running, order, id, previews, stages, fate: its_fate, frames, _job: job };
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.next().await?;
        Some((Ok::<_, Infallible>(bytes), stream))
    });
    let whole = futures::stream::once(async { Ok(begun) }).chain(events);
    let mut response = Body::from_stream(whole).into_response();
    response.extensions_mut().insert(fate);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(Form::Events.media_type()));
    headers.insert("x-eta-ms", HeaderValue::from(eta));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

// === impl Stream ===

impl Stream {
    /// The next piece of the body; `None` ends it. An error is the last event: the status has gone out long ago, and what
    /// is still under way is given up.
    async fn next(&mut self) -> Option<Bytes> {
        let running = self.running.as_mut()?;
        // Waiting for an event loses none when it is given up.
        let Ok(event) = tokio::time::timeout(KEEP_ALIVE, running.next()).await else {
            return Some(Bytes::from_static(b": still at work\n\n"));
        };
        let event = match event? {
            Ok(event) => self.event(event).await,
            Err(error) => Err(error),
        };
        Some(match event {
            Ok(event) => written(event.name(), &event),
            Err(error) => {
                (self.running, self.frames) = (None, Room::default());
                let (id, code) = (self.id.as_str(), error.cause.code());
                self.bench.app().metrics().rejections.with_label_values(&[code]).inc();
                self.fate.failed(error.cause);
                if error.cause.is_fault() {
                    tracing::error!(
                        request_id = id,
                        code,
                        detail = error.detail,
                        "a stream ends with an error"
                    );
                }
                written("error", &error.body(id))
            }
        })
    }

    async fn event(&mut self, event: Event) -> Result<ImageEvent, ApiError> {
        let model = Arc::clone(&self.model);
        let output = self.order.output;
        match event {
            Event::Frame { unit, frame } => {
                let index = self.previews[unit];
                self.previews[unit] += 1;
                let bytes = outputs::preview(&self.bench, &model.card, output, frame.x0).await?;
                let seed = Seed(self.order.seeds[unit]);
                let picture = self.picture(unit, seed, &bytes);
                Ok(ImageEvent::Partial { partial_image_index: index, step: frame.step + 1, picture })
            }
            Event::Done { unit, sample } => {
                let drawn = super::stages([&sample]);
                let made = Made::new(&model, &self.order, unit, sample, Vec::new());
                let (files, elapsed) =
                    outputs::encode(&self.bench, &model.card, output, vec![made], Room::default()).await?;
                self.bench
                    .app()
                    .metrics()
                    .encode
                    .with_label_values(&[model.name()])
                    .observe(elapsed.as_secs_f64());
                let file =
                    files.into_iter().next().ok_or_else(|| ApiError::internal("an image without a file"))?;
                let picture = self.picture(unit, file.provenance.seed, &file.bytes);
                let own = Stages { encode: elapsed, ..drawn };
                let stages = self.stages.map_or(own, |before| before.beside(own));
                self.stages = Some(stages);
                if let Some(running) = self.running.as_ref().filter(|running| running.is_over()) {
                    running.settle()?;
                    self.fate.done(stages);
                }
                Ok(ImageEvent::Completed {
                    usage: Usage::default(),
                    provenance: Box::new(file.provenance),
                    picture,
                })
            }
        }
    }

    fn picture(&self, image: usize, seed: Seed, bytes: &[u8]) -> EventPicture {
        EventPicture {
            b64_json: STANDARD.encode(bytes),
            created_at: now(),
            size: shown_size(self.order.picture_size(&self.model.card)),
            quality: "auto",
            background: "opaque",
            output_format: self.order.output.file.as_str(),
            image_index: image,
            seed,
            request_id: self.id.as_str().to_owned(),
        }
    }
}

// === impl ImageEvent ===

impl ImageEvent {
    fn name(&self) -> &'static str {
        match self {
            Self::Partial { .. } => "image_generation.partial_image",
            Self::Completed { .. } => "image_generation.completed",
        }
    }
}

/// What a stream begins with, long before the first picture: the id by which it can be cancelled, for whoever sees the
/// body and no headers. It is a comment, which every reader of events passes over: OpenAI's clients know no event but
/// those of pictures, and take a field `id:` without data for a broken one.
fn begun(id: &RequestId) -> Bytes {
    format!(": x-request-id: {}\n\n", id.as_str()).into()
}

/// An event as it is written: JSON has no line breaks.
fn written(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("numbers and text always make JSON; this is a bug");
    format!("event: {name}\ndata: {data}\n\n").into()
}
