//! Two writers, a killed one, links, and what lies in the way.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

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

fn refused<T: std::fmt::Debug>(result: Result<T>, expected: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
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

/// Needs a file system that exchanges, in `TMPDIR`: ext4, XFS, Btrfs, tmpfs and overlayfs do.
#[test]
fn the_name_is_never_free_while_two_folders_exchange() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    write(&a, "first").unwrap();
    write(&b, "second").unwrap();
    let (begun, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut looks, mut missing) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                (looks, missing) = (looks + 1, missing + usize::from(!a.is_dir()));
                begun.store(true, Ordering::Relaxed);
            }
            (looks, missing)
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let exchanged = (0..20_001).try_for_each(|_| exchange(&b, &a).map(|there| assert!(there)));
        done.store(true, Ordering::Relaxed);
        let (looks, missing) = watcher.join().unwrap();
        exchanged.unwrap();
        assert!(looks > 0 && missing == 0, "it was missing in {missing} of {looks} looks");
    });
    assert_eq!((names(&a), names(&b)), (vec!["second".into()], vec!["first".to_owned()]));
}

#[test]
fn where_nothing_exchanges_three_renames_do() {
    let dir = tempfile::tempdir().unwrap();
    let [new, target] = ["new", "a"].map(|name| dir.path().join(name));
    write(&target, "first").unwrap();
    for exchange in [exchange, exchange_by_renames] {
        refused(exchange(&new, &target), "No such file");
        assert_eq!((names(&target), names(dir.path())), (vec!["first".into()], vec!["a".to_owned()]));
    }
    write(&new, "second").unwrap();
    assert!(exchange_by_renames(&new, &target).unwrap());
    assert_eq!((names(&target), names(&new)), (vec!["second".into()], vec!["first".to_owned()]));
    assert_eq!(names(dir.path()), ["a", "new"]);
}

#[test]
fn what_stepped_aside_belongs_to_its_writer_until_that_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let [target, partial, old] = ["a", ".a.partial", ".a.old"].map(|name| dir.path().join(name));
    write(&target, "first").unwrap();
    let writer = NewFolder::begin(&target).unwrap();
    // Where nothing exchanges, after the second of three renames: the next one does not take the old folder away.
    std::fs::rename(&target, &old).unwrap();
    std::fs::rename(&partial, &target).unwrap();
    refused(NewFolder::begin(&target), "another process of this machine is writing here");
    assert_eq!(names(&old), ["first"]);
    drop(writer);
    assert_eq!((names(&target), names(dir.path())), (vec![], vec![".a.old".into(), "a".to_owned()]));
}

#[test]
fn where_the_third_rename_fails_nothing_of_this_writers_is_left_to_remove() {
    let dir = tempfile::tempdir().unwrap();
    let [new, target] = ["new", "a"].map(|name| dir.path().join(name));
    write(&target, "first").unwrap();
    write(&new, "second").unwrap();
    // A way that leads through the folder itself: gone once that has its name.
    assert!(!exchange_by_renames(&new.join("../new"), &target).unwrap());
    assert_eq!(
        (names(&target), names(dir.path())),
        (vec!["second".into()], vec![".a.old".into(), "a".to_owned()])
    );
    write(&target, "third").unwrap();
    assert_eq!(names(dir.path()), ["a"], "the next one clears it away");
}

#[test]
fn what_appears_meanwhile_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let [target, moved] = ["a", "moved"].map(|name| dir.path().join(name));
    for take in [take_free, take_free_by_looking] {
        // There was nothing; now there is a folder, which a rename would replace if it were empty, or a file.
        for fill in [false, true] {
            let folder = NewFolder::begin(&target).unwrap();
            std::fs::create_dir(&target).unwrap();
            if fill {
                std::fs::write(target.join("mine"), "x").unwrap();
            }
            refused(take(&folder.partial, &target), "a: was not there when writing began");
            refused(folder.commit(), "a: was not there when writing began");
            assert_eq!((names(&target).len(), names(dir.path())), (usize::from(fill), vec!["a".to_owned()]));
            std::fs::remove_dir_all(&target).unwrap();
        }
    }
    // The folder that was there has gone elsewhere, and another one has its name.
    write(&target, "first").unwrap();
    let folder = NewFolder::begin(&target).unwrap();
    std::fs::rename(&target, &moved).unwrap();
    std::fs::create_dir(&target).unwrap();
    refused(folder.commit(), "a: was not there when writing began");
    assert_eq!((names(&target), names(&moved)), (vec![], vec!["first".to_owned()]));
    // Or none has.
    let folder = NewFolder::begin(&target).unwrap();
    std::fs::remove_dir(&target).unwrap();
    folder.commit().unwrap();
    assert_eq!(names(dir.path()), ["a", "moved"]);
}

#[test]
fn where_another_file_system_begins_is_told_at_once() {
    refused(NewFolder::begin(Path::new("/proc")), "/proc: is where another file system begins");
    assert!(!Path::new("/.proc.partial").exists());
}

#[test]
fn a_folder_that_cannot_be_read_is_not_one_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let [link, ring, file] = ["link", "ring", "file"].map(|name| dir.path().join(name));
    symlink("nowhere", &link).unwrap();
    symlink("ring", &ring).unwrap();
    std::fs::write(&file, "x").unwrap();
    refused(entries(&link), "link: is a link that cannot be followed (No such file");
    refused(entries(&ring), "ring: is a link that cannot be followed (Too many levels");
    refused(entries(&ring.join("in")), "ring/in: Too many levels of symbolic links");
    refused(entries(&file), "file: is in the way, expected a folder or nothing");
    assert!(entries(&dir.path().join("none")).unwrap().is_empty());
}

#[test]
fn what_stepped_aside_for_a_killed_process_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let [target, old] = ["a", ".a.old"].map(|name| dir.path().join(name));
    write(&target, "whole").unwrap();
    std::fs::rename(&target, &old).unwrap(); // killed before the second rename
    drop(NewFolder::begin(&target).unwrap());
    assert_eq!((names(&target), names(dir.path())), (vec!["whole".into()], vec!["a".to_owned()]));
    // Killed after it: the name is the new folder's.
    write(&old, "replaced").unwrap();
    drop(NewFolder::begin(&target).unwrap());
    assert_eq!((names(&target), names(dir.path())), (vec!["whole".into()], vec!["a".to_owned()]));
}

#[test]
fn what_a_killed_process_left_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    for left in [".a.partial/sub", ".a.old"] {
        std::fs::create_dir_all(dir.path().join(left)).unwrap();
        std::fs::write(dir.path().join(left).join("half"), "x").unwrap();
    }
    let target = dir.path().join("a");
    write(&target, "new").unwrap();
    assert_eq!((names(&target), names(dir.path())), (vec!["new".into()], vec!["a".to_owned()]));
}

#[test]
fn two_writers_and_a_file_in_the_way_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = NewFolder::begin(&dir.path().join("a")).unwrap();
    refused(NewFolder::begin(&dir.path().join("a")), "another process of this machine is writing here");
    first.commit().unwrap();
    std::fs::write(dir.path().join("b"), "x").unwrap();
    refused(NewFolder::begin(&dir.path().join("b")), "is in the way");
    assert!(NewFolder::begin(Path::new("/")).is_err());
}

#[test]
fn a_name_is_one_writers_until_all_is_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let (target, partial) = (dir.path().join("a"), dir.path().join(".a.partial"));
    for replaced in [false, true] {
        // The folder has its name, but what it replaced is still there.
        let mut first = NewFolder::begin(&target).unwrap();
        first.take_name().unwrap();
        assert_eq!(partial.exists(), replaced);
        refused(NewFolder::begin(&target), "another process of this machine is writing here");
        drop(first);
        assert_eq!(names(dir.path()), ["a"]);
    }
    // What lies beside a folder that replaced nothing is the next writer's.
    std::fs::remove_dir(&target).unwrap();
    let mut first = NewFolder::begin(&target).unwrap();
    first.take_name().unwrap();
    std::fs::create_dir(&partial).unwrap();
    drop(first);
    assert!(partial.is_dir());
}

#[test]
fn a_folder_with_another_name_by_now_is_not_locked() {
    let dir = tempfile::tempdir().unwrap();
    let (target, partial) = (dir.path().join("a"), dir.path().join(".a.partial"));
    let writer = NewFolder::begin(&target).unwrap();
    let opened = || File::open(&partial).unwrap();
    let late = [opened(), opened()];
    writer.commit().unwrap();
    for late in late {
        refused(lock_opened(&partial, late), "another process of this machine is writing here");
        std::fs::create_dir_all(&partial).unwrap(); // another writer
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
        symlink(&precious, dir.path().join(left)).unwrap();
    }
    write(&target, "new").unwrap();
    assert_eq!(names(dir.path()), ["a", "precious"]);
    assert_eq!((names(&target), names(&precious)), (vec!["new".into()], vec!["file".to_owned()]));
    for place in [".a.partial", ".a.old"] {
        symlink(dir.path().join("nowhere"), dir.path().join(place)).unwrap();
    }
    write(&target, "again").unwrap();
    assert_eq!(
        (names(dir.path()), names(&target)),
        (vec!["a".into(), "precious".into()], vec!["again".to_owned()])
    );
}

#[test]
fn behind_a_link_lies_the_folder_that_is_locked_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let [disk, link, nowhere] = ["disk/a", "a", "nowhere"].map(|name| dir.path().join(name));
    write(&disk, "first").unwrap();
    symlink(&disk, &link).unwrap();
    drop(lock(&link).unwrap());
    let held = lock(&disk).unwrap();
    refused(lock(&link), "another process of this machine is writing here");
    drop(held);
    for (path, name) in [(link.clone(), "second"), (link.join(""), "third")] {
        write(&path, name).unwrap();
        assert!(link.is_symlink());
        assert_eq!((names(&disk), names(disk.parent().unwrap())), (vec![name.into()], vec!["a".to_owned()]));
    }
    symlink("gone", &nowhere).unwrap();
    refused(NewFolder::begin(&nowhere), "is a link that cannot be followed (No such file");
    assert_eq!(names(dir.path()), ["a", "disk", "nowhere"]);
}

#[test]
fn a_file_is_replaced_and_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let [path, precious] = ["a.json", "precious"].map(|name| dir.path().join(name));
    write_file(&path, b"first").unwrap();
    std::fs::write(&precious, "mine").unwrap();
    symlink(&precious, dir.path().join(".a.json.partial")).unwrap();
    let reader = File::open(&path).unwrap();
    write_file(&path, b"second").unwrap();
    assert_eq!(std::io::read_to_string(reader).unwrap(), "first");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "mine");
    assert_eq!(names(dir.path()), ["a.json", "precious"]);
}

#[test]
fn a_folder_is_removed_with_what_was_left_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (target, left) = (dir.path().join("a"), dir.path().join(".a.partial"));
    for folder in [&target, &left] {
        write(folder, "file").unwrap();
    }
    remove(&target).unwrap();
    assert!(names(dir.path()).is_empty());
    assert!(remove(&target).is_err(), "there is none");
}
