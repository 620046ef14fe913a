//! What Prometheus reads at `/metrics`: one struct, each field's doc comment is the metric's help, each name is
//! written once. Seconds and `_total`; stage names are those of `server-timing` and of the spans. What does not
//! belong here: anything whose labels a client could make grow (prompts, seeds, request ids, keys, paths). What the
//! process takes (memory, files, processor time) comes from the library's own collector.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::error::Cause;
use crate::jobs::Kind;
use crate::jobs::store::State;

/// Declares the struct, and registers each field under its name, labels and (for histograms) buckets.
macro_rules! metrics {
    ($($(#[doc = $help:expr])+ $field:ident: $kind:ident = $name:literal $labels:tt $(in $buckets:expr)?;)+) => {
        /// All metrics of one server, in a registry of their own: two servers in one process do not mix.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            /// Held during a scrape.
            scraping: Arc<Mutex<()>>,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// A fresh set.
            fn at_zero() -> Self {
                let registry = Registry::new();
                Self {
                    scraping: Arc::default(),
                    $($field: {
                        let help = [$($help),+].map(str::trim).join(" ");
                        let metric = metrics!(@make $kind $name help $labels $(in $buckets)?);
                        let metric = metric.expect("name and labels are literals of this file; this is a bug");
                        registry.register(Box::new(metric.clone())).expect("names are unique; this is a bug");
                        metric
                    },)+
                    registry,
                }
            }
        }
    };
    (@make $kind:ident $name:literal $help:ident []) => { $kind::new($name, $help) };
    (@make HistogramVec $name:literal $help:ident $labels:tt in $buckets:expr) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &$labels)
    };
    (@make $kind:ident $name:literal $help:ident $labels:tt) => { $kind::new(Opts::new($name, $help), &$labels) };
}

metrics! {
    /// Requests answered, by route pattern and status code.
    requests: IntCounterVec = "windowpane_requests_total" ["route", "code"];
    /// Time from a request's arrival to its response (total), by route pattern.
    request: HistogramVec = "windowpane_request_duration_seconds" ["route"] in SECONDS;
    /// Requests being answered now.
    requests_in_flight: IntGauge = "windowpane_requests_in_flight" [];
    /// Connections that are open, on the API's listener and on that of the metrics.
    connections: IntGauge = "windowpane_connections" [];
    /// Connections, by outcome: accepted, or refused because there were as many as there may be.
    connections_total: IntCounterVec = "windowpane_connections_total" ["outcome"];
    /// Files read anew because they changed, by what they hold (keys, certificate) and outcome: done, failed.
    reloads: IntCounterVec = "windowpane_reloads_total" ["what", "outcome"];
    /// Requests refused or failed, by cause: the error code that the client was told, in a stream by its last event.
    rejections: IntCounterVec = "windowpane_rejections_total" ["cause"];
    /// Requests whose client hung up, reset its stream or stopped reading, by what it did not want to see the end of: wait
    /// (before the head of the answer), answer (within its body).
    hangups: IntCounterVec = "windowpane_hangups_total" ["during"];
    /// Lines of the log that were lost, because whoever reads standard error did not.
    log_lost: IntCounter = "windowpane_log_lines_lost_total" [];
    /// 1 if the process works; 0 if a worker has died or is stuck, as /livez tells it.
    alive: IntGauge = "windowpane_alive" [];
    /// 1 if a request sent now is served; 0 while models load, the server leaves, or a worker has died or is stuck, as
    /// /readyz tells it.
    ready: IntGauge = "windowpane_ready" [];
    /// Time an image waited from admission to its first tick (queue).
    queue: HistogramVec = "windowpane_queue_seconds" ["model"] in SECONDS;
    /// Time from an image's first tick to its last (denoise).
    denoise: HistogramVec = "windowpane_denoise_seconds" ["model"] in SECONDS;
    /// Time to turn the pictures of one request into files (encode).
    encode: HistogramVec = "windowpane_encode_seconds" ["model"] in SECONDS;
    /// Images admitted and not finished, waiting or running.
    trajectories: IntGaugeVec = "windowpane_trajectories" ["model"];
    /// Images admitted that have not yet taken part in a tick.
    waiting: IntGaugeVec = "windowpane_queue_images" ["model"];
    /// Rows that the network is still to be called on for what is admitted.
    backlog_rows: IntGaugeVec = "windowpane_backlog_rows" ["model"];
    /// Memory of the values of images admitted and not finished; a solver may keep a few times as much beside them.
    backlog_bytes: IntGaugeVec = "windowpane_backlog_bytes" ["model"];
    /// Memory of the frames of trajectories and previews that requests under way may keep: taken when they are admitted,
    /// given back when they end.
    frame_bytes: IntGauge = "windowpane_frame_bytes" [];
    /// Memory of frames beyond which requests are refused (--frame-limit).
    frame_limit: IntGauge = "windowpane_frame_limit_bytes" [];
    /// Memory of the answers of requests under way: about as much as they will have, taken when they are admitted; what they
    /// are once they are written; given back when their clients have them.
    answer_bytes: IntGauge = "windowpane_answer_bytes" [];
    /// Memory of answers beyond which requests are refused (--answer-limit).
    answer_limit: IntGauge = "windowpane_answer_limit_bytes" [];
    /// Time that what is admitted still takes, as ticks go now.
    backlog: GaugeVec = "windowpane_backlog_seconds" ["model"];
    /// Time of admitted work beyond which requests are refused (--max-backlog).
    backlog_limit: Gauge = "windowpane_backlog_limit_seconds" [];
    /// Images admitted and not finished beyond which requests are refused (--queue-limit), of one model.
    trajectories_limit: IntGauge = "windowpane_trajectories_limit" [];
    /// Images finished.
    images: IntCounterVec = "windowpane_images_total" ["model"];
    /// Images abandoned, by cause: disconnect, cancelled, deadline, shutdown.
    cancellations: IntCounterVec = "windowpane_cancellations_total" ["model", "cause"];
    /// Ticks: calls of the network, each over many images.
    ticks: IntCounterVec = "windowpane_ticks_total" ["model"];
    /// Rows in a tick; a guided image is two.
    tick_rows: HistogramVec = "windowpane_tick_rows" ["model"] in ROWS;
    /// Rows of a full tick: more would not be faster, as was measured at load.
    tick_room: IntGaugeVec = "windowpane_tick_room_rows" ["model"];
    /// Ticks of fewer rows than a full one, by cause: demand (there was no more work), pinned (a reproducible request
    /// held the tick to its bucket), memory (the device lacks it for more rows, for now), turn (it was not the others' turn,
    /// or they need two rows where one is left).
    small_ticks: IntCounterVec = "windowpane_small_ticks_total" ["model", "cause"];
    /// Rows that only filled a tick up to a bucket.
    padding: IntCounterVec = "windowpane_padding_rows_total" ["model"];
    /// Duration of a tick's call of the network, by bucket: the smallest size measured at load that holds its rows.
    tick: HistogramVec = "windowpane_tick_duration_seconds" ["model", "bucket"] in SECONDS;
    /// Time between two calls of the network while there is work: replies, admission, gathering. Not the wait for other
    /// models on the device.
    gap: HistogramVec = "windowpane_tick_host_gap_seconds" ["model"] in GAPS;
    /// Evaluations of the network on one image; solver steps, of which some solvers need two evaluations.
    steps: IntCounterVec = "windowpane_steps_total" ["model"];
    /// Calls of the network or images that failed, by cause: error, memory (the device had none left), panic, not_finite.
    failures: IntCounterVec = "windowpane_failures_total" ["model", "cause"];
    /// Sessions built anew after a tick that failed, by outcome: done, failed.
    rebuilds: IntCounterVec = "windowpane_session_rebuilds_total" ["model", "outcome"];
    /// Studies admitted and not ended: looks inside a model.
    studies: IntGaugeVec = "windowpane_studies" ["model"];
    /// Studies of one caller beyond which more are refused (--study-quota).
    study_quota: IntGauge = "windowpane_study_quota" [];
    /// Studies that ended, by outcome: done, failed, disconnect, cancelled, deadline, shutdown.
    studies_total: IntCounterVec = "windowpane_studies_total" ["model", "outcome"];
    /// Time from a study's admission to its end, by kind: attention, jacobian, psnr-gap, images (an order of many), infer.
    study: HistogramVec = "windowpane_study_duration_seconds" ["model", "kind"] in STUDIES;
    /// Units of studies, each one call of a graph: attention, jvp, vjp, denoiser.
    study_units: IntCounterVec = "windowpane_study_units_total" ["model", "graph"];
    /// Times that a unit waited for the device, and went back behind images of its own model that came in the meantime.
    study_deferred: IntCounterVec = "windowpane_study_units_deferred_total" ["model", "graph"];
    /// Duration of a unit on the worker, the opening of its graph included.
    study_unit: HistogramVec = "windowpane_study_unit_duration_seconds" ["model", "graph"] in SECONDS;
    /// Graphs of a model's insides opened, each behind its golden, by outcome: done, failed.
    insides_opened: IntCounterVec = "windowpane_insides_opened_total" ["model", "graph", "outcome"];
    /// Sessions of a graph of a model's insides that are open, of every version that has requests; they take memory.
    insides_open: IntGaugeVec = "windowpane_insides_open" ["model", "graph"];
    /// Jobs in the store by state, as counted every few seconds: queued, running, succeeded, failed, cancelled. Servers that
    /// share a store count the same.
    jobs: IntGaugeVec = "windowpane_jobs" ["state"];
    /// Jobs that ended through this server, by kind and outcome: succeeded, failed, cancelled.
    jobs_total: IntCounterVec = "windowpane_jobs_total" ["kind", "outcome"];
    /// Time from a job's first lease to its result, whoever worked on it.
    job_duration: HistogramVec = "windowpane_job_duration_seconds" ["kind"] in LONG;
    /// Pieces of jobs that this server committed.
    job_pieces: IntCounterVec = "windowpane_job_pieces_total" ["kind"];
    /// Jobs that this server took up because whoever worked on them had said nothing for too long.
    job_leases_lost: IntCounter = "windowpane_job_leases_lost_total" [];
    /// Tries to tell a webhook of a job's end, by outcome: delivered, retried (not taken, another try follows), given_up.
    webhooks: IntCounterVec = "windowpane_webhook_deliveries_total" ["outcome"];
    /// 1 for a model that serves.
    model_ready: IntGaugeVec = "windowpane_model_ready" ["model"];
    /// Model packages loaded, at start or later, by outcome: done, failed.
    loads: IntCounterVec = "windowpane_model_loads_total" ["outcome"];
    /// Time to verify, load and check a model package.
    model_load: GaugeVec = "windowpane_model_load_seconds" ["model"];
    /// Largest relative error of the golden replay at load.
    golden_error: GaugeVec = "windowpane_golden_relative_error" ["model", "graph"];
    /// 1, with the execution provider that a model runs on and what it computes in.
    provider: IntGaugeVec = "windowpane_execution_provider_info" ["model", "provider", "dtype"];
    /// 1, with the versions of this server and of ONNX Runtime.
    build: IntGaugeVec = "windowpane_build_info" ["version", "onnxruntime"];
}

/// Durations: from a tick of the smallest model to a request of many large images, a factor of about two apart,
/// few because every bucket is a time series for every label.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Studies: from one call to a day.
const STUDIES: &[f64] =
    &[0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0];

/// Jobs: seconds to a day.
const LONG: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0];

/// Host gaps: microseconds if all is well.
const GAPS: &[f64] = &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];

/// Rows: the powers of two up to the largest sensible tick.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

// === impl Metrics ===

impl Metrics {
    /// A fresh set, all at zero, with what is counted of the server as a whole.
    pub fn new() -> Self {
        let metrics = Self::at_zero();
        #[cfg(target_os = "linux")]
        metrics
            .registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("its names begin with process_, ours do not; this is a bug");
        for cause in Cause::ALL {
            metrics.rejections.with_label_values(&[cause.code()]);
        }
        for during in ["wait", "answer"] {
            metrics.hangups.with_label_values(&[during]);
        }
        for outcome in ["done", "failed"] {
            metrics.loads.with_label_values(&[outcome]);
            for what in ["keys", "certificate"] {
                metrics.reloads.with_label_values(&[what, outcome]);
            }
        }
        metrics
    }

    /// Shows a model's numbers from the beginning, at zero: a number that is absent until something happens looks like
    /// one that nobody counts, and its first step is missing from every rate. `buckets` are the sizes measured at load.
    pub fn announce(&self, model: &str, buckets: impl IntoIterator<Item = usize>) {
        for histogram in [&self.queue, &self.denoise, &self.encode, &self.tick_rows, &self.gap] {
            histogram.with_label_values(&[model]);
        }
        for bucket in buckets {
            self.tick.with_label_values(&[model, &bucket.to_string()]);
        }
        for counter in [&self.images, &self.ticks, &self.padding, &self.steps] {
            counter.with_label_values(&[model]);
        }
        for cause in ["disconnect", "cancelled", "deadline", "shutdown"] {
            self.cancellations.with_label_values(&[model, cause]);
        }
        for cause in ["demand", "pinned", "memory", "turn"] {
            self.small_ticks.with_label_values(&[model, cause]);
        }
        for cause in ["error", "memory", "panic", "not_finite"] {
            self.failures.with_label_values(&[model, cause]);
        }
        for outcome in ["done", "failed"] {
            self.rebuilds.with_label_values(&[model, outcome]);
        }
        // Studies that call the network itself.
        self.announce_units(model, "denoiser");
        for kind in ["attention", "jacobian", "psnr-gap", "images", "infer"] {
            self.study.with_label_values(&[model, kind]);
        }
        for outcome in ["done", "failed", "disconnect", "cancelled", "deadline", "shutdown"] {
            self.studies_total.with_label_values(&[model, outcome]);
        }
    }

    fn announce_units(&self, model: &str, graph: &str) {
        for counter in [&self.study_units, &self.study_deferred] {
            counter.with_label_values(&[model, graph]);
        }
        self.study_unit.with_label_values(&[model, graph]);
    }

    /// The same of the graphs that a model has of its insides.
    pub fn announce_insides<'a>(&self, model: &str, graphs: impl IntoIterator<Item = &'a str>) {
        for graph in graphs {
            self.announce_units(model, graph);
            self.insides_open.with_label_values(&[model, graph]);
            for outcome in ["done", "failed"] {
                self.insides_opened.with_label_values(&[model, graph, outcome]);
            }
        }
    }

    /// Shows the numbers of jobs from the beginning, at zero, where jobs are kept.
    pub fn announce_jobs(&self) {
        for state in State::ALL {
            self.jobs.with_label_values(&[state.as_str()]);
        }
        for kind in Kind::ALL.map(Kind::as_str) {
            for outcome in ["succeeded", "failed", "cancelled"] {
                self.jobs_total.with_label_values(&[kind, outcome]);
            }
            self.job_duration.with_label_values(&[kind]);
            self.job_pieces.with_label_values(&[kind]);
        }
        for outcome in ["delivered", "retried", "given_up"] {
            self.webhooks.with_label_values(&[outcome]);
        }
    }

    /// The text exposition format, after `look` has set the gauges of the moment. One scrape at a time, so that none
    /// sees what another has begun to set.
    pub fn scrape(&self, look: impl FnOnce(&Self)) -> Result<String, prometheus::Error> {
        let _one_at_a_time = self.scraping.lock().unwrap_or_else(PoisonError::into_inner);
        look(self);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_doc_comment_is_the_help() {
        let metrics = Metrics::new();
        metrics.requests.with_label_values(&["/livez", "200"]).inc();
        metrics.request.with_label_values(&["/livez"]).observe(0.002);
        let text = metrics.scrape(|_| ()).unwrap();
        assert!(text.contains(
            "# HELP windowpane_requests_total Requests answered, by route pattern and status code."
        ));
        assert!(text.contains("windowpane_requests_total{code=\"200\",route=\"/livez\"} 1"));
        assert!(
            text.contains("windowpane_request_duration_seconds_bucket{route=\"/livez\",le=\"0.0025\"} 1")
        );
    }

    #[test]
    fn a_models_numbers_are_there_before_anything_happens() {
        let metrics = Metrics::new();
        metrics.announce("a", [1, 8]);
        let text = metrics.scrape(|_| ()).unwrap();
        for zero in [
            "windowpane_tick_duration_seconds_count{bucket=\"8\",model=\"a\"} 0",
            "windowpane_small_ticks_total{cause=\"demand\",model=\"a\"} 0",
            "windowpane_rejections_total{cause=\"overloaded\"} 0",
            "windowpane_model_loads_total{outcome=\"failed\"} 0",
            "windowpane_images_total{model=\"a\"} 0",
            "windowpane_tick_rows_count{model=\"a\"} 0",
            "windowpane_cancellations_total{cause=\"deadline\",model=\"a\"} 0",
            "windowpane_failures_total{cause=\"panic\",model=\"a\"} 0",
        ] {
            assert!(text.lines().any(|line| line == zero), "{zero} is not in {text}");
        }
    }

    #[test]
    fn names_follow_prometheus_rules() {
        let metrics = Metrics::new();
        for family in metrics.registry.gather() {
            let name = family.name();
            assert!(name.starts_with("windowpane_") || name.starts_with("process_"), "{name}");
        }
        // Every counter ends in _total and no other kind does: checked on the declaration itself.
        for line in include_str!("metrics.rs").lines().filter(|line| line.contains("= \"windowpane_")) {
            assert_eq!(line.contains(": IntCounter"), line.contains("_total\""), "{line}");
        }
    }

    #[test]
    fn two_servers_do_not_share_numbers() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.requests_in_flight.inc();
        assert_eq!((a.requests_in_flight.get(), b.requests_in_flight.get()), (1, 0));
    }
}
