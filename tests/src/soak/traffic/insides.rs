//! Clients who look inside, and who order jobs. A look that takes long becomes a job, which is followed to its end; what
//! takes longer than a client bears is cancelled. Looks of a fixed set have the same bytes whenever they are answered, at
//! once or as a job's result.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Response;
use reqwest::header::{HeaderValue, LOCATION, RANGE};
use serde_json::{Value, json};

use super::{BUSY, Traffic, read};
use crate::Random;

/// How long a client follows a job, at most.
const BEARS: usize = 60_000;

/// Looks of the fixed set: where they are asked for, and what is asked.
pub(super) fn looks() -> Vec<(&'static str, Value)> {
    let attention = |seed: u64| {
        let body = json!({
            "model": "tiny", "class": 1, "seed": seed, "timestep": 300, "layers": [0, 2], "tokens": [[3, 3]], "maps": "mean",
        });
        ("/v1/analysis/attention", body)
    };
    let jacobian = |seed: u64| {
        let body = json!({"model": "tiny", "class": 2, "seed": seed, "timestep": 500, "k": 1});
        ("/v1/analysis/jacobian", body)
    };
    vec![attention(1), attention(2), jacobian(3), jacobian(4)]
}

/// What a client has of a request: the status that counts, and how long it was told to wait.
type Told = (u16, Option<Duration>);

// === impl Traffic ===

impl Traffic {
    /// A look of the fixed set, with nobody else there.
    pub(super) async fn first_look(&self, path: &str, body: &Value) -> Result<Vec<u8>> {
        let response = self.post(path, body).header("prefer", "wait=100").send().await?;
        let (_, _, bytes) = read(response, &[]).await?;
        Ok(bytes)
    }

    /// A look of the fixed set, of those whose path ends so.
    pub(super) async fn look(&self, path_end: &str, who: &str, random: &mut Random) -> Result<Told> {
        let those: Vec<_> = self.looks.iter().filter(|((path, _), _)| path.ends_with(path_end)).collect();
        let ((path, body), expected) = random.pick(&those);
        let response = self.post(path, body).header("x-request-id", who).send().await?;
        if response.status() != 202 {
            let (status, wait, bytes) = read(response, &BUSY).await?;
            ensure!(status != 200 || bytes == *expected, "other bytes for {body} of {path}");
            return Ok((status, wait));
        }
        let job = place(&response)?;
        read(response, &[202]).await?;
        let Some(result) = self.follow(&job, random).await? else { return Ok((409, None)) };
        ensure!(result == *expected, "other bytes for {body} of {path}, as a job");
        Ok((200, None))
    }

    /// An order of a few images under an id of the client's, sent twice.
    pub(super) async fn order(&self, id: &str, random: &mut Random) -> Result<Told> {
        let n = 1 + random.below(6);
        let request =
            json!({"model": "tiny", "classes": "each", "n": n, "steps": 1 + random.below(4), "seed": 5});
        let order = json!({"kind": "images", "request": request}).to_string();
        let job = format!("/v1/jobs/{id}");
        let send = || {
            let request = self.client.put(self.at(&job)).header("content-type", "application/json");
            request.body(order.clone()).send()
        };
        let (status, wait, _) = read(send().await?, &[202, 429]).await?;
        if status == 429 {
            return Ok((status, wait));
        }
        ensure!(status == 202, "a new order is answered with {status}");
        let again = send().await?.status();
        ensure!(again == 200, "the same order again is answered with {again}");
        let Some(result) = self.follow(&job, random).await? else { return Ok((409, None)) };
        // An npz is an archive; each image is a byte a pixel.
        let least = n * (super::SIDE * super::SIDE) as usize;
        ensure!(result.starts_with(b"PK") && result.len() > least, "{} bytes for {order}", result.len());
        Ok((200, None))
    }

    /// The result of a job, or nothing if it took longer than this client bears and was cancelled.
    async fn follow(&self, job: &str, random: &mut Random) -> Result<Option<Vec<u8>>> {
        let bears = Duration::from_millis(random.below(BEARS) as u64);
        let events = async {
            let events = self.client.get(self.at(&format!("{job}/events"))).send().await?;
            anyhow::Ok(events.error_for_status()?.text().await?)
        };
        let Ok(events) = tokio::time::timeout(bears, events).await else {
            let deleted = self.client.delete(self.at(job)).send().await?.error_for_status()?;
            let state: Value = serde_json::from_slice(&deleted.bytes().await?)?;
            let ended = ["cancelled", "succeeded"].map(|word| state["state"] == word);
            ensure!(ended.contains(&true), "a job that was cancelled is {state}");
            return Ok(None);
        };
        let events = events?;
        ensure!(events.contains("event: succeeded"), "a job ended otherwise: {events}");
        let result = format!("{job}/result");
        let whole = self.client.get(self.at(&result)).send().await?.error_for_status()?.bytes().await?;
        // In two parts, as a download that broke off.
        let middle = random.below(whole.len());
        let mut parts = Vec::new();
        for range in [format!("bytes=0-{middle}"), format!("bytes={}-", middle + 1)] {
            let part = self.client.get(self.at(&result)).header(RANGE, &range).send().await?;
            let is_empty = middle + 1 == whole.len() && !parts.is_empty();
            ensure!(
                part.status() == if is_empty { 416 } else { 206 },
                "{range} is answered with {}",
                part.status()
            );
            if !is_empty {
                parts.extend_from_slice(&part.bytes().await?);
            }
        }
        ensure!(parts == whole, "two parts of {result} are not the whole");
        Ok(Some(parts))
    }

    /// Jobs that wait or run.
    pub async fn jobs_left(&self) -> Result<usize> {
        let mut left = 0;
        for state in ["queued", "running"] {
            let page = self.client.get(self.at(&format!("/v1/jobs?state={state}"))).send().await?;
            let page: Value = serde_json::from_slice(&page.error_for_status()?.bytes().await?)?;
            left += page["data"].as_array().context("no `data` in a page of jobs")?.len();
        }
        Ok(left)
    }
}

/// The path of the job that an answer names.
fn place(response: &Response) -> Result<String> {
    let place = response.headers().get(LOCATION).map(HeaderValue::to_str);
    Ok(place.context("202 without a place")??.to_owned())
}
