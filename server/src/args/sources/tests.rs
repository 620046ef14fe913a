//! Flags before variables before the file, and every problem of all three at once.

use std::fs;

use super::*;

fn read(line: &[&str], variables: &[(&str, &str)]) -> Result<Found, clap::Error> {
    let line = std::iter::once(&"windowpane").chain(line).map(OsString::from).collect();
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
    Found::read(line, &variables)
}

/// A file with this text, and its path.
fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("windowpane.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let (_folder, path) = file("port = 1\nmax-rows = 2\nqueue-limit = 300\n");
    let variables =
        [("WINDOWPANE_CONFIG", path.as_str()), ("WINDOWPANE_PORT", "11"), ("WINDOWPANE_MAX_ROWS", "12")];
    let found = read(&["--port", "21"], &variables).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    let Args { port, max_rows, queue_limit, body_limit, places, .. } = found.args;
    assert_eq!((port, max_rows, queue_limit, body_limit), (21, 12, 300, 1 << 20));
    assert_eq!(places.of("port"), "`--port`");
    assert_eq!(places.of("max-rows"), "`WINDOWPANE_MAX_ROWS`");
    assert_eq!(places.of("queue-limit"), format!("`{path}`: `queue-limit`"));
    assert_eq!(places.of("body-limit"), "`--body-limit`");
}

#[test]
fn every_problem_is_found_at_once_and_says_where_it_stands() {
    let (_folder, path) =
        file("por = 1\ndevice = \"tpu\"\nmax_rows = 3\nlog = { level = \"info\" }\nthreads = [1, 2]\n");
    let variables = [("WINDOWPANE_QUEUE_LIMIT", "many"), ("WINDOWPANE_DEVICE_", "cpu")];
    let found = read(&["--config", &path, "--port", "70000"], &variables).unwrap();
    let mut problems = found.problems;
    problems.sort();
    let in_file = |rest: &str| format!("`{path}`: {rest}");
    let mut expected = vec![
        "`--port` is `70000`: 70000 is not in 0..=65535".to_owned(),
        "`WINDOWPANE_QUEUE_LIMIT` is `many`: invalid digit found in string".to_owned(),
        in_file("`device` is `tpu`, expected auto, cpu, cuda"),
        in_file("`log` is a table, expected a value"),
        in_file("`threads` is a list, expected one value"),
        in_file("unknown key `max_rows`; the nearest is `max-rows`"),
        in_file("unknown key `por`; the nearest is `port`"),
    ];
    expected.sort();
    assert_eq!(problems, expected);
    // What could not be read is the default, so that the rest can be looked at as well.
    assert_eq!((found.args.port, found.args.queue_limit), (8080, 4096));
    let odd = "the variable `WINDOWPANE_DEVICE_` means nothing here (the nearest is `WINDOWPANE_DEVICE`)";
    assert_eq!(found.oddities, [odd]);
}

#[test]
fn a_value_that_may_hold_a_password_is_not_shown() {
    let url = "postgress://user:hunter2@db/jobs";
    let (_folder, path) = file(&format!("jobs = \"{url}\"\n"));
    for found in [
        read(&[], &[("WINDOWPANE_JOBS", url)]),
        read(&["--jobs", url], &[]),
        read(&["--jobs", url, "--jobs", url], &[("WINDOWPANE_JOBS", url)]),
        read(&["--config", &path], &[]),
    ] {
        // What clap says itself, or we.
        let said = found.map_or_else(|error| error.to_string(), |found| found.problems.join("\n"));
        assert!(!said.contains("hunter2") && said.to_lowercase().contains("jobs"), "{said}");
    }
    let said = read(&[], &[("WINDOWPANE_JOBS", url)]).unwrap().problems.remove(0);
    assert!(said.starts_with("`WINDOWPANE_JOBS` ") && said.contains("expected `auto`"), "{said}");
}

#[test]
fn a_file_that_is_none_is_a_problem_of_its_own() {
    let problem = |path: &str| read(&["--config", path], &[]).unwrap().problems.remove(0);
    assert!(problem("/nowhere/at.toml").starts_with("`/nowhere/at.toml`: "));
    let (_folder, path) = file("port = 1\nmax-rows =\n");
    assert!(problem(&path).starts_with(&format!("`{path}`: line 2: ")), "{}", problem(&path));
    // The file does not name another one.
    let (_folder, path) = file("config = \"other.toml\"\n");
    assert!(problem(&path).contains("unknown key `config`"));
}

#[test]
fn a_flag_that_may_stand_alone_is_true_in_the_file() {
    for (text, watch) in
        [("watch = true", Some(5)), ("watch = false", None), ("watch = 7", Some(7)), ("", None)]
    {
        let (_folder, path) = file(text);
        let found = read(&["--config", &path], &[]).unwrap();
        assert_eq!((found.args.watch, found.problems.len()), (watch, 0), "{text}");
    }
}

#[test]
fn what_is_no_command_line_is_claps_error() {
    let error = read(&["--prot", "1"], &[]).unwrap_err();
    assert!(error.to_string().contains("--port"), "{error}");
    let help = read(&["--help"], &[("WINDOWPANE_PORT", "x")]).unwrap_err();
    assert_eq!(help.kind(), ErrorKind::DisplayHelp);
    assert!(help.to_string().contains("[default: 8080]"), "{help}");
}
