//! What a JSON parser found wrong, in our words: its own are Rust's, and tell types and fields of the inside.

use serde_json::Error;
use serde_json::error::Category;

use super::{ApiError, Cause};

/// The parser's words for bad syntax that are worth telling apart, and ours.
const SYNTAX: [(&str, &str); 6] = [
    ("number out of range", "a number is out of range"),
    ("recursion limit exceeded", "it is nested too deeply"),
    ("trailing characters", "something follows it"),
    ("trailing comma", "a comma too many"),
    ("key must be a string", "a field's name is not in double quotes"),
    ("control character", "a string holds a control character"),
];

/// The error of a body that was not read: bad syntax is malformed, a wrong field is named where the parser knows it.
pub fn refused(error: &Error) -> ApiError {
    let words = of(error);
    if error.classify() != Category::Data {
        return ApiError::new(Cause::MalformedBody, format!("the body is not valid JSON: {words}"));
    }
    let text = error.to_string();
    for (start, cause) in [
        ("unknown field `", Cause::UnknownField),
        ("duplicate field `", Cause::InvalidValue),
        ("missing field `", Cause::InvalidValue),
    ] {
        if let Some(field) = text.strip_prefix(start).and_then(|rest| rest.split('`').next()) {
            return ApiError::new(cause, words).param(field);
        }
    }
    ApiError::new(Cause::InvalidValue, format!("the body holds {words}"))
}

/// What is wrong: "a list, expected a number", "`seed` is missing", "it ends too early".
pub fn of(error: &Error) -> String {
    translated(error, None)
}

/// The same of a list whose elements have a name of their own, such as a tensor's datatype.
pub fn of_list(error: &Error, element: &str) -> String {
    translated(error, Some(element))
}

fn translated(error: &Error, element: Option<&str>) -> String {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
    // A value that was taken out of its text has no place.
    let place = if line == 0 { String::new() } else { format!(" (line {line}, byte {column})") };
    match error.classify() {
        Category::Data => wrong(text, element, &place),
        Category::Eof => "it ends too early".to_owned(),
        Category::Syntax | Category::Io => {
            let known = SYNTAX.iter().find(|(theirs, _)| text.starts_with(theirs));
            format!("{}{place}", known.map_or("something else was expected", |(_, ours)| ours))
        }
    }
}

/// The sentence about a value. A field that is named needs no place.
fn wrong(text: &str, element: Option<&str>, place: &str) -> String {
    let named = |start: &str| text.strip_prefix(start)?.strip_suffix('`');
    if text.starts_with("unknown field `") {
        return text.to_owned();
    }
    if let Some(field) = named("duplicate field `") {
        return format!("the field `{field}` comes twice");
    }
    if let Some(field) = named("missing field `") {
        return format!("`{field}` is missing");
    }
    if let Some(rest) = text.strip_prefix("unknown variant ") {
        return format!("the word {rest}");
    }
    // What came may be a client's text and hold anything; what was expected is said last.
    let parts = |start: &str| text.strip_prefix(start)?.rsplit_once(", expected ");
    if let Some((got, expected)) = parts("invalid type: ").or(parts("invalid value: ")) {
        return format!("{}, expected {}{place}", value(got), kind(expected, element));
    }
    if let Some((length, expected)) = parts("invalid length ") {
        return format!("a list of {length}, expected {}{place}", kind(expected, element));
    }
    // Sentences of our own.
    format!("{text}{place}")
}

/// What came.
fn value(got: &str) -> String {
    for (theirs, ours) in [
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("boolean ", ""),
        ("string ", "the text "),
    ] {
        if let Some(value) = got.strip_prefix(theirs) {
            return format!("{ours}{value}");
        }
    }
    match got {
        "null" | "unit value" => "null",
        "map" => "an object",
        "sequence" => "a list",
        _ => "a value of another kind",
    }
    .to_owned()
}

/// What was expected.
fn kind<'a>(expected: &'a str, element: Option<&'a str>) -> &'a str {
    let ours = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" => "a string",
        "a boolean" => return "`true` or `false`",
        "a map" => return "an object",
        "a sequence" => return "a list",
        "unit" => return "a word alone",
        _ if expected.starts_with("struct ") => return "an object",
        _ if expected.starts_with("enum ") || expected.starts_with("variant ") => {
            return "a word that is known here";
        }
        _ => return expected,
    };
    element.unwrap_or(ours)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "what is wrong is never read")]
    struct Outer {
        whole: Option<usize>,
        signed: Option<i64>,
        real: Option<f64>,
        yes: Option<bool>,
        list: Option<Vec<u8>>,
        inner: Option<Inner>,
        word: Option<Word>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "what is wrong is never read")]
    struct Inner {
        needed: u8,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[expect(dead_code, reason = "what is wrong is never read")]
    enum Word {
        One,
        Many { of: u8 },
    }

    #[test]
    fn every_mistake_is_told_in_plain_words() {
        for (text, param, words) in [
            (
                r#"{"whole": -1}"#,
                "",
                "the body holds the number `-1`, expected a whole number, 0 or more (line 1, byte 12)",
            ),
            (
                r#"{"whole": [1]}"#,
                "",
                "the body holds a list, expected a whole number, 0 or more (line 1, byte 10)",
            ),
            (
                r#"{"signed": 1.5}"#,
                "",
                "the body holds the number `1.5`, expected a whole number (line 1, byte 14)",
            ),
            (
                r#"{"real": "1, expected u64"}"#,
                "",
                "the body holds the text \"1, expected u64\", expected a number (line 1, byte 26)",
            ),
            (
                r#"{"yes": 1}"#,
                "",
                "the body holds the number `1`, expected `true` or `false` (line 1, byte 9)",
            ),
            (r#"{"list": {}}"#, "", "the body holds an object, expected a list (line 1, byte 9)"),
            (r#"{"inner": 3}"#, "", "the body holds the number `3`, expected an object (line 1, byte 11)"),
            (r#"{"inner": {}}"#, "needed", "`needed` is missing"),
            (r#"{"word": "two"}"#, "", "the body holds the word `two`, expected `one` or `many`"),
            (r#"{"word": "many"}"#, "", "the body holds a value of another kind, expected an object"),
            (r#"{"word": {"one": {}}}"#, "", "the body holds an object, expected a word alone"),
            (
                r#"{"wide": 1}"#,
                "wide",
                "unknown field `wide`, expected one of `whole`, `signed`, `real`, `yes`, `list`, `inner`, `word`",
            ),
            (r#"{"yes": true, "yes": true}"#, "yes", "the field `yes` comes twice"),
            ("{", "", "the body is not valid JSON: it ends too early"),
            (
                "{\n'a': 1}",
                "",
                "the body is not valid JSON: a field's name is not in double quotes (line 2, byte 1)",
            ),
            (
                r#"{"real": 1e999}"#,
                "",
                "the body is not valid JSON: a number is out of range (line 1, byte 14)",
            ),
            (
                r#"{"real": NaN}"#,
                "",
                "the body is not valid JSON: something else was expected (line 1, byte 10)",
            ),
            ("{} {}", "", "the body is not valid JSON: something follows it (line 1, byte 4)"),
        ] {
            let error = refused(&serde_json::from_str::<Outer>(text).unwrap_err());
            assert_eq!(error.param.as_deref().unwrap_or(""), param, "{text}");
            assert!(error.message.starts_with(words), "{text}: {}", error.message);
        }
    }

    #[test]
    fn an_element_has_the_name_that_its_list_gives() {
        let error = serde_json::from_str::<Vec<u32>>("[1, -1]").unwrap_err();
        assert_eq!(of_list(&error, "UINT32"), "the number `-1`, expected UINT32 (line 1, byte 6)");
        let error = serde_json::from_str::<Vec<u32>>("7").unwrap_err();
        assert_eq!(of_list(&error, "UINT32"), "the number `7`, expected a list (line 1, byte 1)");
    }
}
