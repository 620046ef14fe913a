//! A folder that is whole or absent: written beside its place, flushed to the disk, then renamed. And the lock of a
//! folder, by which one process alone writes there.
//!
//! For a target `NAME` the files lie in `.NAME.partial` until all are there. What had the name before steps aside as
//! `.NAME.old`, comes back if the new folder cannot take its place, and is removed after that. A process that is killed
//! in between leaves at most those two; the next one that writes `NAME` clears them away. What is removed steps aside in
//! the same way first.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A folder being written. Dropped without [`NewFolder::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    partial: PathBuf,
    /// Held open and locked, so that no second process writes into the same folder.
    handle: File,
    /// Whether it has its name: what lies in its old place then is another process's.
    named: bool,
}

// === impl NewFolder ===

impl NewFolder {
    /// Makes an empty folder beside `target`, and the folders above it. Errors: a target without a name or that is not
    /// a folder, another process writing the same one, a folder that cannot be made.
    pub fn begin(target: &Path) -> Result<Self> {
        let partial = beside(target, "partial")?;
        if target.exists() && !target.is_dir() {
            return Err(Error::file(target, "is in the way, expected a folder or nothing"));
        }
        if std::fs::symlink_metadata(&partial).is_ok_and(|there| !there.is_dir()) {
            // Such as a link, which would lead elsewhere. Never a folder, which may be another process's.
            std::fs::remove_file(&partial).map_err(Error::io(&partial))?;
        }
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        let handle = lock(&partial)?;
        let folder = Self { target: target.to_owned(), partial, handle, named: false };
        for left in entries(&folder.partial)? {
            erase(&left)?; // by a killed process
        }
        Ok(folder)
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Flushes every file, and gives the folder its name. If that fails, the target is what it was. Errors: those
    /// of the file system.
    pub fn commit(mut self) -> Result<()> {
        for path in entries(&self.partial)? {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        }
        self.handle.sync_all().map_err(Error::io(&self.partial))?;
        let old = self.take_name()?;
        let parent = parent(&self.target);
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(Error::io(parent))?;
        erase(&old)
    }

    /// Returns the path of what had the name before.
    fn take_name(&mut self) -> Result<PathBuf> {
        let old = beside(&self.target, "old")?;
        swap(&self.partial, &self.target, &old)?;
        self.named = true;
        Ok(old)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.named {
            // A folder that cannot be removed now is removed by the next writer.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
    }
}

/// Locks a folder for as long as the handle lives. Errors: another process has it, or has meanwhile given it another
/// name.
pub fn lock(folder: &Path) -> Result<File> {
    lock_opened(folder, File::open(folder).map_err(Error::io(folder))?)
}

fn lock_opened(folder: &Path, handle: File) -> Result<File> {
    let taken = || Error::file(folder, "another process is writing here, expected one at a time");
    handle.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => taken(),
        TryLockError::Error(source) => Error::io(folder)(source),
    })?;
    // Between opening and locking, its writer may have given that folder its name.
    let there = std::fs::symlink_metadata(folder).and_then(|there| {
        let locked = handle.metadata()?;
        Ok((there.dev(), there.ino()) == (locked.dev(), locked.ino()))
    });
    if there.unwrap_or(false) { Ok(handle) } else { Err(taken()) }
}

/// Removes a folder: its name is free at once, or it is as it was. Errors: those of the file system.
pub fn remove(folder: &Path) -> Result<()> {
    let old = beside(folder, "old")?;
    step_aside(folder, &old)?;
    erase(&old)
}

/// Whether a name is that of what [`NewFolder`] and [`remove`] leave behind for `NAME` when they are killed; if so, `NAME`.
pub fn left_behind(name: &str) -> Option<&str> {
    let name = name.strip_prefix('.')?;
    name.strip_suffix(".partial").or_else(|| name.strip_suffix(".old"))
}

/// Removes a file, a link (and never what it leads to) or a folder, if there is one.
pub fn erase(path: &Path) -> Result<()> {
    let folder = std::fs::symlink_metadata(path).is_ok_and(|there| there.is_dir());
    let removed = if folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// Renames `target` to `old`, in the place of what may be there.
fn step_aside(target: &Path, old: &Path) -> Result<()> {
    erase(old)?;
    std::fs::rename(target, old).map_err(Error::io(target))
}

/// Renames `new` to `target`, whose present folder steps aside to `old`, and comes back on an error.
fn swap(new: &Path, target: &Path, old: &Path) -> Result<()> {
    if target.exists() {
        step_aside(target, old)?;
    }
    std::fs::rename(new, target).map_err(|source| {
        if old.exists() {
            // The error that counts is the first one; if this fails too, the old folder lies in `.NAME.old`.
            let _ = std::fs::rename(old, target);
        }
        Error::io(target)(source)
    })
}

/// What lies in a folder; nothing where there is none.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let listed = std::fs::read_dir(folder).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(Error::io(folder))
}

/// `.NAME.SUFFIX` in the folder of `target`.
fn beside(target: &Path, suffix: &str) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| Error::file(target, "is not a name for a folder"))?;
    Ok(parent(target).join(format!(".{}.{suffix}", name.to_string_lossy())))
}

fn parent(target: &Path) -> &Path {
    target.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(target: &Path, name: &str) -> Result<()> {
        let folder = NewFolder::begin(target)?;
        std::fs::write(folder.path().join(name), "x").unwrap();
        folder.commit()
    }

    fn names(folder: &Path) -> Vec<String> {
        let name = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut all: Vec<_> = entries(folder).unwrap().into_iter().map(name).collect();
        all.sort();
        all
    }

    #[test]
    fn the_new_folder_takes_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/er/a");
        write(&target, "first").unwrap();
        write(&target, "second").unwrap();
        assert_eq!(names(&target), ["second"]);
        assert_eq!(names(target.parent().unwrap()), ["a"]);
    }

    #[test]
    fn what_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        write(&target, "first").unwrap();
        let folder = NewFolder::begin(&target).unwrap();
        std::fs::write(folder.path().join("second"), "x").unwrap();
        drop(folder);
        assert_eq!((names(&target), names(dir.path())), (vec!["first".into()], vec!["a".to_owned()]));
    }

    #[test]
    fn a_rename_that_fails_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let [new, target, old] = ["new", "a", "old"].map(|name| dir.path().join(name));
        write(&target, "first").unwrap();
        let error = swap(&new, &target, &old).unwrap_err().to_string();
        assert!(error.contains("No such file"), "{error}");
        assert_eq!((names(&target), names(dir.path())), (vec!["first".into()], vec!["a".to_owned()]));
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        for left in [".a.partial/sub", ".a.old"] {
            std::fs::create_dir_all(dir.path().join(left)).unwrap();
            std::fs::write(dir.path().join(left).join("half"), "x").unwrap();
        }
        // Killed between the two renames: the name is free, and what had it lies aside until the next one is whole.
        let target = dir.path().join("a");
        write(&target, "new").unwrap();
        assert_eq!((names(&target), names(dir.path())), (vec!["new".into()], vec!["a".to_owned()]));
    }

    #[test]
    fn two_writers_and_a_file_in_the_way_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = NewFolder::begin(&dir.path().join("a")).unwrap();
        let second = NewFolder::begin(&dir.path().join("a")).unwrap_err().to_string();
        assert!(second.contains("another process is writing here"), "{second}");
        first.commit().unwrap();
        std::fs::write(dir.path().join("b"), "x").unwrap();
        let error = NewFolder::begin(&dir.path().join("b")).unwrap_err().to_string();
        assert!(error.contains("is in the way"), "{error}");
        assert!(NewFolder::begin(Path::new("/")).is_err());
    }

    #[test]
    fn what_a_writer_let_go_of_is_the_next_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (target, partial) = (dir.path().join("a"), dir.path().join(".a.partial"));
        // A writer whose folder has its name, but that is not done yet, leaves the next one's alone.
        let mut first = NewFolder::begin(&target).unwrap();
        first.take_name().unwrap();
        let second = NewFolder::begin(&target).unwrap();
        drop(first);
        assert!(second.path().is_dir());
        // A folder that has its name since it was opened is nobody's to write into.
        let opened = || File::open(&partial).unwrap();
        let late = [opened(), opened()];
        second.commit().unwrap();
        for late in late {
            let error = lock_opened(&partial, late).unwrap_err().to_string();
            assert!(error.contains("another process is writing here"), "{error}");
            std::fs::create_dir_all(&partial).unwrap(); // a third writer
        }
        lock_opened(&partial, opened()).unwrap();
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        write(&precious, "file").unwrap();
        let target = dir.path().join("a");
        for left in [".a.partial", ".a.old"] {
            std::os::unix::fs::symlink(&precious, dir.path().join(left)).unwrap();
        }
        write(&target, "new").unwrap();
        assert_eq!(names(dir.path()), ["a", "precious"]);
        assert_eq!((names(&target), names(&precious)), (vec!["new".into()], vec!["file".to_owned()]));
        for place in [".a.partial", ".a.old"] {
            std::os::unix::fs::symlink(dir.path().join("nowhere"), dir.path().join(place)).unwrap();
        }
        write(&target, "again").unwrap();
        assert_eq!(
            (names(dir.path()), names(&target)),
            (vec!["a".into(), "precious".into()], vec!["again".to_owned()])
        );
    }

    #[test]
    fn a_folder_that_is_removed_gives_up_its_name_first() {
        let dir = tempfile::tempdir().unwrap();
        let (target, old) = (dir.path().join("a"), dir.path().join(".a.old"));
        for left in [&target, &old] {
            write(left, "file").unwrap();
        }
        step_aside(&target, &old).unwrap();
        assert_eq!((names(dir.path()), names(&old)), (vec![".a.old".into()], vec!["file".to_owned()]));
        write(&target, "file").unwrap();
        remove(&target).unwrap();
        assert!(names(dir.path()).is_empty());
        assert!(remove(&target).is_err(), "there is none");
    }
}
