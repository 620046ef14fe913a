//! Hugging Face style Parquet: a column `image`, a struct of `bytes` and `path`, and optionally `label`, an integer.
//!
//! Reads two leaf columns row group by row group and decodes as it goes, so that only pixels stay in memory. Files are
//! not trusted: the crate `parquet` may panic on damaged pages, which becomes an error that names the file.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
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
        let mut labels = self.label.map(|i| Ok((i, column(i)?))).transpose()?;
        let rows = group.metadata().num_rows().max(0) as usize;
        let mut done = 0;
        while done < rows && *left > 0 {
            let count = BATCH.min(rows - done).min(*left);
            let bytes = self.byte_cells(&mut images, count)?;
            let classes = match &mut labels {
                Some((i, reader)) => Some(self.integer_cells(reader, *i, count)?),
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
        match reader {
            ColumnReader::ByteArrayColumnReader(typed) => self.cells(typed, self.image, count),
            _ => Err(self.wrong_type("image.bytes", "a byte array")),
        }
    }

    fn integer_cells(&self, reader: &mut ColumnReader, column: usize, count: usize) -> Result<Cells<i64>> {
        match reader {
            ColumnReader::Int64ColumnReader(typed) => self.cells(typed, column, count),
            ColumnReader::Int32ColumnReader(typed) => {
                let cells = self.cells(typed, column, count)?;
                Ok(cells.into_iter().map(|cell| cell.map(i64::from)).collect())
            }
            _ => Err(self.wrong_type("label", "int64")),
        }
    }

    /// The next `count` cells of a column, its nulls put back between the values.
    fn cells<T: DataType>(
        &self,
        reader: &mut ColumnReaderImpl<T>,
        column: usize,
        count: usize,
    ) -> Result<Cells<T::T>> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let read = reader.read_records(count, Some(&mut levels), None, &mut values);
        let (records, ..) = read.map_err(|e| bad(self.path, &e))?;
        let full = self.full(column);
        let mut values = values.into_iter();
        let cells: Cells<T::T> = if full == 0 {
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
mod tests;
