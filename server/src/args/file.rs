//! The file of `--config`: TOML, one key for each flag, named as the flag without its dashes. No sections, no
//! inclusion, no expansion: what a key means is what its flag means.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use clap::{ArgAction, Command};
use toml::{Table, Value};

use super::sources::{CONFIG, nearest};

/// What a file says, by flag: each flag's values, and their place.
pub(super) type Values = BTreeMap<String, (String, Vec<OsString>)>;

/// The values of the file; what is wrong is added to `problems`.
pub(super) fn read(path: &Path, known: &Command, problems: &mut Vec<String>) -> Values {
    let file = format!("`{}`", path.display());
    match std::fs::read_to_string(path) {
        Ok(text) => values(&file, &text, known, problems),
        Err(error) => {
            problems.push(format!("{file}: {error}"));
            BTreeMap::new()
        }
    }
}

/// The values of the text of `file`.
pub(super) fn values(file: &str, text: &str, known: &Command, problems: &mut Vec<String>) -> Values {
    let table = match parse(text) {
        Ok(table) => table,
        Err(what) => {
            problems.push(format!("{file}: {what}"));
            return BTreeMap::new();
        }
    };
    let arg = |key: &str| known.get_arguments().find(|arg| arg.get_long() == Some(key) && key != CONFIG);
    let keys: Vec<&str> =
        known.get_arguments().filter_map(|arg| arg.get_long()).filter(|&key| key != CONFIG).collect();
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let place = format!("{file}: `{key}`");
        let Some(arg) = arg(&key) else {
            let near = nearest(&key, &keys).unwrap_or_default();
            problems.push(format!("{file}: unknown key `{key}`; the nearest is `{near}`"));
            continue;
        };
        // A flag that may stand alone.
        let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
        match value {
            Value::Boolean(false) if optional => {}
            Value::Boolean(true) if optional => _ = values.insert(key, (place, Vec::new())),
            Value::Array(_) if !matches!(arg.get_action(), ArgAction::Append) => {
                problems.push(format!("{place} is a list, expected one value"));
            }
            Value::Array(items) => match items.into_iter().map(word).collect::<Result<Vec<_>, _>>() {
                // An empty list asks for nothing.
                Ok(words) if words.is_empty() => {}
                Ok(words) => _ = values.insert(key, (place, words)),
                Err(what) => problems.push(format!("{place} holds {what}, expected values")),
            },
            value => match word(value) {
                Ok(word) => _ = values.insert(key, (place, vec![word])),
                Err(what) => problems.push(format!("{place} is {what}, expected a value")),
            },
        }
    }
    values
}

fn parse(text: &str) -> Result<Table, String> {
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("line {line}: {}", error.message())
    })
}

/// A value as it would be typed.
fn word(value: Value) -> Result<OsString, &'static str> {
    match value {
        Value::String(text) => Ok(text.into()),
        Value::Integer(number) => Ok(number.to_string().into()),
        Value::Float(number) => Ok(number.to_string().into()),
        Value::Boolean(truth) => Ok(truth.to_string().into()),
        Value::Datetime(_) => Err("a date"),
        Value::Array(_) => Err("a list"),
        Value::Table(_) => Err("a table"),
    }
}
