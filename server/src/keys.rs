//! Who may ask for what: the API keys of `--keys`, read once. The file is TOML, a table for each key:
//!
//! ```toml
//! [[key]]
//! name = "alice"                # for logs; never leaves the server
//! role = "generate"             # generate, analyse, or admin; each may do what those before it may
//! sha256 = "9f86d081884c7d65…"  # of the key: printf %s KEY | sha256sum
//! ```
//!
//! Only digests are kept, here and in the file. They are compared whole: the time of a comparison tells nothing about
//! the key, since nobody can choose a digest's bytes.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::batcher::Caller;

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
pub struct Keys(Option<Vec<Key>>);

#[derive(Debug, Clone)]
struct Key {
    name: String,
    role: Role,
    digest: [u8; 32],
}

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
        let text = std::fs::read_to_string(path)
            .map_err(|source| KeysError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| KeysError::Content { path: path.to_owned(), what })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let File { key: entries } = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut keys: Vec<Key> = Vec::new();
        for Entry { name, role, sha256 } in entries {
            let digest = digest(&sha256)
                .ok_or_else(|| format!("key `{name}`: `sha256` is not 64 hexadecimal digits"))?;
            if let Some(other) = keys.iter().find(|key| key.name == name || key.digest == digest) {
                return Err(format!("key `{name}` has the name or the digest of key `{}`", other.name));
            }
            keys.push(Key { name, role, digest });
        }
        if keys.is_empty() {
            return Err("no key: with an empty file nobody could ask for anything".to_owned());
        }
        Ok(Self(Some(keys)))
    }

    /// Whether keys are asked for.
    pub fn required(&self) -> bool {
        self.0.is_some()
    }

    /// Whose `secret` it is. Without a file of keys everybody is one caller; `None` for an unknown key.
    pub fn identify(&self, secret: Option<&str>) -> Option<Identity> {
        let Some(keys) = &self.0 else {
            return Some(Identity { caller: Caller::ANONYMOUS, role: Role::Analyse });
        };
        let digest: [u8; 32] = Sha256::digest(secret?.as_bytes()).into();
        let found = keys.iter().enumerate().find(|(_, key)| key.digest == digest);
        // 0 is everybody without a key.
        let number = |i: usize| u32::try_from(i + 1).unwrap_or(u32::MAX);
        found.map(|(i, key)| Identity { caller: Caller(number(i)), role: key.role })
    }
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
        let keys = Keys::parse(&file(&[("a", "generate", "one"), ("b", "admin", "two")])).unwrap();
        let identity = |secret| keys.identify(secret).map(|identity| (identity.caller.0, identity.role));
        assert_eq!(identity(Some("one")), Some((1, Role::Generate)));
        assert_eq!(identity(Some("two")), Some((2, Role::Admin)));
        assert_eq!(identity(Some("")), None);
        assert_eq!(identity(None), None);
        assert!(Role::Generate < Role::Analyse && Role::Analyse < Role::Admin);
    }

    #[test]
    fn without_a_file_nobody_is_an_administrator() {
        let keys = Keys::default();
        assert!(!keys.required());
        assert_eq!(keys.identify(Some("whatever")).unwrap().role, Role::Analyse);
    }

    #[test]
    fn a_file_that_is_none_says_what_is_wrong() {
        let twice = file(&[("a", "generate", "one"), ("a", "admin", "two")]);
        let same = file(&[("a", "generate", "one"), ("b", "admin", "one")]);
        for (text, part) in [
            ("", "missing field `key`"),
            ("key = []", "no key"),
            ("[[key]]\nname = \"a\"\nrole = \"king\"\nsha256 = \"\"", "unknown variant `king`"),
            ("[[key]]\nname = \"a\"\nrole = \"admin\"\nsha256 = \"abc\"", "64 hexadecimal digits"),
            ("[[key]]\nname = \"a\"\nrole = \"admin\"\nsecret = \"abc\"", "unknown field `secret`"),
            (twice.as_str(), "key `a` has the name"),
            (same.as_str(), "key `b` has the name or the digest of key `a`"),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
