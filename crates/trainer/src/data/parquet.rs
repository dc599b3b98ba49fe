//! Problems from a Parquet file, behind the cargo feature `parquet`.
//!
//! The reader is the official `parquet` crate without Arrow. Only plain and Snappy pages are read, which is what
//! the Hub's data sets use by default: Zstandard would need a C library.

#![deny(clippy::indexing_slicing)]

use std::path::Path;

use super::error::DataError;
use super::problems::Reading;
use super::row::Table;

/// The problems of a file.
#[cfg(feature = "parquet")]
pub(super) fn read(path: &Path, reading: &Reading) -> Result<Table, DataError> {
    reader::read(path, reading)
}

/// Refuses every file: this build has no reader.
#[cfg(not(feature = "parquet"))]
pub(super) fn read(path: &Path, _reading: &Reading) -> Result<Table, DataError> {
    let what = "this build reads no Parquet: build with `--features parquet`, or convert the file to .jsonl";
    Err(DataError::Parquet { path: path.to_owned(), what: what.to_owned() })
}

#[cfg(feature = "parquet")]
mod reader {
    use std::fs::File;
    use std::path::Path;

    use parquet::basic::Compression;
    use parquet::file::metadata::ParquetMetaData;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;
    use parquet::schema::types::Type;
    use serde_json::{Map, Value};

    use super::super::error::DataError;
    use super::super::problems::Reading;
    use super::super::row::{self, Table};

    pub(super) fn read(path: &Path, reading: &Reading) -> Result<Table, DataError> {
        let refuse = |what: String| DataError::Parquet { path: path.to_owned(), what };
        let file = File::open(path).map_err(|error| DataError::Io { path: path.to_owned(), error })?;
        let reader = SerializedFileReader::new(file).map_err(|error| refuse(error.to_string()))?;
        check_compression(reader.metadata()).map_err(refuse)?;
        let rows =
            reader.get_row_iter(Some(projection(reader.metadata()))).map_err(|error| refuse(error.to_string()))?;
        let mut table = Table::new(path, reading.bad_rows);
        for (index, row) in rows.enumerate() {
            let row = row.map_err(|error| refuse(format!("row {}: {error}", index + 1)))?;
            let fields: Map<String, Value> =
                row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
            table.push(index + 1, row::problem(&fields, reading.verifier));
        }
        table.finish()
    }

    /// The known columns alone, so that an unreadable column next to them does no harm; all, if none is known, so
    /// that the error can list them.
    fn projection(metadata: &ParquetMetaData) -> Type {
        let schema = metadata.file_metadata().schema();
        let known: Vec<_> = schema.get_fields().iter().filter(|field| row::is_known(field.name())).cloned().collect();
        let fields = if known.is_empty() { schema.get_fields().to_vec() } else { known };
        Type::group_type_builder(schema.name()).with_fields(fields).build().unwrap_or_else(|_| schema.clone())
    }

    fn check_compression(metadata: &ParquetMetaData) -> Result<(), String> {
        let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
        let is_known = |name: Option<&String>| name.is_some_and(|name| row::is_known(name));
        for column in chunks.filter(|column| is_known(column.column_path().parts().first())) {
            match column.compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY => {}
                other => {
                    return Err(format!(
                        "column `{}` is compressed with {other:?}, and only SNAPPY and UNCOMPRESSED are read: \
                         write it anew with one of these or as .jsonl",
                        column.column_path()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Text and numbers as they are; of anything else only the kind, for the row to refuse.
    fn value(field: &Field) -> Value {
        match field {
            Field::Str(text) => Value::from(text.as_str()),
            Field::Byte(number) => Value::from(*number),
            Field::Short(number) => Value::from(*number),
            Field::Int(number) => Value::from(*number),
            Field::Long(number) => Value::from(*number),
            Field::UByte(number) => Value::from(*number),
            Field::UShort(number) => Value::from(*number),
            Field::UInt(number) => Value::from(*number),
            Field::ULong(number) => Value::from(*number),
            // As it was written: 0.1 in 32 bits, widened, would be 0.10000000149011612.
            Field::Float(number) => number.to_string().parse::<f64>().map_or(Value::Null, Value::from),
            Field::Double(number) => Value::from(*number),
            Field::Bool(truth) => Value::from(*truth),
            Field::ListInternal(_) => Value::Array(Vec::new()),
            Field::Null => Value::Null,
            _ => Value::Object(Map::new()),
        }
    }

    #[cfg(test)]
    mod tests {
        use std::sync::Arc;

        use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
        use parquet::file::properties::WriterProperties;
        use parquet::file::writer::SerializedFileWriter;
        use parquet::schema::parser::parse_message_type;

        use super::*;

        const SCHEMA: &str = "message data { required binary question (UTF8); required int64 answer; }";

        /// Two rows, or none, in a file at `path`.
        fn write(path: &Path, schema: &str, compression: Compression, rows: &[(&str, i64)]) {
            let schema = Arc::new(parse_message_type(schema).unwrap());
            let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
            let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
            let mut group = writer.next_row_group().unwrap();
            let texts: Vec<ByteArray> = rows.iter().map(|(text, _)| ByteArray::from(*text)).collect();
            let numbers: Vec<i64> = rows.iter().map(|(_, number)| *number).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
            writer.close().unwrap();
        }

        #[test]
        fn plain_and_snappy_rows_are_read() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("data.parquet");
            for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
                write(&path, SCHEMA, compression, &[("40+2?", 42), ("1+1?", 2)]);
                let problems = read(&path, &Reading::default()).unwrap().problems;
                let read: Vec<_> = problems.iter().map(|row| (row.prompt.as_str(), row.answer.as_str())).collect();
                assert_eq!(read, [("40+2?", "42"), ("1+1?", "2")]);
            }
        }

        #[test]
        fn numbers_of_32_bits_are_as_short_as_they_were_written() {
            for (number, text) in [(0.1, "0.1"), (-2.5, "-2.5"), (16_777_216.0, "16777216.0"), (1e-7, "1e-7")] {
                assert_eq!(value(&Field::Float(number)).to_string(), text);
            }
            assert_eq!(value(&Field::Double(0.1)).to_string(), "0.1");
            assert_eq!(value(&Field::Float(f32::NAN)), Value::Null);
        }

        #[test]
        fn faults_name_file_and_row() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("data.parquet");
            let error = |path: &Path| read(path, &Reading::default()).unwrap_err().to_string();
            write(&path, SCHEMA, Compression::SNAPPY, &[("40+2?", 42), (" ", 2)]);
            assert!(error(&path).ends_with("data.parquet:2: field `question`: is empty"), "{}", error(&path));
            write(&path, SCHEMA, Compression::SNAPPY, &[]);
            assert!(error(&path).ends_with("data.parquet: holds no problems"), "{}", error(&path));
            let other = "message data { required binary text (UTF8); required int64 label; }";
            write(&path, other, Compression::SNAPPY, &[("40+2?", 42)]);
            assert!(error(&path).ends_with("its fields: `text`, `label`"), "{}", error(&path));
            std::fs::write(&path, "no parquet").unwrap();
            assert!(error(&path).contains("data.parquet: "), "{}", error(&path));
        }
    }
}
