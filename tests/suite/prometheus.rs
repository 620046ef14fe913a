//! What a real Prometheus makes of /metrics: its linter is content, it scrapes, and its numbers are the server's.

use serde_json::json;
use suite::{Prometheus, TestServer, promtool};

#[test]
fn promtool_finds_nothing_to_say() {
    // Everything that has labels has been seen: an image, a refusal, a look, and jobs.
    let server = TestServer::start(TestServer::config());
    server.app().metrics().announce_jobs();
    let look = json!({"prompt": "ring", "timestep": 300, "layers": [0]});
    server.send(server.elsewhere_request(&format!("{}/v1/analysis/attention", server.url()), &look)).ok();
    server.generate(&json!({"prompt": "ring", "steps": 2})).ok();
    server.generate(&json!({"prompt": "cat"})).refused(422, "invalid_value", Some("prompt"));
    let metrics = server.get("/metrics").ok();
    for family in [
        "study_duration_seconds_bucket",
        "jobs",
        "jobs_total",
        "job_duration_seconds_bucket",
        "connections_total",
    ] {
        assert!(metrics.text().contains(&format!("\nwindowpane_{family}{{")), "{family} is not seen");
    }
    let (content, said) = promtool(&["check", "metrics"], metrics.text());
    assert!(content && said.trim().is_empty(), "{said}");
    // It does find what is wrong.
    let (content, said) = promtool(&["check", "metrics"], "# TYPE requests counter\nrequests 1\n");
    assert!(!content && said.contains("requests"), "{said}");
}

#[test]
fn prometheus_reads_the_servers_numbers() {
    let server = TestServer::start(TestServer::config());
    let prometheus = Prometheus::watching(&server, &[]);
    let value = |query: &str| match prometheus.query(query).unwrap().as_slice() {
        [(_, value)] => Some(*value),
        [] => None,
        several => panic!("{query} has several values: {several:?}"),
    };
    prometheus.until("it has read the server", || value("up{job=\"windowpane\"}") == Some(1.0));
    prometheus.until("a counter is there before it counts", || {
        value("windowpane_images_total{model=\"tiny\"}") == Some(0.0)
    });
    for seed in 0..3 {
        server.generate(&json!({"prompt": "ring", "seed": seed, "steps": 4, "n": 2})).ok();
    }
    prometheus
        .until("it has seen six images", || value("windowpane_images_total{model=\"tiny\"}") == Some(6.0));
    assert_eq!(value("sum(windowpane_queue_seconds_count)"), Some(6.0));
    assert_eq!(value("windowpane_ready"), Some(1.0));
    assert!(value("process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6));
    let rows = value("windowpane_tick_rows_sum / windowpane_tick_rows_count").unwrap();
    assert!((1.0..=8.0).contains(&rows), "{rows}");
    let p99 = "histogram_quantile(0.99, sum by (le) (windowpane_tick_duration_seconds_bucket))";
    assert!(value(p99).is_some_and(|seconds| seconds > 0.0 && seconds < 60.0));
    // The first image is in the rate, since the counter began at zero.
    prometheus.until("the rate is more than nothing", || {
        value("sum(increase(windowpane_images_total[1m]))").is_some_and(|images| images >= 1.0)
    });
}
