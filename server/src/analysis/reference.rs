//! The images that a package brings along to measure the PSNR gap on, where its owner exported some. They are read when
//! somebody asks, and leave the server only as numbers.

use safetensors::{Dtype, SafeTensors};
use windowpane_diffusion::manifest::REFERENCE_FILE;

use super::image_set::{ImageSet, Wanted};
use crate::engine::package;
use crate::error::{ApiError, Cause};

/// The images that were trained on, and those that were not. Errors: a package without, or whose file is not what its
/// manifest pins or not such images.
pub fn reference(wanted: Wanted<'_>) -> Result<[ImageSet; 2], ApiError> {
    let manifest = &wanted.card.manifest;
    let folder = wanted.card.folder.as_ref().filter(|_| manifest.files.contains_key(REFERENCE_FILE));
    let Some(folder) = folder else {
        let message = format!(
            "`train` is missing, and the package of `{}` has no images of its own to measure on; send some, or export it \
             with `--reference`",
            manifest.name
        );
        return Err(ApiError::new(Cause::InvalidValue, message).param("train"));
    };
    let bytes = package::read(folder, manifest, REFERENCE_FILE)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error.to_string()))?;
    Ok([side(&file, "train", wanted)?, side(&file, "test", wanted)?])
}

fn side(file: &SafeTensors<'_>, side: &str, wanted: Wanted<'_>) -> Result<ImageSet, ApiError> {
    let (name, config) = (format!("{side}.images"), &wanted.card.manifest.config);
    let images = file.tensor(&name).map_err(|error| damaged(&error.to_string()))?;
    let count = match images.shape().split_first() {
        Some((&count, rest)) if rest == wanted.card.shape() && images.dtype() == Dtype::U8 && count > 0 => {
            count
        }
        _ => return Err(damaged(&format!("`{name}` is {:?} {:?}", images.dtype(), images.shape()))),
    };
    let labels = match config.classes {
        0 => None,
        classes => {
            let name = format!("{side}.labels");
            let labels = file.tensor(&name).map_err(|error| damaged(&error.to_string()))?;
            let known = |&bytes: &[u8; 8]| {
                usize::try_from(i64::from_le_bytes(bytes)).ok().filter(|&label| label < classes)
            };
            let read: Option<Vec<usize>> = labels.data().as_chunks::<8>().0.iter().map(known).collect();
            let fits = labels.dtype() == Dtype::I64 && labels.shape() == [count];
            Some(
                read.filter(|_| fits)
                    .ok_or_else(|| damaged(&format!("`{name}` are no labels of its images")))?,
            )
        }
    };
    Ok(ImageSet::of_pixels(images.data(), labels.as_deref(), wanted))
}

fn damaged(what: &str) -> ApiError {
    ApiError::internal(format!("{REFERENCE_FILE}: {what}"))
}
