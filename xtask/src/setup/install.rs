//! Brings one package into the cache, whole or not at all: it is downloaded, compared and laid out in a
//! folder beside its place, and takes that place by a rename. Two set-ups at once wait for each other.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::setup::pins::{Package, Wheel};
use crate::setup::python::Python;
use crate::setup::stamp::{self, State, Trust};
use crate::setup::{download, space, unpack};

/// The package's folder in the cache, downloaded if it is not there and downloaded again if it is not what
/// was pinned.
pub(crate) fn ensure(cache: &Path, package: &Package, trust: Trust) -> Result<PathBuf> {
    let folder = cache.join(package.folder());
    if trust == Trust::Nothing && folder.exists() {
        eprintln!("reading {}", folder.display());
    }
    if stamp::inspect(&folder, package, trust)? == State::Ready {
        return Ok(folder);
    }
    let _lock = lock(cache)?;
    // Another set-up may have done the work while we waited for the lock.
    match stamp::inspect(&folder, package, trust)? {
        State::Ready => return Ok(folder),
        State::Missing => {}
        State::Changed(reason) => eprintln!("{} is set up again: {reason}", folder.display()),
    }
    let python = Python::find()?;
    python.check_pip()?;
    space::check(cache, package.bytes_needed())?;
    install(cache, package, &|wheel, scratch| download::wheel(&python, wheel, scratch))
        .map_err(space::explain)?;
    eprintln!("{} {} is in {}", package.name, package.version, folder.display());
    Ok(folder)
}

/// How a wheel arrives in a scratch folder: pip, or a test's made one.
type Fetch<'a> = &'a dyn Fn(&Wheel, &Path) -> Result<PathBuf>;

fn install(cache: &Path, package: &Package, fetch: Fetch<'_>) -> Result<()> {
    let partial = Partial::new(cache.join(format!(".partial-{}", package.folder())))?;
    let fresh = partial.0.join("fresh");
    for wheel in package.wheels {
        let scratch = partial.0.join("scratch");
        let path = fetch(wheel, &scratch)?;
        unpack::verify(&path, wheel.digest)?;
        let bar = download::bar("unpacking", wheel.requirement, wheel.bytes_kept());
        unpack::unpack(&path, wheel.takes, &fresh, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    for text in package.texts {
        let path = fresh.join(text.to);
        fs::write(&path, text.content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    stamp::write(&fresh, package)?;
    take_place(&fresh, &cache.join(package.folder()), &partial.0.join("old"))
}

/// What was there goes aside first, since a folder does not replace a folder; running programs keep the
/// files they have open.
fn take_place(fresh: &Path, place: &Path, old: &Path) -> Result<()> {
    if place.exists() {
        fs::rename(place, old).with_context(|| format!("cannot move {} aside", place.display()))?;
    }
    fs::rename(fresh, place).with_context(|| format!("cannot put {} in place", place.display()))
}

pub(crate) fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make the cache folder {}", cache.display()))?;
    let path = cache.join(".lock");
    let file = File::create(&path)
        .with_context(|| format!("cannot write in the cache folder {}", cache.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!("another set-up is at work in {}; waiting for it", cache.display())
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// A folder of half-done work, gone when this is dropped, and when it was left over from a set-up that was
/// killed.
struct Partial(PathBuf);

// === impl Partial ===

impl Partial {
    fn new(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove what was left over in {}", path.display()))?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Left over at worst, and removed by the next set-up.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::pins::{Digest, Take, Text};
    use crate::setup::stamp::tests::HELLO;

    /// A wheel made with Python's `zipfile`: one stored file `small/hello.so` that reads "hello\n".
    const WHEEL: &[u8] = include_bytes!("../../fixtures/small-1-py3-none-any.whl");

    static PACKAGE: Package = Package {
        name: "small",
        version: "1",
        wheels: &[Wheel {
            requirement: "small==1",
            digest: Digest {
                size: 132,
                sha256: "6c66347b6d5fc1c336e853989956d0ed0aa71c1568c205ef5ea3ec5dac8c2370",
            },
            takes: &[Take::File { from: "small/hello.so", to: "lib/hello.so", digest: HELLO }],
        }],
        texts: &[Text { to: "version", content: "1\n" }],
    };

    fn fetch_bytes(bytes: &'static [u8]) -> impl Fn(&Wheel, &Path) -> Result<PathBuf> {
        move |_, scratch| {
            fs::create_dir_all(scratch)?;
            let path = scratch.join("small-1-py3-none-any.whl");
            fs::write(&path, bytes)?;
            Ok(path)
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_package_arrives_whole_and_replaces_a_damaged_one() {
        let cache = tempfile::tempdir().unwrap();
        install(cache.path(), &PACKAGE, &fetch_bytes(WHEEL)).unwrap();
        let folder = cache.path().join("small-1");
        assert_eq!(stamp::inspect(&folder, &PACKAGE, Trust::Nothing).unwrap(), State::Ready);
        assert_eq!(fs::read_to_string(folder.join("lib/hello.so")).unwrap(), "hello\n");

        fs::write(folder.join("lib/hello.so"), "damaged").unwrap();
        fs::write(folder.join("stray"), "left over").unwrap();
        install(cache.path(), &PACKAGE, &fetch_bytes(WHEEL)).unwrap();
        assert_eq!(stamp::inspect(&folder, &PACKAGE, Trust::Nothing).unwrap(), State::Ready);
        assert_eq!(names(&folder), [".stamp", "lib", "version"]);
        assert_eq!(names(cache.path()), ["small-1"], "nothing half-done stays");
    }

    #[test]
    fn a_wrong_download_installs_nothing_and_leaves_what_was_there() {
        let cache = tempfile::tempdir().unwrap();
        let error = install(cache.path(), &PACKAGE, &fetch_bytes(b"a page that asks to log in")).unwrap_err();
        assert!(format!("{error:#}").contains("small-1-py3-none-any.whl is not the file"), "{error:#}");
        assert!(names(cache.path()).is_empty());
        install(cache.path(), &PACKAGE, &fetch_bytes(WHEEL)).unwrap();
        install(cache.path(), &PACKAGE, &fetch_bytes(b"")).unwrap_err();
        assert_eq!(
            stamp::inspect(&cache.path().join("small-1"), &PACKAGE, Trust::Nothing).unwrap(),
            State::Ready
        );
    }

    #[test]
    fn what_is_ready_needs_neither_python_nor_lock() {
        let cache = tempfile::tempdir().unwrap();
        install(cache.path(), &PACKAGE, &fetch_bytes(WHEEL)).unwrap();
        assert_eq!(ensure(cache.path(), &PACKAGE, Trust::Stamp).unwrap(), cache.path().join("small-1"));
        assert_eq!(names(cache.path()), ["small-1"]);
    }

    #[test]
    fn a_lock_is_waited_for() {
        let cache = tempfile::tempdir().unwrap();
        let held = lock(cache.path()).unwrap();
        let path = cache.path().to_owned();
        let waiting = std::thread::spawn(move || lock(&path).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
