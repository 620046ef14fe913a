//! A request's body as bytes: its size and its arrival time are bounded.

use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::{Instant, timeout_at};
use windowpane_diffusion::error::number;

use crate::app::{App, BEGINNING};
use crate::error::{ApiError, Cause};

/// The whole body, at most `--body-limit` of it, within the body's timeout. What all bodies that are being read may hold
/// together is bounded too. Each begins in room for beginnings, of which it has what it has sent, and one that has sent more
/// than a beginning waits for room for all of it: who sends nothing keeps nothing, and small bodies do not wait for large ones.
pub(super) async fn collect(request: Request, app: &App) -> Result<Bytes, ApiError> {
    let (config, limit) = (app.config(), app.config().body_limit);
    let deadline = Instant::now() + config.body_timeout;
    // A body that says its size is refused before any of it is read.
    let said =
        request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > limit as u64) {
        return Err(too_large(limit));
    }
    let most = said.map_or(limit, |said| said as usize);
    let full = |_| no_room();
    let (mut body, mut bytes) = (Limited::new(request.into_body(), limit), Vec::new());
    let (mut room, mut begun, mut has_all) = (Vec::new(), 0, false);
    loop {
        let frame = timeout_at(deadline, body.frame()).await;
        let data = match frame.map_err(|_| too_slow(config.body_timeout))? {
            None => return Ok(bytes.into()),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large(limit)),
            // The connection broke or its framing is wrong: nobody who could mend that reads more of it here.
            Some(Err(_)) => return Err(ApiError::new(Cause::MalformedBody, "the body did not arrive whole")),
        };
        let length = bytes.len() + data.len();
        if length > BEGINNING && !has_all {
            room.push(timeout_at(deadline, app.room_for_body(most)).await.map_err(full)?);
            has_all = true;
        } else if length > begun && !has_all {
            // As the vector grows.
            let grown = length.next_power_of_two().min(BEGINNING);
            room.push(timeout_at(deadline, app.room_to_begin(grown - begun)).await.map_err(full)?);
            begun = grown;
        }
        bytes.extend_from_slice(&data);
    }
}

/// What a body is told for which there is no memory now.
pub(crate) fn no_room() -> ApiError {
    let message =
        "the bodies that are being read fill all the memory there is for them; there may be room in 1 s";
    ApiError::new(Cause::BodiesFull, message).retry_after(1)
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
