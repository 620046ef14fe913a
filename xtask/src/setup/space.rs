//! Free disk space, asked before a download rather than after it.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Error, Result, bail};

use crate::process;

/// An error unless the file system of `folder`, which exists, has room for so many bytes. Where it cannot be
/// told, nothing is said: a full disk will then be reported by whoever meets it.
pub(crate) fn check(folder: &Path, bytes: u64) -> Result<()> {
    let mut df = Command::new("df");
    df.arg("-Pk").arg(folder).env("LC_ALL", "C").stdin(Stdio::null());
    let free = process::capture(&mut df).ok().as_deref().and_then(free_bytes);
    match free {
        Some(free) if free < bytes => {
            bail!(
                "not enough disk space: {} needs {} MB, {} MB are free; set XDG_CACHE_HOME to a folder on a \
                 larger disk",
                folder.display(),
                megabytes(bytes),
                free / 1_000_000
            )
        }
        _ => Ok(()),
    }
}

/// What to do about a disk that was full after all.
pub(crate) const FULL: &str = "the disk is full; set XDG_CACHE_HOME to a folder on a larger disk";

/// The same error, with its remedy where the disk ran full under our hands: another program took the space, or
/// it could not be told.
pub(crate) fn explain(error: Error) -> Error {
    let full = |cause: &io::Error| matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(full) { error.context(FULL) } else { error }
}

/// Rounded up, so that what is called enough is enough.
fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

/// The fourth column of POSIX `df -Pk`'s second line, in bytes.
fn free_bytes(df: &str) -> Option<u64> {
    df.lines().nth(1)?.split_whitespace().nth(3)?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn df_is_read() {
        let df = "Filesystem 1024-blocks     Used Available Capacity Mounted on\n\
                  /dev/vda     263174212 14000000  81000000      15% /\n";
        assert_eq!(free_bytes(df), Some(81_000_000 * 1024));
        assert_eq!(free_bytes(""), None);
        assert_eq!(free_bytes("Filesystem\n- - - - -\n"), None);
    }

    #[test]
    fn a_disk_that_ran_full_comes_with_its_remedy() {
        let met = |kind| explain(Error::new(io::Error::from(kind)).context("cannot write /x"));
        assert!(format!("{:#}", met(ErrorKind::StorageFull)).starts_with("the disk is full; set XDG_CACHE"));
        assert!(format!("{:#}", met(ErrorKind::PermissionDenied)).starts_with("cannot write /x"));
    }

    #[test]
    fn too_little_says_how_much_and_where() {
        check(Path::new("/"), 0).unwrap();
        let error = check(Path::new("/"), u64::MAX).unwrap_err().to_string();
        assert!(error.starts_with("not enough disk space: / needs 18446744073710 MB"), "{error}");
    }
}
