//! A ZIP archive whose members are stored as they are, all dated 1980: the container of `.npz`, whose bytes depend on
//! its members alone. After PKWARE's APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.16.

/// Version 2.0 of the format, which every reader knows.
const VERSION: u16 = 20;

/// Names are UTF-8 (general purpose bit 11).
const UTF8: u16 = 1 << 11;

/// 1 January 1980 in the format's calendar; its clock says 0.
const DATE: u16 = (1 << 5) | 1;

/// Bytes of an archive at most: a number of 32 bits, but for the one that says that it is elsewhere.
pub const MOST_BYTES: usize = u32::MAX as usize - 1;

/// Members of an archive at most, likewise.
pub const MOST_MEMBERS: usize = u16::MAX as usize - 1;

/// Bytes of an archive without members.
pub const EMPTY: usize = 22;

/// An archive that grows member by member.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    members: usize,
}

/// The archive has no room for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than a ZIP archive holds")]
pub struct Full;

/// Bytes that a member takes beside its own.
pub fn frame(name: &str) -> usize {
    30 + 46 + 2 * name.len()
}

// === impl Archive ===

impl Archive {
    /// An archive that does not move while it grows to this size.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Adds a member of these parts, one behind the other.
    pub fn add(&mut self, name: &str, parts: &[&[u8]]) -> Result<(), Full> {
        let (offset, header) = (short(self.bytes.len())?, header(name, parts)?);
        self.bytes.extend_from_slice(b"PK\x03\x04");
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(name.as_bytes());
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        // The same again in the directory; then no comment, disk 0, no attributes.
        self.directory.extend_from_slice(b"PK\x01\x02");
        self.directory.extend_from_slice(&VERSION.to_le_bytes());
        self.directory.extend_from_slice(&header);
        self.directory.extend_from_slice(&[0; 10]);
        self.directory.extend_from_slice(&offset.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());
        self.members += 1;
        Ok(())
    }

    /// Its bytes.
    pub fn finish(mut self) -> Result<Vec<u8>, Full> {
        let (start, size) = (short(self.bytes.len())?, short(self.directory.len())?);
        let count = u16::try_from(self.members).ok().filter(|_| self.members <= MOST_MEMBERS).ok_or(Full)?;
        self.bytes.append(&mut self.directory);
        self.bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        self.bytes.extend_from_slice(&[count.to_le_bytes(), count.to_le_bytes()].concat());
        self.bytes.extend_from_slice(&[size.to_le_bytes(), start.to_le_bytes()].concat());
        self.bytes.extend_from_slice(&[0; 2]);
        Ok(self.bytes)
    }
}

/// A size or an offset as the format holds it.
fn short(bytes: usize) -> Result<u32, Full> {
    u32::try_from(bytes).ok().filter(|_| bytes <= MOST_BYTES).ok_or(Full)
}

/// What a member's two records share, from the version needed to the length of the extra field, which is 0.
fn header(name: &str, parts: &[&[u8]]) -> Result<Vec<u8>, Full> {
    let size = short(parts.iter().map(|part| part.len()).sum())?;
    let mut sum = crc32fast::Hasher::new();
    parts.iter().for_each(|part| sum.update(part));
    let mut header = Vec::new();
    for field in [VERSION, UTF8, 0, 0, DATE] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    for field in [sum.finalize(), size, size] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header.extend_from_slice(&u16::try_from(name.len()).map_err(|_| Full)?.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(members: &[(&str, &[&[u8]])]) -> Result<Vec<u8>, Full> {
        let mut archive = Archive::default();
        for (name, parts) in members {
            archive.add(name, parts)?;
        }
        archive.finish()
    }

    #[test]
    fn a_member_lies_in_the_archive_as_it_is() {
        let archive = store(&[("a", &[b"1234", b"56789"]), ("b", &[])]).unwrap();
        assert_eq!(archive[..4], *b"PK\x03\x04");
        // The check value of CRC-32 for these nine digits, published with every description of it.
        assert_eq!(archive[14..18], 0xCBF4_3926_u32.to_le_bytes());
        assert_eq!(archive[30..40], *b"a123456789");
        assert_eq!(archive[archive.len() - 22..][..4], *b"PK\x05\x06");
        assert_eq!(archive.len(), EMPTY + frame("a") + 9 + frame("b"));
    }

    #[test]
    fn the_same_members_give_the_same_bytes() {
        let members: [(&str, &[&[u8]]); 2] = [("x.npy", &[b"abc"]), ("y", &[b""])];
        assert_eq!(store(&members), store(&members));
        assert_eq!(store(&[("x.npy", &[b"a", b"bc"]), ("y", &[])]), store(&members));
    }

    #[test]
    fn more_members_than_can_be_counted_are_refused() {
        let members = |count: usize| vec![("", &[][..]); count];
        let archive = store(&members(MOST_MEMBERS)).unwrap();
        assert_eq!(archive[archive.len() - 12..][..2], [0xFE, 0xFF]);
        assert_eq!(store(&members(MOST_MEMBERS + 1)), Err(Full));
    }
}
