//! What docker/ promises: alerts that ring, rules and a dashboard that ask for numbers which exist, images that are what
//! the Dockerfile says of them; and docs/operating.md, which explains every alert and every number.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use suite::{Prometheus, TestServer, promtool, root};

/// A file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> PathBuf {
    root().join("docker/prometheus/rules.yml")
}

/// The names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_name(c));
    words
        .filter(|word| word.starts_with("windowpane_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The names of alerts in a text of rules.
fn alerts() -> Vec<String> {
    let rules = read("docker/prometheus/rules.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(|name| name.trim().to_owned()).collect()
}

/// The families that a server has once it was asked for something, each with its kind.
fn families() -> Vec<(String, String)> {
    let server = TestServer::shared();
    server.generate(&json!({"prompt": "ring", "steps": 1})).ok();
    // As where jobs are kept.
    server.app().metrics().announce_jobs();
    let metrics = server.get("/metrics").ok();
    let types = metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The family of a name that may be of a histogram's parts.
fn family<'a>(name: &'a str, families: &[(String, String)]) -> &'a str {
    let histogram = |family: &&str| families.iter().any(|(name, kind)| name == family && kind == "histogram");
    let mut stems = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
    stems.find(histogram).unwrap_or(name)
}

/// Title and query of everything that the dashboard asks.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("a dashboard has panels");
    let mut queries = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().expect("it is a text").to_owned();
            queries.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().into_iter().flatten() {
        let text = |name: &str| annotation[name].as_str().expect("it is a text").to_owned();
        queries.push((text("name"), text("expr")));
    }
    queries
}

#[test]
fn promtool_accepts_the_configuration_and_every_alert_rings() {
    let folder = root().join("docker/prometheus");
    let file = |name: &str| folder.join(name).display().to_string();
    for args in [
        ["check", "config", &file("prometheus.yml")],
        ["check", "rules", &file("rules.yml")],
        ["test", "rules", &file("rules.test.yml")],
    ] {
        let (content, said) = promtool(&args, "");
        assert!(content && said.contains("SUCCESS"), "{args:?}: {said}");
    }
    // A test whose alert does not ring is not passed.
    let copy = tempfile::tempdir().unwrap();
    let deaf = read("docker/prometheus/rules.yml").replace("windowpane_alive == 0", "windowpane_alive == 2");
    std::fs::write(copy.path().join("rules.yml"), deaf).unwrap();
    std::fs::write(copy.path().join("rules.test.yml"), read("docker/prometheus/rules.test.yml")).unwrap();
    let test = copy.path().join("rules.test.yml").display().to_string();
    let (content, said) = promtool(&["test", "rules", &test], "");
    assert!(!content && said.contains("WindowpaneNotAlive"), "{said}");
}

#[test]
fn every_alert_has_a_test() {
    let (tests, alerts) = (read("docker/prometheus/rules.test.yml"), alerts());
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in &alerts {
        let rings = tests
            .split(&format!("alertname: {alert}\n"))
            .skip(1)
            .any(|rest| rest.lines().nth(1).is_some_and(|line| line.trim() == "exp_alerts:"));
        assert!(rings, "no test in which {alert} rings");
    }
}

#[test]
fn what_rules_and_dashboard_name_is_in_metrics() {
    let families = families();
    let exists = |name: &str| families.iter().any(|(known, _)| known == family(name, &families));
    for file in [
        "docker/prometheus/rules.yml",
        "docker/prometheus/rules.test.yml",
        "docker/grafana/dashboards/windowpane.json",
    ] {
        let names = metrics_in(&read(file));
        assert!(names.len() >= 10, "{file}: {names:?}");
        for name in names {
            assert!(exists(&name), "{file} names {name}, which /metrics does not have");
        }
    }
}

/// The rules and the dashboard, over the numbers of a server that has worked, by a Prometheus that evaluates them.
#[test]
fn a_prometheus_evaluates_every_rule_and_every_panel() {
    let server = TestServer::start(TestServer::config());
    let prometheus = Prometheus::watching(&server, &[rules()]);
    let work = |seed: u64| {
        server.generate(&json!({"prompt": "ring", "seed": seed, "steps": 6, "n": 3})).ok();
        server.generate(&json!({"prompt": "cat"})).refused(422, "invalid_value", Some("prompt"));
        let look = json!({"prompt": "ring", "seed": seed, "timestep": 100, "tokens": [0]});
        server.send(server.elsewhere_request(&format!("{}/v1/analysis/attention", server.url()), &look)).ok();
    };
    for seed in 0..4 {
        work(seed);
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let evaluated = || prometheus.rules().iter().filter(|(_, health, _)| health != "unknown").count();
    prometheus.until("every rule was evaluated", || evaluated() == alerts().len());
    for (name, health, error) in prometheus.rules() {
        assert_eq!(health, "ok", "{name}: {error}");
    }
    let dashboard: Value =
        serde_json::from_str(&read("docker/grafana/dashboards/windowpane.json")).expect("it is JSON");
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{}", queries.len());
    // Panels that show nothing where nothing happens.
    let quiet = ["Restarts"];
    for (title, query) in queries {
        let query =
            query.replace("$instance", ".*").replace("$model", ".*").replace("$__rate_interval", "1m");
        assert!(!query.contains('$'), "{title}: {query} has a variable that this test does not know");
        let answers = || {
            let samples = prometheus.query(&query).unwrap_or_else(|error| panic!("{title}: {error}"));
            let answers = !samples.is_empty() || quiet.contains(&title.as_str());
            if !answers {
                // What was counted before the first scrape has no rate, and on a busy machine that comes late.
                work(4);
            }
            answers
        };
        // A rate takes two scrapes of what is counted, and the last of them may yet have to come.
        prometheus.until(&format!("{title}: {query} has an answer"), answers);
    }
    let ringing = prometheus.query("ALERTS{alertstate=\"firing\"}").unwrap();
    assert!(ringing.is_empty(), "{ringing:?}");
}

#[test]
fn the_dashboard_answers_five_questions() {
    let dashboard: Value =
        serde_json::from_str(&read("docker/grafana/dashboards/windowpane.json")).expect("it is JSON");
    let panels = dashboard["panels"].as_array().unwrap();
    let rows = panels.iter().filter(|panel| panel["type"] == "row").map(|row| row["title"].as_str().unwrap());
    assert_eq!(
        rows.collect::<Vec<_>>(),
        ["Is it healthy?", "Is it full?", "Why are batches small?", "What fails?", "Who looks inside?"]
    );
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    // Where it is provisioned from is where the compose file puts it.
    let provider = read("docker/grafana/provisioning/dashboards/windowpane.yaml");
    let compose = read("docker/compose.yaml");
    assert!(provider.contains("path: /var/lib/dashboards"));
    assert!(compose.contains("./grafana/dashboards:/var/lib/dashboards:ro"));
}

#[test]
fn the_images_are_of_this_toolchain_and_nobody_is_root() {
    let dockerfile = read("docker/Dockerfile");
    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.split("channel = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert!(dockerfile.contains(&format!("ARG RUST={channel}\n")), "rust-toolchain.toml says {channel}");
    let stages: Vec<&str> = dockerfile.split("\nFROM ").skip(1).collect();
    let is_built = |stage: &&&str| stage.contains("COPY --from=build-");
    let images: Vec<_> = stages.iter().filter(is_built).collect();
    assert_eq!(images.len(), 3, "server, server-cuda, trainer");
    for image in images {
        assert!(image.contains("\nUSER 65532:65532\n"), "{image}");
        assert!(image.contains("\nSTOPSIGNAL SIGTERM\n"), "{image}");
        let serves = image.contains("[\"/usr/local/bin/windowpane\"]");
        assert_eq!(serves, image.contains("CMD [\"/usr/local/bin/windowpane\", \"health\"]"), "{image}");
    }
    // What they are built by is one script, whose clean root starts the server as the image does.
    assert_eq!(dockerfile.matches(" /out\n").count(), 3);
    assert_eq!(dockerfile.matches("docker/build.sh ").count(), 3);
    let clean = read("docker/clean-root.sh");
    assert!(clean.contains("/src/docker/build.sh \"$target\" /out"));
    for setting in ["WINDOWPANE_MODELS=/models", "ORT_DYLIB_PATH=/usr/local/lib/windowpane/libonnxruntime.so"]
    {
        assert!(dockerfile.contains(setting) && clean.contains(setting), "{setting}");
    }
    // What we build writes nowhere and may do nothing that only root may, wherever it is served.
    let compose = read("docker/compose.yaml");
    let services = compose.split("\nservices:\n").nth(1).unwrap().split("\nvolumes:\n").next().unwrap();
    // A service begins at two spaces, what is said of it at four.
    let ours = services.split("\n\n").filter(|service| service.contains("\n    build: "));
    let mut found = 0;
    for service in ours {
        for setting in ["read_only: true", "cap_drop: [ALL]", "security_opt: [\"no-new-privileges:true\"]"] {
            assert!(service.contains(&format!("\n    {setting}\n")), "no `{setting}` in {service}");
        }
        found += 1;
    }
    assert_eq!(found, compose.matches("build:").count(), "a service was not looked at");
}

#[test]
fn the_scripts_refuse_in_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("file"), "").unwrap();
    let (empty, full) = (folder.path().join("empty"), full.display().to_string());
    let empty = empty.display().to_string();
    for (script, args, says) in [
        ("build.sh", vec!["server"], "expected: server|server-cuda|trainer OUT"),
        ("build.sh", vec!["tpu", &empty], "`tpu` is no target; expected server, server-cuda or trainer"),
        ("build.sh", vec!["server", &full], "is not empty"),
        ("clean-root.sh", vec![], "expected a folder to work in"),
        ("clean-root.sh", vec!["--tolchain", "x"], "`--tolchain` is no option"),
    ] {
        let output =
            Command::new("bash").arg(root().join("docker").join(script)).args(&args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{script} {args:?}: {said}");
        assert!(said.contains(says), "{script} {args:?}: {said}");
    }
}

#[test]
fn the_operators_page_knows_every_alert_and_every_number() {
    let (page, alerts, families) = (read("docs/operating.md"), alerts(), families());
    for alert in &alerts {
        assert!(page.contains(&format!("| `{alert}` | ")), "it does not say what to do about {alert}");
    }
    for word in page.split(|c: char| !c.is_ascii_alphanumeric()) {
        let is_alert = word.starts_with("Windowpane") && word.len() > "Windowpane".len();
        assert!(!is_alert || alerts.iter().any(|alert| alert == word), "there is no alert {word}");
    }
    let named = metrics_in(&page);
    for (name, _) in &families {
        assert!(named.contains(name), "it does not explain {name}");
    }
    for name in named {
        let exists = families.iter().any(|(known, _)| known == family(&name, &families));
        assert!(exists, "it names {name}, which /metrics does not have");
    }
}
