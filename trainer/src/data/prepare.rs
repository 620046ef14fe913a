//! The command `prepare`: are these images what a recipe thinks they are? Counts, sizes, classes, digest, and a
//! contact sheet to look at.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::error::{DataError, Result};
use super::{DataSource, ImageSet, load};
use crate::picture::Picture;

/// Images on a contact sheet.
const SHEET: usize = 64;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Number of images.
    pub images: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Name of each class (its number, where it has no name) and how many images bear it.
    pub classes: Vec<(String, usize)>,
    /// Images that are exact copies of an earlier one.
    pub duplicates: usize,
    /// Digest of the set, as a checkpoint records it.
    pub sha256: String,
}

/// Reads every image of `source`, and draws the first 64 as a PNG at `sheet` where one is wanted.
///
/// Errors: as [`load`]; where nothing is at the path, the error says where to get data.
pub fn prepare(source: &DataSource, sheet: Option<&Path>) -> Result<Report> {
    let set = load(source)?;
    if let Some(path) = sheet {
        let shown = set.len().min(SHEET) * set.image_len();
        let scale = (56 / set.height.max(set.width)).max(1);
        Picture::grid(&set.pixels[..shown], (set.channels, set.height, set.width), 8, scale)
            .and_then(|picture| picture.save(path))
            .map_err(|error| DataError::Sheet { path: path.to_owned(), reason: error.to_string() })?;
    }
    Ok(Report::of(&set))
}

// === impl Report ===

impl Report {
    /// Counts what is in a set.
    pub fn of(set: &ImageSet) -> Self {
        let mut counts = vec![0; set.classes()];
        for &label in &set.labels {
            counts[label as usize] += 1;
        }
        let name = |i: usize| set.names.get(i).cloned().unwrap_or_else(|| i.to_string());
        Self {
            images: set.len(),
            channels: set.channels,
            height: set.height,
            width: set.width,
            classes: counts.into_iter().enumerate().map(|(i, count)| (name(i), count)).collect(),
            duplicates: super::split::duplicates(set),
            sha256: set.sha256.clone(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colour = if self.channels == 1 { "grey" } else { "RGB" };
        writeln!(f, "{} images, {colour}, {} × {} pixels", self.images, self.height, self.width)?;
        writeln!(f, "exact duplicates: {}", self.duplicates)?;
        if self.classes.is_empty() {
            writeln!(f, "no labels")?;
        }
        let width = self.classes.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, count) in &self.classes {
            writeln!(f, "  {name:width$}  {count}")?;
        }
        write!(f, "sha256 {}", self.sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_classes_and_copies() {
        let names = vec!["cat".to_owned()];
        let set = ImageSet::new((1, 1, 2), vec![0, 1, 2, 3, 0, 1], vec![0, 2, 0], names);
        let report = Report::of(&set);
        let expected = [("cat", 2), ("1", 0), ("2", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!((report.images, report.duplicates, &report.classes[..]), (3, 1, &expected[..]));
        let text = report.to_string();
        assert!(
            text.starts_with("3 images, grey, 1 × 2 pixels\n") && text.contains("\n  cat  2\n"),
            "{text}"
        );
    }
}
