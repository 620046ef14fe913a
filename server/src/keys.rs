//! Who asks: the API keys of `--keys`, read again when the file changes. What each may do is in `access.rs`. The file is
//! TOML, a table for each key:
//!
//! ```toml
//! [[key]]
//! name = "alice"                # for logs; never leaves the server
//! role = "generate"             # generate, analyse, or admin; each may do what those before it may
//! sha256 = "9f86d081884c7d65…"  # of the key: printf %s KEY | sha256sum
//! ```
//!
//! Only digests are kept, here and in the file. A key is compared with all of them, and with each in constant time: how
//! long it takes tells nothing.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::batcher::Caller;
use crate::reload::Files;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Generate images and run models.
    Generate,
    /// Look into models as well.
    Analyse,
    /// Load and unload them as well.
    Admin,
}

/// The keys, or none: then everybody may do everything but what is an administrator's.
#[derive(Debug, Clone, Default)]
pub struct Keys(Option<Known>);

/// The keys of a file.
#[derive(Debug, Clone)]
struct Known {
    path: PathBuf,
    files: Files,
    keys: Vec<Key>,
    /// The number of the next key that was not there before. Numbers are not given again: whoever has one may be
    /// waiting for an answer.
    next: u32,
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    /// Among those who call; 0 is everybody without a key.
    number: u32,
    role: Role,
    digest: [u8; 32],
}

/// The owner that everybody is who has no key.
const NOBODY: &str = "anonymous";

/// A caller who was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Among whom the engine is shared.
    pub caller: Caller,
    /// What it may do.
    pub role: Role,
}

/// The file of keys is not one.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("`{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says what is not understood.
    #[error("`{}`: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    key: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    role: Role,
    sha256: String,
}

// === impl Keys ===

impl Keys {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        // Before it is read: a change between the two is seen.
        let files = Files::look([path.to_owned()]);
        let mut known = Known { path: path.to_owned(), files, keys: Vec::new(), next: 1 };
        known.keys = known.number(load(path)?);
        Ok(Self(Some(known)))
    }

    /// Reads the text of a file of keys, for whoever has no file to show. There is none to read again.
    pub fn in_file(text: &str) -> Result<Self, KeysError> {
        let path = PathBuf::from("-");
        let keys = parse(text).map_err(|what| KeysError::Content { path: path.clone(), what })?;
        let mut known = Known { path, files: Files::look([]), keys: Vec::new(), next: 1 };
        known.keys = known.number(keys);
        Ok(Self(Some(known)))
    }

    /// Reads the file again. A key that was there before is the same caller as before.
    pub fn read_again(&self) -> Result<Self, KeysError> {
        let Some(mut known) = self.0.clone() else { return Ok(Self(None)) };
        known.keys = known.number(load(&known.path)?);
        Ok(Self(Some(known)))
    }

    /// The file, as it was when it was first read.
    pub(crate) fn files(&self) -> Option<Files> {
        self.0.as_ref().map(|known| known.files.clone())
    }

    /// Whether keys are asked for.
    pub fn required(&self) -> bool {
        self.0.is_some()
    }

    /// Whether there is more than one caller.
    pub fn are_several(&self) -> bool {
        self.0.as_ref().is_some_and(|known| known.keys.len() > 1)
    }

    /// Whose `secret` it is. Without a file of keys everybody is one caller; `None` for an unknown key.
    pub fn identify(&self, secret: Option<&str>) -> Option<Identity> {
        let Some(Known { keys, .. }) = &self.0 else {
            return Some(Identity { caller: Caller::ANONYMOUS, role: Role::Analyse });
        };
        let digest: [u8; 32] = Sha256::digest(secret?.as_bytes()).into();
        let mut found = None;
        for key in keys {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(Identity { caller: Caller(key.number), role: key.role });
            }
        }
        found
    }

    /// Who a caller is to a store that outlives this process and is shared with other servers: something that is made of its
    /// key's digest, from which the digest cannot be made. None for a caller whose key has been taken out.
    pub fn owner(&self, caller: Caller) -> Option<String> {
        let Some(Known { keys, .. }) = &self.0 else { return Some(NOBODY.to_owned()) };
        keys.iter().find(|key| key.number == caller.0).map(Key::owner)
    }

    /// Whoever is this owner here, if anybody is.
    pub fn holder(&self, owner: &str) -> Option<Identity> {
        let Some(Known { keys, .. }) = &self.0 else {
            return (owner == NOBODY).then_some(Identity { caller: Caller::ANONYMOUS, role: Role::Analyse });
        };
        let key = keys.iter().find(|key| key.owner() == owner)?;
        Some(Identity { caller: Caller(key.number), role: key.role })
    }

    /// The name of a caller's key, for logs; nobody's where there are no keys, or its key has been taken out.
    pub fn name(&self, caller: Caller) -> Option<&str> {
        let Some(Known { keys, .. }) = &self.0 else { return None };
        keys.iter().find(|key| key.number == caller.0).map(|key| key.name.as_str())
    }
}

// === impl Key ===

impl Key {
    fn owner(&self) -> String {
        let digest = Sha256::new().chain_update("windowpane owner ").chain_update(self.digest).finalize();
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("key_{hex}")
    }
}

// === impl Known ===

impl Known {
    /// The keys with their numbers: the old one, or one that nobody has had.
    fn number(&mut self, keys: Vec<Key>) -> Vec<Key> {
        let mut number = |key: &Key| {
            let before = self.keys.iter().find(|old| old.digest == key.digest);
            before.map_or_else(
                || {
                    self.next = self.next.saturating_add(1);
                    self.next - 1
                },
                |old| old.number,
            )
        };
        keys.into_iter().map(|key| Key { number: number(&key), ..key }).collect()
    }
}

fn load(path: &Path) -> Result<Vec<Key>, KeysError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| KeysError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|what| KeysError::Content { path: path.to_owned(), what })
}

/// The keys of a file, not yet numbered.
fn parse(text: &str) -> Result<Vec<Key>, String> {
    let File { key: entries } = toml::from_str(text).map_err(|error| said(text, &error))?;
    let mut keys: Vec<Key> = Vec::new();
    for Entry { name, role, sha256 } in entries {
        let digest =
            digest(&sha256).ok_or_else(|| format!("key `{name}`: `sha256` is not 64 hexadecimal digits"))?;
        if digest == Sha256::digest("").as_slice() {
            return Err(format!("key `{name}`: `sha256` is that of an empty key, which everybody knows"));
        }
        if let Some(other) = keys.iter().find(|key| key.name == name || key.digest == digest) {
            return Err(format!("key `{name}` has the name or the digest of key `{}`", other.name));
        }
        keys.push(Key { name, number: 0, role, digest });
    }
    if keys.is_empty() {
        return Err("no key: with an empty file nobody could ask for anything".to_owned());
    }
    Ok(keys)
}

/// What is wrong, and where. Not the line itself, nor the value, as the error would show them: whoever has written a key
/// there, in place of its digest, would find it in the log.
fn said(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    let message = match error.message().rsplit_once(", expected ") {
        Some((found, expected)) if !found.starts_with("unknown field") => format!("expected {expected}"),
        _ => error.message().to_owned(),
    };
    format!("line {line}, column {column}: {message}")
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file with these keys.
    pub(crate) fn file(keys: &[(&str, &str, &str)]) -> String {
        let entry = |(name, role, secret): &(&str, &str, &str)| {
            let hex: String = Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect();
            format!("[[key]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{hex}\"\n")
        };
        keys.iter().map(entry).collect()
    }

    #[test]
    fn a_key_is_its_caller_with_its_role() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        std::fs::write(&path, file(&[("a", "generate", "one"), ("b", "admin", "two")])).unwrap();
        let keys = Keys::read(&path).unwrap();
        let identity = |secret| keys.identify(secret).map(|identity| (identity.caller.0, identity.role));
        assert_eq!(identity(Some("one")), Some((1, Role::Generate)));
        assert_eq!(identity(Some("two")), Some((2, Role::Admin)));
        assert_eq!(keys.name(Caller(2)), Some("b"));
        assert_eq!((keys.name(Caller::ANONYMOUS), keys.name(Caller(3))), (None, None));
        assert_eq!(identity(Some("")), None);
        assert_eq!(identity(None), None);
        assert!(Role::Generate < Role::Analyse && Role::Analyse < Role::Admin);
    }

    #[test]
    fn a_caller_stays_who_it_is_when_the_file_changes_and_nobody_becomes_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let write = |keys: &[_]| std::fs::write(&path, file(keys)).unwrap();
        let caller = |keys: &Keys, secret| keys.identify(Some(secret)).map(|identity| identity.caller.0);
        write(&[("a", "generate", "one"), ("b", "generate", "two")]);
        let first = Keys::read(&path).unwrap();
        write(&[("c", "admin", "three"), ("b", "admin", "two")]);
        let second = first.read_again().unwrap();
        assert_eq!(["one", "two", "three"].map(|secret| caller(&second, secret)), [None, Some(2), Some(3)]);
        assert_eq!(second.identify(Some("two")).unwrap().role, Role::Admin);
        write(&[("d", "generate", "four")]);
        let third = second.read_again().unwrap();
        assert_eq!(caller(&third, "four"), Some(4));
        std::fs::write(&path, "no keys").unwrap();
        assert!(third.read_again().is_err());
    }

    #[test]
    fn an_owner_is_the_same_on_every_server_and_after_a_restart() {
        let here = Keys::in_file(&file(&[("a", "generate", "one"), ("b", "admin", "two")])).unwrap();
        let there = Keys::in_file(&file(&[("x", "admin", "two"), ("y", "analyse", "three")])).unwrap();
        let caller = |keys: &Keys, secret| keys.identify(Some(secret)).unwrap().caller;
        let owner = here.owner(caller(&here, "two")).unwrap();
        assert_eq!(there.owner(caller(&there, "two")), Some(owner.clone()));
        assert_eq!(there.holder(&owner), there.identify(Some("two")));
        let other = here.owner(caller(&here, "one")).unwrap();
        assert_ne!(owner, other);
        assert_eq!((there.holder(&other), there.owner(Caller(9))), (None, None));
        let digest: String = Sha256::digest("two").iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!digest.contains(owner.trim_start_matches("key_")));
        // Without keys everybody is one, who is nobody where there are keys.
        let open = Keys::default();
        let nobody = open.owner(Caller::ANONYMOUS).unwrap();
        assert_eq!(open.holder(&nobody), open.identify(None));
        assert_eq!((here.holder(&nobody), open.holder(&owner)), (None, None));
    }

    #[test]
    fn without_a_file_nobody_is_an_administrator() {
        let keys = Keys::default();
        assert!(!keys.required());
        assert_eq!(keys.identify(Some("whatever")).unwrap().role, Role::Analyse);
    }

    #[test]
    fn what_is_wrong_is_told_without_the_key_that_stands_there() {
        for text in [
            "[[key]]\nname = \"a\"\nrole = \"admin\"\nsecret = \"hunter2\"",
            "[[key]]\nname = \"a\"\nrole = \"admin\"\nsha256 = hunter2",
            "[[key]]\nname = \"a\"\nrole = \"admin\"\nsha256 = [\"hunter2\"]",
            "[[key]]\nname = \"a\"\nrole = \"hunter2\"\nsha256 = \"\"",
            "[[key]]\nname = \"a\"\nsha256 = \"hunter2\"\nrole = \"admin\"",
            "key = \"hunter2\"",
            "key = [\"hunter2\"]",
            "hunter2",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{text}\n{error}");
        }
        let error = parse("[[key]]\nname = \"a\"\nrole = \"admin\"\nsecret = \"abc\"").unwrap_err();
        assert!(error.starts_with("line 4, column 1: unknown field `secret`"), "{error}");
    }

    #[test]
    fn a_file_that_is_none_says_what_is_wrong() {
        let twice = file(&[("a", "generate", "one"), ("a", "admin", "two")]);
        let same = file(&[("a", "generate", "one"), ("b", "admin", "one")]);
        let empty = file(&[("a", "generate", "")]);
        for (text, part) in [
            ("", "missing field `key`"),
            ("key = []", "no key"),
            (
                "[[key]]\nname = \"a\"\nrole = \"king\"\nsha256 = \"\"",
                "line 3, column 8: expected one of `generate`",
            ),
            ("[[key]]\nname = \"a\"\nrole = \"admin\"\nsha256 = \"abc\"", "64 hexadecimal digits"),
            ("[[key]]\nname = \"a\"\nrole = \"admin\"\nsecret = \"abc\"", "unknown field `secret`"),
            (twice.as_str(), "key `a` has the name"),
            (empty.as_str(), "that of an empty key"),
            (same.as_str(), "key `b` has the name or the digest of key `a`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
