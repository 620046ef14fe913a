//! Decoded images into one [`ImageSet`]: one shape for all, one label each or none at all.

use indicatif::{ProgressBar, ProgressStyle};

use super::decode::Decoded;
use super::error::{DataError, Result};
use super::{DataSource, ImageSet};

/// Classes beyond this are taken for a mistake, such as an identifier in the place of a label.
pub const MAX_CLASSES: usize = 100_000;

/// Gathers images one by one.
#[derive(Debug)]
pub struct Collector<'a> {
    source: &'a DataSource,
    shape: Option<(usize, usize, usize)>,
    first: String,
    pixels: Vec<u8>,
    labels: Vec<i64>,
    names: Vec<String>,
    bar: ProgressBar,
}

// === impl Collector ===

impl<'a> Collector<'a> {
    /// An empty collection. `expected` images set the length of the progress bar, which only a terminal sees;
    /// `names` are the source's own class names, replaced by those of the recipe.
    pub fn new(source: &'a DataSource, expected: usize, names: Vec<String>) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} images, {eta} left")
            .expect("the template is a constant; a bad one is a bug");
        let bar = ProgressBar::new(expected as u64).with_style(style).with_message("reading");
        let names = if source.classes.is_empty() { names } else { source.classes.clone() };
        Self { source, shape: None, first: String::new(), pixels: Vec::new(), labels: Vec::new(), names, bar }
    }

    /// Adds one image; `at` names it in errors. Errors: another shape than the recipe or the images before it.
    pub fn push(&mut self, image: Decoded, label: Option<i64>, at: impl Fn() -> String) -> Result<()> {
        let shape = (image.channels, image.height, image.width);
        match self.shape {
            None => {
                self.demand(shape, &at)?;
                (self.shape, self.first) = (Some(shape), at());
            }
            Some(expected) if expected != shape => {
                let expected = format!("{} as {}", show(expected), self.first);
                return Err(DataError::Shape { at: at(), got: show(shape), expected });
            }
            Some(_) => {}
        }
        if let Some(label) = label {
            self.labels.push(self.checked(label, &at)?);
        }
        self.pixels.extend(image.pixels);
        self.bar.inc(1);
        Ok(())
    }

    /// The set. Errors: no image at all.
    pub fn finish(self) -> Result<ImageSet> {
        self.bar.finish_and_clear();
        let shape =
            self.shape.ok_or(DataError::TooFew { wanted: self.source.images.unwrap_or(1), found: 0 })?;
        let names = if self.labels.is_empty() { Vec::new() } else { self.names };
        Ok(ImageSet::new(shape, self.pixels, self.labels, names))
    }

    /// What the recipe demands of a shape.
    fn demand(&self, got: (usize, usize, usize), at: &impl Fn() -> String) -> Result<()> {
        let wanted = [
            ("channels", self.source.channels, got.0),
            ("height", self.source.height, got.1),
            ("width", self.source.width, got.2),
        ];
        for (field, demanded, value) in wanted {
            if let Some(demanded) = demanded.filter(|&d| d != value) {
                let expected = format!("`data.{field}` = {demanded}");
                return Err(DataError::Shape { at: at(), got: show(got), expected });
            }
        }
        Ok(())
    }

    fn checked(&self, label: i64, at: &impl Fn() -> String) -> Result<i64> {
        let classes = if self.names.is_empty() { MAX_CLASSES } else { self.names.len() };
        if usize::try_from(label).is_ok_and(|l| l < classes) {
            return Ok(label);
        }
        Err(DataError::Label { at: at(), got: label.to_string(), expected: format!("0 to {}", classes - 1) })
    }
}

fn show((channels, height, width): (usize, usize, usize)) -> String {
    format!("{channels} channel{} of {height}×{width}", if channels == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Kind;

    fn image(channels: usize, height: usize, width: usize) -> Decoded {
        Decoded { channels, height, width, pixels: vec![0; channels * height * width] }
    }

    fn at() -> String {
        "b.png".to_owned()
    }

    #[test]
    fn mixed_shapes_name_both_images() {
        let source = DataSource::new(Kind::Parquet, "x");
        let mut set = Collector::new(&source, 2, vec![]);
        set.push(image(1, 2, 2), None, || "a.png".to_owned()).unwrap();
        let error = set.push(image(1, 2, 3), None, at).unwrap_err().to_string();
        assert_eq!(error, "b.png: image is 1 channel of 2×3, expected 1 channel of 2×2 as a.png");
    }

    #[test]
    fn demands_of_the_recipe_hold() {
        let source = DataSource { channels: Some(3), height: Some(2), ..DataSource::new(Kind::Parquet, "x") };
        let grey = Collector::new(&source, 1, vec![]).push(image(1, 2, 2), None, at).unwrap_err();
        assert!(grey.to_string().ends_with("expected `data.channels` = 3"), "{grey}");
        let tall = Collector::new(&source, 1, vec![]).push(image(3, 3, 2), None, at).unwrap_err();
        assert!(tall.to_string().ends_with("expected `data.height` = 2"), "{tall}");
        Collector::new(&source, 1, vec![]).push(image(3, 2, 9), None, at).unwrap();
    }

    #[test]
    fn labels_stay_within_the_classes() {
        let source =
            DataSource { classes: vec!["a".into(), "b".into()], ..DataSource::new(Kind::Parquet, "x") };
        let mut set = Collector::new(&source, 1, vec![]);
        for bad in [-1, 2, i64::MIN, i64::MAX] {
            let error = set.push(image(1, 1, 1), Some(bad), at).unwrap_err().to_string();
            assert_eq!(error, format!("b.png: label is {bad}, expected 0 to 1"));
        }
        set.push(image(1, 1, 1), Some(1), at).unwrap();
        assert_eq!(set.finish().unwrap().labels, [1]);
        assert!(Collector::new(&source, 1, vec![]).finish().is_err());
    }
}
