//! `multipart/form-data` (RFC 7578) of a body that is there as a whole: its parts by name, which lie in it and are not
//! copied. Strict, bounded, and no bytes whatever make it panic.

/// Parts of a form: more than any request here has fields.
const MOST_PARTS: usize = 64;

/// Bytes of the headers of a part.
const MOST_HEADERS: usize = 4096;

/// Bytes of a boundary (RFC 2046, section 5.1.1).
const MOST_BOUNDARY: usize = 70;

/// A part of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// The field.
    pub(super) name: String,
    /// Its bytes.
    pub(super) data: &'a [u8],
}

/// A body is no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    /// The first boundary is not there.
    #[error("it does not begin with the boundary that `content-type` names")]
    Begin,
    /// It ends before its last boundary.
    #[error("it is cut short")]
    Cut,
    /// What a part says of itself does not read, or is too long.
    #[error(
        "a part has no header `content-disposition: form-data; name=\"…\"` of at most {MOST_HEADERS} bytes"
    )]
    Headers,
    /// More than any request has.
    #[error("it has more than {MOST_PARTS} parts")]
    Many,
}

/// The boundary that a `content-type` names, if that is a form's.
pub(super) fn boundary(kind: &str) -> Option<&str> {
    let (essence, parameters) = kind.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary")?;
    (1..=MOST_BOUNDARY).contains(&boundary.len()).then_some(boundary)
}

/// The parts of a body with this boundary.
pub(super) fn parts<'a>(body: &'a [u8], boundary: &str) -> Result<Vec<Part<'a>>, FormError> {
    let first = format!("--{boundary}");
    let between = format!("\r\n--{boundary}");
    let mut rest = body.strip_prefix(first.as_bytes()).ok_or(FormError::Begin)?;
    let mut parts = Vec::new();
    loop {
        // Behind a boundary: the end, or blanks and a line's end.
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        let blanks = rest.iter().take_while(|&&byte| matches!(byte, b' ' | b'\t')).count();
        rest = rest[blanks..].strip_prefix(b"\r\n").ok_or(FormError::Cut)?;
        if parts.len() == MOST_PARTS {
            return Err(FormError::Many);
        }
        let head = &rest[..rest.len().min(MOST_HEADERS)];
        let length = find(head, b"\r\n\r\n").ok_or(FormError::Headers)?;
        let name = name(&rest[..length]).ok_or(FormError::Headers)?;
        rest = &rest[length + 4..];
        // An empty part may have its boundary at once: its line's end is that of the blank line.
        let length = find(rest, between.as_bytes()).ok_or(FormError::Cut)?;
        parts.push(Part { name, data: &rest[..length] });
        rest = &rest[length + between.len()..];
    }
}

/// The field that the headers of a part name.
fn name(headers: &[u8]) -> Option<String> {
    let headers = std::str::from_utf8(headers).ok()?;
    let disposition = headers.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (kind, parameters) = disposition.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    parameter(parameters, "name").map(str::to_owned)
}

/// A parameter's value, in quotes or not. A quote inside of quotes is written as `%22` by browsers, and ends it here.
fn parameter<'a>(parameters: &'a str, wanted: &str) -> Option<&'a str> {
    let mut rest = parameters;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(';').unwrap_or((after, "")),
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value.trim());
        }
        rest = after;
    }
}

/// Where `needle` begins in `bytes`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, _) = needle.split_first()?;
    let mut from = 0;
    while let Some(place) = bytes.get(from..)?.iter().position(|&byte| byte == first) {
        from += place;
        if bytes[from..].starts_with(needle) {
            return Some(from);
        }
        from += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_found_by_name() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"a;b.png\"\r\nContent-Type: image/png\r\n\r\n\x89PNG\r\n--y\r\n--x  \r\ncontent-disposition: form-data; filename=f; name=n\r\n\r\n\r\n--x--\r\n";
        let parts = parts(body, "x").unwrap();
        let part = |name: &str, data: &'static [u8]| Part { name: name.to_owned(), data };
        assert_eq!(parts, [part("image", b"\x89PNG\r\n--y"), part("n", b"")]);
        assert_eq!(super::parts(b"--x--", "x"), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_form_is_told_so() {
        let head = "--x\r\ncontent-disposition: form-data; name=a\r\n\r\n";
        let long = format!("--x\r\nx: {}\r\n\r\n\r\n--x--", "y".repeat(MOST_HEADERS));
        for (body, error) in [
            (String::new(), FormError::Begin),
            ("--y\r\n".to_owned(), FormError::Begin),
            ("--xy".to_owned(), FormError::Cut),
            (format!("{head}data"), FormError::Cut),
            (format!("{head}data\r\n--x"), FormError::Cut),
            (
                "--x\r\ncontent-disposition: attachment; name=a\r\n\r\n\r\n--x--".to_owned(),
                FormError::Headers,
            ),
            ("--x\r\ncontent-disposition: form-data\r\n\r\n\r\n--x--".to_owned(), FormError::Headers),
            ("--x\r\n\r\n\r\n--x--".to_owned(), FormError::Headers),
            (long, FormError::Headers),
            (format!("{}--x--", format!("{head}\r\n").repeat(MOST_PARTS + 1)), FormError::Many),
        ] {
            assert_eq!(parts(body.as_bytes(), "x"), Err(error), "{body:.200}");
        }
    }

    #[test]
    fn the_boundary_is_in_the_content_type() {
        assert_eq!(boundary("multipart/form-data; boundary=a"), Some("a"));
        assert_eq!(boundary("Multipart/Form-Data;charset=utf-8; Boundary=\"a b\""), Some("a b"));
        for none in
            ["multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=a", "a/b;"]
        {
            assert_eq!(boundary(none), None, "{none}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "a".repeat(71))), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parts(&body, "x");
        }

        #[test]
        fn no_text_makes_it_panic(body in "(--x|\r\n|-|:|;|=|\"|name|content-disposition: form-data; name=a|é){0,40}", kind in "[a-z/;=\" é]{0,40}") {
            let _ = (parts(body.as_bytes(), "x"), boundary(&kind), boundary(&format!("multipart/form-data;{kind}")));
        }

        /// Whatever the data, as long as it does not hold the boundary, it comes back.
        #[test]
        fn what_is_sent_is_read(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let head = b"--0boundary0\r\ncontent-disposition: form-data; name=\"f\"\r\n\r\n";
            let body = [&head[..], &data, b"\r\n--0boundary0--\r\n"].concat();
            prop_assert_eq!(parts(&body, "0boundary0").unwrap()[0].data, &data[..]);
        }
    }
}
