//! /metrics in Prometheus' text format, read by the format's own rules, and numbers that move as they should.

use std::collections::BTreeMap;

use serde_json::json;
use suite::{IMAGES, TestServer};

/// A scrape: types by family, values by the sample as it is written, labels included.
struct Scrape {
    types: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads the exposition format; anything that is not of it fails the test.
    fn of(server: &TestServer) -> Self {
        let answer = server.get("/metrics").ok();
        assert!(answer.header("content-type").starts_with("text/plain"), "{}", answer.header("content-type"));
        assert!(answer.text().ends_with('\n'), "the last line ends too");
        let (mut types, mut helps, mut values) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for line in answer.text().lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help has a text");
                assert!(helps.insert(name.to_owned(), help.to_owned()).is_none(), "{name} is helped twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type has a word");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is typed twice");
            } else {
                let (sample, value) =
                    line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line:?}"));
                let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
                let name = sample.split('{').next().unwrap_or(sample);
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .filter_map(|end| name.strip_suffix(end))
                    .find(|family| types.get(*family).is_some_and(|kind| kind == "histogram"))
                    .unwrap_or(name);
                assert!(types.contains_key(family), "{line:?} comes before its type");
                assert!(helps[family].len() > 10, "{family} has no help");
                assert!(values.insert(sample.to_owned(), value).is_none(), "{sample} is told twice");
            }
        }
        Self { types, values }
    }

    fn value(&self, sample: &str) -> f64 {
        let all = || self.values.keys().cloned().collect::<Vec<_>>().join("\n");
        *self.values.get(sample).unwrap_or_else(|| panic!("no {sample} among\n{}", all()))
    }

    /// The sum of a family's samples of one model, where other labels tell several apart.
    fn sum(&self, name: &str, model: &str) -> f64 {
        let label = format!("model=\"{model}\"");
        let ours = |sample: &&String| {
            sample.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(&label))
        };
        self.values.keys().filter(ours).map(|sample| self.values[sample]).sum()
    }

    /// How much a sample has grown since; a sample that was not there before began at zero.
    fn since(&self, before: &Self, sample: &str) -> f64 {
        self.value(sample) - before.values.get(sample).copied().unwrap_or(0.0)
    }
}

#[test]
fn the_numbers_move_as_requests_do() {
    let server = TestServer::start(TestServer::config());
    let start = Scrape::of(&server);
    assert_eq!(start.value(r#"windowpane_model_ready{model="tiny"}"#), 1.0);
    assert_eq!(
        start.value(r#"windowpane_execution_provider_info{dtype="f32",model="tiny",provider="cpu"}"#),
        1.0
    );
    assert!(start.value(r#"windowpane_model_load_seconds{model="tiny"}"#) > 0.0);
    let golden = start.value(r#"windowpane_golden_relative_error{graph="denoiser.f32.onnx",model="tiny"}"#);
    assert!((0.0..1e-4).contains(&golden), "{golden}");

    // Three images of five steps, two of them with a second row for guidance; then Heun's eight evaluations in one row.
    let body = json!({"prompt": "ring", "seed": 1, "steps": 5, "n": 2, "guidance_scale": 2});
    server.generate(&body).ok();
    server.generate(&json!({"prompt": "ring", "seed": 1, "steps": 5, "guidance_scale": 1})).ok();
    server.generate(&json!({"prompt": "ring", "steps": 4, "sampler": "heun", "guidance_scale": 1})).ok();
    for _ in 0..3 {
        server.generate(&json!({"prompt": "cat"})).refused(422, "invalid_value", Some("prompt"));
    }
    server.get("/nothing/here").refused(404, "not_found", None);

    let end = Scrape::of(&server);
    let images = format!("route=\"{IMAGES}\"");
    // Heun's last step, onto a clean image, has no second evaluation.
    let evaluations = end.since(&start, r#"windowpane_steps_total{model="tiny"}"#) - 15.0;
    assert!((7.0..=8.0).contains(&evaluations), "Heun made {evaluations} evaluations in 4 steps");
    for (sample, grown) in [
        (format!("windowpane_requests_total{{code=\"200\",{images}}}"), 3.0),
        (format!("windowpane_requests_total{{code=\"422\",{images}}}"), 3.0),
        ("windowpane_requests_total{code=\"404\",route=\"unmatched\"}".to_owned(), 1.0),
        (format!("windowpane_request_duration_seconds_count{{{images}}}"), 6.0),
        ("windowpane_rejections_total{cause=\"invalid_value\"}".to_owned(), 3.0),
        ("windowpane_rejections_total{cause=\"not_found\"}".to_owned(), 1.0),
        ("windowpane_images_total{model=\"tiny\"}".to_owned(), 4.0),
        ("windowpane_queue_seconds_count{model=\"tiny\"}".to_owned(), 4.0),
        ("windowpane_denoise_seconds_count{model=\"tiny\"}".to_owned(), 4.0),
        ("windowpane_encode_seconds_count{model=\"tiny\"}".to_owned(), 3.0),
        // The two images of one request share their ticks: four rows in each of five.
        ("windowpane_ticks_total{model=\"tiny\"}".to_owned(), 10.0 + evaluations),
        ("windowpane_small_ticks_total{cause=\"demand\",model=\"tiny\"}".to_owned(), 10.0 + evaluations),
        ("windowpane_tick_rows_sum{model=\"tiny\"}".to_owned(), 25.0 + evaluations),
    ] {
        assert_eq!(end.since(&start, &sample), grown, "{sample}");
    }
    // Every tick is timed in one bucket or another.
    assert_eq!(end.sum("windowpane_tick_duration_seconds_count", "tiny"), 10.0 + evaluations);
    assert!(end.value(r#"windowpane_tick_duration_seconds_count{bucket="4",model="tiny"}"#) >= 5.0);
    for gauge in ["trajectories", "queue_images", "backlog_rows", "backlog_bytes", "backlog_seconds"] {
        assert_eq!(end.value(&format!("windowpane_{gauge}{{model=\"tiny\"}}")), 0.0, "{gauge}");
    }
    // The scrape itself is the one request under way.
    assert_eq!(end.value("windowpane_requests_in_flight"), 1.0);
    assert!(end.since(&start, r#"windowpane_denoise_seconds_sum{model="tiny"}"#) > 0.0);
}

#[test]
fn histograms_are_cumulative_and_names_are_prefixed() {
    let server = TestServer::shared();
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
    let scrape = Scrape::of(server);
    for (family, kind) in &scrape.types {
        assert!(family.starts_with("windowpane_") || family.starts_with("process_"), "{family}");
        assert_eq!(kind == "counter", family.ends_with("_total"), "{family} is a {kind}");
    }
    let mut series: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for (sample, value) in &scrape.values {
        let Some((name, labels)) = sample.split_once("_bucket{") else { continue };
        let (rest, bound) = labels.trim_end_matches('}').rsplit_once("le=\"").expect("a bucket has a bound");
        let bound = bound.trim_end_matches('"').parse().expect("a bound is a number");
        series
            .entry((name.to_owned(), rest.trim_end_matches(',').to_owned()))
            .or_default()
            .push((bound, *value));
    }
    assert!(series.len() >= 4, "{}", series.len());
    for ((name, labels), mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name} {labels}: {buckets:?}");
        let last = buckets.last().expect("a histogram has buckets");
        assert_eq!(
            *last,
            (f64::INFINITY, scrape.value(&format!("{name}_count{{{labels}}}"))),
            "{name} {labels}"
        );
    }
}

#[test]
fn what_waits_is_told_as_images_rows_bytes_and_seconds() {
    let server = TestServer::start(TestServer::config());
    let idle = Scrape::of(&server);
    for (gauge, value) in
        [("alive", 1.0), ("ready", 1.0), ("backlog_limit_seconds", 3600.0), ("trajectories_limit", 4096.0)]
    {
        assert_eq!(idle.value(&format!("windowpane_{gauge}")), value, "{gauge}");
    }
    // Ten guided images, of which eight rows at a time can run.
    let body = json!({"prompt": "ring", "seed": 1, "steps": 1000, "n": 10, "guidance_scale": 2});
    let request = server.post(body.to_string());
    let asked = server.spawn(async move { request.send().await });
    server.until_images(10);
    let busy = Scrape::of(&server);
    let value = |gauge: &str| busy.value(&format!("windowpane_{gauge}{{model=\"tiny\"}}"));
    assert_eq!((value("trajectories"), value("tick_room_rows")), (10.0, 8.0));
    // Twenty rows a step; a few steps may be done already.
    assert!((15_000.0..=20_000.0).contains(&value("backlog_rows")), "{}", value("backlog_rows"));
    assert!(value("backlog_seconds") > 0.0 && value("queue_images") <= 10.0);
    let tiny = server.app().model(Some("tiny")).unwrap().card.shape().iter().product::<usize>();
    assert_eq!(value("backlog_bytes"), (10 * 4 * tiny) as f64);
    asked.abort();
    server.until_images(0);
    let after = Scrape::of(&server);
    assert_eq!(after.value(r#"windowpane_cancellations_total{cause="disconnect",model="tiny"}"#), 10.0);
    assert_eq!(after.value(r#"windowpane_small_ticks_total{cause="demand",model="tiny"}"#), 0.0);
}

#[test]
fn a_server_that_loads_is_alive_and_not_ready() {
    let server = TestServer::loading(TestServer::config());
    let scrape = Scrape::of(&server);
    assert_eq!((scrape.value("windowpane_alive"), scrape.value("windowpane_ready")), (1.0, 0.0));
    assert_eq!(scrape.value(r#"windowpane_model_loads_total{outcome="done"}"#), 0.0);
    server.app().load().unwrap();
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.value("windowpane_ready"), 1.0);
    assert_eq!(scrape.value(r#"windowpane_model_loads_total{outcome="done"}"#), 1.0);
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_tells_what_it_takes() {
    let scrape = Scrape::of(TestServer::shared());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: f64 = line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() * 1024.0;
    let told = scrape.value("process_resident_memory_bytes");
    assert!((resident / 2.0..resident * 2.0).contains(&told), "{told}, and the kernel says {resident}");
    assert!(scrape.value("process_open_fds") > 2.0 && scrape.value("process_cpu_seconds_total") >= 0.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - scrape.value("process_start_time_seconds");
    assert!((-5.0..3600.0).contains(&age), "it started {age} s ago");
}

#[test]
fn every_expected_family_is_there() {
    // All that a dashboard draws, after one image and one refusal.
    let server = TestServer::start(TestServer::config());
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
    server.generate(&json!({"prompt": "cat"})).refused(422, "invalid_value", Some("prompt"));
    let types = Scrape::of(&server).types;
    for family in [
        "alive",
        "answer_bytes",
        "answer_limit_bytes",
        "backlog_bytes",
        "backlog_limit_seconds",
        "backlog_rows",
        "backlog_seconds",
        "build_info",
        "cancellations_total",
        "denoise_seconds",
        "encode_seconds",
        "execution_provider_info",
        "failures_total",
        "frame_bytes",
        "frame_limit_bytes",
        "golden_relative_error",
        "connections",
        "connections_total",
        "hangups_total",
        "images_total",
        "log_lines_lost_total",
        "insides_open",
        "insides_opened_total",
        "model_load_seconds",
        "model_loads_total",
        "model_ready",
        "padding_rows_total",
        "queue_images",
        "queue_seconds",
        "ready",
        "rejections_total",
        "request_duration_seconds",
        "requests_in_flight",
        "requests_total",
        "session_rebuilds_total",
        "small_ticks_total",
        "steps_total",
        "studies",
        "studies_total",
        "study_duration_seconds",
        "study_quota",
        "study_unit_duration_seconds",
        "study_units_deferred_total",
        "study_units_total",
        "tick_duration_seconds",
        "tick_host_gap_seconds",
        "tick_room_rows",
        "tick_rows",
        "ticks_total",
        "trajectories",
        "trajectories_limit",
    ] {
        assert!(
            types.contains_key(&format!("windowpane_{family}")),
            "windowpane_{family} is not among {types:?}"
        );
    }
}
