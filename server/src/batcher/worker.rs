//! The thread that owns a model: take arrivals, drop the departed, choose, gather, run, apply, reply; and again.
//! It is the only place that touches the engine, and nothing in it waits for a client. Between two ticks it may run a unit of
//! a study: `worker/study.rs`.

mod study;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::device::Seat;
use super::job::{Departure, Job};
use super::queue::{Choice, Queue};
use super::{Event, Sample, SampleError, WorkerConfig};
use crate::engine::insides::{Engine, Inside, Insides};
use crate::engine::{Denoiser, EngineError, StepBatch};
use crate::metrics::Metrics;
use crate::middleware::rescue::message_of;
use crate::sampler::{self, Progress};

/// Everything the thread owns.
pub(super) struct Worker {
    engine: Box<dyn Denoiser>,
    insides: Box<dyn Insides>,
    /// Those that are open, and when they were last asked.
    open: BTreeMap<Inside, Instant>,
    /// Those that did not open.
    unopened: BTreeMap<Inside, study::Unopened>,
    config: WorkerConfig,
    queue: Arc<Queue>,
    metrics: Metrics,
    live: BTreeMap<u64, Live>,
    /// Rows going in, and what the network says of them: kept from tick to tick.
    batch: StepBatch,
    prediction: Vec<f32>,
    /// When the last call of the network ended, while there is work.
    last_call: Option<Instant>,
    /// Until when the engine does not begin anew again, and for how long the next time.
    rest: Option<(Instant, Duration)>,
}

/// Time from one beginning of an engine to the next, at least; twice as long each time, while no tick succeeds between.
const BETWEEN_REBUILDS: Duration = Duration::from_secs(1);

/// The longest.
const MOST_BETWEEN: Duration = Duration::from_secs(60);

/// A job that takes part in ticks.
struct Live {
    job: Job,
    /// When its first tick began.
    started: Option<Instant>,
}

// === impl Worker ===

impl Worker {
    pub(super) fn new(engine: Engine, config: WorkerConfig, queue: Arc<Queue>, metrics: Metrics) -> Self {
        let Engine { denoiser: engine, insides } = engine;
        metrics.announce(&config.model, config.costs.buckets().map(|(rows, _)| rows));
        metrics.announce_insides(&config.model, config.insides.iter().map(|inside| inside.as_str()));
        let batch = StepBatch::new(config.shape);
        let (live, prediction) = (BTreeMap::new(), Vec::new());
        let (open, unopened) = (BTreeMap::new(), BTreeMap::new());
        Self {
            engine,
            insides,
            open,
            unopened,
            config,
            queue,
            metrics,
            live,
            batch,
            prediction,
            last_call: None,
            rest: None,
        }
    }

    /// Runs until it is told to stop, or until the handle is gone and the last job is done.
    pub(super) fn run(mut self, seat: &Seat<'_>) {
        let mut pause = None;
        loop {
            let idle = self.live.is_empty();
            if idle && !self.queue.has_units() {
                seat.rest();
                self.last_call = None;
                pause = self.close_unused();
            }
            if !self.queue.collect(&mut Arrivals(&mut self.live), idle, pause) {
                break;
            }
            self.drop_departed();
            self.close_unused();
            pause = None;
            let heard = seat.calls();
            match self.queue.choose(&mut Arrivals(&mut self.live)) {
                Choice::Wait(time) => pause = Some(time),
                Choice::Tick { ids, .. } if ids.is_empty() => {}
                Choice::Tick { ids, padded, room } => self.tick(seat, &ids, padded, room),
                Choice::Study(id, unit) => self.study(seat, heard, id, unit),
            }
        }
        let arrivals = self.queue.take_arrivals();
        let left = std::mem::take(&mut self.live).into_values().map(|live| live.job).chain(arrivals);
        for job in left {
            self.abandon(&job, "shutdown", Some(SampleError::ShuttingDown));
        }
        for unit in self.queue.take_units() {
            let _ = unit.reply.send(Err(SampleError::ShuttingDown));
        }
        Inside::ALL.into_iter().for_each(|inside| self.close(inside));
    }

    fn drop_departed(&mut self) {
        let now = Instant::now();
        let departed = self.live.iter().filter_map(|(&id, live)| Some((id, live.job.ended(now)?)));
        for (id, departure) in departed.collect::<Vec<_>>() {
            let Some(Live { job, .. }) = self.live.remove(&id) else { continue };
            match departure {
                Departure::Gone => self.abandon(&job, "disconnect", None),
                Departure::Cancelled => self.abandon(&job, "cancelled", Some(SampleError::Cancelled)),
                Departure::Late => self.abandon(&job, "deadline", Some(SampleError::DeadlinePassed)),
            }
        }
        for unit in self.queue.departed_units(now) {
            if let Some(error) = unit.ended(now).and_then(Departure::error) {
                let _ = unit.reply.send(Err(error));
            }
        }
    }

    /// One call of the network for the jobs `ids`, ascending, which might have had `within` rows. A failure ends those, and
    /// nobody else.
    fn tick(&mut self, seat: &Seat<'_>, ids: &[u64], padded: Option<usize>, within: usize) {
        let began = Instant::now();
        let mut part = taking_part(&mut self.live, ids);
        part.iter_mut().for_each(|live| _ = live.started.get_or_insert(began));
        sampler::gather(part.iter_mut().map(|live| &mut live.job.unit), &mut self.batch);
        let rows = self.batch.rows();
        self.batch.pad(padded.unwrap_or(rows));
        trace(&self.config.model, &part, &self.batch);

        let row = self.config.out_channels * self.config.shape[1] * self.config.shape[2];
        let (engine, batch, prediction) = (&mut *self.engine, &self.batch, &mut self.prediction);
        // Up to here: what comes now is the wait for other models on the device.
        let gap = self.last_call.map(|last| last.elapsed());
        let (outcome, elapsed) = seat.run(|| denoise(engine, batch, prediction, row));
        self.last_call = Some(Instant::now());
        let failed = outcome.is_err();
        let ends: Vec<Result<Progress, EngineError>> = match outcome {
            Ok(()) => {
                self.rest = self.rest.map(|(until, _)| (until, BETWEEN_REBUILDS));
                let units = part.iter_mut().map(|live| &mut live.job.unit);
                let ends = sampler::apply(units, &mut self.prediction, row).into_iter().map(Ok).collect();
                part.iter().for_each(|live| live.job.report());
                // What failed has no place among the costs, nor among the steps that were taken.
                self.queue.ticked(ids, self.batch.rows(), elapsed);
                self.record(rows, ids.len(), elapsed, gap);
                ends
            }
            Err(error) => {
                self.tell(rows, &error);
                self.shrink(&error);
                vec![Err(error); ids.len()]
            }
        };
        let (room, all) = (self.queue.room(), ids.len() == self.live.len());
        let pinned = self.config.pinned.filter(|_| padded == self.config.pinned);
        if let Some(cause) = (Fill { room, within, rows, all, pinned }).why_small() {
            self.metrics.small_ticks.with_label_values(&[self.config.model.as_str(), cause]).inc();
        }
        for (id, end) in ids.iter().zip(ends) {
            if !matches!(end, Ok(Progress::Running))
                && let Some(live) = self.live.remove(id)
            {
                self.finish(live, end);
            }
        }
        if failed {
            self.begin_anew(seat);
        }
    }

    /// Tells of a tick that failed.
    fn tell(&self, rows: usize, error: &EngineError) {
        let model = self.config.model.as_str();
        self.metrics.failures.with_label_values(&[model, cause_of(error)]).inc();
        tracing::error!(model, rows, %error, "a tick failed; its images fail, others go on");
    }

    /// Where the device has no memory for the tick, the next ones are smaller.
    fn shrink(&self, error: &EngineError) {
        if matches!(error, EngineError::OutOfMemory(_)) {
            // A larger tick runs in even pieces: only one that is smaller than those makes calls smaller.
            let pieces = self.batch.rows().div_ceil(self.config.piece.max(1)).max(1);
            let (rows, time) = self.queue.shrink(self.batch.rows().div_ceil(pieces));
            let (model, seconds) = (self.config.model.as_str(), time.as_secs());
            tracing::warn!(
                model,
                rows,
                seconds,
                "the device lacks memory: ticks have so many rows at most for a while"
            );
        }
    }

    /// Has the engine begin anew, after a tick that failed: what made it fail may have left it broken. Not more than once
    /// in a while: where every tick fails, sessions are no help.
    fn begin_anew(&mut self, seat: &Seat<'_>) {
        if self.rest.is_some_and(|(until, _)| Instant::now() < until) {
            return;
        }
        let model = self.config.model.as_str();
        let rebuilt = seat.run(|| catch_unwind(AssertUnwindSafe(|| self.engine.rebuild()))).0;
        let outcome = match rebuilt {
            Ok(Ok(())) => "done",
            Ok(Err(error)) => {
                tracing::error!(model, %error, "the session cannot be built anew; the old one goes on");
                "failed"
            }
            Err(panic) => {
                let words = message_of(&*panic);
                tracing::error!(
                    model,
                    words,
                    "the engine panicked while it was built anew; the old one goes on"
                );
                "failed"
            }
        };
        self.metrics.rebuilds.with_label_values(&[model, outcome]).inc();
        // From its end: a session may take seconds to build, which the models beside it wait for.
        let pause = self.rest.map_or(BETWEEN_REBUILDS, |(_, pause)| pause);
        self.rest = Some((Instant::now() + pause, (2 * pause).min(MOST_BETWEEN)));
        // No gap of the host's.
        self.last_call = None;
    }

    /// Replies to whoever waits for a job that has ended.
    fn finish(&self, live: Live, end: Result<Progress, EngineError>) {
        let Live { job: Job { id, unit, position, reply, admitted, .. }, started } = live;
        let started = started.unwrap_or(admitted);
        let (queue, denoise) = (started - admitted, started.elapsed());
        // Given back before the reply, so that a client which asks again at once finds room.
        self.queue.remove(id);
        let (model, seed) = (self.config.model.as_str(), unit.seed());
        let answer = match end {
            Ok(Progress::NotFinite) => {
                self.metrics.failures.with_label_values(&[model, "not_finite"]).inc();
                tracing::error!(model, seed, "values are not finite; the image fails");
                Err(SampleError::NotFinite)
            }
            Ok(_) => {
                self.metrics.images.with_label_values(&[model]).inc();
                self.metrics.queue.with_label_values(&[model]).observe(queue.as_secs_f64());
                self.metrics.denoise.with_label_values(&[model]).observe(denoise.as_secs_f64());
                let sample = Sample { seed, values: unit.into_values(), queue, denoise };
                Ok(Event::Done { unit: position, sample })
            }
            Err(error) => Err(SampleError::Engine(error.to_string())),
        };
        let _ = reply.send(answer);
    }

    /// Gives a job up, and tells whoever still waits.
    fn abandon(&self, job: &Job, cause: &str, error: Option<SampleError>) {
        self.metrics.cancellations.with_label_values(&[self.config.model.as_str(), cause]).inc();
        self.queue.remove(job.id);
        if let Some(error) = error {
            let _ = job.reply.send(Err(error));
        }
    }

    fn record(&self, rows: usize, images: usize, elapsed: Duration, gap: Option<Duration>) {
        let (model, padded) = (self.config.model.as_str(), self.batch.rows());
        let bucket = self.config.costs.bucket(padded).to_string();
        self.metrics.ticks.with_label_values(&[model]).inc();
        self.metrics.tick_rows.with_label_values(&[model]).observe(rows as f64);
        self.metrics.padding.with_label_values(&[model]).inc_by((padded - rows) as u64);
        self.metrics.tick.with_label_values(&[model, &bucket]).observe(elapsed.as_secs_f64());
        self.metrics.steps.with_label_values(&[model]).inc_by(images as u64);
        if let Some(gap) = gap {
            self.metrics.gap.with_label_values(&[model]).observe(gap.as_secs_f64());
        }
    }
}

/// How full a tick was, and what came into it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    /// Rows of a full tick.
    pub(super) room: usize,
    /// Rows that this one might have had: as many as the device has memory for, or those of a bucket.
    pub(super) within: usize,
    /// Rows in it.
    pub(super) rows: usize,
    /// Whether all live images took part.
    pub(super) all: bool,
    /// The bucket to which a reproducible request may have held it.
    pub(super) pinned: Option<usize>,
}

// === impl Fill ===

impl Fill {
    /// Why it is smaller than a full one, if it is.
    pub(super) fn why_small(self) -> Option<&'static str> {
        // A guided pair does not fit into the last row.
        let filled = |bucket: usize| bucket < self.room && self.rows + 1 >= bucket;
        if self.rows >= self.room {
            None
        } else if self.all {
            Some("demand")
        } else if self.pinned.is_some_and(filled) {
            Some("pinned")
        } else if self.pinned.is_none() && filled(self.within) {
            Some("memory")
        } else {
            Some("turn")
        }
    }
}

/// The word for a call that failed, among the metrics.
pub(super) fn cause_of(error: &EngineError) -> &'static str {
    match error {
        EngineError::Panicked(_) => "panic",
        EngineError::OutOfMemory(_) => "memory",
        _ => "error",
    }
}

/// The live jobs of these ascending ids.
fn taking_part<'a>(live: &'a mut BTreeMap<u64, Live>, ids: &[u64]) -> Vec<&'a mut Live> {
    let mut wanted = ids.iter().peekable();
    live.iter_mut().filter_map(|(id, live)| wanted.next_if_eq(&id).map(|_| live)).collect()
}

/// What a tick was made of, for whoever traces: every image with its sampler and its step.
fn trace(model: &str, part: &[&mut Live], batch: &StepBatch) {
    if tracing::enabled!(tracing::Level::TRACE) {
        let units: Vec<_> = part.iter().map(|live| live.job.unit.to_string()).collect();
        tracing::trace!(model, rows = batch.rows(), images = units.len(), units = units.join(" "), "tick");
    }
}

/// Arrivals go among the live.
struct Arrivals<'a>(&'a mut BTreeMap<u64, Live>);

impl Extend<(u64, Job)> for Arrivals<'_> {
    fn extend<T: IntoIterator<Item = (u64, Job)>>(&mut self, jobs: T) {
        self.0.extend(jobs.into_iter().map(|(id, job)| (id, Live { job, started: None })));
    }
}

// === impl Job ===

impl Job {
    /// Shows the step to a client that watches.
    fn report(&self) {
        if let Some(frame) = self.unit.frame() {
            let _ = self.reply.send(Ok(Event::Frame { unit: self.position, frame }));
        }
    }
}

/// Calls the engine. A panic in it is caught: it costs the images of this tick, not the thread. A row of the answer has
/// `row` values.
fn denoise(
    engine: &mut dyn Denoiser,
    batch: &StepBatch,
    prediction: &mut Vec<f32>,
    row: usize,
) -> Result<(), EngineError> {
    // After a panic nothing of the engine's answer is read, so a half-written one does no harm.
    let call = AssertUnwindSafe(|| engine.denoise(batch, prediction));
    catch_unwind(call).unwrap_or_else(|panic| Err(panicked(&*panic)))?;
    let expected = batch.rows() * row;
    if prediction.len() == expected {
        Ok(())
    } else {
        Err(EngineError::OutputSize { got: prediction.len(), expected })
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> EngineError {
    EngineError::Panicked(message_of(panic).to_owned())
}
