//! What was asked of each model through the protocol since the server started: counts and times, for the statistics
//! extension. Prometheus' numbers, which cover every face of the server, are in [`crate::metrics`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use utoipa::ToSchema;

use super::VERSION;

/// The counts of every model that was asked.
#[derive(Debug, Default)]
pub struct Statistics(Mutex<BTreeMap<String, Counts>>);

/// The times of a request that was answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// From arrival to answer.
    pub total: Duration,
    /// From admission to the first tick.
    pub queue: Duration,
    /// From the body's arrival to admission.
    pub input: Duration,
    /// From the first tick to the last.
    pub infer: Duration,
    /// From values to bytes.
    pub output: Duration,
}

/// The counts of one model.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    /// Milliseconds since 1970.
    last: u64,
    rows: u64,
    stats: InferenceStats,
}

/// How often something happened, and for how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = V2Duration)]
pub struct Total {
    /// How often.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

/// Counts and times of a model's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = V2InferenceStats)]
pub struct InferenceStats {
    /// Requests answered.
    pub success: Total,
    /// Requests refused or failed.
    pub fail: Total,
    /// Waiting for the first tick.
    pub queue: Total,
    /// Reading and checking.
    pub compute_input: Total,
    /// In ticks.
    pub compute_infer: Total,
    /// Writing the answer.
    pub compute_output: Total,
    /// Always 0: nothing is cached.
    pub cache_hit: Total,
    /// Always 0.
    pub cache_miss: Total,
}

/// The statistics of one model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2ModelStats)]
pub struct ModelStats {
    /// The model.
    #[schema(example = "fashion-dit.sampler")]
    pub name: String,
    /// `1`.
    #[schema(example = "1")]
    pub version: &'static str,
    /// When it was last answered, in milliseconds since 1970; 0: never.
    pub last_inference: u64,
    /// Rows answered.
    pub inference_count: u64,
    /// Calls of the network since the server started, on rows of any face of the model.
    pub execution_count: u64,
    /// Counts and times of requests.
    pub inference_stats: InferenceStats,
    /// Always empty: rows of many requests share a call.
    pub batch_stats: [Total; 0],
}

// === impl Total ===

impl Total {
    fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.ns = self.ns.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

// === impl Statistics ===

impl Statistics {
    /// A request for so many rows was answered.
    pub fn succeeded(&self, model: &str, rows: usize, times: Times) {
        self.change(model, |counts| {
            // A clock before 1970 is wrong; 0 says so.
            counts.last =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
            counts.rows += rows as u64;
            counts.stats.success.add(times.total);
            counts.stats.queue.add(times.queue);
            counts.stats.compute_input.add(times.input);
            counts.stats.compute_infer.add(times.infer);
            counts.stats.compute_output.add(times.output);
        });
    }

    /// A request was not, after so long. The model exists: names that a client made up are not counted.
    pub fn failed(&self, model: &str, after: Duration) {
        self.change(model, |counts| counts.stats.fail.add(after));
    }

    /// The statistics of a model whose network was called so often.
    pub fn of(&self, model: String, execution_count: u64) -> ModelStats {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = table.get(&model).copied().unwrap_or_default();
        ModelStats {
            name: model,
            version: VERSION,
            last_inference: counts.last,
            inference_count: counts.rows,
            execution_count,
            inference_stats: counts.stats,
            batch_stats: [],
        }
    }

    fn change(&self, model: &str, change: impl FnOnce(&mut Counts)) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get_mut(model) {
            Some(counts) => change(counts),
            None => change(table.entry(model.to_owned()).or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times_add_up() {
        let statistics = Statistics::default();
        let ms = Duration::from_millis;
        let times = Times { total: ms(10), queue: ms(1), input: ms(2), infer: ms(3), output: ms(4) };
        statistics.succeeded("a", 3, times);
        statistics.succeeded("a", 2, times);
        statistics.failed("a", ms(5));
        let stats = statistics.of("a".to_owned(), 9);
        assert_eq!((stats.inference_count, stats.execution_count), (5, 9));
        assert_eq!(stats.inference_stats.success, Total { count: 2, ns: 20_000_000 });
        assert_eq!(stats.inference_stats.compute_infer, Total { count: 2, ns: 6_000_000 });
        assert_eq!(stats.inference_stats.fail, Total { count: 1, ns: 5_000_000 });
        assert!(stats.last_inference > 1_600_000_000_000);
        let never = statistics.of("b".to_owned(), 0);
        assert_eq!((never.last_inference, never.inference_stats), (0, InferenceStats::default()));
    }
}
