//! What a client does next, and whether the answer is right. Requests of a fixed set were answered once while nobody else
//! was there, and must be answered with the same bytes ever after; all others must be whole. Here is what asks for images;
//! looks and jobs are in `traffic/insides.rs`.

mod insides;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

use super::record::{Answer, Kind};
use crate::{IMAGES, Random};

/// Requests of the fixed set.
const FIXED: u64 = 24;

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// Side of the pictures of `models/tiny`.
const SIDE: u32 = 32;

/// The server, and what it must answer.
#[derive(Debug)]
pub struct Traffic {
    client: Client,
    url: String,
    /// PNG of each request of the fixed set.
    fixed: BTreeMap<u64, Vec<u8>>,
    /// Answer of each look of the fixed set.
    looks: Vec<((&'static str, Value), Vec<u8>)>,
}

/// What a request may be answered with where it is right.
const BUSY: [u16; 1] = [429];

// === impl Traffic ===

impl Traffic {
    /// Asks for the fixed set, one after another.
    pub async fn begin(url: &str) -> Result<Self> {
        let client = Client::builder().timeout(PATIENCE).build()?;
        let mut traffic = Self { client, url: url.to_owned(), fixed: BTreeMap::new(), looks: Vec::new() };
        for which in 0..FIXED {
            let response = traffic.picture(&fixed(which)).send().await?.error_for_status()?;
            traffic.fixed.insert(which, response.bytes().await?.to_vec());
        }
        for (path, body) in insides::looks() {
            let answer = traffic.first_look(path, &body).await?;
            traffic.looks.push(((path, body), answer));
        }
        Ok(traffic)
    }

    /// The fixed set again: the same bytes.
    pub async fn again(&self) -> Result<()> {
        for (which, before) in &self.fixed {
            let now = self.picture(&fixed(*which)).send().await?.error_for_status()?.bytes().await?;
            ensure!(now == *before, "request {which} of the fixed set has other bytes: {}", fixed(*which));
        }
        for ((path, body), before) in &self.looks {
            let now = self.first_look(path, body).await?;
            ensure!(now == *before, "a look of the fixed set has other bytes: {body} of {path}");
        }
        Ok(())
    }

    async fn metrics(&self) -> Result<String> {
        Ok(self.client.get(self.at("/metrics")).send().await?.error_for_status()?.text().await?)
    }

    /// The version of ONNX Runtime.
    pub async fn runtime(&self) -> Result<String> {
        let text = self.metrics().await?;
        let version = text.split_once("onnxruntime=\"").and_then(|(_, rest)| rest.split('"').next());
        Ok(version.context("no `windowpane_build_info`")?.to_owned())
    }

    /// Images that are admitted and not finished.
    pub async fn under_way(&self) -> Result<f64> {
        let text = self.metrics().await?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("windowpane_trajectories{model=\"tiny\"} "));
        line.context("no `windowpane_trajectories`")?
            .parse()
            .context("`windowpane_trajectories` is no number")
    }

    /// One client until `end`.
    pub async fn client(&self, number: u64, begin: Instant, end: Instant, told: impl Fn(Answer)) {
        let mut random = Random::new(number);
        while Instant::now() < end {
            let kind = *random.pick(&Kind::MIX);
            let sent = Instant::now();
            let answer = self.ask(kind, number, &mut random).await;
            let (status, wrong, wait) = match answer {
                Ok((status, wait)) => (status, None, wait),
                Err(error) => (0, Some(format!("{error:#}")), None),
            };
            told(Answer { kind, at: sent - begin, took: sent.elapsed(), status, wrong });
            let pause = match wait {
                // Half of them have manners.
                Some(wait) if random.chance(50) => wait,
                _ => Duration::from_millis(random.below(100) as u64),
            };
            tokio::time::sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// One request of this kind. The status, 0 where the client left; and how long it was told to wait.
    async fn ask(&self, kind: Kind, number: u64, random: &mut Random) -> Result<(u16, Option<Duration>)> {
        match kind {
            Kind::Fixed => {
                let which = random.below(FIXED as usize) as u64;
                let response = self.picture(&fixed(which)).send().await?;
                let (status, wait, bytes) = read(response, &BUSY).await?;
                ensure!(status != 200 || bytes == self.fixed[&which], "other bytes for {}", fixed(which));
                Ok((status, wait))
            }
            Kind::Json => {
                let body = any(random);
                let response = self.post(IMAGES, &body).send().await?;
                let (status, wait, bytes) = read(response, &BUSY).await?;
                if status == 200 {
                    pictures(&bytes, &body)?;
                }
                Ok((status, wait))
            }
            Kind::Stream => {
                let mut body = any(random);
                body["stream"] = json!(true);
                body["partial_images"] = json!(random.below(4));
                let (status, wait, bytes) = read(self.post(IMAGES, &body).send().await?, &BUSY).await?;
                if status == 200 {
                    let text = String::from_utf8(bytes)?;
                    let events = text
                        .lines()
                        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
                    let is_end = |event: &Value| event["type"] == "image_generation.completed";
                    let ends: Vec<Value> = events.filter(is_end).collect();
                    ensure!(Some(ends.len() as u64) == body["n"].as_u64(), "{} ends of {body}", ends.len());
                    ends.iter().try_for_each(picture)?;
                }
                Ok((status, wait))
            }
            Kind::Leave => {
                let patience = Duration::from_millis(random.below(400) as u64);
                let body = any(random);
                let Ok(response) = tokio::time::timeout(patience, self.post(IMAGES, &body).send()).await
                else {
                    return Ok((0, None));
                };
                let (status, wait, bytes) = read(response?, &BUSY).await?;
                if status == 200 {
                    pictures(&bytes, &body)?;
                }
                Ok((status, wait))
            }
            Kind::Cancel => {
                let id = format!("soak-{number}");
                let body = any(random);
                let request = self.post(IMAGES, &body).header("x-request-id", &id).send();
                let delete = async {
                    tokio::time::sleep(Duration::from_millis(random.below(3000) as u64)).await;
                    self.client.delete(self.at(&format!("/v1/requests/{id}"))).send().await
                };
                let (response, deleted) = tokio::join!(request, delete);
                let deleted = deleted?.status().as_u16();
                ensure!([200, 202, 204, 404].contains(&deleted), "a cancellation is answered with {deleted}");
                let (status, wait, bytes) = read(response?, &[409, 429]).await?;
                if status == 200 {
                    pictures(&bytes, &body)?;
                }
                Ok((status, wait))
            }
            Kind::Late => {
                let deadline = random.below(6000) + 1;
                let body = any(random);
                let request = self.post(IMAGES, &body).header("x-request-timeout-ms", deadline);
                let (status, wait, bytes) = read(request.send().await?, &[429, 504]).await?;
                if status == 200 {
                    pictures(&bytes, &body)?;
                }
                Ok((status, wait))
            }
            Kind::Replay => {
                let png = self.fixed[&(random.below(FIXED as usize) as u64)].clone();
                let request =
                    self.client.post(self.at("/v1/replay")).header(CONTENT_TYPE, "image/png").body(png);
                let (status, wait, bytes) = read(request.send().await?, &BUSY).await?;
                if status == 200 {
                    let answer: Value = serde_json::from_slice(&bytes)?;
                    ensure!(answer["identical"] == true, "a picture of ours is not made again: {answer}");
                }
                Ok((status, wait))
            }
            Kind::Infer => {
                let (seed, steps) = (random.below(1000), 1 + random.below(6));
                let body = json!({"inputs": [
                    {"name": "seed", "datatype": "INT64", "shape": [2], "data": [seed, seed + 1]},
                    {"name": "steps", "datatype": "INT32", "shape": [2], "data": [steps, steps + 1]},
                    {"name": "class", "datatype": "INT64", "shape": [2], "data": [seed % 4, (seed + 1) % 4]},
                ]});
                let response = self.post("/v2/models/tiny.sampler/infer", &body).send().await?;
                let (status, wait, bytes) = read(response, &BUSY).await?;
                if status == 200 {
                    let answer: Value = serde_json::from_slice(&bytes)?;
                    let values = answer["outputs"][0]["data"].as_array().context("no data")?;
                    ensure!(values.len() == 2 * (SIDE * SIDE) as usize, "{} values", values.len());
                    ensure!(values.iter().all(Value::is_number), "values that are no numbers");
                }
                Ok((status, wait))
            }
            Kind::Attention => self.look("/attention", &format!("soak-attention-{number}"), random).await,
            Kind::Jacobian => self.look("/jacobian", &format!("soak-jacobian-{number}"), random).await,
            Kind::Job => {
                let id = format!("soak-{number}-{}", random.below(1 << 40));
                self.order(&id, random).await
            }
            Kind::Wrong => {
                let bodies = [
                    "{",
                    "[]",
                    "{\"model\":\"none\"}",
                    "{\"model\":\"tiny\",\"steps\":0}",
                    "{\"model\":\"tiny\",\"step\":3}",
                    "{\"model\":\"tiny\",\"class\":99}",
                    "{\"model\":\"tiny\",\"x_t\":\"%\"}",
                ];
                let request = self.client.post(self.at(IMAGES)).header(CONTENT_TYPE, "application/json");
                let (status, wait, _) =
                    read(request.body(*random.pick(&bodies)).send().await?, &[400, 404, 422]).await?;
                ensure!(status != 200, "what is wrong was answered");
                Ok((status, wait))
            }
            Kind::Look => {
                let path =
                    *random.pick(&["/livez", "/readyz", "/v1/models", "/v1/models/tiny", "/metrics", "/v2"]);
                let (status, wait, _) = read(self.client.get(self.at(path)).send().await?, &[]).await?;
                Ok((status, wait))
            }
        }
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.at(path)).header(CONTENT_TYPE, "application/json").body(body.to_string())
    }

    /// A request of one image, answered with its PNG.
    fn picture(&self, body: &Value) -> RequestBuilder {
        self.post(IMAGES, body).header(ACCEPT, "image/png")
    }
}

/// Request `which` of the fixed set.
fn fixed(which: u64) -> Value {
    let random = &mut Random::new(which);
    let mut body = any(random);
    body["n"] = json!(1);
    body
}

/// A request like those that people send.
pub fn any(random: &mut Random) -> Value {
    json!({
        "model": "tiny",
        "class": random.below(4),
        "seed": random.below(1 << 40),
        "n": 1 + random.below(3),
        "steps": 1 + random.below(20),
        "sampler": random.pick(&["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m"]),
        "guidance_scale": random.pick(&[1.0, 1.0, 3.0]),
    })
}

/// Reads an answer whole. Errors: a status that is neither 200 nor expected here.
async fn read(response: Response, expected: &[u16]) -> Result<(u16, Option<Duration>, Vec<u8>)> {
    let status = response.status().as_u16();
    let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let bytes = response.bytes().await?.to_vec();
    let text = || String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    ensure!(status == 200 || expected.contains(&status), "answered with {status}: {}", text());
    if status >= 400 {
        let error: Value = serde_json::from_slice(&bytes)?;
        let message = error["error"]["message"].as_str().or(error["error"].as_str());
        ensure!(message.is_some_and(|message| !message.is_empty()), "no word of why: {}", text());
    }
    // What can never be done in its time is not worth coming back for.
    let hopeless = || text().contains("deadline_unmeetable");
    ensure!(status != 429 || wait.is_some() || hopeless(), "refused without a time to come back: {}", text());
    Ok((status, wait.map(Duration::from_secs), bytes))
}

/// As many whole pictures as were asked for.
fn pictures(answer: &[u8], asked: &Value) -> Result<()> {
    let answer: Value = serde_json::from_slice(answer)?;
    let data = answer["data"].as_array().context("no `data`")?;
    ensure!(Some(data.len() as u64) == asked["n"].as_u64(), "{} images for {asked}", data.len());
    data.iter().try_for_each(picture)
}

/// The picture in an object's `b64_json`.
fn picture(object: &Value) -> Result<()> {
    whole(&STANDARD.decode(object["b64_json"].as_str().context("no `b64_json`")?)?)
}

/// A PNG of the model's size, every pixel there.
fn whole(png: &[u8]) -> Result<()> {
    let picture = image::load_from_memory_with_format(png, image::ImageFormat::Png)?;
    ensure!((picture.width(), picture.height()) == (SIDE, SIDE), "{}x{}", picture.width(), picture.height());
    Ok(())
}
