//! Hugging Face style Parquet: a column `image`, a struct of `bytes` and `path`, and optionally `label`, an integer.
//!
//! Reads two leaf columns row group by row group and decodes as it goes, so that only pixels stay in memory. Files are
//! not trusted: the crate `parquet` may panic on damaged pages, which becomes an error that names the file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::SchemaDescriptor;

use super::collect::Collector;
use super::decode::decode;
use super::error::{DataError, Result};
use super::{DataSource, ImageSet, Split};

/// Rows read at once.
const BATCH: usize = 256;

/// Loads the file, or every `train-*.parquet` (or `test-*`) of the folder in the order of their names.
pub fn load(source: &DataSource) -> Result<ImageSet> {
    let files = files(source.path()?, source.split)?;
    let opened = files.iter().map(|path| Table::open(path)).collect::<Result<Vec<_>>>()?;
    let rows: usize = opened.iter().map(|table| table.rows).sum();
    let wanted = source.images.map_or(rows, |n| n.min(rows));
    let names = opened.first().map(|table| table.names.clone()).unwrap_or_default();
    let labelled = opened.first().is_some_and(|table| table.label.is_some());
    let mut set = Collector::new(source, wanted, names);
    let mut left = wanted;
    for table in &opened {
        if table.label.is_some() != labelled {
            let reason = "some files of the folder have a column `label` and some have none";
            return Err(DataError::container(table.path, "Parquet", reason));
        }
        guarded(table.path, || table.read(&mut left, &mut set))?;
    }
    set.finish()
}

/// The files that `path` stands for.
fn files(path: &Path, split: Split) -> Result<Vec<PathBuf>> {
    let meta = std::fs::metadata(path).map_err(|e| DataError::io(path, e))?;
    if meta.is_file() {
        return match split {
            Split::Train => Ok(vec![path.to_owned()]),
            Split::Test => Err(DataError::source(
                "split",
                "is `test`, but the path is one file, expected a folder with test-*",
            )),
        };
    }
    let prefix = format!("{}-", split.name());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|e| DataError::io(path, e))? {
        let name = entry.map_err(|e| DataError::io(path, e))?.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(&prefix) && n.ends_with(".parquet")) {
            files.push(path.join(name));
        }
    }
    files.sort();
    if files.is_empty() {
        let hint = format!("the folder holds no file `{prefix}*.parquet`");
        return Err(DataError::Missing { path: path.to_owned(), hint });
    }
    Ok(files)
}

/// Runs code of the crate `parquet` on an untrusted file: a panic becomes an error.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(DataError::container(path, "Parquet", "its pages are damaged")))
}

/// One open file.
struct Table<'a> {
    path: &'a Path,
    reader: SerializedFileReader<File>,
    rows: usize,
    image: usize,
    label: Option<usize>,
    names: Vec<String>,
}

/// Values of one column for some rows: `None` where the file holds a null.
type Cells<T> = Vec<Option<T>>;

// === impl Table ===

impl<'a> Table<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| DataError::io(path, e))?;
        guarded(path, || {
            let reader = SerializedFileReader::new(file).map_err(|e| bad(path, &e))?;
            let meta = reader.metadata().file_metadata();
            let schema = meta.schema_descr();
            let image = leaf(schema, &["image", "bytes"]).ok_or_else(|| {
                let found: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
                let reason = format!("no column `image.bytes`; its columns are: {}", found.join(", "));
                DataError::container(path, "Parquet", reason)
            })?;
            let label = leaf(schema, &["label"]);
            // The sum over row groups is what is read; the file's own count is a claim.
            let rows = reader.metadata().row_groups().iter().map(|g| g.num_rows().max(0) as usize);
            let rows = rows.fold(0, usize::saturating_add);
            let names = meta.key_value_metadata().and_then(|kv| {
                let text = kv.iter().find(|entry| entry.key == "huggingface")?.value.as_deref()?;
                class_names(text)
            });
            let names = names.unwrap_or_default();
            Ok(Self { path, rows, image, label, names, reader })
        })
    }

    /// Reads at most `left` rows into `set`, and takes them off `left`.
    fn read(&self, left: &mut usize, set: &mut Collector<'_>) -> Result<()> {
        let mut row = 0;
        for group in 0..self.reader.num_row_groups() {
            if *left == 0 {
                break;
            }
            let group = self.reader.get_row_group(group).map_err(|e| bad(self.path, &e))?;
            row = self.read_group(&*group, row, left, set)?;
        }
        Ok(())
    }

    fn read_group(
        &self,
        group: &dyn RowGroupReader,
        start: usize,
        left: &mut usize,
        set: &mut Collector<'_>,
    ) -> Result<usize> {
        let column = |i| group.get_column_reader(i).map_err(|e| bad(self.path, &e));
        let mut images = column(self.image)?;
        let mut labels = self.label.map(column).transpose()?;
        let rows = group.metadata().num_rows().max(0) as usize;
        let mut done = 0;
        while done < rows && *left > 0 {
            let count = BATCH.min(rows - done).min(*left);
            let bytes = self.byte_cells(&mut images, count)?;
            let classes = match &mut labels {
                Some(reader) => Some(self.integer_cells(reader, count)?),
                None => None,
            };
            for (i, cell) in bytes.into_iter().enumerate() {
                let at = || format!("`{}` row {}", self.path.display(), start + done + i);
                let cell = cell.ok_or_else(|| DataError::Image {
                    at: at(),
                    reason: "`image.bytes` is null".to_owned(),
                })?;
                let label = match &classes {
                    Some(cells) => Some(cells[i].ok_or_else(|| DataError::Label {
                        at: at(),
                        got: "null".to_owned(),
                        expected: "an integer from 0".to_owned(),
                    })?),
                    None => None,
                };
                set.push(decode(cell.data(), at)?, label, at)?;
            }
            done += count;
            *left -= count;
        }
        Ok(start + rows)
    }

    fn byte_cells(&self, reader: &mut ColumnReader, count: usize) -> Result<Cells<ByteArray>> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (read, full) = match reader {
            ColumnReader::ByteArrayColumnReader(typed) => {
                (typed.read_records(count, Some(&mut levels), None, &mut values), self.full(self.image))
            }
            _ => return Err(self.wrong_type("image.bytes", "a byte array")),
        };
        self.cells(read, count, full, &levels, values)
    }

    fn integer_cells(&self, reader: &mut ColumnReader, count: usize) -> Result<Cells<i64>> {
        let full = self.label.map_or(0, |column| self.full(column));
        let mut levels = Vec::new();
        match reader {
            ColumnReader::Int64ColumnReader(typed) => {
                let mut values = Vec::new();
                let read = typed.read_records(count, Some(&mut levels), None, &mut values);
                self.cells(read, count, full, &levels, values)
            }
            ColumnReader::Int32ColumnReader(typed) => {
                let mut values = Vec::new();
                let read = typed.read_records(count, Some(&mut levels), None, &mut values);
                self.cells(read, count, full, &levels, values.into_iter().map(i64::from).collect())
            }
            _ => Err(self.wrong_type("label", "int64")),
        }
    }

    /// Puts nulls back between the values that were read.
    fn cells<T>(
        &self,
        read: std::result::Result<(usize, usize, usize), ParquetError>,
        count: usize,
        full: i16,
        levels: &[i16],
        values: Vec<T>,
    ) -> Result<Cells<T>> {
        let (records, ..) = read.map_err(|e| bad(self.path, &e))?;
        let mut values = values.into_iter();
        let cells: Cells<T> = if full == 0 {
            values.map(Some).collect()
        } else {
            levels.iter().map(|&level| if level == full { values.next() } else { None }).collect()
        };
        if records != count || cells.len() != count {
            let reason = format!("a column ends early: {} values where {count} were expected", cells.len());
            return Err(DataError::container(self.path, "Parquet", reason));
        }
        Ok(cells)
    }

    /// The definition level of a value that is there.
    fn full(&self, column: usize) -> i16 {
        self.reader.metadata().file_metadata().schema_descr().column(column).max_def_level()
    }

    fn wrong_type(&self, column: &str, expected: &str) -> DataError {
        DataError::container(self.path, "Parquet", format!("column `{column}` is not {expected}"))
    }
}

/// Index of the leaf column at `path`. A repeated field (a list) is none.
fn leaf(schema: &SchemaDescriptor, path: &[&str]) -> Option<usize> {
    schema.columns().iter().position(|c| c.path().parts() == path && c.max_rep_level() == 0)
}

fn bad(path: &Path, error: &ParquetError) -> DataError {
    DataError::container(path, "Parquet", error)
}

/// Class names out of the metadata that Hugging Face's `datasets` writes: `info.features.label.names`.
fn class_names(text: &str) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = value.pointer("/info/features/label/names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
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
    fn file(
        schema: &str,
        images: &[Option<Vec<u8>>],
        labels: &[Option<i64>],
        names: Option<&str>,
    ) -> Vec<u8> {
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
            assert!(
                error.ends_with(&format!("some.parquet` row 1: label is {bad}, expected 0 to 1")),
                "{error}"
            );
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
        assert_eq!(
            load_any(&DataSource { images: Some(7), ..source.clone() }).unwrap(),
            train.first(7).unwrap()
        );
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
}
