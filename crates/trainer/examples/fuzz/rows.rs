//! Data files: JSONL rows of problems.

use std::path::PathBuf;

use trainer::data::{self, BadRows, Reading, Source, Use};

use crate::target::{Random, Target, put, texts};

/// Data.
pub fn rows(folder: PathBuf) -> Target {
    let read = move |bytes: &[u8], random: &mut Random| {
        let path = folder.join("rows.jsonl");
        put(&path, bytes);
        let bad_rows = if random.below(2) == 0 { BadRows::Skip } else { BadRows::Refuse };
        let reading = Reading { bad_rows, ..Reading::default() };
        match data::load(&Source::Jsonl(path), Use::Train, &reading) {
            Ok(loaded) if loaded.problems.is_empty() => Err("data without a problem".into()),
            Err(error) if error.to_string().contains('\n') => Err(format!("an error of several lines: {error}")),
            _ => Ok(()),
        }
    };
    let seeds = texts(&[
        "{\"problem\":\"1+1?\",\"answer\":\"2\"}\n{\"question\":\"?\",\"gold\":42}\n",
        "{\"prompt\":\"Make 16 from 3, 7, 12.\",\"answer\":\"16 from 3, 7, 12\",\"verifier\":\"countdown\"}\n\n",
        "{\"problem\":\"?\",\"answer\":\"40+2 = <<40+2=42>>42\\n#### 42\",\"verifier\":\"exact\"}\r\n",
    ]);
    let pieces =
        &["{", "}", "[", "]", "\"", ":", ",", "\\u0000", "\\ud800", "null", "1e999", "\n", "\u{feff}", "####", "\\"];
    Target { name: "data", seeds, pieces, read: Box::new(read) }
}
