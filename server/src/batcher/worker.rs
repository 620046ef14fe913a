//! The thread that owns a model: take arrivals, drop the departed, choose, gather, run, apply, reply; and again.
//! It is the only place that touches the engine, and nothing in it waits for a client.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::policy::{self, Candidate};
use super::queue::{Job, Load};
use super::{Sample, SampleError};
use crate::engine::{Denoiser, EngineError, StepBatch};
use crate::metrics::Metrics;
use crate::middleware::rescue::message_of;
use crate::sampler::{self, Progress};

/// What the handle tells the thread.
#[derive(Debug)]
pub enum Command {
    /// Sample these.
    Run(Vec<Job>),
    /// Drop everything and end.
    Stop,
}

/// A job that takes part in ticks.
struct Live {
    job: Job,
    candidate: Candidate,
    /// When its first tick began.
    started: Option<Instant>,
}

/// Everything the thread owns.
pub(super) struct Worker {
    pub(super) model: String,
    pub(super) engine: Box<dyn Denoiser>,
    pub(super) commands: Receiver<Command>,
    pub(super) load: Arc<Load>,
    pub(super) metrics: Metrics,
    pub(super) max_rows: usize,
    /// Channels, height, width of a row going in.
    pub(super) shape: [usize; 3],
    /// Values of a row coming out.
    pub(super) row: usize,
}

// === impl Worker ===

impl Worker {
    /// Runs until it is told to stop, or until the handle is gone and the last image is done.
    pub(super) fn run(mut self) {
        let (mut batch, mut prediction) = (StepBatch::new(self.shape), Vec::new());
        let mut live: Vec<Live> = Vec::new();
        let (mut tick, mut next_id) = (0_u64, 0_u64);
        while self.arrivals(&mut live, tick, &mut next_id) {
            self.drop_departed(&mut live);
            let view: Vec<_> = live.iter().map(|live| live.candidate).collect();
            let chosen = policy::select(&view, self.max_rows);
            if chosen.is_empty() {
                continue;
            }
            tick += 1;
            chosen.iter().for_each(|&i| live[i].candidate.since = tick);
            self.tick(&mut live, &chosen, &mut batch, &mut prediction);
        }
        for Live { job, .. } in live {
            self.metrics.cancellations.with_label_values(&[self.model.as_str(), "shutdown"]).inc();
            let _ = job.reply.send(Err(SampleError::ShuttingDown));
        }
        self.update_gauge();
    }

    /// Takes what has arrived; waits only when there is nothing else to do. `false`: time to end.
    fn arrivals(&self, live: &mut Vec<Live>, tick: u64, next_id: &mut u64) -> bool {
        loop {
            let command = if live.is_empty() {
                self.update_gauge();
                self.commands.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.commands.try_recv()
            };
            match command {
                Ok(Command::Run(jobs)) => {
                    for job in jobs {
                        let candidate = Candidate { id: *next_id, rows: job.trajectory.rows(), since: tick };
                        *next_id += 1;
                        live.push(Live { job, candidate, started: None });
                    }
                }
                Ok(Command::Stop) => return false,
                Err(TryRecvError::Empty) => return true,
                // No handle is left: what runs is finished for those who still wait.
                Err(TryRecvError::Disconnected) => return !live.is_empty(),
            }
        }
    }

    fn drop_departed(&self, live: &mut Vec<Live>) {
        let before = live.len();
        live.retain(|live| !live.job.departed());
        let departed = (before - live.len()) as u64;
        self.metrics.cancellations.with_label_values(&[self.model.as_str(), "disconnect"]).inc_by(departed);
        self.update_gauge();
    }

    /// One call of the network for the `chosen` positions of `live`. A failure ends those, and nobody else.
    fn tick(
        &mut self,
        live: &mut Vec<Live>,
        chosen: &[usize],
        batch: &mut StepBatch,
        prediction: &mut Vec<f32>,
    ) {
        let start = Instant::now();
        let mut taking_part = vec![false; live.len()];
        chosen.iter().for_each(|&i| taking_part[i] = true);
        // Positions in `chosen` are in order of arrival, and so is `live`.
        let mut part: Vec<_> =
            live.iter_mut().zip(&taking_part).filter_map(|(live, &takes)| takes.then_some(live)).collect();
        part.iter_mut().for_each(|live| _ = live.started.get_or_insert(start));

        sampler::gather(part.iter_mut().map(|live| &mut live.job.trajectory), batch);
        let rows = batch.rows();
        let outcome = denoise(&mut *self.engine, batch, prediction, rows * self.row);
        let ends: Vec<Result<Progress, EngineError>> = match outcome {
            Ok(()) => {
                let trajectories = part.iter_mut().map(|live| &mut live.job.trajectory);
                sampler::apply(trajectories, prediction, self.row).into_iter().map(Ok).collect()
            }
            Err(error) => {
                let cause = if matches!(error, EngineError::Panicked(_)) { "panic" } else { "error" };
                self.metrics.failures.with_label_values(&[self.model.as_str(), cause]).inc();
                tracing::error!(model = self.model, rows, %error, "a tick failed; its images fail, others go on");
                vec![Err(error); part.len()]
            }
        };
        part.iter_mut().for_each(|live| live.job.place.progress(live.candidate.rows));
        self.record(rows, part.len(), start.elapsed());

        let mut ends = ends.into_iter();
        let mut done = Vec::new();
        for (one, takes) in std::mem::take(live).into_iter().zip(taking_part) {
            match if takes { ends.next() } else { None } {
                None | Some(Ok(Progress::Running)) => live.push(one),
                Some(end) => done.push((one, end)),
            }
        }
        done.into_iter().for_each(|(one, end)| self.finish(one, end));
        self.update_gauge();
    }

    /// Replies to whoever waits for a job that has ended.
    fn finish(&self, live: Live, end: Result<Progress, EngineError>) {
        let Live { job: Job { trajectory, reply, admitted, place }, started, .. } = live;
        let started = started.unwrap_or(admitted);
        let (queue, denoise) = (started - admitted, started.elapsed());
        // Given back before the reply, so that a client which asks again at once finds its place free.
        drop(place);
        self.update_gauge();
        let model = &[self.model.as_str()];
        let answer = match end {
            Ok(Progress::NotFinite) => {
                self.metrics.failures.with_label_values(&[self.model.as_str(), "not_finite"]).inc();
                tracing::error!(
                    model = self.model,
                    seed = trajectory.seed(),
                    "values are not finite; the image fails"
                );
                Err(SampleError::NotFinite)
            }
            Ok(_) => {
                self.metrics.images.with_label_values(model).inc();
                self.metrics.queue.with_label_values(model).observe(queue.as_secs_f64());
                self.metrics.denoise.with_label_values(model).observe(denoise.as_secs_f64());
                Ok(Sample { seed: trajectory.seed(), values: trajectory.into_values(), queue, denoise })
            }
            Err(error) => Err(SampleError::Engine(error.to_string())),
        };
        let _ = reply.send(answer);
    }

    fn record(&self, rows: usize, images: usize, elapsed: Duration) {
        self.load.measured(rows, elapsed);
        let model = &[self.model.as_str()];
        self.metrics.ticks.with_label_values(model).inc();
        self.metrics.tick_rows.with_label_values(model).observe(rows as f64);
        self.metrics.tick.with_label_values(model).observe(elapsed.as_secs_f64());
        self.metrics.steps.with_label_values(model).inc_by(images as u64);
        tracing::trace!(model = self.model, rows, images, elapsed_ms = elapsed.as_secs_f64() * 1e3, "tick");
    }

    fn update_gauge(&self) {
        let images = i64::try_from(self.load.images()).unwrap_or(i64::MAX);
        self.metrics.trajectories.with_label_values(&[self.model.as_str()]).set(images);
    }
}

/// Calls the engine. A panic in it is caught: it costs the images of this tick, not the thread.
fn denoise(
    engine: &mut dyn Denoiser,
    batch: &StepBatch,
    prediction: &mut Vec<f32>,
    expected: usize,
) -> Result<(), EngineError> {
    // After a panic nothing of the engine's answer is read, so a half-written one does no harm.
    let call = AssertUnwindSafe(|| engine.denoise(batch, prediction));
    catch_unwind(call).unwrap_or_else(|panic| Err(EngineError::Panicked(message_of(&*panic).to_owned())))?;
    if prediction.len() == expected {
        Ok(())
    } else {
        Err(EngineError::OutputSize { got: prediction.len(), expected })
    }
}
