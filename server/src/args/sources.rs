//! Where a value comes from: the command line, else a variable of the environment, else the file of `--config`, else
//! the default. Every value is read by the parser of its flag, wherever it stands; and whatever is wrong anywhere is
//! found at once, and says where it stands.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::builder::OsStr as Text;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Args;
use super::file;

/// The flag that names the file, which cannot stand in the file itself.
pub(super) const CONFIG: &str = "config";

/// What all variables begin with.
const PREFIX: &str = "WINDOWPANE_";

/// Where each value that is no default stands, by flag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<String, String>);

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The values; the default where one could not be read.
    pub args: Args,
    /// What could not be read, a sentence each.
    pub problems: Vec<String>,
    /// What is odd, a sentence each.
    pub oddities: Vec<String>,
}

// === impl Places ===

impl Places {
    /// Where the flag's value stands, in backquotes: the flag itself, a variable, or a file and its key.
    pub fn of(&self, flag: &str) -> String {
        self.0.get(flag).cloned().unwrap_or_else(|| format!("`--{flag}`"))
    }
}

// === impl Found ===

impl Found {
    /// Reads a command line, the program's name first, and the variables. Errors: the command line is none, or asks for
    /// help.
    pub fn read(line: Vec<OsString>, variables: &BTreeMap<String, OsString>) -> Result<Self, clap::Error> {
        Self::with(line, variables, file::read)
    }

    /// Reads the text of a file of `--config` as if it alone had been given: for whoever has no file to show. Errors:
    /// none that a text can cause.
    pub fn in_file(text: &str) -> Result<Self, clap::Error> {
        let line = ["windowpane", "--config", "-"].map(OsString::from).into();
        Self::with(line, &BTreeMap::new(), |_, known, problems| file::values("`-`", text, known, problems))
    }

    fn with(
        line: Vec<OsString>,
        variables: &BTreeMap<String, OsString>,
        read: impl FnOnce(&Path, &Command, &mut Vec<String>) -> file::Values,
    ) -> Result<Self, clap::Error> {
        let known = Args::command();
        let typed = match lenient().try_get_matches_from(&line) {
            Ok(typed) => typed,
            // Said by the real flags, which know their defaults.
            Err(error) => return Err(discreet().try_get_matches_from(&line).err().unwrap_or(error)),
        };
        let mut problems = Vec::new();
        let mut places = Places::default();
        let outer = |arg: &Arg| on_the_line(arg, &typed).or_else(|| in_a_variable(arg, variables));

        let config = known.get_arguments().find(|arg| arg.get_id() == CONFIG).and_then(outer);
        let file = config
            .and_then(|(_, values)| values.into_iter().next())
            .map_or_else(BTreeMap::new, |path| read(Path::new(&path), &known, &mut problems));
        let in_the_file = |arg: &Arg| file.get(arg.get_long()?).cloned();

        let mut good: Vec<OsString> = line.into_iter().take(1).collect();
        for arg in known.get_arguments() {
            let Some(flag) = arg.get_long() else { continue };
            let Some((place, values)) = outer(arg).or_else(|| in_the_file(arg)) else { continue };
            let words = words(flag, &values);
            let alone = std::iter::once(OsString::from("windowpane")).chain(words.iter().cloned());
            match bare().try_get_matches_from(alone) {
                Ok(_) => good.extend(words),
                Err(error) if arg.is_hide_env_values_set() => problems.push(secret_problem(&place, &error)),
                Err(error) => problems.push(problem(&place, &values, &error)),
            }
            places.0.insert(flag.to_owned(), place);
        }
        let mut args = Args::from_arg_matches(&bare().try_get_matches_from(good)?)?;
        args.places = places;
        // None is no error: it means to serve.
        args.command = super::Command::from_arg_matches(&typed).ok();
        Ok(Self { args, problems, oddities: oddities(&known, variables) })
    }
}

/// The flags without their variables: what is given is what counts.
fn bare() -> Command {
    Args::command().mut_args(|arg| arg.env(None::<&'static str>))
}

/// The same flags, taking anything and defaulting to nothing.
fn lenient() -> Command {
    bare().mut_args(|arg| {
        let none: [Text; 0] = [];
        arg.default_values(none).value_parser(clap::value_parser!(OsString))
    })
}

/// The real flags, but that those which may hold a password take anything: they would show what they do not take.
fn discreet() -> Command {
    Args::command().mut_args(|arg| {
        if arg.is_hide_env_values_set() { arg.value_parser(clap::value_parser!(OsString)) } else { arg }
    })
}

fn on_the_line(arg: &Arg, typed: &ArgMatches) -> Option<(String, Vec<OsString>)> {
    let id = arg.get_id().as_str();
    if typed.value_source(id) != Some(ValueSource::CommandLine) {
        return None;
    }
    let values = typed.get_raw(id).into_iter().flatten().map(OsStr::to_owned).collect();
    Some((format!("`--{}`", arg.get_long()?), values))
}

fn in_a_variable(arg: &Arg, variables: &BTreeMap<String, OsString>) -> Option<(String, Vec<OsString>)> {
    let name = arg.get_env()?.to_str()?;
    Some((format!("`{name}`"), vec![variables.get(name)?.clone()]))
}

/// The words of a command line that give these values. None: the flag alone.
fn words(flag: &str, values: &[OsString]) -> Vec<OsString> {
    let word = |value: &OsString| {
        let mut word = OsString::from(format!("--{flag}="));
        word.push(value);
        word
    };
    match values {
        [] => vec![format!("--{flag}").into()],
        values => values.iter().map(word).collect(),
    }
}

/// What is wrong with the values at a place, in the words of the other problems of a configuration.
fn problem(place: &str, values: &[OsString], error: &clap::Error) -> String {
    let shown: Vec<_> = values.iter().map(|value| value.to_string_lossy()).collect();
    let got = match error.get(ContextKind::InvalidValue) {
        Some(ContextValue::String(got)) => got.clone(),
        _ => shown.join(", "),
    };
    let accepted = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(accepted)) if !accepted.is_empty() => {
            return format!("{place} is `{got}`, expected {}", accepted.join(", "));
        }
        _ if got.is_empty() => return format!("{place} is empty"),
        _ if error.kind() == ErrorKind::TooManyValues => "one value".to_owned(),
        _ => std::error::Error::source(error).map_or_else(|| error.kind().to_string(), ToString::to_string),
    };
    format!("{place} is `{got}`: {accepted}")
}

/// The same of a value that is not shown, since it may hold a password.
fn secret_problem(place: &str, error: &clap::Error) -> String {
    let what = std::error::Error::source(error).map_or_else(|| error.kind().to_string(), ToString::to_string);
    format!("{place} (its value may hold a password and is not shown): {what}")
}

/// Variables that look like ours and are none. Not errors: a cluster sets such variables of its own accord for every
/// service of the name.
fn oddities(known: &Command, variables: &BTreeMap<String, OsString>) -> Vec<String> {
    let ours: Vec<&str> = known.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let unknown = variables.keys().filter(|name| name.starts_with(PREFIX) && !ours.contains(&name.as_str()));
    let sentence = |name: &String| {
        let near =
            nearest(name, &ours).map_or_else(String::new, |near| format!(" (the nearest is `{near}`)"));
        format!("the variable `{name}` means nothing here{near}")
    };
    unknown.map(sentence).collect()
}

/// The candidate that is most like `word`.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates.iter().copied().min_by_key(|candidate| strsim::damerau_levenshtein(word, candidate))
}

#[cfg(test)]
mod tests;
