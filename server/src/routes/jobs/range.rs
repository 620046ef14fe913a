//! Which part of a result is asked for: the header `range`, of one range of bytes (RFC 9110, section 14).

use std::ops::Range;

/// What a header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// All of it: there is no header, or one that may be passed over.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// None that there are.
    Nothing,
}

/// What a header asks for of so many bytes. Several ranges at once are answered as none is.
pub(super) fn asked(header: Option<&str>, size: u64) -> Asked {
    let Some((unit, ranges)) = header.and_then(|header| header.split_once('=')) else { return Asked::Whole };
    let Some((first, last)) = ranges.trim().split_once('-') else { return Asked::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || ranges.contains(',') {
        return Asked::Whole;
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A number beyond u64 is beyond any result as well.
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    let (first, last) = (first.trim(), last.trim());
    let range = match (digits(first), digits(last)) {
        (true, true) if number(first) > number(last) => return Asked::Whole,
        (true, true) => number(first)..number(last).saturating_add(1).min(size),
        (true, false) if last.is_empty() => number(first)..size,
        (false, true) if first.is_empty() => size.saturating_sub(number(last))..size,
        _ => return Asked::Whole,
    };
    if range.is_empty() { Asked::Nothing } else { Asked::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_rfc() {
        let of = |header| asked(Some(header), 100);
        for (header, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=10-19", 10..20),
            ("bytes=90-", 90..100),
            ("bytes=90-1000", 90..100),
            ("bytes=-10", 90..100),
            ("bytes=-1000", 0..100),
            ("Bytes = 5-6", 5..7),
            ("bytes=0-99999999999999999999", 0..100),
        ] {
            assert_eq!(of(header), Asked::Part(range), "{header}");
        }
        for header in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(of(header), Asked::Nothing, "{header}");
        }
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=0-1,5-6",
            "items=0-1",
            "bytes=+1-2",
        ] {
            assert_eq!(of(header), Asked::Whole, "{header}");
        }
        assert_eq!(asked(None, 100), Asked::Whole);
        assert_eq!(asked(Some("bytes=0-"), 0), Asked::Nothing);
    }
}
