//! What each kind of job does: the work of a route, with its pieces on the desk, and its answer as the product.

mod images;
mod sampling;

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::Kind;
use super::perform::{Checked, Desk, Leased, Perform, Product};
use crate::app::App;
use crate::batcher::Caller;
use crate::batcher::study::Effort;
use crate::call::{Call, Watch};
use crate::error::{ApiError, Cause};
use crate::extract::{Accept, parse};
use crate::middleware::request_id::RequestId;
use crate::model::Model;
use crate::routes::analysis::analyse::{self, Analysis};
use crate::routes::analysis::attention::Attention;
use crate::routes::analysis::jacobian::Jacobian;
use crate::routes::analysis::psnr_gap::PsnrGap;
use crate::spec::MAX_SEED;

pub use images::BulkRequest;

/// Headers of an answer that say what it is, and come with the result.
const TOLD: [&str; 3] = ["x-about", "x-model", "x-model-digest"];

/// The kinds of this server's jobs.
#[derive(Debug)]
pub struct Kinds {
    app: App,
}

// === impl Kinds ===

impl Kinds {
    /// Work through this application's models.
    pub fn new(app: App) -> Self {
        Self { app }
    }

    async fn answer(&self, job: &Leased, desk: &mut Desk) -> Result<Response, ApiError> {
        let app = &self.app;
        // The order may have named none, where only one was served.
        let model = app.model(Some(&job.model))?;
        if model.card.digest != job.digest {
            let message = format!("`{}` is served in another version than the job was ordered of", job.model);
            return Err(ApiError::new(Cause::ModelChanged, message).param("model"));
        }
        // The id of a job is one of a request.
        let id = RequestId::parse(&job.id).ok_or_else(|| ApiError::internal("a job without a sane id"))?;
        let call = Call::of_job(id, job.identity);
        match job.kind {
            Kind::Attention => self.analysis::<Attention>(call, (job, model), desk).await,
            Kind::Jacobian => self.analysis::<Jacobian>(call, (job, model), desk).await,
            Kind::PsnrGap => self.analysis::<PsnrGap>(call, (job, model), desk).await,
            Kind::Images => images::answer(app, call, (body(&job.request)?, model), desk).await,
        }
    }

    async fn analysis<A: Analysis>(
        &self,
        call: Call,
        (job, model): (&Leased, Arc<Model>),
        desk: &mut Desk,
    ) -> Result<Response, ApiError> {
        let mut request = body(&job.request)?;
        A::pin(&mut request, seed_of(job));
        analyse::answer::<A>(&self.app, call, job.accept.clone(), (request, model), desk).await
    }

    /// The model that would be looked at, and what that takes.
    fn check_analysis<A: Analysis>(
        &self,
        request: &RawValue,
        accept: &Accept,
    ) -> Result<(Arc<Model>, Effort), ApiError> {
        let request: A::Request = body(request)?;
        if A::timeout_ms(&request).is_some() {
            let message = "`timeout_ms` is for requests that somebody waits for; a job has none";
            return Err(ApiError::new(Cause::InvalidValue, message).param("timeout_ms"));
        }
        analyse::check::<A>(&self.app, &request, accept)
    }
}

impl Perform for Kinds {
    fn check(
        &self,
        caller: Caller,
        kind: Kind,
        request: &RawValue,
        accept: &Accept,
    ) -> Result<Checked, ApiError> {
        let (model, effort) = match kind {
            Kind::Attention => self.check_analysis::<Attention>(request, accept),
            Kind::Jacobian => self.check_analysis::<Jacobian>(request, accept),
            Kind::PsnrGap => self.check_analysis::<PsnrGap>(request, accept),
            Kind::Images => images::check(&self.app, &body(request)?),
        }?;
        let expected = model.batcher.expect_study(caller, effort);
        let (model, digest, units) = (model.name().to_owned(), model.card.digest.clone(), effort.units);
        Ok(Checked { model, digest, units, expected })
    }

    fn perform<'a>(
        &'a self,
        job: &'a Leased,
        desk: &'a mut Desk,
    ) -> BoxFuture<'a, Result<Product, ApiError>> {
        Box::pin(async move { product(self.answer(job, desk).await?).await })
    }
}

impl Watch for Desk {
    fn pieces(&self) -> Vec<Bytes> {
        Desk::pieces(self).to_vec()
    }

    fn keep(&mut self, piece: Bytes) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move { Ok(self.put(piece).await?) })
    }

    fn at(&mut self, done: usize, total: usize) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move { Ok(self.progress(done, total).await?) })
    }
}

/// The seed of a job whose order names none: the same for whoever works on it.
fn seed_of(job: &Leased) -> u64 {
    let digest = Sha256::digest(format!("{} {}", job.number, job.id));
    digest.first_chunk().map_or(0, |&bytes| u64::from_le_bytes(bytes) & MAX_SEED)
}

/// The body of a route.
fn body<T: DeserializeOwned>(request: &RawValue) -> Result<T, ApiError> {
    parse(&Bytes::copy_from_slice(request.get().as_bytes()))
}

/// The answer of a route as a job's product.
async fn product(response: Response) -> Result<Product, ApiError> {
    let (parts, body) = response.into_parts();
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let media_type = text("content-type").ok_or_else(|| ApiError::internal("an answer without a type"))?;
    let headers = TOLD.iter().filter_map(|name| Some(((*name).to_owned(), text(name)?))).collect();
    let body = body.collect().await.map_err(|error| ApiError::internal(error.to_string()))?.to_bytes();
    Ok(Product { media_type, headers, body })
}
