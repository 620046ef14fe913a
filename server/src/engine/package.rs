//! A model package on disk: opened, and believed only as far as its digests go. The manifest pins every file by
//! size and sha256; a link, a folder, a file that is not listed or not what it should be is an error that names it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};
use windowpane_diffusion::manifest::{FileDigest, MANIFEST_FILE, Manifest};

use super::externals::{self, External};

/// Largest manifest that is read: thousands of classes fit, a wrong file does not fill the memory.
const MAX_MANIFEST: u64 = 16 << 20;

/// The model card's file.
const CARD_FILE: &str = "CARD.md";

/// Largest model card that is shown.
const MAX_CARD: u64 = 1 << 20;

/// A package whose every file is what the manifest says.
#[derive(Debug, Clone)]
pub struct Package {
    /// The folder.
    pub folder: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// sha256 of manifest.json in hex. The manifest pins every other file, so this names the whole model.
    pub digest: String,
    /// When the manifest was written to this disk, in seconds since 1970.
    pub created: u64,
}

/// A package cannot be served. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The file system's own error.
    #[error("`{}`: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// No packages.
    #[error("`{}` holds no model package: no manifest.json in it or in a folder of it", .0.display())]
    Empty(PathBuf),
    /// The manifest is not valid.
    #[error("`{}`: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A file in the folder is not what a package holds.
    #[error("`{}`: {what}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is, and what is expected.
        what: &'static str,
    },
    /// A file has another size than the manifest says.
    #[error("`{}` has {got} bytes, the manifest says {expected}: it is cut short or another file", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes on disk.
        got: u64,
        /// Bytes in the manifest.
        expected: u64,
    },
    /// A file has another digest than the manifest says.
    #[error("`{}` has sha256 {got}, the manifest says {expected}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest on disk.
        got: String,
        /// Digest in the manifest.
        expected: String,
    },
    /// A file ends before a tensor that a graph has in it.
    #[error("`{}` has {got} bytes and is too short for the tensor `{tensor}` of `{graph}`, which ends at byte {end}", path.display())]
    Short {
        /// The file.
        path: PathBuf,
        /// Bytes on disk.
        got: u64,
        /// The tensor.
        tensor: String,
        /// The graph's file.
        graph: String,
        /// Where the tensor ends, in bytes.
        end: u64,
    },
    /// A graph has a tensor in a file that the package does not hold.
    #[error("`{}`: the tensor `{tensor}` lies in `{file}`, which manifest.json does not list", path.display())]
    Elsewhere {
        /// The graph's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file as the graph names it.
        file: String,
    },
    /// A graph has a tensor in another file that may not have it there.
    #[error("`{}`: the tensor `{tensor}` in {place} lies in `{file}`; only an initializer of the graph may lie in a file", path.display())]
    Place {
        /// The graph's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where in the graph it is.
        place: String,
        /// The file as the graph names it.
        file: String,
    },
}

/// The package folders under `models`, in order of name: `models` itself if it holds a manifest, else each subfolder
/// that does. Errors: none.
pub fn find(models: &Path) -> Result<Vec<PathBuf>, PackageError> {
    if models.join(MANIFEST_FILE).is_file() {
        return Ok(vec![models.to_owned()]);
    }
    let io = |cause| PackageError::Io { path: models.to_owned(), cause };
    let mut found = Vec::new();
    for entry in fs::read_dir(models).map_err(io)? {
        let entry = entry.map_err(io)?;
        let path = entry.path();
        // A leading dot is what an export that runs, or was killed, has beside its package; no package begins so.
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && path.join(MANIFEST_FILE).is_file() {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(PackageError::Empty(models.to_owned())) } else { Ok(found) }
}

/// Manifest and digest of the package in `folder`, if its manifest reads: nothing else of it is looked at.
pub fn identity(folder: &Path) -> Option<(Manifest, String)> {
    let bytes = fs::read(folder.join(MANIFEST_FILE)).ok()?;
    let manifest = Manifest::from_json(std::str::from_utf8(&bytes).ok()?).ok()?;
    Some((manifest, hex(&Sha256::digest(&bytes))))
}

// === impl Package ===

impl Package {
    /// Opens and verifies the package in `folder`.
    pub fn open(folder: &Path) -> Result<Self, PackageError> {
        let path = folder.join(MANIFEST_FILE);
        let io = |cause| PackageError::Io { path: path.clone(), cause };
        let metadata = plain_file(&path)?;
        if metadata.len() > MAX_MANIFEST {
            return Err(PackageError::Kind { path, what: "larger than 16 MiB, which no manifest is" });
        }
        let bytes = fs::read(&path).map_err(io)?;
        let invalid = |reason: String| PackageError::Manifest { path: path.clone(), reason };
        let text = std::str::from_utf8(&bytes).map_err(|error| invalid(error.to_string()))?;
        let manifest = Manifest::from_json(text).map_err(|error| invalid(error.to_string()))?;
        only_listed(folder, &manifest)?;
        for (name, pinned) in &manifest.files {
            verify(&folder.join(name), pinned)?;
        }
        for graph in &manifest.graphs {
            tensors_fit(folder, &graph.file, &manifest)?;
        }
        let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            folder: folder.to_owned(),
            digest: hex(&Sha256::digest(&bytes)),
            manifest,
            created: modified.map_or(0, |age| age.as_secs()),
        })
    }

    /// The model card, if the package has one that is text.
    pub fn card(&self) -> Option<String> {
        let pinned = self.manifest.files.get(CARD_FILE)?;
        let text = || fs::read_to_string(self.folder.join(CARD_FILE)).ok();
        (pinned.size <= MAX_CARD).then(text)?
    }

    /// Bytes of all pinned files.
    pub fn size(&self) -> u64 {
        self.manifest.files.values().map(|file| file.size).sum()
    }
}

/// Metadata of a regular file. A link could leave the folder, so it is an error whatever it points to; a hard link is a file
/// like any other. The folder itself may be a link: whoever named it meant what it leads to.
fn plain_file(path: &Path) -> Result<fs::Metadata, PackageError> {
    let metadata =
        fs::symlink_metadata(path).map_err(|cause| PackageError::Io { path: path.to_owned(), cause })?;
    if metadata.is_symlink() {
        return Err(PackageError::Kind {
            path: path.to_owned(),
            what: "a link; a package holds plain files",
        });
    }
    if !metadata.is_file() {
        return Err(PackageError::Kind {
            path: path.to_owned(),
            what: "not a file; a package holds plain files",
        });
    }
    Ok(metadata)
}

/// Nothing lies in the folder that the manifest does not pin, hidden files included: a graph could name any of them as
/// its weights.
fn only_listed(folder: &Path, manifest: &Manifest) -> Result<(), PackageError> {
    let io = |cause| PackageError::Io { path: folder.to_owned(), cause };
    let listed: BTreeSet<&str> = manifest.files.keys().map(String::as_str).chain([MANIFEST_FILE]).collect();
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let known = name.to_str().is_some_and(|name| listed.contains(name));
        if !known {
            let what = "not listed in manifest.json; a package holds only what its manifest pins";
            return Err(PackageError::Kind { path: folder.join(name), what });
        }
    }
    Ok(())
}

/// One file against its size, then its digest: a cut file is found without reading it.
fn verify(path: &Path, pinned: &FileDigest) -> Result<(), PackageError> {
    let size = plain_file(path)?.len();
    if size != pinned.size {
        return Err(PackageError::Size { path: path.to_owned(), got: size, expected: pinned.size });
    }
    let got = sha256(path).map_err(|cause| PackageError::Io { path: path.to_owned(), cause })?;
    if !got.eq_ignore_ascii_case(&pinned.sha256) {
        return Err(PackageError::Digest { path: path.to_owned(), got, expected: pinned.sha256.clone() });
    }
    Ok(())
}

/// The bytes of a file, if they are what the manifest pins: between a package's verification and its use it may have been
/// replaced.
pub fn read(folder: &Path, manifest: &Manifest, name: &str) -> Result<Vec<u8>, PackageError> {
    let path = folder.join(name);
    let bytes = fs::read(&path).map_err(|cause| PackageError::Io { path: path.clone(), cause })?;
    let Some(pinned) = manifest.files.get(name) else {
        return Err(PackageError::Kind { path, what: "not listed in manifest.json" });
    };
    let got = hex(&Sha256::digest(&bytes));
    if !got.eq_ignore_ascii_case(&pinned.sha256) {
        return Err(PackageError::Digest { path, got, expected: pinned.sha256.clone() });
    }
    Ok(bytes)
}

/// Every tensor that a graph has in another file lies in one of the package's, whole.
fn tensors_fit(folder: &Path, graph: &str, manifest: &Manifest) -> Result<(), PackageError> {
    let path = folder.join(graph);
    let bytes = fs::read(&path).map_err(|cause| PackageError::Io { path: path.clone(), cause })?;
    let Some(externals) = externals::read(&bytes) else {
        return Err(PackageError::Kind { path, what: "not a whole ONNX graph" });
    };
    for External { tensor, file, offset, length, place } in externals {
        if let Some(place) = place {
            return Err(PackageError::Place { path, tensor, place, file });
        }
        let Some(pinned) = manifest.files.get(&file) else {
            return Err(PackageError::Elsewhere { path, tensor, file });
        };
        let end = offset.saturating_add(length);
        if end > pinned.size {
            let (path, graph) = (folder.join(file), graph.to_owned());
            return Err(PackageError::Short { path, got: pinned.size, tensor, graph, end });
        }
    }
    Ok(())
}

fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::{TempDir, tempdir};
    use windowpane_diffusion::manifest::WEIGHTS_FILE;

    use super::*;
    use crate::testing::{GRAPH, package, pin, rewrite};

    fn good() -> (TempDir, PathBuf) {
        let folder = tempdir().unwrap();
        let package = package(folder.path(), "shoes");
        (folder, package)
    }

    /// Lets the manifest pin the files as they are.
    fn repin(package: &Path) {
        let mut manifest =
            Manifest::from_json(&fs::read_to_string(package.join(MANIFEST_FILE)).unwrap()).unwrap();
        pin(package, &mut manifest);
    }

    fn error(package: &Path) -> String {
        Package::open(package).expect_err("the package is broken").to_string()
    }

    #[test]
    fn a_whole_package_opens() {
        let (_folder, path) = good();
        let package = Package::open(&path).unwrap();
        assert_eq!(package.manifest.name, "shoes");
        assert_eq!(package.digest.len(), 64);
        assert!(package.created > 1_600_000_000 && package.size() > 4);
    }

    #[test]
    fn a_cut_file_and_a_changed_file_are_named() {
        let (_folder, path) = good();
        let weights = path.join(WEIGHTS_FILE);
        fs::write(&weights, [0, 0]).unwrap();
        assert!(error(&path).contains("weights.bin` has 2 bytes, the manifest says 4"), "{}", error(&path));
        fs::write(&weights, [0, 0, 0, 1]).unwrap();
        assert!(error(&path).contains("weights.bin` has sha256"), "{}", error(&path));
        fs::remove_file(&weights).unwrap();
        assert!(error(&path).contains("weights.bin"), "{}", error(&path));
    }

    #[test]
    fn weights_too_short_for_a_tensor_are_named_whatever_the_manifest_pins() {
        let (_folder, path) = good();
        fs::write(path.join(WEIGHTS_FILE), [0; 3]).unwrap();
        repin(&path);
        let said = error(&path);
        assert!(said.contains("weights.bin` has 3 bytes and is too short for the tensor `half`"), "{said}");
        assert!(said.contains("`denoiser.f32.onnx`, which ends at byte 4"), "{said}");
    }

    #[test]
    fn a_graph_that_is_cut_or_reads_elsewhere_is_refused() {
        let (_folder, path) = good();
        let graph = fs::read(path.join(GRAPH)).unwrap();
        fs::write(path.join(GRAPH), &graph[..graph.len() / 2]).unwrap();
        repin(&path);
        assert!(error(&path).contains("denoiser.f32.onnx`: not a whole ONNX graph"), "{}", error(&path));
        let at = graph.windows(WEIGHTS_FILE.len()).position(|w| w == WEIGHTS_FILE.as_bytes()).unwrap();
        let mut elsewhere = graph.clone();
        elsewhere[at..at + WEIGHTS_FILE.len()].copy_from_slice(b"../../x.bin");
        fs::write(path.join(GRAPH), elsewhere).unwrap();
        repin(&path);
        assert!(
            error(&path).contains("tensor `half` lies in `../../x.bin`, which manifest.json does not list")
        );
    }

    #[test]
    fn what_was_replaced_after_it_was_verified_is_not_read() {
        let (_folder, path) = good();
        let package = Package::open(&path).unwrap();
        assert_eq!(read(&path, &package.manifest, GRAPH).unwrap(), fs::read(path.join(GRAPH)).unwrap());
        fs::write(path.join(GRAPH), b"another").unwrap();
        let error = read(&path, &package.manifest, GRAPH).unwrap_err().to_string();
        assert!(error.contains("denoiser.f32.onnx` has sha256"), "{error}");
        assert!(read(&path, &package.manifest, "stray").is_err());
    }

    #[test]
    fn a_wrong_digest_or_version_in_the_manifest_is_named() {
        let (_folder, path) = good();
        rewrite(&path, |m| m.files.get_mut(GRAPH).unwrap().sha256 = "1".repeat(64));
        assert!(error(&path).contains("denoiser.f32.onnx` has sha256"), "{}", error(&path));
        rewrite(&path, |m| m.format_version = 99);
        assert!(error(&path).contains("manifest.json`") && error(&path).contains("99"), "{}", error(&path));
        fs::write(path.join(MANIFEST_FILE), "{").unwrap();
        assert!(error(&path).contains("manifest.json`"), "{}", error(&path));
        fs::write(path.join(MANIFEST_FILE), b"\xff").unwrap();
        assert!(error(&path).contains("manifest.json`"), "{}", error(&path));
    }

    #[test]
    fn what_the_manifest_does_not_list_is_refused() {
        let (_folder, path) = good();
        fs::write(path.join(".hidden"), b"").unwrap();
        assert!(error(&path).contains(".hidden`: not listed"), "{}", error(&path));
        fs::remove_file(path.join(".hidden")).unwrap();
        fs::write(path.join("extra.bin"), b"x").unwrap();
        assert!(error(&path).contains("extra.bin`: not listed"), "{}", error(&path));
        fs::remove_file(path.join("extra.bin")).unwrap();
        fs::create_dir(path.join("more")).unwrap();
        assert!(error(&path).contains("more`: not listed"), "{}", error(&path));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_refused_wherever_it_points() {
        let (folder, path) = good();
        let outside = folder.path().join("outside.bin");
        fs::rename(path.join(WEIGHTS_FILE), &outside).unwrap();
        std::os::unix::fs::symlink(&outside, path.join(WEIGHTS_FILE)).unwrap();
        assert!(error(&path).contains("weights.bin`: a link"), "{}", error(&path));
    }

    #[test]
    fn packages_are_found_in_order_or_not_at_all() {
        let (folder, shoes) = good();
        let hats = package(folder.path(), "hats");
        fs::create_dir(folder.path().join("empty")).unwrap();
        assert_eq!(find(folder.path()).unwrap(), [hats, shoes.clone()]);
        assert_eq!(find(&shoes).unwrap(), [shoes]);
        let nothing = find(&folder.path().join("empty")).unwrap_err().to_string();
        assert!(nothing.contains("holds no model package"), "{nothing}");
        assert!(find(&folder.path().join("missing")).unwrap_err().to_string().contains("missing"));
    }
}
