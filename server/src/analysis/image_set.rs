//! A set of images that a client sent, as the model's values: an array of pixels or of floats, or an archive of pictures,
//! whose folders may name their classes. An archive is unpacked picture by picture, each into bounded memory, and only those
//! that are wanted.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{Cursor, Read as _};

use windowpane_diffusion::psnr_gap::value;
use zip::ZipArchive;

use super::upload::{ROUNDING, picture_in};
use crate::decode::npy::{Array, Npy, Pixels};
use crate::decode::picture;
use crate::error::{ApiError, Cause};
use crate::model::Card;
use crate::spec::unwrapped;

/// Files in an archive at most.
const MOST_FILES: usize = 100_000;

/// Bytes of one picture in an archive at most, unpacked.
const MOST_PICTURE: u64 = 16 << 20;

/// Bytes of all pictures that are taken from an archive at most, unpacked.
const MOST_PICTURES: u64 = 256 << 20;

/// Pixels of all pictures that are taken from an archive at most: a few kilobytes may hold millions of one colour, which take
/// their time to be brought to the model's size.
const MOST_PIXELS: u64 = 1 << 28;

/// Images of one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSet {
    /// The model's values, `[n, channels, height, width]`.
    pub values: Vec<f32>,
    /// The class of each, where they are known.
    pub labels: Option<Vec<usize>>,
    /// How many there are.
    pub len: usize,
    /// How many there were before some were taken.
    pub sent: usize,
    /// Whether they were taken in even steps, and not from the beginning.
    spread: bool,
    /// Two names of an archive that follow each other, and are the other way round in it; none where all are in it as they
    /// are named.
    pub swapped: Option<[String; 2]>,
}

/// What is wanted of a set.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The model that shall see it.
    pub card: &'a Card,
    /// Whether pictures of another size are brought to the model's.
    pub resize: bool,
    /// Images at most: of an array the first, of an archive as many in even steps through its names.
    pub images: usize,
    /// Bytes that a set's values may take.
    pub limit: usize,
}

/// Why bytes are no set that is read here: a sentence.
type Wrong = String;

// === impl ImageSet ===

impl ImageSet {
    /// The set in a field: base64 of a `.npy` or of a `.zip` of PNGs.
    pub fn read(field: &str, file: &str, wanted: Wanted<'_>) -> Result<Self, ApiError> {
        let read = Self::of_file(&unwrapped(field, file)?, wanted);
        read.map_err(|what| ApiError::new(Cause::InvalidValue, format!("`{field}`: {what}")).param(field))
    }

    /// The set in a `.npy` or in a `.zip` of PNGs. Errors: a sentence.
    pub fn of_file(bytes: &[u8], wanted: Wanted<'_>) -> Result<Self, String> {
        if bytes.starts_with(b"\x93NUMPY") {
            Self::in_array(bytes, wanted)
        } else if bytes.starts_with(b"PK") {
            Self::in_archive(bytes, wanted)
        } else {
            Err("it is neither a .npy nor a .zip; expected an array of images, or an archive of PNGs"
                .to_owned())
        }
    }

    /// Of pixels, `[n, channels, height, width]`. The first of them, where fewer are wanted.
    pub fn of_pixels(pixels: &[u8], labels: Option<&[usize]>, wanted: Wanted<'_>) -> Self {
        let elements: usize = wanted.card.shape().iter().product();
        let sent = pixels.len() / elements;
        let len = sent.min(wanted.images);
        let values = pixels[..len * elements].iter().map(|&pixel| value(pixel)).collect();
        let labels = labels.map(|labels| labels[..len.min(labels.len())].to_vec());
        Self { values, labels, len, sent, spread: false, swapped: None }
    }

    /// The place of each image among those that were sent.
    pub fn places(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len).map(|i| if self.spread { i * self.sent / self.len } else { i })
    }

    /// From a `.npy`: pixels with their channels last, or the model's values with their channels first.
    fn in_array(bytes: &[u8], wanted: Wanted<'_>) -> Result<Self, Wrong> {
        let [channels, height, width] = wanted.card.shape();
        let elements = channels * height * width;
        let wrong = |what: &dyn Display| {
            let grey = if channels == 1 { format!(" or [n, {height}, {width}]") } else { String::new() };
            format!(
                "{what}; expected a .npy of u8 [n, {height}, {width}, {channels}]{grey}, or of f32 [n, {channels}, \
                 {height}, {width}] in -1 to 1"
            )
        };
        // A value has a byte at least.
        let read = Array::read(bytes, bytes.len()).map_err(|error| wrong(&error))?;
        let shape = match &read {
            Array::Floats(Npy { shape, .. }) | Array::Pixels(Pixels { shape, .. }) => shape,
        };
        let sides = match (&read, channels) {
            (Array::Pixels(_), 1) if shape.len() == 3 => vec![height, width],
            (Array::Pixels(_), _) => vec![height, width, channels],
            (Array::Floats(_), _) => vec![channels, height, width],
        };
        let Some((&len, _)) = shape.split_first().filter(|(_, rest)| *rest == sides.as_slice()) else {
            return Err(wrong(&format_args!("its shape is {shape:?}")));
        };
        let (sent, len) = (len, len.min(wanted.images));
        if len == 0 {
            return Err(wrong(&"it holds no image"));
        }
        wanted.fits(len)?;
        let values = match read {
            Array::Floats(Npy { mut values, .. }) => {
                values.truncate(len * elements);
                // What is beyond is not in the model's range.
                if let Some(place) = values.iter().position(|value| value.abs() > 1.0 + ROUNDING) {
                    let image = place / elements;
                    return Err(wrong(&format_args!("a value of image {image} is {}", values[place])));
                }
                values
            }
            Array::Pixels(Pixels { values, .. }) => {
                let images = values.chunks_exact(elements).take(len);
                images.flat_map(|pixels| planar(pixels, channels)).collect()
            }
        };
        Ok(Self { values, labels: None, len, sent, spread: false, swapped: None })
    }

    /// From an archive of PNGs.
    fn in_archive(bytes: &[u8], wanted: Wanted<'_>) -> Result<Self, Wrong> {
        let damaged = |_| "it is not a whole .zip; expected an archive of PNGs".to_owned();
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let names = names(&archive)?;
        let len = names.len().min(wanted.images);
        wanted.fits(len)?;
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        let (mut unpacked, mut pixels) = (0_u64, 0_u64);
        // One for all of them, and as large as a picture says it is: what grows is there twice while it does.
        let mut picture = Vec::new();
        for i in 0..len {
            // In even steps: sorted by name, the first of them may all be of one class.
            let (name, index) = &names[i * names.len() / len];
            let wrong = |what: &dyn Display| format!("`{}`: {what}", shortened(name));
            let file = archive.by_index(*index).map_err(|error| wrong(&unreadable(&error)))?;
            picture.clear();
            picture.reserve_exact(file.size().min(MOST_PICTURE + 1) as usize);
            let took = file.take(MOST_PICTURE + 1).read_to_end(&mut picture);
            took.map_err(|_| wrong(&"it does not unpack: it is damaged"))?;
            unpacked += picture.len() as u64;
            if picture.len() as u64 > MOST_PICTURE {
                return Err(wrong(&format_args!(
                    "it unpacks to more than {MOST_PICTURE} bytes, the most of a picture"
                )));
            }
            if unpacked > MOST_PICTURES {
                return Err(wrong(&format_args!(
                    "with it the pictures unpack to more than {MOST_PICTURES} bytes, the most of a set"
                )));
            }
            let [width, height] = picture::size(&picture).unwrap_or_default();
            pixels = pixels.saturating_add((width as u64).saturating_mul(height as u64));
            if pixels > MOST_PIXELS {
                return Err(wrong(&format_args!(
                    "with it the pictures have more than {MOST_PIXELS} pixels, the most of a set"
                )));
            }
            let shown = picture_in(&picture, wanted.resize, wanted.card).map_err(|what| wrong(&what))?;
            values.extend(planar(&shown.pixels, shown.colour.channels()));
            labels.push(class_of(name, wanted.card));
        }
        let stranger = labels.iter().position(Option::is_none).map(|i| &names[i * names.len() / len].0);
        match stranger {
            Some(name) if labels.iter().any(Option::is_some) => Err(format!(
                "the folder of `{}` is no class of the model, others are; expected all of them or none",
                shortened(name)
            )),
            _ => {
                let labels = labels.into_iter().collect();
                let swapped = names.windows(2).find(|pair| pair[0].1 > pair[1].1);
                let swapped = swapped.map(|pair| [0, 1].map(|i| shortened(&pair[i].0)));
                Ok(Self { values, labels, len, sent: names.len(), spread: true, swapped })
            }
        }
    }
}

// === impl Wanted ===

impl Wanted<'_> {
    /// Refuses more images than may be held.
    fn fits(&self, images: usize) -> Result<(), Wrong> {
        let image = self.card.shape().iter().product::<usize>().saturating_mul(size_of::<f32>());
        let most = self.limit / image.max(1);
        if images <= most {
            return Ok(());
        }
        Err(format!(
            "{images} images would take more than {} bytes, the most there may be (`--study-limit`); ask for `images` {most} \
             or fewer",
            self.limit
        ))
    }
}

/// Names of the files in an archive with their places, in order of name.
fn names(archive: &ZipArchive<Cursor<&[u8]>>) -> Result<Vec<(String, usize)>, Wrong> {
    if archive.len() > MOST_FILES {
        return Err(format!("it holds {} files, expected at most {MOST_FILES}", archive.len()));
    }
    let mut names = BTreeSet::new();
    for index in 0..archive.len() {
        let name = match archive.name_for_index(index) {
            Some(Ok(name)) => name.into_owned(),
            _ => return Err("a name in it does not read as text".to_owned()),
        };
        // What Finder adds is nobody's picture.
        if !name.ends_with('/') && !name.starts_with("__MACOSX/") {
            names.insert((name, index));
        }
    }
    if names.is_empty() {
        Err("it holds no file; expected PNGs".to_owned())
    } else {
        Ok(names.into_iter().collect())
    }
}

/// The class that the folder of a file names, if it names one of the model's.
fn class_of(name: &str, card: &Card) -> Option<usize> {
    let folder = name.rsplit('/').nth(1)?;
    card.manifest.lookup(folder).ok()
}

fn unreadable(error: &zip::result::ZipError) -> &'static str {
    match error {
        zip::result::ZipError::UnsupportedArchive(_) => {
            "it is packed in a way that is not read here; expected it stored or deflated, without a password"
        }
        _ => "it does not unpack: it is damaged",
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

/// The model's values of one image, whose pixels have their channels last.
fn planar(pixels: &[u8], channels: usize) -> impl Iterator<Item = f32> + '_ {
    (0..channels).flat_map(move |c| pixels.iter().skip(c).step_by(channels).map(|&pixel| value(pixel)))
}

#[cfg(test)]
mod tests;
