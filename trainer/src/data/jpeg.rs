//! Is a JPEG whole? The decoder puts grey in the place of what a file no longer holds, as a browser would; what is
//! learnt from has to be there.
//!
//! A file that was cut off has lost its end marker (ITU-T T.81, B.1.1). One that was cut off and closed again is found
//! out by what follows the cut: bits put there change the picture, where behind a whole scan nobody reads them. That is
//! asked of files of one scan, as cameras and image libraries write them unless told; a progressive one has many, each
//! closed by the next one's marker.

/// Begins every marker.
const MARK: u8 = 0xFF;
const END: u8 = 0xD9;
const SCAN: u8 = 0xDA;

/// 64 ones as coded data writes them. No code of a JPEG is all ones (C.2), so a decoder that needs them goes astray at once.
const ONES: [u8; 16] = [MARK, 0, MARK, 0, MARK, 0, MARK, 0, MARK, 0, MARK, 0, MARK, 0, MARK, 0];

/// A marker in a file.
struct Marker {
    code: u8,
    /// Where it begins.
    at: usize,
    /// What follows it.
    behind: usize,
}

/// Where the coded data of each scan ends; nothing where the file ends before its end marker.
pub(super) fn scan_ends(bytes: &[u8]) -> Option<Vec<usize>> {
    let (mut ends, mut at) = (Vec::new(), 0);
    loop {
        let marker = next_marker(bytes, at)?;
        at = marker.behind;
        match marker.code {
            END => return Some(ends),
            0x01 | 0xD0..=0xD8 => {} // these stand alone
            code => {
                let length = bytes.get(at..at + 2)?;
                at += usize::from(u16::from_be_bytes([length[0], length[1]]));
                if code == SCAN {
                    at = scan_end(bytes, at)?;
                    ends.push(at);
                }
            }
        }
    }
}

/// The same file with ones behind its coded data, which ends at `end`.
pub(super) fn with_ones(bytes: &[u8], end: usize) -> Vec<u8> {
    [&bytes[..end], &ONES, &bytes[end..]].concat()
}

/// The first marker from `at` on that is no restart.
fn scan_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let marker = next_marker(bytes, at)?;
        if !(0xD0..=0xD7).contains(&marker.code) {
            return Some(marker.at);
        }
        at = marker.behind;
    }
}

/// The next marker from `from` on. It may be filled up in front; a zero behind says that it is none, but data.
fn next_marker(bytes: &[u8], from: usize) -> Option<Marker> {
    let mut i = from;
    loop {
        let at = i + bytes.get(i..)?.iter().position(|&byte| byte == MARK)?;
        i = at + bytes[at..].iter().position(|&byte| byte != MARK)?;
        if bytes[i] != 0 {
            return Some(Marker { code: bytes[i], at, behind: i + 1 });
        }
    }
}
