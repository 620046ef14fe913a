//! A request's body as bytes: its size and its arrival time are bounded.

use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use windowpane_diffusion::error::number;

use crate::app::App;
use crate::error::{ApiError, Cause};

/// The whole body, at most `--body-limit` of it, within the body's timeout. What all bodies that are being read may hold
/// together is bounded too: one that finds no room waits for it, unread.
pub(super) async fn collect(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let (config, limit) = (app.config(), app.config().body_limit);
    // A body that says its size is refused before any of it is read.
    let said =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > limit as u64) {
        return Err(too_large(limit));
    }
    let most = said.map_or(limit, |said| said as usize);
    let collect = async {
        let _room = app.room_for_body(most).await;
        Limited::new(request.into_body(), limit).collect().await
    };
    match tokio::time::timeout(config.body_timeout, collect).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        // The connection broke or its framing is wrong: nobody who could mend that reads more of it here.
        Ok(Err(_)) => Err(ApiError::new(Cause::MalformedBody, "the body did not arrive whole")),
        Err(_) => Err(too_slow(config.body_timeout)),
    }
}

/// What a body beyond its time is told.
pub(crate) fn too_slow(limit: Duration) -> ApiError {
    let seconds = number(limit.as_secs_f64());
    let message = format!("the body took longer than {seconds} s, the most that is waited for one");
    ApiError::new(Cause::BodyTimeout, message)
}

/// What a body beyond the limit is told.
pub(crate) fn too_large(limit: usize) -> ApiError {
    ApiError::new(Cause::BodyTooLarge, format!("the body is larger than {limit} bytes, the most accepted"))
}
