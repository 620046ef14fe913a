//! What Prometheus reads at `/metrics`: one struct, each field's doc comment is the metric's help, each name is
//! written once. Seconds and `_total`; stage names are those of `server-timing` and of the spans. What does not
//! belong here: anything whose labels a client could make grow (prompts, seeds, request ids, keys, paths).

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Declares the struct, and registers each field under its name, labels and (for histograms) buckets.
macro_rules! metrics {
    ($($(#[doc = $help:expr])+ $field:ident: $kind:ident = $name:literal $labels:tt $(in $buckets:expr)?;)+) => {
        /// All metrics of one server, in a registry of their own: two servers in one process do not mix.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// A fresh set, all at zero.
            pub fn new() -> Self {
                let registry = Registry::new();
                Self {
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
    (@make IntGauge $name:literal $help:ident []) => { IntGauge::new($name, $help) };
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
    /// Requests refused or failed, by the error code that the client was told.
    rejections: IntCounterVec = "windowpane_rejections_total" ["code"];
    /// Time an image waited from admission to its first tick (queue).
    queue: HistogramVec = "windowpane_queue_seconds" ["model"] in SECONDS;
    /// Time from an image's first tick to its last (denoise).
    denoise: HistogramVec = "windowpane_denoise_seconds" ["model"] in SECONDS;
    /// Time to turn the pictures of one request into files (encode).
    encode: HistogramVec = "windowpane_encode_seconds" ["model"] in SECONDS;
    /// Images admitted and not finished, waiting or running.
    trajectories: IntGaugeVec = "windowpane_trajectories" ["model"];
    /// Images finished.
    images: IntCounterVec = "windowpane_images_total" ["model"];
    /// Images abandoned, by cause: disconnect, cancelled, deadline, shutdown.
    cancellations: IntCounterVec = "windowpane_cancellations_total" ["model", "cause"];
    /// Ticks: calls of the network, each over many images.
    ticks: IntCounterVec = "windowpane_ticks_total" ["model"];
    /// Rows in a tick; a guided image is two.
    tick_rows: HistogramVec = "windowpane_tick_rows" ["model"] in ROWS;
    /// Rows that only filled a tick up to a bucket.
    padding: IntCounterVec = "windowpane_padding_rows_total" ["model"];
    /// Duration of a tick's call of the network.
    tick: HistogramVec = "windowpane_tick_duration_seconds" ["model"] in SECONDS;
    /// Time between two calls of the network while there is work: replies, admission, gathering.
    gap: HistogramVec = "windowpane_tick_host_gap_seconds" ["model"] in GAPS;
    /// Evaluations of the network on one image; solver steps, of which some solvers need two evaluations.
    steps: IntCounterVec = "windowpane_steps_total" ["model"];
    /// Ticks or images that failed, by cause: error, panic, not_finite.
    failures: IntCounterVec = "windowpane_failures_total" ["model", "cause"];
    /// Sessions built anew after a tick that failed, by outcome: done, failed.
    rebuilds: IntCounterVec = "windowpane_session_rebuilds_total" ["model", "outcome"];
    /// 1 for a model that serves.
    model_ready: IntGaugeVec = "windowpane_model_ready" ["model"];
    /// Time to verify, load and check a model package.
    model_load: GaugeVec = "windowpane_model_load_seconds" ["model"];
    /// Largest relative error of the golden replay at load.
    golden_error: GaugeVec = "windowpane_golden_relative_error" ["model", "graph"];
    /// 1, with the execution provider and graph that a model runs on.
    provider: IntGaugeVec = "windowpane_execution_provider_info" ["model", "provider", "dtype"];
    /// 1, with the versions of this server and of ONNX Runtime.
    build: IntGaugeVec = "windowpane_build_info" ["version", "onnxruntime"];
}

/// Durations: from a tick of the smallest model to a request of many large images, a factor of about two apart,
/// few because every bucket is a time series for every label.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Host gaps: microseconds if all is well.
const GAPS: &[f64] = &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0];

/// Rows: the powers of two up to the largest sensible tick.
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

// === impl Metrics ===

impl Metrics {
    /// Shows a model's numbers from the beginning, at zero: a number that is absent until something happens looks like
    /// one that nobody counts, and its first step is missing from every rate.
    pub fn announce(&self, model: &str) {
        for histogram in [&self.queue, &self.denoise, &self.encode, &self.tick_rows, &self.tick, &self.gap] {
            histogram.with_label_values(&[model]);
        }
        for counter in [&self.images, &self.ticks, &self.padding, &self.steps] {
            counter.with_label_values(&[model]);
        }
        self.trajectories.with_label_values(&[model]);
        for cause in ["disconnect", "cancelled", "deadline", "shutdown"] {
            self.cancellations.with_label_values(&[model, cause]);
        }
        for cause in ["error", "panic", "not_finite"] {
            self.failures.with_label_values(&[model, cause]);
        }
        for outcome in ["done", "failed"] {
            self.rebuilds.with_label_values(&[model, outcome]);
        }
    }

    /// The text exposition format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
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
        let text = metrics.render().unwrap();
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
        metrics.announce("a");
        let text = metrics.render().unwrap();
        for zero in [
            "windowpane_trajectories{model=\"a\"} 0",
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
            assert!(family.name().starts_with("windowpane_"));
        }
        // Every counter ends in _total and no other kind does: checked on the declaration itself.
        for line in include_str!("metrics.rs").lines().filter(|line| line.contains("= \"windowpane_")) {
            assert_eq!(line.contains(": IntCounterVec"), line.contains("_total\""), "{line}");
        }
    }

    #[test]
    fn two_servers_do_not_share_numbers() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.requests_in_flight.inc();
        assert_eq!((a.requests_in_flight.get(), b.requests_in_flight.get()), (1, 0));
    }
}
