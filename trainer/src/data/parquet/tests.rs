//! Parquet files made with the crate's own writer: good ones, damaged ones, and ones that are something else.

use std::sync::Arc;

use image::{GrayImage, ImageFormat, Luma};
use parquet::data_type::Int64Type;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::*;
use crate::data::decode::tests::encode;
use crate::data::{Kind, load as load_any, load_pair};

const LABELLED: &str = "message schema {
    optional group image { optional binary bytes; optional binary path (STRING); }
    optional int64 label;
}";
const UNLABELLED: &str = "message schema { optional group image { optional binary bytes; } }";

/// A 4×3 PNG of one grey.
fn png(value: u8) -> Vec<u8> {
    encode(GrayImage::from_pixel(4, 3, Luma([value])), ImageFormat::Png)
}

/// A file with the given cells, in row groups of at most three rows. `None` is a null.
fn file(schema: &str, images: &[Option<Vec<u8>>], labels: &[Option<i64>], names: Option<&str>) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let metadata = names.map(|names| {
        let text = format!(r#"{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}"#);
        vec![KeyValue::new("huggingface".to_owned(), text)]
    });
    let properties = Arc::new(WriterProperties::builder().set_key_value_metadata(metadata).build());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    for start in (0..images.len()).step_by(3) {
        let rows = start..images.len().min(start + 3);
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            match column.untyped() {
                parquet::column::writer::ColumnWriter::ByteArrayColumnWriter(w) => {
                    let levels: Vec<i16> =
                        images[rows.clone()].iter().map(|i| if i.is_some() { 2 } else { 1 }).collect();
                    let values: Vec<ByteArray> =
                        images[rows.clone()].iter().flatten().map(|b| b.clone().into()).collect();
                    w.write_batch(&values, Some(&levels), None).unwrap();
                }
                _ => {
                    let levels: Vec<i16> =
                        labels[rows.clone()].iter().map(|l| i16::from(l.is_some())).collect();
                    let values: Vec<i64> = labels[rows.clone()].iter().copied().flatten().collect();
                    column.typed::<Int64Type>().write_batch(&values, Some(&levels), None).unwrap();
                }
            }
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

/// Eight images, image i all of grey i, with label i mod 3.
fn eight() -> Vec<u8> {
    let images: Vec<_> = (0..8).map(|i| Some(png(i))).collect();
    let labels: Vec<_> = (0..8).map(|i| Some(i % 3)).collect();
    file(LABELLED, &images, &labels, None)
}

fn load_bytes(bytes: &[u8]) -> Result<ImageSet> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.parquet");
    std::fs::write(&path, bytes).unwrap();
    load_any(&DataSource::new(Kind::Parquet, path))
}

#[test]
fn images_and_labels_come_in_the_order_of_the_rows() {
    let set = load_bytes(&eight()).unwrap();
    assert_eq!((set.channels, set.height, set.width), (1, 3, 4));
    assert_eq!((0..8).map(|i| set.image(i)[11]).collect::<Vec<_>>(), (0..8).collect::<Vec<u8>>());
    assert_eq!((set.labels, set.names.len()), (vec![0, 1, 2, 0, 1, 2, 0, 1], 0));
    let unlabelled = load_bytes(&file(UNLABELLED, &[Some(png(1))], &[], None)).unwrap();
    assert!(unlabelled.labels.is_empty());
}

#[test]
fn class_names_come_from_the_metadata_and_bound_the_labels() {
    let names = Some(r#"["cat", "dog"]"#);
    let set = load_bytes(&file(LABELLED, &[Some(png(1))], &[Some(1)], names)).unwrap();
    assert_eq!(set.names, ["cat", "dog"]);
    for bad in [-1, 2] {
        let images = [Some(png(1)), Some(png(2))];
        let error =
            load_bytes(&file(LABELLED, &images, &[Some(0), Some(bad)], names)).unwrap_err().to_string();
        assert!(error.ends_with(&format!("some.parquet` row 1: label is {bad}, expected 0 to 1")), "{error}");
    }
}

#[test]
fn bad_rows_are_named() {
    let good = || Some(png(1));
    let truncated = || Some(png(1)[..20].to_vec());
    let other = || Some(encode(GrayImage::new(9, 9), ImageFormat::Png));
    let rows = |last: Option<Vec<u8>>| [good(), good(), good(), good(), last];
    for (last, label, expected) in [
        (truncated(), Some(0), "row 4: not a readable image"),
        (Some(vec![]), Some(0), "row 4: not a readable image: it is empty"),
        (None, Some(0), "row 4: not a readable image: `image.bytes` is null"),
        (other(), Some(0), "row 4: image is 1 channel of 9×9, expected 1 channel of 3×4 as `"),
        (good(), None, "row 4: label is null"),
    ] {
        let labels = [Some(0), Some(0), Some(0), Some(0), label];
        let error = load_bytes(&file(LABELLED, &rows(last), &labels, None)).unwrap_err().to_string();
        assert!(error.contains("some.parquet` ") && error.contains(expected), "{error}");
    }
}

#[test]
fn other_files_are_refused_with_their_columns() {
    for (schema, expected) in [
        (
            "message schema { optional group picture { optional binary bytes; } }",
            "its columns are: picture.bytes",
        ),
        ("message schema { optional group image { optional binary data; } }", "no column `image.bytes`"),
    ] {
        let error = load_bytes(&file(schema, &[Some(png(1))], &[], None)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let empty = load_bytes(&file(LABELLED, &[], &[], None)).unwrap_err().to_string();
    assert!(empty.contains("the number there are") || empty.contains("no images"), "{empty}");
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1PAR1", b"not a parquet file at all, but long enough"] {
        let error = load_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains("some.parquet` is not a readable Parquet file"), "{error}");
    }
}

#[test]
fn every_truncation_is_an_error_that_names_the_file() {
    let bytes = eight();
    for cut in (0..bytes.len()).step_by(7).chain(bytes.len() - 12..bytes.len()) {
        let error = load_bytes(&bytes[..cut]).unwrap_err().to_string();
        assert!(error.contains("some.parquet` is not a readable Parquet file"), "cut at {cut}: {error}");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes = eight();
    let original = load_bytes(&bytes).unwrap();
    let mut harmed = 0;
    for i in (0..bytes.len()).step_by(5) {
        let mut broken = bytes.clone();
        broken[i] ^= 0x55;
        match load_bytes(&broken) {
            Err(error) => {
                harmed += 1;
                assert!(error.to_string().contains("some.parquet`"), "byte {i}: {error}");
            }
            Ok(set) => assert!(set.len() <= original.len(), "byte {i}"),
        }
    }
    assert!(harmed > 50, "only {harmed} errors");
}

#[test]
fn a_folder_has_two_sides_and_they_do_not_leak() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, greys: std::ops::Range<u8>| {
        let images: Vec<_> = greys.map(|i| Some(png(i))).collect();
        std::fs::write(dir.path().join(name), file(UNLABELLED, &images, &[], None)).unwrap();
    };
    let source = DataSource::new(Kind::Parquet, dir.path());
    let error = load_any(&source).unwrap_err().to_string();
    assert!(error.contains("no file `train-*.parquet`"), "{error}");
    write("train-00001-of-00002.parquet", 5..9);
    write("train-00000-of-00002.parquet", 0..5);
    write("test-00000-of-00001.parquet", 7..12);
    write("README.parquet", 0..1);
    let train = load_any(&source).unwrap();
    assert_eq!((0..9).map(|i| train.image(i)[0]).collect::<Vec<_>>(), (0..9).collect::<Vec<u8>>());
    let pair = load_pair(&DataSource { images: Some(3), ..source.clone() }).unwrap();
    assert_eq!((pair.train.len(), pair.test.len(), pair.dropped), (3, 3, 2));
    let test = load_any(&DataSource { split: Split::Test, ..source.clone() }).unwrap();
    assert_eq!(test, pair.test);
    assert_eq!(load_any(&DataSource { images: Some(7), ..source.clone() }).unwrap(), train.first(7).unwrap());
    let too_many = load_any(&DataSource { images: Some(10), ..source }).unwrap_err().to_string();
    assert_eq!(too_many, "10 images were asked for, expected 1 to 9, the number there are");
}

#[test]
fn a_single_file_has_no_held_out_side_but_can_hold_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some.parquet");
    std::fs::write(&path, eight()).unwrap();
    let source = DataSource { split: Split::Test, ..DataSource::new(Kind::Parquet, &path) };
    assert!(load_any(&source).unwrap_err().to_string().contains("`data.split`"));
    let held = load_any(&DataSource { hold_out: Some(3), ..source.clone() }).unwrap();
    let rest = load_any(&DataSource { hold_out: Some(3), split: Split::Train, ..source }).unwrap();
    assert_eq!((held.len(), rest.len()), (3, 5));
    assert!((0..3).all(|i| (0..5).all(|j| held.image(i) != rest.image(j))));
}
