//! Work of the tests: as many pieces as the request asks for, each a moment's work, and whatever is to go wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use serde::Deserialize;

use super::*;
use crate::error::Cause;

/// What the tests order.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Request {
    model: Option<String>,
    pieces: usize,
    /// Milliseconds for each.
    pause: u64,
    /// `engine`, `invalid`, `panic`, `overloaded`, `quota`, `memory` or `large`, before the piece of this number.
    fault: Option<(String, usize)>,
}

/// The work, and how often each thing was done.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fake(Arc<Done>);

#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Times that somebody began.
    pub(crate) begun: AtomicUsize,
    /// Pieces that were made.
    pub(crate) pieces: AtomicUsize,
}

// === impl Fake ===

impl Fake {
    pub(crate) fn begun(&self) -> usize {
        self.0.begun.load(Relaxed)
    }

    pub(crate) fn pieces(&self) -> usize {
        self.0.pieces.load(Relaxed)
    }
}

impl Perform for Fake {
    fn check(&self, _: Caller, _: Kind, request: &RawValue, _: &Accept) -> Result<Checked, ApiError> {
        let request: Request = serde_json::from_str(request.get())
            .map_err(|error| ApiError::new(Cause::UnknownField, error.to_string()).param("field"))?;
        let model = request.model.ok_or_else(|| ApiError::invalid("model", "missing", "a model"))?;
        let digest = "0".repeat(64);
        Ok(Checked { model, digest, units: 7, expected: Duration::from_secs(14) })
    }

    fn perform<'a>(
        &'a self,
        job: &'a Leased,
        desk: &'a mut Desk,
    ) -> BoxFuture<'a, Result<Product, ApiError>> {
        Box::pin(async move {
            self.0.begun.fetch_add(1, Relaxed);
            let request: Request = serde_json::from_str(job.request.get()).unwrap();
            while desk.pieces().len() < request.pieces {
                let number = desk.pieces().len();
                if let Some((fault, _)) = request.fault.as_ref().filter(|(_, at)| *at == number) {
                    match fault.as_str() {
                        "engine" => return Err(ApiError::new(Cause::Engine, "the engine failed")),
                        "cancelled" => return Err(ApiError::new(Cause::Cancelled, "cancelled")),
                        "invalid" => return Err(ApiError::invalid("seed", 0, "another")),
                        "panic" => panic!("as was asked"),
                        // The second time there is room.
                        "overloaded" | "quota" | "memory" if self.begun() < 2 => {
                            let cause = match fault.as_str() {
                                "quota" => Cause::QuotaReached,
                                "memory" => Cause::MemoryFull,
                                _ => Cause::Overloaded,
                            };
                            return Err(ApiError::new(cause, "full").retry_after(1));
                        }
                        "large" => desk.put(vec![0_u8; 2 << 20].into()).await?,
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(request.pause)).await;
                desk.progress(number, request.pieces).await?;
                self.0.pieces.fetch_add(1, Relaxed);
                desk.put(format!("piece {number};").into()).await?;
            }
            let body = desk.pieces().concat();
            let headers = vec![("x-about".to_owned(), job.id.clone())];
            Ok(Product { media_type: "text/plain".to_owned(), headers, body: body.into() })
        })
    }
}
