//! What a PNG says of itself, read and written by the lengths of its chunks: notes that nobody's image has are made here.

use flate2::Crc;

/// The note of the server's own files.
const KEYWORD: &[u8] = b"windowpane";

/// The file signature.
const SIGNATURE: usize = 8;

/// Signature, and the header's chunk: length, kind, 13 bytes, checksum.
const HEADER: usize = SIGNATURE + 4 + 4 + 13 + 4;

/// The text of the `iTXt` chunk that tells how the picture came about.
pub fn note(png: &[u8]) -> Option<String> {
    let text = chunks(png).find_map(|chunk| is_note(chunk).then(|| &chunk[8..chunk.len() - 4]))?;
    let text = &text[KEYWORD.len()..];
    // End of the keyword, not compressed, method 0, no language, no translation.
    assert_eq!(text[..5], [0; 5]);
    Some(String::from_utf8(text[5..].to_vec()).expect("a note is text"))
}

/// The same pixels with this note instead of what it had.
pub fn with_note(png: &[u8], note: &str) -> Vec<u8> {
    let mut chunk = b"iTXt".to_vec();
    chunk.extend_from_slice(KEYWORD);
    chunk.extend_from_slice(&[0; 5]);
    chunk.extend_from_slice(note.as_bytes());
    let mut check = Crc::new();
    check.update(&chunk);
    let length = u32::try_from(chunk.len() - 4).expect("a note is short");
    let mut file = png[..HEADER].to_vec();
    file.extend_from_slice(&length.to_be_bytes());
    file.extend_from_slice(&chunk);
    file.extend_from_slice(&check.sum().to_be_bytes());
    chunks(png).skip(1).filter(|chunk| !is_note(chunk)).for_each(|chunk| file.extend_from_slice(chunk));
    file
}

fn is_note(chunk: &[u8]) -> bool {
    chunk[4..8] == *b"iTXt" && chunk[8..].starts_with(KEYWORD)
}

/// The chunks, each with its length, kind and checksum.
fn chunks(png: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = &png[SIGNATURE..];
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes(rest.get(..4)?.try_into().expect("four bytes")) as usize;
        let (chunk, after) = rest.split_at(length + 12);
        rest = after;
        Some(chunk)
    })
}
