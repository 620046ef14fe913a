//! The configuration of a real process: where each value may stand, and what is said when something is wrong.

use std::fs;

use suite::{Process, TestServer, shipped};

#[test]
fn a_file_a_variable_and_a_flag_make_one_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windowpane.toml");
    let models = shipped("tiny");
    // The port of the file would be refused, and that of the variable is taken by nobody.
    let text =
        format!("models = {:?}\nport = 1\nmax-rows = 4\nbody-limit = 2000\n", models.to_str().unwrap());
    fs::write(&path, text).unwrap();
    let variables = [
        ("WINDOWPANE_CONFIG", path.to_str().unwrap()),
        ("WINDOWPANE_PORT", "1"),
        ("WINDOWPANE_BODY_LIMIT", "3000"),
    ];
    let mut server = Process::with_variables(&["--port", "0"], &variables);
    let url = server.url();
    let shared = TestServer::shared();
    let ask =
        |method: &str, path: &str, body| shared.elsewhere(method, &format!("{url}{path}"), body).unwrap();
    // The variable's limit, not the file's.
    let long = serde_json::json!({"prompt": " ".repeat(4000)});
    let message = ask("POST", suite::IMAGES, Some(&long)).refused(413, "body_too_large", None);
    assert!(message.contains("3000"), "{message}");
    // The file's rows: the model tells the ticks that it takes.
    let model = ask("GET", "/v1/models/tiny", None).ok().json().to_string();
    assert!(!model.contains("\"rows\":8"), "{model}");
    server.signal("TERM");
    assert_eq!(server.end().code, Some(0));
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windowpane.toml");
    fs::write(
        &path,
        "max_rows = 4\nqueue-limit = 0\ntls-cert = \"/nowhere/cert.pem\"\ncors-origin = [\"a\"]\n",
    )
    .unwrap();
    let file = path.to_str().unwrap();
    let variables =
        [("WINDOWPANE_MAX_ROWS", "1"), ("WINDOWPANE_DEVICE", "tpu"), ("WINDOWPANE_SOCKET_MODE", "999")];
    let mut server =
        Process::with_variables(&["--config", file, "--port", "70000", "--log", "=="], &variables);
    let exit = server.end();
    assert_eq!(exit.code, Some(2), "{}", exit.errors);
    for said in [
        format!("`{file}`: unknown key `max_rows`; the nearest is `max-rows`"),
        format!("`{file}`: `queue-limit` is 0, expected "),
        format!("`{file}`: `tls-cert` is given without `--tls-key`"),
        format!("`{file}`: `cors-origin`: `a` is not an origin"),
        "`WINDOWPANE_MAX_ROWS` is 1, expected 2 to 1024".to_owned(),
        "`WINDOWPANE_DEVICE` is `tpu`, expected auto, cpu, cuda".to_owned(),
        "`WINDOWPANE_SOCKET_MODE` is `999`: expected octal digits".to_owned(),
        "`--port` is `70000`: 70000 is not in 0..=65535".to_owned(),
        "`--log`: ".to_owned(),
    ] {
        assert!(exit.errors.contains(&said), "{said} is not in {}", exit.errors);
    }
    assert!(exit.errors.contains("9 problems") && !exit.errors.contains("panicked"), "{}", exit.errors);
}

#[test]
fn a_variable_that_means_nothing_is_told_and_no_error() {
    let models = shipped("tiny");
    // As a cluster sets them for a service of the name.
    let variables = [("WINDOWPANE_MAX_ROW", "4"), ("WINDOWPANE_SERVICE_HOST", "10.0.0.1")];
    let args = ["--models", models.to_str().unwrap(), "--port", "0", "--max-rows", "2"];
    let mut server = Process::with_variables(&args, &variables);
    server.url();
    server.signal("TERM");
    let exit = server.end();
    assert_eq!(exit.code, Some(0), "{}", exit.errors);
    assert!(
        exit.errors
            .contains("`WINDOWPANE_MAX_ROW` means nothing here (the nearest is `WINDOWPANE_MAX_ROWS`)")
    );
    assert!(exit.errors.contains("`WINDOWPANE_SERVICE_HOST` means nothing here"));
}
