//! A folder of PNG, JPEG or WebP files: one subfolder a class, or the files by themselves and no labels.
//!
//! Classes and files are taken in the order of their names. Hidden files are not looked at; any other file that is no
//! image is an error, so that nothing is left out unnoticed.

use std::path::{Path, PathBuf};

use super::collect::Collector;
use super::decode::decode;
use super::error::{DataError, Result};
use super::{DataSource, ImageSet, Split};

/// Endings of image files, in lower case.
const ENDINGS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Loads the folder. Errors: as [`super::load`]; also files beside class folders, and folders inside them.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    if source.split == Split::Test {
        return Err(DataError::source("split", "is `test`, which a folder has only with `data.hold_out`"));
    }
    let root = source.path()?;
    let (folders, files) = list(root)?;
    if let (Some(folder), Some(file)) = (folders.first(), files.first()) {
        let reason = format!("it holds both files (`{}`) and folders (`{}`)", name(file), name(folder));
        return Err(DataError::container(root, "class folder", reason));
    }
    let mut jobs: Vec<(Option<i64>, PathBuf)> = files.into_iter().map(|file| (None, file)).collect();
    for (label, folder) in folders.iter().enumerate() {
        let (inner, files) = list(folder)?;
        if let Some(inner) = inner.first() {
            let reason = format!("a class holds images only, this one a folder `{}`", name(inner));
            return Err(DataError::container(folder, "class folder", reason));
        }
        jobs.extend(files.into_iter().map(|file| (Some(label as i64), file)));
    }
    if jobs.is_empty() {
        let hint = "the folder holds no images; expected one subfolder of PNG, JPEG or WebP files a class";
        return Err(DataError::Missing { path: root.to_owned(), hint: hint.to_owned() });
    }
    let wanted = source.images.map_or(jobs.len(), |n| n.min(jobs.len()));
    let mut set = Collector::new(source, wanted, folders.iter().map(|folder| name(folder)).collect());
    for (label, path) in jobs.iter().take(wanted) {
        let at = || format!("`{}`", path.display());
        let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
        set.push(decode(&bytes, at)?, *label, at)?;
    }
    set.finish()
}

/// Subfolders and image files of a folder, each sorted.
fn list(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(|e| DataError::io(path, e))? {
        let entry = entry.map_err(|e| DataError::io(path, e))?.path();
        if name(&entry).starts_with('.') {
            continue;
        }
        let meta = std::fs::metadata(&entry).map_err(|e| DataError::io(&entry, e))?;
        let ending = entry.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        if meta.is_dir() {
            folders.push(entry);
        } else if ENDINGS.contains(&&*ending) {
            files.push(entry);
        } else {
            let reason = format!("its name ends in none of: {}", ENDINGS.join(", "));
            return Err(DataError::Image { at: format!("`{}`", entry.display()), reason });
        }
    }
    folders.sort();
    files.sort();
    Ok((folders, files))
}

fn name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, ImageFormat, Luma};

    use super::*;
    use crate::data::Kind;
    use crate::data::decode::tests::encode;

    /// Writes a grey 3×2 image of one value.
    fn put(path: &Path, value: u8) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, encode(GrayImage::from_pixel(3, 2, Luma([value])), ImageFormat::Png)).unwrap();
    }

    fn load_here(path: &Path) -> Result<ImageSet> {
        load(&DataSource::new(Kind::Folder, path))
    }

    #[test]
    fn a_subfolder_is_a_class_and_names_decide_the_order() {
        let dir = tempfile::tempdir().unwrap();
        for (file, value) in [("dog/b.png", 4), ("cat/z.PNG", 2), ("dog/a.png", 3), ("cat/a.png", 1)] {
            put(&dir.path().join(file), value);
        }
        std::fs::write(dir.path().join(".hidden"), "not an image").unwrap();
        let set = load_here(dir.path()).unwrap();
        assert_eq!(
            (set.names.clone(), set.labels.clone()),
            (vec!["cat".into(), "dog".into()], vec![0, 0, 1, 1])
        );
        assert_eq!((0..4).map(|i| set.image(i)[5]).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!((set.channels, set.height, set.width), (1, 2, 3));
    }

    #[test]
    fn files_alone_have_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("a.png"), 1);
        let set = load_here(dir.path()).unwrap();
        assert!(set.labels.is_empty() && set.names.is_empty());
        put(&dir.path().join("class/b.png"), 1);
        assert!(
            load_here(dir.path())
                .unwrap_err()
                .to_string()
                .contains("both files (`a.png`) and folders (`class`)")
        );
    }

    #[test]
    fn what_is_no_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load_here(dir.path()).unwrap_err().to_string().contains("holds no images"));
        assert!(load_here(&dir.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
        put(&dir.path().join("cat/a.png"), 1);
        for (file, bytes, expected) in [
            ("cat/broken.png", &b"\x89PNG\r\n\x1a\n...."[..], "broken.png`: not a readable image"),
            ("cat/notes.txt", b"hello", "notes.txt`: not a readable image: its name ends in none of: png"),
            ("cat/empty.webp", b"", "empty.webp`: not a readable image: it is empty"),
        ] {
            let path = dir.path().join(file);
            std::fs::write(&path, bytes).unwrap();
            let error = load_here(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            std::fs::remove_file(path).unwrap();
        }
        put(&dir.path().join("cat/deep/a.png"), 1);
        assert!(load_here(dir.path()).unwrap_err().to_string().contains("a folder `deep`"));
    }
}
