//! Wheels are zip files: this one takes the pinned files out of them and compares every digest on the way.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

use crate::setup::pins::{Digest, Take};
use crate::setup::stamp::{hex, sha256_of};

/// Compares a downloaded file with its pin.
pub(crate) fn verify(path: &Path, pinned: Digest) -> Result<()> {
    let size = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    if size != pinned.size {
        bail!("{}", mismatch(&name, &format!("{size} bytes"), &format!("{} bytes", pinned.size)));
    }
    let sha256 = sha256_of(path)?;
    if sha256 != pinned.sha256 {
        bail!("{}", mismatch(&name, &format!("the sha256 {sha256}"), pinned.sha256));
    }
    Ok(())
}

/// Takes what is wanted out of a wheel into `out`, telling `progress` about each run of bytes written.
pub(crate) fn unpack(wheel: &Path, takes: &[Take], out: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let name = wheel.display();
    let file = File::open(wheel).with_context(|| format!("cannot open {name}"))?;
    let mut archive = ZipArchive::new(file).with_context(|| format!("{name} is not a wheel"))?;
    for take in takes {
        match take {
            Take::File { from, to, digest } => {
                let mut entry = archive.by_name(from).with_context(|| format!("no {from} in {name}"))?;
                let (size, sha256) = write(&mut entry, &out.join(to), progress)?;
                if (size, sha256.as_str()) != (digest.size, digest.sha256) {
                    let got = format!("{size} bytes and the sha256 {sha256}");
                    bail!(
                        "{}",
                        mismatch(from, &got, &format!("{} bytes and {}", digest.size, digest.sha256))
                    );
                }
            }
            Take::Tree { from, to } => unpack_tree(&mut archive, from, &out.join(to), progress)?,
        }
    }
    Ok(())
}

fn unpack_tree(archive: &mut ZipArchive<File>, from: &str, to: &Path, progress: &dyn Fn(u64)) -> Result<()> {
    let mut files = 0;
    for index in 0..archive.len() {
        let mut entry =
            archive.by_index(index).with_context(|| format!("entry {index} of the wheel is unreadable"))?;
        if entry.is_dir() {
            continue;
        }
        let Some(path) = entry.enclosed_name() else {
            bail!("entry {index} of the wheel lies outside of it")
        };
        let Ok(inside) = path.strip_prefix(from) else { continue };
        write(&mut entry, &to.join(inside), progress)?;
        files += 1;
    }
    if files == 0 {
        bail!("no files under {from} in the wheel");
    }
    Ok(())
}

fn write(from: &mut impl Read, to: &Path, progress: &dyn Fn(u64)) -> Result<(u64, String)> {
    let parent = to.parent().context("a pinned path without a folder is a bug")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mut file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        let n = from.read(&mut block).with_context(|| format!("cannot unpack {}", to.display()))?;
        if n == 0 {
            return Ok((size, hex(&hasher.finalize())));
        }
        hasher.update(&block[..n]);
        file.write_all(&block[..n]).with_context(|| format!("cannot write {}", to.display()))?;
        size += n as u64;
        progress(n as u64);
    }
}

fn mismatch(name: &str, got: &str, pinned: &str) -> String {
    format!(
        "{name} is not the file that xtask/src/setup/pins.rs pins: it has {got}, pinned is {pinned}; nothing \
         was installed. The download was cut short, or a mirror or proxy that pip uses changed it: run it again, \
         or give pip another index"
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::path::PathBuf;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::setup::stamp::tests::HELLO;

    fn wheel(folder: &Path, entries: &[(&str, &str)]) -> PathBuf {
        let path = folder.join("small-1-py3-none-any.whl");
        let mut writer = ZipWriter::new(File::create(&path).unwrap());
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        writer.add_directory("small/include", options).unwrap();
        for (name, content) in entries {
            writer.start_file(*name, options).unwrap();
            writer.write_all(content.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
        path
    }

    const TAKES: [Take; 2] = [
        Take::File { from: "small/lib/hello.so", to: "lib/hello.so", digest: HELLO },
        Take::Tree { from: "small/include", to: "include" },
    ];

    #[test]
    fn takes_what_is_pinned_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(
            folder.path(),
            &[
                ("small/lib/hello.so", "hello\n"),
                ("small/include/a/b.h", "b"),
                ("small/includes.txt", "no"),
                ("small/x", "no"),
            ],
        );
        let (out, seen) = (folder.path().join("out"), Cell::new(0));
        unpack(&wheel, &TAKES, &out, &|n| seen.set(seen.get() + n)).unwrap();
        assert_eq!(fs::read_to_string(out.join("lib/hello.so")).unwrap(), "hello\n");
        assert_eq!(fs::read_to_string(out.join("include/a/b.h")).unwrap(), "b");
        assert_eq!(seen.get(), 7);
        let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["include", "lib"]);
    }

    #[test]
    fn a_library_with_another_digest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &[("small/lib/hello.so", "hellO\n"), ("small/include/b.h", "b")]);
        let error = unpack(&wheel, &TAKES, &folder.path().join("out"), &|_| ()).unwrap_err().to_string();
        assert!(error.contains("small/lib/hello.so") && error.contains(HELLO.sha256), "{error}");
    }

    #[test]
    fn what_is_not_in_the_wheel_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = wheel(folder.path(), &[("small/lib/hello.so", "hello\n")]);
        let error = unpack(&wheel, &TAKES, &folder.path().join("out"), &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("no files under small/include"), "{error:#}");
        let missing = [Take::File { from: "nowhere", to: "x", digest: HELLO }];
        let error = unpack(&wheel, &missing, &folder.path().join("out"), &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("no nowhere in"), "{error:#}");
    }

    #[test]
    fn a_download_is_compared_by_size_then_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hello.whl");
        fs::write(&path, "hello\n").unwrap();
        verify(&path, HELLO).unwrap();
        fs::write(&path, "hello").unwrap();
        let error = verify(&path, HELLO).unwrap_err().to_string();
        for part in ["hello.whl", "5 bytes", "6 bytes", "cut short"] {
            assert!(error.contains(part), "{error}");
        }
        fs::write(&path, "hellO\n").unwrap();
        let error = verify(&path, HELLO).unwrap_err().to_string();
        assert!(error.contains(HELLO.sha256) && error.contains("nothing was installed"), "{error}");
    }

    #[test]
    fn a_truncated_wheel_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = wheel(folder.path(), &[("small/lib/hello.so", "hello\n")]);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = unpack(&path, &TAKES, &folder.path().join("out"), &|_| ()).unwrap_err();
        assert!(format!("{error:#}").contains("small-1-py3-none-any.whl is not a wheel"), "{error:#}");
    }
}
