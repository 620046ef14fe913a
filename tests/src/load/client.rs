//! The sender. Open loop: every request goes out when it is due, whatever has been answered, and its latency counts
//! from that moment, so that a server which stalls cannot make its clients wait with their questions. Closed loop: so
//! many clients who ask again as soon as they are answered, which is how a server is kept full.
//!
//! One thread, hyper's own connections, bodies made beforehand: the sender shares its cores with what it measures.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::trace::{Arrival, Job};
use crate::IMAGES;

/// Where Jacobians are asked for.
const JACOBIAN: &str = "/v1/analysis/jacobian";

/// What became of one sending of one request. Times in seconds from the beginning of the measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// What was asked for.
    pub job: Job,
    /// When its client came first, to be refused perhaps.
    pub first: f64,
    /// When it was to be sent: the latency's zero.
    pub due: f64,
    /// When it was sent.
    pub sent: f64,
    /// When its answer had been read, or when the measurement ended without one.
    pub end: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// 0 the first time a client asks, 1 when it comes back for the first time, …
    pub attempt: u32,
}

/// How a sending ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The images came.
    Done,
    /// 429, with the seconds of its `retry-after`.
    Refused {
        /// Seconds; `None` where the header is missing or no number.
        retry_after: Option<u64>,
    },
    /// Another status, or 0 for a connection that broke.
    Failed(u16),
    /// No answer when the measurement ended; the client hung up.
    Unanswered,
}

/// What a client does when it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// It goes away.
    Leave,
    /// It comes back with the same bytes after the seconds it was told, as often as it is told.
    Return,
}

/// Whom to ask, and for what.
#[derive(Debug, Clone)]
pub struct Target {
    /// `host:port`.
    pub authority: String,
    /// The model's name.
    pub model: String,
    /// Its number of classes; they are asked for in turn. 0: neither classes nor guidance.
    pub classes: usize,
}

/// Connections to one server that are free; at most one request at a time is on each.
struct Pool {
    target: Target,
    start: Instant,
    free: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    records: RefCell<Vec<Record>>,
}

// === impl Target ===

impl Target {
    /// The body of the `serial`-th request. DDIM, because it evaluates the network once a step.
    fn body(&self, job: Job, serial: usize) -> Bytes {
        let guidance = if job.guided { 4.0 } else { 1.0 };
        let mut body = json!({
            "model": self.model, "n": job.n, "steps": job.steps, "sampler": "ddim", "seed": serial,
            "guidance_scale": guidance,
        });
        if self.classes > 0 {
            body["class"] = json!(serial % self.classes);
        }
        Bytes::from(body.to_string())
    }

    /// Sends the schedule, and waits for answers until all have come or `grace` has passed since the last was due.
    pub async fn play(&self, schedule: &[Arrival], manners: Manners, grace: Duration) -> Vec<Record> {
        let pool = self.pool();
        let end = pool.start + seconds(schedule.last().map_or(0.0, |last| last.at)) + grace;
        let bodies: Vec<_> = schedule.iter().enumerate().map(|(i, a)| (*a, self.body(a.job, i))).collect();
        let shared = Rc::clone(&pool);
        LocalSet::new()
            .run_until(async move {
                let mut clients = JoinSet::new();
                for (arrival, body) in bodies {
                    sleep_until(shared.start + seconds(arrival.at)).await;
                    clients.spawn_local(Rc::clone(&shared).client(arrival, body, manners, end));
                }
                while clients.join_next().await.is_some() {}
            })
            .await;
        pool.records.take()
    }

    /// `clients` ask for `job` again and again, while `during` lasts; then they hang up.
    pub async fn saturate<T>(
        &self,
        job: Job,
        clients: usize,
        during: impl Future<Output = T>,
    ) -> (T, Vec<Record>) {
        let pool = self.pool();
        let shared = Rc::clone(&pool);
        let result = LocalSet::new()
            .run_until(async move {
                let mut tasks = JoinSet::new();
                for first in 0..clients {
                    tasks.spawn_local(Rc::clone(&shared).again_and_again(job, first, clients));
                }
                during.await
            })
            .await;
        (result, pool.records.take())
    }

    /// So many clients ask for one whole Jacobian after the other, while `during` lasts; then they hang up. How many were
    /// answered. Errors: one that is not.
    pub async fn study<T>(&self, clients: usize, during: impl Future<Output = T>) -> Result<(T, usize)> {
        let mut body = json!({ "model": self.model, "seed": 7, "timestep": 500, "method": "full", "k": 1 });
        if self.classes > 0 {
            body["class"] = json!(0);
        }
        let (pool, body, answered) = (self.pool(), Bytes::from(body.to_string()), Cell::new(0));
        let one = async || -> Result<Infallible> {
            loop {
                match pool.exchange(JACOBIAN, body.clone()).await? {
                    Outcome::Done => answered.set(answered.get() + 1),
                    outcome => anyhow::bail!("a Jacobian ends with {outcome:?}"),
                }
            }
        };
        let both = async {
            tokio::select! {
                done = during => Ok(done),
                asked = try_join_all((0..clients).map(|_| one())) => Err(match asked {
                    Err(error) => error,
                    Ok(_) => anyhow::anyhow!("nobody asks: this is a bug"),
                }),
            }
        };
        let done = LocalSet::new().run_until(both).await?;
        Ok((done, answered.get()))
    }

    /// GET, for `/metrics`.
    pub async fn get(&self, path: &str) -> Result<String> {
        let pool = self.pool();
        let request = Request::builder().method(Method::GET).uri(path).header(HOST, &self.authority);
        let request = request.body(Full::default()).context("a path makes a request")?;
        let run = async {
            let mut connection = pool.connection().await?;
            let response = connection.send_request(request).await?;
            anyhow::ensure!(response.status() == StatusCode::OK, "{path} answers {}", response.status());
            Ok(response.into_body().collect().await?.to_bytes())
        };
        let bytes = LocalSet::new().run_until(run).await?;
        String::from_utf8(bytes.to_vec()).with_context(|| format!("{path} is not text"))
    }

    fn pool(&self) -> Rc<Pool> {
        let (free, records) = (RefCell::default(), RefCell::default());
        Rc::new(Pool { target: self.clone(), start: Instant::now(), free, records })
    }
}

// === impl Pool ===

impl Pool {
    /// One client, from its arrival to its answer, or to `end`.
    async fn client(self: Rc<Self>, arrival: Arrival, body: Bytes, manners: Manners, end: Instant) {
        let mut due = arrival.at;
        for attempt in 0.. {
            let now = self.start.elapsed().as_secs_f64();
            let asked =
                timeout_at(end, self.ask(Arrival { at: due, ..arrival }, body.clone(), attempt)).await;
            let asked = asked.map(|record| Record { first: arrival.at, ..record });
            let record = asked.unwrap_or_else(|_| Record {
                job: arrival.job,
                first: arrival.at,
                due,
                sent: now,
                end: self.start.elapsed().as_secs_f64(),
                outcome: Outcome::Unanswered,
                attempt,
            });
            self.records.borrow_mut().push(record);
            let Outcome::Refused { retry_after: Some(wait) } = record.outcome else { return };
            due = record.end + wait as f64;
            let back = self.start + seconds(due);
            if manners == Manners::Leave || back >= end {
                return;
            }
            sleep_until(back).await;
        }
    }

    /// One client of a closed loop.
    async fn again_and_again(self: Rc<Self>, job: Job, first: usize, clients: usize) {
        for serial in (first..).step_by(clients) {
            let at = self.start.elapsed().as_secs_f64();
            let record = self.ask(Arrival { at, job }, self.target.body(job, serial), 0).await;
            self.records.borrow_mut().push(record);
        }
    }

    /// Asks once. A connection that the server has closed while it was free is replaced.
    async fn ask(&self, arrival: Arrival, body: Bytes, attempt: u32) -> Record {
        let sent = self.start.elapsed().as_secs_f64();
        let outcome = self.exchange(IMAGES, body).await.unwrap_or(Outcome::Failed(0));
        let end = self.start.elapsed().as_secs_f64();
        Record { job: arrival.job, first: arrival.at, due: arrival.at, sent, end, outcome, attempt }
    }

    async fn exchange(&self, path: &str, body: Bytes) -> Result<Outcome> {
        let mut connection = self.connection().await?;
        let request = Request::builder().method(Method::POST).uri(path).header(HOST, &self.target.authority);
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let told = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        response.into_body().collect().await?;
        self.free.borrow_mut().push(connection);
        Ok(match status {
            StatusCode::OK => Outcome::Done,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Refused { retry_after: told },
            other => Outcome::Failed(other.as_u16()),
        })
    }

    /// A free connection, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut connection) = self.free.borrow_mut().pop() else { break };
            if !connection.is_closed() && connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let stream = TcpStream::connect(&self.target.authority).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender; an error shows where the answer is read.
        spawn_local(async move { _ = driver.await });
        Ok(sender)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.max(0.0))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream as Blocking};
    use std::sync::mpsc;

    use super::*;

    const JOB: Job = Job { steps: 10, guided: true, n: 2 };

    /// A server of so many connections whose `answer` to a body is the head of a response without a body, or silence.
    fn server(
        answer: impl Fn(usize) -> Option<&'static str> + Clone + Send + 'static,
    ) -> (Target, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let (send, bodies) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, send) = (answer.clone(), send.clone());
                std::thread::spawn(move || serve(stream, &answer, &send));
            }
        });
        (Target { authority, model: "shoes".to_owned(), classes: 10 }, bodies)
    }

    /// Until the client hangs up.
    fn serve(
        mut stream: Blocking,
        answer: &dyn Fn(usize) -> Option<&'static str>,
        send: &mpsc::Sender<String>,
    ) {
        let (mut bytes, mut chunk, mut served) = (Vec::new(), [0; 4096], 0);
        while let Ok(more @ 1..) = stream.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..more]);
            let text = String::from_utf8(bytes.clone()).unwrap();
            // The body is one object without another in it.
            if text.ends_with('}') {
                let body = text.split("\r\n\r\n").nth(1).unwrap().to_owned();
                if send.send(body).is_err() {
                    return;
                }
                bytes.clear();
                if let Some(head) = answer(served) {
                    stream
                        .write_all(format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                        .unwrap();
                }
                served += 1;
            }
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn nobody_waits_for_the_answers_of_others() {
        let (target, bodies) = server(|_| None);
        let schedule: Vec<_> = (0..5).map(|i| Arrival { at: 0.01 * f64::from(i), job: JOB }).collect();
        let mut records = block_on(target.play(&schedule, Manners::Return, Duration::from_millis(200)));
        records.sort_by(|a, b| a.due.total_cmp(&b.due));
        assert_eq!(bodies.try_iter().count(), 5);
        assert_eq!(records.len(), 5);
        for (record, arrival) in records.iter().zip(&schedule) {
            assert_eq!((record.outcome, record.due), (Outcome::Unanswered, arrival.at));
            assert!(record.sent >= record.due && record.end >= 0.24, "{record:?}");
        }
    }

    #[test]
    fn who_is_refused_comes_back_with_the_same_bytes_or_leaves() {
        let refuse =
            |served| Some(if served == 0 { "429 Too Many Requests\r\nretry-after: 1" } else { "200 OK" });
        let schedule = [Arrival { at: 0.0, job: JOB }];
        let (target, bodies) = server(refuse);
        let grace = Duration::from_secs(30);
        let records = block_on(target.play(&schedule, Manners::Return, grace));
        let [first, second] = records[..] else { panic!("{records:?}") };
        assert_eq!((first.outcome, first.attempt), (Outcome::Refused { retry_after: Some(1) }, 0));
        assert_eq!((second.outcome, second.attempt, second.due), (Outcome::Done, 1, first.end + 1.0));
        assert_eq!((first.first, second.first), (0.0, 0.0), "when it came first, both times");
        let bodies: Vec<_> = bodies.try_iter().collect();
        assert!(bodies.len() == 2 && bodies[0] == bodies[1], "{bodies:?}");
        let body: serde_json::Value = serde_json::from_str(&bodies[0]).unwrap();
        assert_eq!(body["guidance_scale"], 4.0);
        assert_eq!((&body["n"], &body["steps"], &body["class"]), (&json!(2), &json!(10), &json!(0)));

        let (target, _bodies) = server(refuse);
        assert_eq!(block_on(target.play(&schedule, Manners::Leave, grace)).len(), 1);
    }

    #[test]
    fn a_closed_loop_asks_again_when_it_is_answered() {
        let (target, bodies) = server(|_| Some("200 OK"));
        let pause = async { tokio::time::sleep(Duration::from_millis(100)).await };
        let ((), records) = block_on(async { target.saturate(JOB, 3, pause).await });
        assert!(
            records.len() > 3 && records.iter().all(|record| record.outcome == Outcome::Done),
            "{records:?}"
        );
        let answered_or_under_way = records.len()..=records.len() + 3;
        assert!(answered_or_under_way.contains(&bodies.try_iter().count()));
    }

    #[test]
    fn nobody_there_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        drop(listener);
        let target = Target { authority, model: "shoes".to_owned(), classes: 0 };
        let records =
            block_on(target.play(&[Arrival { at: 0.0, job: JOB }], Manners::Leave, Duration::from_secs(9)));
        assert_eq!(records[0].outcome, Outcome::Failed(0));
        assert!(block_on(target.get("/metrics")).is_err());
    }
}
