//! The `[data]` table of a recipe: which images, how many of them, and what they must look like.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{DataError, Result};
use super::toy::Toy;

/// Where images come from. Unknown keys are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// The kind of source.
    pub kind: Kind,
    /// A file or a folder; every kind but `toy` needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Which side of the train/test split.
    #[serde(default)]
    pub split: Split,
    /// Holds so many images out for `split = "test"`, of a source that has no held-out side of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<usize>,
    /// Seed of a shuffle before the first `images` are taken; it also draws what is held out. Without it the order
    /// is the source's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle: Option<u64>,
    /// Only the first so many images. Under one `shuffle` a smaller subset is part of a larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// Demanded channels: 1 or 3. An image that differs is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Demanded height in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Demanded width in pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Names of the classes, in the order of the labels. Where given, a label beyond them is an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Parameters of `kind = "toy"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toy: Option<Toy>,
}

/// The kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Hugging Face style Parquet: columns `image` (struct of `bytes` and `path`) and, optionally, `label` (int64).
    Parquet,
    /// PNG, JPEG or WebP files, one subfolder a class; or files alone, without labels.
    Folder,
    /// MNIST-style idx files: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, and `t10k-…`, each as it is or
    /// packed as `.gz`.
    Idx,
    /// Procedural geometric images; needs no path.
    Toy,
}

/// A side of the train/test split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Images to learn from.
    #[default]
    Train,
    /// Images held out.
    Test,
}

// === impl DataSource ===

impl DataSource {
    /// A source of `kind` at `path`, everything else at its default.
    pub fn new(kind: Kind, path: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            path: Some(path.into()),
            split: Split::Train,
            hold_out: None,
            shuffle: None,
            images: None,
            channels: None,
            height: None,
            width: None,
            classes: Vec::new(),
            toy: None,
        }
    }

    /// Procedural images.
    pub fn toy(toy: Toy) -> Self {
        Self { path: None, toy: Some(toy), ..Self::new(Kind::Toy, "") }
    }

    /// Takes the images from another path, where one is given.
    pub fn redirect(&mut self, path: Option<PathBuf>) {
        if path.is_some() {
            self.path = path;
        }
    }

    /// Checks what can be checked without opening a file. Errors name the key.
    pub fn validate(&self) -> Result<()> {
        if self.images == Some(0) {
            return Err(DataError::source("images", "is 0, expected at least 1"));
        }
        if !matches!(self.channels, None | Some(1 | 3)) {
            return Err(DataError::source("channels", "is neither 1 (grey) nor 3 (RGB)"));
        }
        for (field, value) in [("height", self.height), ("width", self.width)] {
            if !value.is_none_or(|side| (1..=super::decode::MAX_SIDE as usize).contains(&side)) {
                let problem = format!("is out of range, expected 1 to {}", super::decode::MAX_SIDE);
                return Err(DataError::source(field, problem));
            }
        }
        match (self.kind, self.toy) {
            (Kind::Toy, _) if self.path.is_some() => {
                Err(DataError::source("path", "goes with every kind but `toy`, which needs none"))
            }
            (Kind::Toy, toy) => toy.unwrap_or_default().validate(),
            (_, Some(_)) => Err(DataError::source("toy", "goes with `kind = \"toy\"` only")),
            (Kind::Folder, None) if self.images.is_some() && self.shuffle.is_none() => {
                // The order is class by class: its beginning would be the first classes alone.
                Err(DataError::source("images", "of a folder needs `data.shuffle`, the seed of the subset"))
            }
            _ => self.path().map(|_| ()),
        }
    }

    /// The path, which must be there for kinds that read files.
    pub(super) fn path(&self) -> Result<&Path> {
        self.path.as_deref().ok_or_else(|| {
            DataError::source("path", format!("is missing, expected a file or a folder; {WHERE_TO_GET_DATA}"))
        })
    }
}

/// Where data can be had.
pub(super) const WHERE_TO_GET_DATA: &str = "Fashion-MNIST is at github.com/zalandoresearch/fashion-mnist (idx files) \
    and, like any image set in the Hugging Face style, as Parquet; FairFace is described in arXiv 1908.04913; \
    `kind = \"toy\"` needs no data";

// === impl Split ===

impl Split {
    /// `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<DataSource, String> {
        let source: DataSource = toml::from_str(text).map_err(|e| e.to_string())?;
        source.validate().map_err(|e| e.to_string()).map(|()| source)
    }

    #[test]
    fn a_table_says_what_it_means() {
        let source = parse("kind = 'folder'\npath = 'cats'\nshuffle = 3\nimages = 10\nchannels = 3").unwrap();
        let plain = DataSource::new(Kind::Folder, "cats");
        let expected = DataSource { shuffle: Some(3), images: Some(10), channels: Some(3), ..plain };
        assert_eq!(source, expected);
        let toy = parse("kind = 'toy'\n[toy]\nalpha = 1.5\nclasses = 2").unwrap();
        assert_eq!(toy, DataSource::toy(Toy { alpha: 1.5, classes: 2, ..Toy::default() }));
        for source in [source, toy] {
            assert_eq!(
                parse(&toml::to_string(&source).unwrap()).unwrap(),
                source,
                "it is written as it is read"
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("kind = 'parquet'\npath = 'x'\nimage = 3", "unknown field `image`"),
            ("kind = 'toy'\n[toy]\nbeta = 3", "unknown field `beta`"),
            ("kind = 'csv'\npath = 'x'", "unknown variant `csv`"),
            ("kind = 'parquet'", "`data.path` is missing"),
            ("kind = 'parquet'\npath = 'x'\nimages = 0", "`data.images` is 0"),
            ("kind = 'parquet'\npath = 'x'\nimages = -1", "invalid value"),
            ("kind = 'parquet'\npath = 'x'\nchannels = 2", "`data.channels` is neither"),
            ("kind = 'parquet'\npath = 'x'\nheight = 0", "`data.height` is out of range"),
            ("kind = 'parquet'\npath = 'x'\nwidth = 5000", "`data.width` is out of range"),
            ("kind = 'folder'\npath = 'x'\nimages = 5", "needs `data.shuffle`"),
            ("kind = 'parquet'\npath = 'x'\n[toy]\nsize = 8", "`data.toy` goes with"),
            ("kind = 'toy'\npath = 'x'", "`data.path` goes with"),
            ("kind = 'toy'\n[toy]\nsize = 1", "`data.toy.size` is 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
