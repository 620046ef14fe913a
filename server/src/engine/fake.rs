//! A network in closed form, for tests of everything around a network, and for faults on demand. If the images of
//! class k were normal with mean m(k) and variance s², the best prediction of the noise in `x = αx0 + σε` would be
//! `σ (x - α m) / (α² s² + σ²)`: that is what this predicts. A row depends on nothing but itself.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use windowpane_diffusion::Schedule;

use super::check::{Determinism, DeterminismClass};
use super::insides::fake::InsideFaults;
use super::{Denoiser, EngineError, StepBatch};
use crate::batcher::costs::TickCosts;

/// Standard deviation of the fake's images around their class's mean.
const SPREAD: f64 = 0.05;

/// The network.
#[derive(Debug, Clone)]
pub struct FakeDenoiser {
    schedule: Schedule,
    out_channels: usize,
    classes: usize,
    faults: Faults,
    calls: u64,
}

/// What goes wrong, and when. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Calls that return an error, counted from 0.
    pub error_at: Vec<u64>,
    /// From this call on all return an error, until it is rebuilt.
    pub broken_from: Option<u64>,
    /// Built anew, it is another network, which it notices.
    pub other_when_rebuilt: bool,
    /// Calls of more rows return an error, as on a device that has no memory for them.
    pub most_rows: Option<usize>,
    /// Calls that panic.
    pub panic_at: Vec<u64>,
    /// Rows of this label get NaN.
    pub nan_for: Option<i64>,
    /// Every call takes at least this long,
    pub delay: Duration,
    /// and so much longer for each row.
    pub row_delay: Duration,
    /// Every call waits while it is closed.
    pub gate: Gate,
    /// What goes wrong with the insides.
    pub insides: InsideFaults,
}

/// Keeps calls waiting: until it is opened a test does what has to be done in the midst of one, however slow the machine.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

// === impl FakeDenoiser ===

impl FakeDenoiser {
    /// For a schedule, a number of output channels and a number of classes.
    pub fn new(schedule: Schedule, out_channels: usize, classes: usize) -> Self {
        Self { schedule, out_channels, classes, faults: Faults::default(), calls: 0 }
    }

    /// With faults.
    #[must_use]
    pub fn with_faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// What would be measured of its ticks.
    pub fn costs(&self, max_rows: usize) -> TickCosts {
        let time = |rows| (rows, self.faults.time(rows) + Duration::from_micros(10 * rows as u64));
        TickCosts::new([1, 8, max_rows].map(time))
    }

    /// What would be measured of its bits.
    pub fn determinism(&self, max_rows: usize) -> Determinism {
        let (class, batch_sizes) = (DeterminismClass::Bitwise, vec![1, 8, max_rows]);
        Determinism { class, relative_difference: 0.0, batch_sizes, pinned_rows: None }
    }

    /// The mean of class `y`'s images at pixel `i`: a stripe pattern of its own; grey for the null class.
    pub fn mean(&self, y: i64, i: usize) -> f64 {
        if y as usize >= self.classes { 0.0 } else { ((i as f64 + 1.0) * (y as f64 + 1.0) * 0.7).sin() * 0.8 }
    }

    /// How its prediction of every value follows the value itself: its Jacobian is this, times the identity.
    pub fn slope(&self, t: f32) -> f64 {
        let bar = self.alpha_bar(t);
        (1.0 - bar).sqrt() / (bar * SPREAD * SPREAD + 1.0 - bar)
    }

    /// `alpha_bar` at a fractional timestep, linear between the table's entries.
    fn alpha_bar(&self, t: f32) -> f64 {
        let last = self.schedule.len() - 1;
        let t = f64::from(t).clamp(0.0, last as f64);
        let (low, part) = (t as usize, t.fract());
        let high = (low + 1).min(last);
        self.schedule.alpha_bar(low) * (1.0 - part) + self.schedule.alpha_bar(high) * part
    }
}

// === impl Faults ===

impl Faults {
    fn time(&self, rows: usize) -> Duration {
        self.delay + self.row_delay * rows as u32
    }
}

// === impl Gate ===

impl Gate {
    /// From now on calls wait.
    pub fn close(&self) {
        *self.is_closed() = true;
    }

    /// They go on.
    pub fn open(&self) {
        *self.is_closed() = false;
        let (_, opened) = &*self.0;
        opened.notify_all();
    }

    fn pass(&self) {
        let (_, opened) = &*self.0;
        let mut is_closed = self.is_closed();
        while *is_closed {
            is_closed = opened.wait(is_closed).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_closed(&self) -> MutexGuard<'_, bool> {
        let (is_closed, _) = &*self.0;
        is_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Denoiser for FakeDenoiser {
    fn denoise(&mut self, batch: &StepBatch, prediction: &mut Vec<f32>) -> Result<(), EngineError> {
        let call = self.calls;
        self.calls += 1;
        self.faults.gate.pass();
        std::thread::sleep(self.faults.time(batch.rows()));
        if self.faults.panic_at.contains(&call) {
            panic!("asked to panic at call {call}");
        }
        let broken = self.faults.broken_from.is_some_and(|first| call >= first);
        if broken || self.faults.error_at.contains(&call) {
            return Err(EngineError::Runtime(format!("asked to fail at call {call}")));
        }
        if self.faults.most_rows.is_some_and(|most| batch.rows() > most) {
            return Err(EngineError::OutOfMemory(format!("asked to have none for {} rows", batch.rows())));
        }
        let (elements, plane) = (batch.elements(), batch.shape[1] * batch.shape[2]);
        let out = self.out_channels * plane;
        prediction.clear();
        prediction.resize(batch.rows() * out, 0.0);
        for (row, answer) in prediction.chunks_exact_mut(out).enumerate() {
            let (bar, y) = (self.alpha_bar(batch.t[row]), batch.y[row]);
            let (alpha, sigma) = (bar.sqrt(), (1.0 - bar).sqrt());
            let x = &batch.x[row * elements..(row + 1) * elements];
            for (i, (value, &x)) in answer.iter_mut().zip(x).enumerate() {
                let noise =
                    sigma * (f64::from(x) - alpha * self.mean(y, i)) / (bar * SPREAD * SPREAD + 1.0 - bar);
                *value = noise as f32;
            }
            if self.faults.nan_for == Some(y) {
                answer[0] = f32::NAN;
            }
        }
        Ok(())
    }

    fn rebuild(&mut self) -> Result<(), EngineError> {
        if self.faults.other_when_rebuilt {
            return Err(EngineError::Unproven("asked to be another".to_owned()));
        }
        self.faults.broken_from = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::{ScheduleConfig, ScheduleKind};

    use super::*;

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let schedule = ScheduleConfig { kind: ScheduleKind::Linear, steps: 100 }.build().unwrap();
        let mut fake = FakeDenoiser::new(schedule, 1, 3);
        let row = |i: usize| (vec![i as f32 * 0.1 - 0.5; 4], i as f32 * 9.5, i as i64 % 4);
        let mut all = StepBatch::new([1, 2, 2]);
        let mut together = Vec::new();
        (0..7).for_each(|i| {
            let (x, t, y) = row(i);
            all.push(&x, t, y);
        });
        fake.denoise(&all, &mut together).unwrap();
        for i in 0..7 {
            let (mut one, mut alone) = (StepBatch::new([1, 2, 2]), Vec::new());
            let (x, t, y) = row(i);
            one.push(&x, t, y);
            fake.denoise(&one, &mut alone).unwrap();
            assert_eq!(alone, together[i * 4..(i + 1) * 4]);
        }
    }
}
