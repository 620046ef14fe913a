//! A ZIP archive whose members are stored as they are, all dated 1980: the container of `.npz`, whose bytes depend on
//! its members alone. After PKWARE's APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.16.

/// Version 2.0 of the format, which every reader knows.
const VERSION: u16 = 20;

/// Names are UTF-8 (general purpose bit 11).
const UTF8: u16 = 1 << 11;

/// 1 January 1980 in the format's calendar; its clock says 0.
const DATE: u16 = (1 << 5) | 1;

/// The archive of these members, in this order. `None` where sizes or offsets need more than 32 bits.
pub(super) fn store(members: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let (offset, header) = (u32::try_from(archive.len()).ok()?, header(name, data)?);
        archive.extend_from_slice(b"PK\x03\x04");
        archive.extend_from_slice(&header);
        archive.extend_from_slice(name.as_bytes());
        archive.extend_from_slice(data);
        // The same again in the directory; then no comment, disk 0, no attributes.
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&VERSION.to_le_bytes());
        directory.extend_from_slice(&header);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (start, size) = (u32::try_from(archive.len()).ok()?, u32::try_from(directory.len()).ok()?);
    let count = u16::try_from(members.len()).ok()?.to_le_bytes();
    archive.append(&mut directory);
    archive.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    archive.extend_from_slice(&[count, count].concat());
    archive.extend_from_slice(&[size.to_le_bytes(), start.to_le_bytes()].concat());
    archive.extend_from_slice(&[0; 2]);
    Some(archive)
}

/// What a member's two records share, from the version needed to the length of the extra field, which is 0.
fn header(name: &str, data: &[u8]) -> Option<Vec<u8>> {
    let size = u32::try_from(data.len()).ok()?;
    let mut header = Vec::new();
    for field in [VERSION, UTF8, 0, 0, DATE] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    for field in [crc32fast::hash(data), size, size] {
        header.extend_from_slice(&field.to_le_bytes());
    }
    header.extend_from_slice(&u16::try_from(name.len()).ok()?.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_lies_in_the_archive_as_it_is() {
        let archive = store(&[("a", b"123456789"), ("b", b"")]).unwrap();
        assert_eq!(archive[..4], *b"PK\x03\x04");
        // The check value of CRC-32 for these nine digits, published with every description of it.
        assert_eq!(archive[14..18], 0xCBF4_3926_u32.to_le_bytes());
        assert_eq!(archive[30..40], *b"a123456789");
        assert_eq!(archive[archive.len() - 22..][..4], *b"PK\x05\x06");
    }

    #[test]
    fn the_same_members_give_the_same_bytes() {
        let members: [(&str, &[u8]); 2] = [("x.npy", b"abc"), ("y", b"")];
        assert_eq!(store(&members), store(&members));
    }
}
