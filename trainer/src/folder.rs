//! A folder that is whole or absent: written beside its place, flushed to the disk, then renamed.
//!
//! For a target `NAME` the files lie in `.NAME.partial` until all are there. What had the name before steps aside as
//! `.NAME.old`, comes back if the new folder cannot take its place, and is removed after that. A process that is killed
//! in between leaves at most those two; the next one that writes `NAME` clears them away.

use std::fs::{File, Metadata};
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
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        let handle = File::open(&partial).map_err(Error::io(&partial))?;
        handle.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => Error::file(&partial, "another process is writing here"),
            std::fs::TryLockError::Error(source) => Error::io(&partial)(source),
        })?;
        // Between opening and locking, its writer may have given that folder its name.
        let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let there = std::fs::metadata(&partial).and_then(|there| Ok(same(there, handle.metadata()?)));
        if !there.unwrap_or(false) {
            return Err(Error::file(&partial, "another process is writing here"));
        }
        let folder = Self { target: target.to_owned(), partial, handle, named: false };
        for entry in entries(&folder.partial)? {
            // What a killed process left.
            let removed =
                if entry.is_dir() { std::fs::remove_dir_all(&entry) } else { std::fs::remove_file(&entry) };
            removed.map_err(Error::io(&entry))?;
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
        let old = beside(&self.target, "old")?;
        swap(&self.partial, &self.target, &old)?;
        self.named = true;
        let parent = parent(&self.target);
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(Error::io(parent))?;
        remove(&old)
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

/// Renames `new` to `target`, whose present folder steps aside to `old`, and comes back on an error.
fn swap(new: &Path, target: &Path, old: &Path) -> Result<()> {
    if target.exists() {
        remove(old)?;
        std::fs::rename(target, old).map_err(Error::io(target))?;
    }
    std::fs::rename(new, target).map_err(|source| {
        if old.exists() {
            // The error that counts is the first one; if this fails too, the old folder lies in `.NAME.old`.
            let _ = std::fs::rename(old, target);
        }
        Error::io(target)(source)
    })
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() { std::fs::remove_dir_all(folder).map_err(Error::io(folder)) } else { Ok(()) }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
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
}
