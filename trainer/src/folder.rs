//! A folder or file that is whole or absent: written beside its place, flushed to the disk, then put there. And the
//! lock of a folder, by which one process of a machine alone writes there.
//!
//! What is to be `NAME` lies in `.NAME.partial` until all is there. A folder that has the name already then exchanges
//! places with it, in one step, and is removed after that. Where the file system cannot exchange, it steps aside as
//! `.NAME.old` for a moment; a process that is killed in that moment leaves no `NAME`, and the next one that writes it
//! puts the old folder back first. `.NAME.partial` is never missed: the next writer clears it away, and what is removed
//! takes that name first. Only what was there at the beginning is replaced; what appears meanwhile is somebody else's.
//!
//! A lock holds on one machine: of a folder on a network file system, others are not told.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A folder being written. Dropped without [`NewFolder::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    partial: PathBuf,
    /// Of the new folder: no second process writes into it.
    _lock: File,
    /// Of the one that it replaces and that will lie in `partial` until it is removed: nor into that.
    replaced: Option<File>,
    /// Whether what lies in `partial` is this writer's, and not already the next one's.
    ours: bool,
}

// === impl NewFolder ===

impl NewFolder {
    /// Makes an empty folder beside `target` (where a link leads, beside its end), and the folders above it. Errors:
    /// a target without a name, that is not a folder or where another file system begins, another process writing the
    /// same one, a folder that cannot be made, what an earlier writer left and cannot be cleared away.
    pub fn begin(target: &Path) -> Result<Self> {
        let target = place(target)?;
        if target.exists() && device(&target)? != device(parent(&target))? {
            let reason =
                "is where another file system begins, and cannot be replaced: name a folder inside it";
            return Err(Error::file(&target, reason));
        }
        let partial = beside(&target, "partial")?;
        if std::fs::symlink_metadata(&partial).is_ok_and(|there| !there.is_dir()) {
            // Such as a link, which would lead elsewhere. Never a folder, which may be another process's.
            std::fs::remove_file(&partial).map_err(Error::io(&partial))?;
        }
        std::fs::create_dir_all(&partial).map_err(Error::io(&partial))?;
        let mut folder = Self { _lock: lock(&partial)?, target, partial, replaced: None, ours: true };
        let old = beside(&folder.target, "old")?;
        if !folder.target.exists() {
            put_back(&old, &folder.target)?;
        }
        if folder.target.exists() {
            folder.replaced = Some(lock(&folder.target)?);
        }
        // Only under that lock: its writer may still have to take away what stepped aside for it.
        warn(erase(&old));
        for left in entries(&folder.partial)? {
            erase(&left).map_err(|error| {
                let what = "holds what an earlier writer left and cannot be cleared away";
                Error::file(&folder.partial, format!("{what} ({error}): remove it by hand"))
            })?;
        }
        Ok(folder)
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Flushes every file, and gives the folder its name; what cannot be removed of the folder that had it is a
    /// warning. Errors: something that was not there at the beginning has the name now, those of the file system. The
    /// target then is what it was, unless it was the last flush that failed: that of the name, which a loss of power may
    /// then undo.
    pub fn commit(mut self) -> Result<()> {
        for path in entries(&self.partial)? {
            flush(&path)?;
        }
        flush(&self.partial)?;
        let above = parent(&self.target).to_owned();
        let opened = File::open(&above).map_err(Error::io(&above))?;
        self.take_name()?;
        opened.sync_all().map_err(Error::io(&above))
    }

    fn take_name(&mut self) -> Result<()> {
        if self.replaced.as_ref().is_some_and(|locked| is_at(locked, &self.target)) {
            self.ours = exchange(&self.partial, &self.target)?;
        } else {
            take_free(&self.partial, &self.target)?;
            self.ours = false;
        }
        Ok(())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if self.ours {
            warn(erase(&self.partial));
        }
    }
}

// === Locks ===

/// Locks a folder for as long as the handle lives. Errors: another process of this machine has it, or has meanwhile
/// given it another name.
pub fn lock(folder: &Path) -> Result<File> {
    lock_opened(folder, File::open(folder).map_err(Error::io(folder))?)
}

fn lock_opened(folder: &Path, handle: File) -> Result<File> {
    let taken =
        || Error::file(folder, "another process of this machine is writing here, expected one at a time");
    handle.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => taken(),
        TryLockError::Error(source) => Error::io(folder)(source),
    })?;
    // Between opening and locking, its writer may have given that folder its name.
    if is_at(&handle, folder) { Ok(handle) } else { Err(taken()) }
}

/// Whether an open folder is the one that has this name now. Links are followed, as by opening.
fn is_at(handle: &File, path: &Path) -> bool {
    let same = std::fs::metadata(path).and_then(|there| {
        let opened = handle.metadata()?;
        Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino()))
    });
    same.unwrap_or(false)
}

// === Writing and removing ===

/// Writes a file, in the place of what may be there. Errors: those of the file system.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = beside(path, "partial")?;
    erase(&partial)?;
    let written =
        File::create(&partial).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(Error::io(&partial))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))?;
    flush(parent(path))
}

/// Removes a folder: its name is free at once, or it is as it was. Errors: those of the file system.
pub fn remove(folder: &Path) -> Result<()> {
    let aside = beside(folder, "partial")?;
    erase(&aside)?;
    std::fs::rename(folder, &aside).map_err(Error::io(folder))?;
    flush(parent(folder))?; // or after a loss of power half of it may have its name again
    erase(&aside)
}

/// Whether a name is that of what [`NewFolder`] and [`remove`] leave behind for `NAME` when they are killed; if so,
/// `NAME`.
pub fn left_behind(name: &str) -> Option<&str> {
    let name = name.strip_prefix('.')?;
    name.strip_suffix(".partial").or_else(|| name.strip_suffix(".old"))
}

/// Removes a file, a link (and never what it leads to) or a folder, if there is one.
pub fn erase(path: &Path) -> Result<()> {
    let folder = std::fs::symlink_metadata(path).is_ok_and(|there| there.is_dir());
    let removed = if folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// Tells that something could not be removed, where the work itself is done.
pub fn warn(removed: Result<()>) {
    if let Err(error) = removed {
        eprintln!("warning: {error}: it stays until the next one who writes here can remove it");
    }
}

/// Gives a folder a name that nothing has. Errors: something has it by now.
fn take_free(new: &Path, target: &Path) -> Result<()> {
    match renameat_with(CWD, new, CWD, target, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(appeared(target)),
        Err(error) if unknown(error) => take_free_by_looking(new, target),
        result => result.map_err(|error| Error::io(target)(error.into())),
    }
}

/// [`take_free`] where the file system does not know it.
fn take_free_by_looking(new: &Path, target: &Path) -> Result<()> {
    if there(target)? {
        return Err(appeared(target));
    }
    std::fs::rename(new, target).map_err(Error::io(target))
}

fn appeared(target: &Path) -> Error {
    let reason = "was not there when writing began: nothing replaces it; move it away, or write elsewhere";
    Error::file(target, reason)
}

/// Lets two folders exchange their places. If that fails, both are where they were. Returns whether the one that was
/// replaced now lies where the new one was.
fn exchange(new: &Path, target: &Path) -> Result<bool> {
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Err(error) if unknown(error) => exchange_by_renames(new, target),
        result => result.map(|()| true).map_err(|error| Error::io(target)(error.into())),
    }
}

/// [`exchange`] where the file system does not know it.
fn exchange_by_renames(new: &Path, target: &Path) -> Result<bool> {
    let old = beside(target, "old")?;
    std::fs::rename(target, &old).map_err(Error::io(target))?;
    std::fs::rename(new, target).map_err(|source| {
        // The error that counts is the first one; if this fails too, the next writer puts it back.
        let _ = std::fs::rename(&old, target);
        Error::io(target)(source)
    })?;
    let moved = std::fs::rename(&old, new).map_err(Error::io(&old));
    let there = moved.is_ok();
    warn(moved);
    Ok(there)
}

/// Whether a file system says so that it does not know a flag of a rename.
fn unknown(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// Puts back the folder that stepped aside for one that never came.
fn put_back(old: &Path, target: &Path) -> Result<()> {
    if std::fs::symlink_metadata(old).is_ok_and(|there| there.is_dir()) {
        return std::fs::rename(old, target).map_err(Error::io(target));
    }
    Ok(())
}

// === Paths ===

/// Where a folder lies or would lie: the end of a link, else the path itself. Errors: a link that leads nowhere,
/// something there that is no folder.
pub fn place(path: &Path) -> Result<PathBuf> {
    let mut place: PathBuf = path.components().collect(); // a slash at the end would hide that it is a link
    if place.is_symlink() {
        place = place.canonicalize().map_err(|error| {
            Error::file(
                path,
                format!("is a link that cannot be followed ({error}), expected a folder or nothing"),
            )
        })?;
    }
    if place.exists() && !place.is_dir() {
        return Err(Error::file(path, "is in the way, expected a folder or nothing"));
    }
    Ok(place)
}

/// What lies in a folder; nothing where there is none. Errors: as [`place`], a folder that cannot be read.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !there(folder)? {
        return Ok(Vec::new());
    }
    place(folder)?;
    let listed = std::fs::read_dir(folder).and_then(|all| all.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(Error::io(folder))
}

/// Whether something has this name, be it a link that leads nowhere. Errors: it cannot be known.
pub fn there(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        // A file instead of the folder above it has nothing in it either.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// The file system that something lies on.
fn device(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).map_err(Error::io(path))?.dev())
}

/// Flushes a file, or the names in a folder, to the disk.
fn flush(path: &Path) -> Result<()> {
    File::open(path).and_then(|opened| opened.sync_all()).map_err(Error::io(path))
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
mod tests;
