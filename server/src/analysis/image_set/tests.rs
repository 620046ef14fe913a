//! Sets in every form, and what is no set.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::encode::{Colour, Encoding, Picture};
use crate::testing::manifest;

/// A model of 4×6 grey pixels, with a sneaker and a boot.
fn card() -> Card {
    Card::new(manifest("shoes", &["sneaker", "boot"]), "0".repeat(64), 0).unwrap()
}

fn read(bytes: &[u8], images: usize) -> Result<ImageSet, String> {
    let card = card();
    let wanted = Wanted { card: &card, resize: false, images, limit: 1 << 20 };
    ImageSet::read("train", &STANDARD.encode(bytes), wanted).map_err(|error| {
        assert_eq!(error.param.as_deref(), Some("train"));
        error.message
    })
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A PNG of 6×4 pixels of this grey.
fn grey(pixel: u8) -> Vec<u8> {
    let picture = Picture { width: 6, height: 4, colour: Colour::Grey, pixels: vec![pixel; 24] };
    picture.encode(Encoding::Png, None).unwrap()
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn pixels_floats_and_pictures_are_the_same_set() {
    let pixels: Vec<u8> = (0..48).map(|i| i * 5).collect();
    let set = read(&npy("|u1", "(2, 4, 6)", &pixels), 300).unwrap();
    assert_eq!((set.len, set.sent, set.labels.clone()), (2, 2, None));
    assert_eq!((set.values[0], set.values[47]), (-1.0, 235.0 / 127.5 - 1.0));
    assert_eq!(read(&npy("|u1", "(2, 4, 6, 1)", &pixels), 300), Ok(set.clone()));
    let floats: Vec<u8> = set.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(read(&npy("<f4", "(2, 1, 4, 6)", &floats), 300), Ok(set.clone()));
    let picture = |pixels: &[u8]| {
        let pixels = pixels.to_vec();
        Picture { width: 6, height: 4, colour: Colour::Grey, pixels }.encode(Encoding::Png, None).unwrap()
    };
    let files = [("b.png", picture(&pixels[24..])), ("a.png", picture(&pixels[..24]))];
    let zipped = read(&archive(&files), 300).unwrap();
    assert_eq!((zipped.values, zipped.labels), (set.values.clone(), None), "in order of name");
    assert_eq!(zipped.swapped, Some(["a.png", "b.png"].map(str::to_owned)));
    let sorted = read(&archive(&[files[1].clone(), files[0].clone()]), 300).unwrap();
    assert_eq!((sorted.values, sorted.swapped), (set.values.clone(), None));
    let first = read(&npy("|u1", "(2, 4, 6)", &pixels), 1).unwrap();
    assert_eq!((first.len, first.sent, first.values.as_slice()), (1, 2, &set.values[..24]));
}

#[test]
fn channels_that_come_last_are_brought_to_the_front() {
    assert_eq!(
        planar(&[0, 51, 255, 102, 0, 0], 3).map(|v| (v * 10.0).round()).collect::<Vec<_>>(),
        [-10.0, -2.0, -6.0, -10.0, 10.0, -10.0]
    );
}

#[test]
fn folders_name_classes_and_fewer_images_are_spread_over_them() {
    let names = ["boot/0.png", "boot/1.png", "set/Sneaker Shoe/0.png", "set/sneaker/1.png"];
    let files: Vec<_> = names.iter().zip(0..).map(|(name, i)| (*name, grey(i * 51))).collect();
    let all = read(&archive(&files), 300).unwrap();
    assert_eq!(all.labels, Some(vec![1, 1, 0, 0]));
    let two = read(&archive(&files), 2).unwrap();
    assert_eq!((two.labels.clone(), two.places().collect::<Vec<_>>()), (Some(vec![1, 0]), vec![0, 2]));
    assert_eq!(two.values[24], all.values[48]);
    let stranger = [files, vec![("hat/0.png", grey(0))]].concat();
    let said = read(&archive(&stranger), 300).unwrap_err();
    assert!(said.contains("the folder of `hat/0.png` is no class of the model, others are"), "{said}");
    let none = [("a/0.png", grey(0)), ("__MACOSX/a/._0.png", vec![7]), ("b/0.png", grey(9))];
    assert_eq!(read(&archive(&none), 300).unwrap().labels, None);
}

#[test]
fn what_is_no_set_is_told_with_what_is_expected() {
    let deep = vec![0_u8; (MOST_PICTURE + 1) as usize];
    let mut damaged = archive(&[("a.png", grey(3))]);
    damaged[40] ^= 0xff;
    let floats: Vec<u8> = [[0.5_f32; 24], [1.5; 24]].concat().iter().flat_map(|v| v.to_le_bytes()).collect();
    for (bytes, said) in [
        (b"hello".to_vec(), "neither a .npy nor a .zip"),
        (b"PK\x03\x04".to_vec(), "not a whole .zip"),
        (archive(&[]), "holds no file"),
        (archive(&[("a.txt", b"hello".to_vec())]), "`a.txt`: it is no PNG"),
        (archive(&[("a.png", deep)]), "`a.png`: it unpacks to more than 16777216 bytes"),
        (damaged, "`a.png`: "),
        (
            npy("|u1", "(2, 6, 4)", &[0; 48]),
            "its shape is [2, 6, 4]; expected a .npy of u8 [n, 4, 6, 1] or [n, 4, 6]",
        ),
        (npy("|u1", "(0, 4, 6)", &[]), "no image"),
        (npy("|u1", "(1, 4, 6)", &[0; 23]), "23 bytes of data, its shape asks for 24"),
        (npy("<f4", "(2, 1, 4, 6)", &floats), "a value of image 1 is 1.5"),
        (npy("<f4", "(2, 4, 6)", &floats), "its shape is [2, 4, 6]"),
        (npy("|u1", "(99999999999, 99999999999)", &[]), "it has more than"),
    ] {
        let error = read(&bytes, 300).expect_err(said);
        assert!(error.contains(said), "{error}, expected {said}");
    }
    let card = card();
    let wanted = Wanted { card: &card, resize: false, images: 300, limit: 100 };
    let said =
        ImageSet::read("train", &STANDARD.encode(npy("|u1", "(2, 4, 6)", &[0; 48])), wanted).unwrap_err();
    assert!(said.message.contains("ask for `images` 1 or fewer"), "{}", said.message);
}

#[test]
fn pictures_of_another_size_are_brought_to_the_models_if_asked() {
    let card = card();
    let large = Picture { width: 12, height: 8, colour: Colour::Rgb, pixels: vec![255; 288] };
    let file = STANDARD.encode(archive(&[("a.png", large.encode(Encoding::Png, None).unwrap())]));
    let wanted = Wanted { card: &card, resize: true, images: 300, limit: 1 << 20 };
    assert_eq!(ImageSet::read("test", &file, wanted).unwrap().values, [1.0; 24]);
    let said = ImageSet::read("test", &file, Wanted { resize: false, ..wanted }).unwrap_err().message;
    assert!(said.contains("12x8 pixels") && said.contains("or `resize` true"), "{said}");
}

#[test]
fn pictures_that_unpack_to_too_much_together_are_no_set() {
    // Each is of the most that a picture may have but for a byte, nearly all of it behind its end; packed once.
    let mut padded = grey(9);
    padded.resize(MOST_PICTURE as usize - 1, 0);
    let first = archive(&[("000.png", padded)]);
    let of = |count: u64| {
        let mut archive = ZipWriter::new_append(Cursor::new(first.clone())).unwrap();
        (1..count).for_each(|i| archive.deep_copy_file("000.png", &format!("{i:03}.png")).unwrap());
        archive.finish().unwrap().into_inner()
    };
    let most = MOST_PICTURES / MOST_PICTURE;
    assert_eq!(read(&of(most), 300).unwrap().len, most as usize);
    let said = read(&of(most + 1), 300).unwrap_err();
    assert!(
        said.contains(
            "`016.png`: with it the pictures unpack to more than 268435456 bytes, the most of a set"
        ),
        "{said}"
    );
    // Those that nobody wants are not unpacked.
    assert_eq!(read(&of(most + 1), 3).unwrap().len, 3);
}

#[test]
fn small_files_of_many_pixels_are_no_set() {
    let side = 2048;
    let plain = Picture { width: side, height: side, colour: Colour::Grey, pixels: vec![9; side * side] };
    let plain = plain.encode(Encoding::Png, None).unwrap();
    let names: Vec<_> = (0..=(MOST_PIXELS as usize) / (side * side)).map(|i| format!("{i:03}.png")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), plain.clone())).collect();
    let file = STANDARD.encode(archive(&files));
    let card = card();
    let wanted = Wanted { card: &card, resize: true, images: 300, limit: 1 << 20 };
    let said = ImageSet::read("train", &file, wanted).unwrap_err().message;
    assert!(said.contains("`064.png`: with it the pictures have more than 268435456 pixels"), "{said}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), zip in any::<bool>()) {
        if zip {
            bytes.splice(0..0, *b"PK");
        }
        let _ = read(&bytes, 3);
    }

    #[test]
    fn a_damaged_archive_is_refused_or_another_set(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = archive(&[("sneaker/a.png", grey(9)), ("boot/b.png", grey(200))]);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        if let Ok(set) = read(&bytes, 3) {
            prop_assert_eq!(set.values.len(), 24 * set.len);
        }
    }
}
