//! The table of docs/configuration.md, made of the flags themselves, so that it cannot be wrong.

use std::fmt::Write;

use clap::{Arg, CommandFactory};

use super::Args;

/// Every flag with its variable, its default and what it means, as a table in Markdown.
pub fn table() -> String {
    let mut text = String::from("| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n");
    let command = Args::command();
    for arg in command.get_arguments() {
        let Some(flag) = arg.get_long() else { continue };
        let value = arg.get_value_names().and_then(<[_]>::first).map_or("", |name| name.as_str());
        let variable = arg.get_env().unwrap_or_default().to_string_lossy();
        let (default, meaning) = (default(arg), meaning(arg));
        let _ = writeln!(text, "| `--{flag} {value}` | `{variable}` | {default} | {meaning} |");
    }
    text
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { String::new() } else { format!("`{}`", values.join(",")) }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    if !text.ends_with(['.', '…']) {
        text.push('.');
    }
    let values = arg.get_possible_values();
    let words: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !words.is_empty() {
        let _ = write!(text, " One of {}.", words.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const BEGIN: &str = "<!-- made by UPDATE_DOCS=1 cargo test -p windowpane-server configuration_page -->\n";
    const END: &str = "<!-- end -->\n";

    #[test]
    fn the_configuration_page_is_that_of_the_flags() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let page = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (before, rest) = page.split_once(BEGIN).expect("the page says where the table begins");
        let (_, after) = rest.split_once(END).expect("the page says where the table ends");
        let now = format!("{before}{BEGIN}{}{END}{after}", table());
        if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
            return fs::write(&path, now).unwrap();
        }
        assert!(now == page, "docs/configuration.md is not that of the flags: UPDATE_DOCS=1 writes it anew");
    }

    #[test]
    fn the_table_has_every_flag_with_its_default() {
        let table = table();
        assert!(
            table.contains("| `--port PORT` | `WINDOWPANE_PORT` | `8080` | Port to listen on;"),
            "{table}"
        );
        let flags = Args::command().get_arguments().count();
        assert_eq!(table.lines().count(), flags + 2);
    }
}
