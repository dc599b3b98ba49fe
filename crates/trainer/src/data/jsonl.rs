//! Problems from a JSONL file, one object a line.

#![deny(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use reward::{Problem, VerifierKind};
use serde_json::Value;

use super::error::DataError;
use super::problems::Reading;
use super::row::{self, Fault, Table};

/// The longest line, in bytes, that is read into memory: far beyond any prompt.
const LONGEST: u64 = 64 << 20;

/// Reads the next line, its end included, into `line`, which is emptied first; says whether there was one.
///
/// # Errors
/// It cannot be read, or is longer than any row, as in a file that is no JSONL.
pub fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let length = reader.by_ref().take(LONGEST).read_until(b'\n', line)?;
    if length as u64 == LONGEST && !line.ends_with(b"\n") {
        let what = format!("is longer than {} MiB: is it one JSON object a line?", LONGEST >> 20);
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    Ok(length > 0)
}

/// The problems of a file; lines of white space are skipped.
pub(super) fn read(path: &Path, reading: &Reading) -> Result<Table, DataError> {
    let io = |error| DataError::Io { path: path.to_owned(), error };
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let mut table = Table::new(path, reading.bad_rows);
    let mut line = Vec::new();
    for number in 1.. {
        match next_line(&mut reader, &mut line) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(DataError::Row { path: path.to_owned(), row: number, what: error.to_string() });
            }
            Err(error) => return Err(io(error)),
        }
        if !line.trim_ascii().is_empty() {
            table.push(number, parse(&line, reading.verifier));
        }
    }
    table.finish()
}

fn parse(line: &[u8], verifier: Option<VerifierKind>) -> Result<Problem, Fault> {
    let value: Value = serde_json::from_slice(line).map_err(|error| {
        // serde_json counts lines within the text it gets, which is always line 1 here.
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or(&message);
        Fault::Malformed(format!("is not JSON: {what} at column {}", error.column()))
    })?;
    match value {
        Value::Object(row) => row::problem(&row, verifier),
        _ => Err(Fault::Malformed("is not a JSON object such as {\"problem\": \"..\", \"answer\": \"..\"}".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::BadRows;
    use super::*;

    fn read_text(text: &[u8]) -> Result<Table, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        let prefix = format!("{}", folder.path().display());
        read(&path, &Reading::default()).map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn rows_keep_their_order_and_blank_lines_are_skipped() {
        let text = b"{\"problem\":\"a\",\"answer\":\"1\"}\r\n\n  \n{\"question\":\"b\",\"gold\":\"2\"}";
        let problems = read_text(text).unwrap().problems;
        assert_eq!(problems.iter().map(|problem| problem.prompt.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn faults_name_file_and_line() {
        let good = "{\"problem\":\"a\",\"answer\":\"1\"}\n";
        let error = |line: &[u8]| read_text(&[good.as_bytes(), b"\n", line].concat()).unwrap_err();
        assert!(error(b"{\"problem\"").starts_with("/data.jsonl:3: is not JSON: EOF"), "{}", error(b"{\"problem\""));
        assert!(error(b"[1]").starts_with("/data.jsonl:3: is not a JSON object"));
        assert!(error(b"{\"a\":\"\xff\"}").starts_with("/data.jsonl:3: is not JSON: "));
        assert!(error(b"{\"problem\":\"a\"}").starts_with("/data.jsonl:3: needs a field `answer` or `gold`"));
    }

    #[test]
    fn rows_that_cannot_be_graded_are_left_out_by_name_unless_all_are() {
        let (good, bad) = ("{\"problem\":\"a\",\"answer\":\"1\"}\n", "{\"problem\":\"a\",\"answer\":\"####\"}\n");
        let table = read_text(format!("{bad}{good}{bad}").as_bytes()).unwrap();
        assert_eq!(table.problems.len(), 1);
        assert_eq!(table.left_out.len(), 2);
        assert!(table.left_out[1].ends_with("data.jsonl:3: the gold answer is empty"), "{:?}", table.left_out);
        let error = read_text(bad.as_bytes()).unwrap_err();
        assert!(error.starts_with("/data.jsonl:1: the gold answer is empty; so is every other row"), "{error}");
    }

    #[test]
    fn bad_rows_are_counted_or_skipped() {
        let text = b"{\n{\"problem\":\"a\",\"answer\":\"1\"}\n[]\n{\"problem\":\"\xff\"}\n";
        let error = read_text(text).unwrap_err();
        assert!(error.starts_with("/data.jsonl:1: is not JSON"), "{error}");
        assert!(error.ends_with("(and 2 more bad rows, the next in line 3)"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        let skip = Reading { bad_rows: BadRows::Skip, ..Reading::default() };
        let table = read(&path, &skip).unwrap();
        assert_eq!((table.problems.len(), table.left_out.len()), (1, 3));
        assert!(
            table.left_out[1]
                .ends_with("data.jsonl:3: is not a JSON object such as {\"problem\": \"..\", \"answer\": \"..\"}")
        );
        assert!(table.places().get(0).unwrap().ends_with("data.jsonl:2"));
        std::fs::write(&path, "[]\n").unwrap();
        assert!(read(&path, &skip).unwrap_err().to_string().ends_with("no row is left"));
    }

    #[test]
    fn an_empty_or_missing_file_is_an_error() {
        assert_eq!(read_text(b"\n").unwrap_err(), "data file /data.jsonl: holds no problems");
        let error = read(Path::new("no/such.jsonl"), &Reading::default()).unwrap_err().to_string();
        assert!(error.starts_with("data file no/such.jsonl: "), "{error}");
    }
}
