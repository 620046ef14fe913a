//! What a client sent to be looked at: a picture or an array becomes the model's values. Nothing is unpacked before its size
//! has been compared.

use std::fmt::Display;

use image::imageops::FilterType;

use crate::decode::npy::Npy;
use crate::decode::picture;
use crate::encode::{Colour, Picture};
use crate::error::{ApiError, Cause};
use crate::model::Card;
use crate::spec::{MAX_SIDE, MOST_NOISE, unwrapped};

/// How far a value may lie beyond its range: what rounding makes of the ends is no mistake.
pub(super) const ROUNDING: f32 = 1e-5;

/// An uploaded picture or array as the model's values.
pub(super) fn image_of(file: &str, resize: bool, card: &Card) -> Result<Vec<f32>, ApiError> {
    let bytes = unwrapped("image", file)?;
    if picture::size(&bytes).is_none() {
        if bytes.starts_with(b"\x93NUMPY") {
            return array_in("image", &bytes, card.manifest.value_range, card);
        }
        let message =
            "`image` is neither a PNG nor a .npy; expected one of them, in base64 where the body is JSON";
        return Err(ApiError::new(Cause::InvalidValue, message).param("image"));
    }
    let shown = picture_in(&bytes, resize, card)
        .map_err(|what| ApiError::new(Cause::InvalidValue, format!("`image`: {what}")).param("image"))?;
    Ok(picture::planar(&shown, card.manifest.value_range))
}

/// A PNG of the model's size, or brought to it. Errors: what is wrong with it, and what is expected.
pub(super) fn picture_in(bytes: &[u8], resize: bool, card: &Card) -> Result<Picture, String> {
    let config = &card.manifest.config;
    let own = [config.width, config.height];
    let wrong = |what: &dyn Display| {
        let offer = if resize {
            format!("a PNG of at most {MAX_SIDE}x{MAX_SIDE} pixels")
        } else {
            format!("a PNG of {}x{} pixels, or `resize` true", own[0], own[1])
        };
        format!("{what}; expected {offer}")
    };
    let Some([width, height]) = picture::size(bytes) else { return Err(wrong(&"it is no PNG")) };
    if resize && [width, height].iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
        return Err(wrong(&format_args!("it is {width}x{height} pixels")));
    }
    let size = if resize { [width, height] } else { own };
    let shown = picture::png(bytes, card.colour, size).map_err(|error| wrong(&error))?;
    Ok(if size == own { shown } else { resized(shown, own) })
}

/// The picture in another size, by a triangle filter.
fn resized(from: Picture, [width, height]: [usize; 2]) -> Picture {
    let sides = [from.width, from.height, width, height].map(|side| side as u32);
    let pixels = match from.colour {
        Colour::Grey => image::GrayImage::from_raw(sides[0], sides[1], from.pixels)
            .map(|from| image::imageops::resize(&from, sides[2], sides[3], FilterType::Triangle).into_raw()),
        Colour::Rgb => image::RgbImage::from_raw(sides[0], sides[1], from.pixels)
            .map(|from| image::imageops::resize(&from, sides[2], sides[3], FilterType::Triangle).into_raw()),
    };
    // A picture has as many pixels as its sides say.
    Picture { width, height, colour: from.colour, pixels: pixels.unwrap_or_default() }
}

/// An uploaded array in base64.
pub(super) fn array_of(field: &str, file: &str, card: &Card) -> Result<Vec<f32>, ApiError> {
    array_in(field, &unwrapped(field, file)?, [-MOST_NOISE, MOST_NOISE], card)
}

/// An array whose values are from `low` to `high`.
fn array_in(field: &str, bytes: &[u8], [low, high]: [f32; 2], card: &Card) -> Result<Vec<f32>, ApiError> {
    let [channels, height, width] = card.shape();
    let elements = channels * height * width;
    let invalid = |what: &dyn std::fmt::Display| {
        let message = format!("`{field}`: {what}; expected a .npy of f32 [{channels}, {height}, {width}]");
        ApiError::new(Cause::InvalidValue, message).param(field)
    };
    let Npy { shape, values } = Npy::read(bytes, elements).map_err(|error| invalid(&error))?;
    if shape != [channels, height, width] && shape != [1, channels, height, width] {
        return Err(invalid(&format_args!("its shape is {shape:?}")));
    }
    match values.iter().position(|&value| !(low - ROUNDING..=high + ROUNDING).contains(&value)) {
        Some(place) => {
            let value = values[place];
            Err(invalid(&format_args!("value {place} is {value}, which is not within {low} to {high}")))
        }
        None => Ok(values),
    }
}
