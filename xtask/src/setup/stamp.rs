//! How a folder of the cache is known to be whole without reading half a gigabyte each time. The stamp,
//! written last, lists every pinned file with its digest, size and time of change; a file whose size and
//! time are still those was not touched since its digest was compared. A cache copied from elsewhere has new
//! times, so its files are read once and stamped again.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::setup::pins::{Package, Take};

const FILE: &str = ".stamp";
const FIRST_LINE: &str = "windowpane set-up, format 1";

/// Whether a stamp's times are believed, or every file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    Stamp,
    Nothing,
}

/// What a folder of the cache is found to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Missing,
    /// Something is there, but not what was pinned; the reason completes "it is set up again, because …".
    Changed(String),
}

/// One file that must be there. Paths are under the package's folder.
struct Expected {
    path: &'static str,
    size: u64,
    sha256: String,
}

/// Looks at the folder, reading files only where the stamp does not vouch for them.
///
/// # Errors
/// Only where the disk itself fails; whatever is wrong with the folder is a [`State`].
pub(crate) fn inspect(folder: &Path, package: &Package, trust: Trust) -> Result<State> {
    if !folder.exists() {
        return Ok(State::Missing);
    }
    let Ok(stamp) = fs::read_to_string(folder.join(FILE)) else {
        return Ok(State::Changed("it has no stamp".to_owned()));
    };
    if stamp.lines().next() != Some(FIRST_LINE) {
        return Ok(State::Changed("its stamp is of another format".to_owned()));
    }
    let mut restamp = false;
    for expected in expected_files(package) {
        let Ok(metadata) = fs::metadata(folder.join(expected.path)) else {
            return Ok(State::Changed(format!("{} is missing", expected.path)));
        };
        if metadata.len() != expected.size {
            return Ok(State::Changed(format!(
                "{} has {} bytes instead of {}",
                expected.path,
                metadata.len(),
                expected.size
            )));
        }
        let vouched = trust == Trust::Stamp && stamp.lines().any(|line| line == expected.line(&metadata));
        if !vouched {
            let sha256 = sha256_of(&folder.join(expected.path))?;
            if sha256 != expected.sha256 {
                return Ok(State::Changed(format!(
                    "{} has the sha256 {sha256} instead of {}",
                    expected.path, expected.sha256
                )));
            }
            restamp = true;
        }
    }
    for tree in trees(package) {
        let line = tree_line(folder, tree)?;
        if !stamp.lines().any(|stamped| stamped == line) {
            return Ok(State::Changed(format!(
                "files under {tree} were added or removed, or changed their size"
            )));
        }
    }
    if restamp {
        // The files are the pinned ones, whether or not this can be kept. Where it cannot, as in a cache that is
        // read-only or on a full disk, they are read again next time.
        let _ = write(folder, package);
    }
    Ok(State::Ready)
}

/// Vouches for a folder whose files were just compared with their pins.
pub(crate) fn write(folder: &Path, package: &Package) -> Result<()> {
    let mut stamp = format!("{FIRST_LINE}\n");
    for expected in expected_files(package) {
        let path = folder.join(expected.path);
        let metadata = fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        let _ = writeln!(stamp, "{}", expected.line(&metadata));
    }
    for tree in trees(package) {
        let _ = writeln!(stamp, "{}", tree_line(folder, tree)?);
    }
    let path = folder.join(FILE);
    let fresh = folder.join(".stamp.new");
    fs::write(&fresh, stamp).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, &path).with_context(|| format!("cannot write {}", path.display()))
}

/// The sha256 of a file in lower-case hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut block).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&block[..n]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn expected_files(package: &Package) -> Vec<Expected> {
    let taken = package.wheels.iter().flat_map(|wheel| wheel.takes).filter_map(|take| match take {
        Take::File { to, digest, .. } => {
            Some(Expected { path: to, size: digest.size, sha256: digest.sha256.to_owned() })
        }
        Take::Tree { .. } => None,
    });
    let written = package.texts.iter().map(|text| Expected {
        path: text.to,
        size: text.content.len() as u64,
        sha256: hex(&Sha256::digest(text.content)),
    });
    taken.chain(written).collect()
}

fn trees(package: &Package) -> impl Iterator<Item = &'static str> {
    package.wheels.iter().flat_map(|wheel| wheel.takes).filter_map(|take| match take {
        Take::Tree { to, .. } => Some(*to),
        Take::File { .. } => None,
    })
}

fn tree_line(folder: &Path, tree: &str) -> Result<String> {
    let (mut files, mut bytes) = (0u64, 0u64);
    let mut folders = vec![folder.join(tree)];
    while let Some(folder) = folders.pop() {
        // A folder that is not there is an empty one: the stamp's line will differ, which is what matters.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let metadata =
                entry.metadata().with_context(|| format!("cannot look at {}", entry.path().display()))?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                files += 1;
                bytes += metadata.len();
            }
        }
    }
    Ok(format!("tree {tree} files={files} bytes={bytes}"))
}

// === impl Expected ===

impl Expected {
    fn line(&self, metadata: &fs::Metadata) -> String {
        let changed = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        format!(
            "file {} sha256={} bytes={} changed={}",
            self.path,
            self.sha256,
            self.size,
            changed.as_nanos()
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;
    use crate::setup::pins::{Digest, Text, Wheel};

    /// `sha256sum` of "hello\n".
    pub(crate) const HELLO: Digest =
        Digest { size: 6, sha256: "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03" };

    static PACKAGE: Package = Package {
        name: "small",
        version: "1",
        wheels: &[Wheel {
            requirement: "small==1",
            digest: HELLO,
            takes: &[
                Take::File { from: "a", to: "lib/hello", digest: HELLO },
                Take::Tree { from: "b", to: "include" },
            ],
        }],
        texts: &[Text { to: "version", content: "1\n" }],
    };

    fn whole() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        fs::create_dir_all(folder.path().join("include/deep")).unwrap();
        fs::write(folder.path().join("lib/hello"), "hello\n").unwrap();
        fs::write(folder.path().join("include/deep/one.h"), "int one;\n").unwrap();
        fs::write(folder.path().join("version"), "1\n").unwrap();
        write(folder.path(), &PACKAGE).unwrap();
        folder
    }

    fn changed(folder: &tempfile::TempDir, trust: Trust) -> String {
        match inspect(folder.path(), &PACKAGE, trust).unwrap() {
            State::Changed(reason) => reason,
            other => panic!("expected a change, got {other:?}"),
        }
    }

    fn set_time(path: &Path, seconds: u64) {
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(UNIX_EPOCH + Duration::from_secs(seconds))
            .unwrap();
    }

    #[test]
    fn a_whole_folder_is_ready_and_no_folder_is_missing() {
        let folder = whole();
        assert_eq!(inspect(folder.path(), &PACKAGE, Trust::Stamp).unwrap(), State::Ready);
        assert_eq!(inspect(folder.path(), &PACKAGE, Trust::Nothing).unwrap(), State::Ready);
        assert_eq!(inspect(&folder.path().join("nowhere"), &PACKAGE, Trust::Stamp).unwrap(), State::Missing);
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let folder = whole();
        fs::write(folder.path().join("lib/hello"), "hello, world\n").unwrap();
        assert!(changed(&folder, Trust::Stamp).contains("13 bytes instead of 6"));
        fs::write(folder.path().join("lib/hello"), "hellO\n").unwrap();
        // Where the clock of the files is coarse they are written at the time that is stamped.
        set_time(&folder.path().join("lib/hello"), 1_000_000_000);
        assert!(changed(&folder, Trust::Stamp).contains(HELLO.sha256));
        fs::remove_file(folder.path().join("lib/hello")).unwrap();
        assert!(changed(&folder, Trust::Stamp).contains("lib/hello is missing"));

        let folder = whole();
        fs::remove_file(folder.path().join("include/deep/one.h")).unwrap();
        assert!(changed(&folder, Trust::Stamp).contains("include"));

        let folder = whole();
        fs::write(folder.path().join("version"), "2\n").unwrap();
        set_time(&folder.path().join("version"), 1_000_000_000);
        assert!(changed(&folder, Trust::Stamp).contains("version"));

        let folder = whole();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(changed(&folder, Trust::Stamp).contains("no stamp"));
        fs::write(folder.path().join(FILE), "windowpane set-up, format 9\n").unwrap();
        assert!(changed(&folder, Trust::Stamp).contains("another format"));
    }

    #[test]
    fn a_new_time_means_reading_once_and_stamping_again() {
        let folder = whole();
        let before = fs::read_to_string(folder.path().join(FILE)).unwrap();
        set_time(&folder.path().join("lib/hello"), 1_000_000_000);
        assert_eq!(inspect(folder.path(), &PACKAGE, Trust::Stamp).unwrap(), State::Ready);
        let after = fs::read_to_string(folder.path().join(FILE)).unwrap();
        assert_ne!(before, after);
        assert!(after.contains("changed=1000000000000000000"), "{after}");
    }

    #[test]
    fn a_stamp_that_cannot_be_written_is_no_fault_of_the_files() {
        let folder = whole();
        set_time(&folder.path().join("lib/hello"), 1_000_000_000);
        // Root may write anywhere; even root does not write a file over a folder.
        fs::create_dir(folder.path().join(".stamp.new")).unwrap();
        assert_eq!(inspect(folder.path(), &PACKAGE, Trust::Stamp).unwrap(), State::Ready);
    }

    #[test]
    fn damage_behind_an_unchanged_time_is_found_when_nothing_is_trusted() {
        let folder = whole();
        let path = folder.path().join("lib/hello");
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "hellO\n").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_eq!(inspect(folder.path(), &PACKAGE, Trust::Stamp).unwrap(), State::Ready);
        assert!(changed(&folder, Trust::Nothing).contains("lib/hello"));
    }
}
