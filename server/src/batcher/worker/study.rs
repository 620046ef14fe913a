//! A study's unit on the worker's thread, and the graphs of the insides: opened when they are first asked for, let go when
//! nobody has asked in a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{Worker, cause_of, denoise, panicked};
use crate::batcher::SampleError;
use crate::batcher::device::Seat;
use crate::batcher::study::{Ask, Findings, StudyUnit};
use crate::engine::EngineError;
use crate::engine::insides::Inside;

/// Time after a graph did not open in which nobody tries again; it doubles each time, up to sixtyfold. Opening takes the
/// device, and images wait meanwhile.
const BETWEEN_OPENINGS: Duration = Duration::from_secs(1);

/// A graph that did not open.
pub(super) struct Unopened {
    /// Until then whoever asks is told the same.
    until: Instant,
    pause: Duration,
    error: EngineError,
}

// === impl Worker, for studies ===

impl Worker {
    /// One call for the study of this number. A failure ends that study, and nobody else. Where images came, of which the
    /// worker had not `heard` when it chose, it stands back while it waits for the device.
    pub(super) fn study(&mut self, seat: &Seat<'_>, heard: u64, id: u64, unit: StudyUnit) {
        let (model, like) = (self.config.model.clone(), unit.ask.like());
        let graph = like.graph;
        let began = Instant::now();
        // Beside images of its own it has the turns that these leave it; without, it gives way to those of other models.
        let spare = self.live.is_empty().then_some(heard);
        let ended = match &unit.ask {
            Ask::Denoise(batch) => {
                let row = self.config.out_channels * self.config.shape[1] * self.config.shape[2];
                let engine = &mut *self.engine;
                let call = || {
                    let mut prediction = Vec::new();
                    denoise(engine, batch, &mut prediction, row).map(|()| vec![prediction])
                };
                on_device(seat, spare, call)
            }
            Ask::Look(look) => match self.opened(seat, look.inside) {
                Err(error) => Some((Err(error), None)),
                Ok(()) => {
                    let insides = &mut *self.insides;
                    let call = || {
                        let looked = catch_unwind(AssertUnwindSafe(|| insides.look(look)));
                        looked.unwrap_or_else(|panic| Err(panicked(&*panic)))
                    };
                    let ended = on_device(seat, spare, call);
                    if ended.is_some() {
                        self.open.insert(look.inside, Instant::now());
                    }
                    ended
                }
            },
        };
        // Whether it had the device or waited for it in vain: neither is a gap of the host's.
        self.last_call = Some(Instant::now());
        let Some((outcome, elapsed)) = ended else {
            self.metrics.study_deferred.with_label_values(&[model.as_str(), graph]).inc();
            return self.queue.stand_back(id, unit);
        };
        elapsed.into_iter().for_each(|elapsed| self.queue.studied(like, elapsed));
        self.metrics.study_units.with_label_values(&[model.as_str(), graph]).inc();
        let elapsed = began.elapsed().as_secs_f64();
        self.metrics.study_unit.with_label_values(&[model.as_str(), graph]).observe(elapsed);
        if let Err(error) = &outcome {
            tracing::error!(model, graph, %error, "a study's call failed; the study fails, images go on");
            match &unit.ask {
                Ask::Denoise(_) => {
                    // It is the network that images are drawn by.
                    self.metrics.failures.with_label_values(&[model.as_str(), cause_of(error)]).inc();
                    self.begin_anew(seat);
                }
                // What made it fail may have left it broken: whoever comes next opens it anew.
                Ask::Look(look) => self.close(look.inside),
            }
        }
        let answer = outcome.map_err(|error| SampleError::Engine(error.to_string()));
        let _ = unit.reply.send(answer);
    }

    /// Opens a graph of the insides, if it is not open.
    fn opened(&mut self, seat: &Seat<'_>, inside: Inside) -> Result<(), EngineError> {
        if self.open.contains_key(&inside) {
            return Ok(());
        }
        let before = self.unopened.get(&inside);
        if let Some(Unopened { until, error, .. }) = before
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let pause = before.map_or(BETWEEN_OPENINGS, |before| (2 * before.pause).min(60 * BETWEEN_OPENINGS));
        let (model, graph) = (self.config.model.as_str(), inside.as_str());
        // Said before as well: whoever finds the device stuck knows by what.
        tracing::info!(model, graph, "opening");
        let insides = &mut *self.insides;
        let (outcome, elapsed) = seat.run(|| catch_unwind(AssertUnwindSafe(|| insides.open(inside))));
        let outcome = outcome.unwrap_or_else(|panic| Err(panicked(&*panic)));
        let word = if outcome.is_ok() { "done" } else { "failed" };
        self.metrics.insides_opened.with_label_values(&[model, graph, word]).inc();
        if outcome.is_ok() {
            let milliseconds = elapsed.as_secs_f64() * 1e3;
            tracing::info!(model, graph, milliseconds, "opened, and its golden matches");
            self.open.insert(inside, Instant::now());
            self.metrics.insides_open.with_label_values(&[model, graph]).inc();
        }
        match &outcome {
            Ok(()) => _ = self.unopened.remove(&inside),
            Err(error) => {
                let (until, error) = (Instant::now() + pause, error.clone());
                self.unopened.insert(inside, Unopened { until, pause, error });
            }
        }
        outcome
    }

    /// Lets go of graphs that nobody has asked for in a while; the time until the next is due.
    pub(super) fn close_unused(&mut self) -> Option<Duration> {
        let idle = self.config.insides_idle;
        let unused = |(&inside, last): (&Inside, &Instant)| (last.elapsed() >= idle).then_some(inside);
        for inside in self.open.iter().filter_map(unused).collect::<Vec<_>>() {
            self.close(inside);
        }
        self.open.values().map(|last| idle.saturating_sub(last.elapsed())).min()
    }

    pub(super) fn close(&mut self, inside: Inside) {
        self.insides.close(inside);
        if self.open.remove(&inside).is_some() {
            let labels = [self.config.model.as_str(), inside.as_str()];
            self.metrics.insides_open.with_label_values(&labels).dec();
        }
    }
}

/// A call when it is its turn, and how long it took; `None` where it is spare and stands back.
fn on_device(
    seat: &Seat<'_>,
    spare: Option<u64>,
    call: impl FnOnce() -> Result<Findings, EngineError>,
) -> Option<(Result<Findings, EngineError>, Option<Duration>)> {
    let (outcome, elapsed) = match spare {
        Some(heard) => seat.run_spare(heard, call)?,
        None => seat.run(call),
    };
    Some((outcome, Some(elapsed)))
}
