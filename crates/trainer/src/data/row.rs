//! One row of a data file as a problem: which fields count and what an answer looks like.

#![deny(clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use reward::{Problem, VerifierKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::DataError;

/// Why a row is no problem.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not what a data file holds; one line that names the field.
    Malformed(String),
    /// It is a question whose gold answer the verifier cannot judge by; why.
    Ungradable(String),
}

/// The problems of a file, and the rows that had to be left out because no response could ever be right.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    bad_rows: BadRows,
    /// In the file's order.
    pub(super) problems: Vec<Problem>,
    /// The row of each problem, from 1.
    pub(super) rows: Vec<usize>,
    /// `FILE:ROW: why`, one a row left out.
    pub(super) left_out: Vec<String>,
    /// Rows that are refused.
    malformed: Vec<(usize, String)>,
    skipped: bool,
}

impl Table {
    /// An empty table of the file at `path`.
    pub(super) fn new(path: &Path, bad_rows: BadRows) -> Self {
        Self {
            path: path.to_owned(),
            bad_rows,
            problems: Vec::new(),
            rows: Vec::new(),
            left_out: Vec::new(),
            malformed: Vec::new(),
            skipped: false,
        }
    }

    /// Adds row `number` (from 1).
    pub(super) fn push(&mut self, number: usize, row: Result<Problem, Fault>) {
        let at = |why: &str| format!("{}:{number}: {why}", self.path.display());
        match (row, self.bad_rows) {
            (Ok(problem), _) => {
                self.problems.push(problem);
                self.rows.push(number);
            }
            (Err(Fault::Ungradable(why)), _) => self.left_out.push(at(&why)),
            (Err(Fault::Malformed(what)), BadRows::Skip) => {
                self.left_out.push(at(&what));
                self.skipped = true;
            }
            (Err(Fault::Malformed(what)), BadRows::Refuse) => self.malformed.push((number, what)),
        }
    }

    /// The table, if it holds a problem and no row that is refused.
    ///
    /// # Errors
    /// The rows that are refused; or there is no problem: if rows were left out, says why the first one was.
    pub(super) fn finish(self) -> Result<Self, DataError> {
        let mut malformed = self.malformed.iter();
        if let Some((row, what)) = malformed.next().cloned() {
            let (path, more) = (self.path, self.malformed.len() - 1);
            return Err(match malformed.next() {
                Some(&(next, _)) => DataError::Rows { path, row, what, more, next },
                None => DataError::Row { path, row, what },
            });
        }
        match (self.problems.first(), self.left_out.first()) {
            (Some(_), _) => Ok(self),
            (None, Some(why)) if self.skipped => Err(DataError::NoneLeft(why.clone())),
            (None, Some(why)) => Err(DataError::AllUngradable(why.clone())),
            (None, None) => Err(DataError::Empty(self.path)),
        }
    }

    /// Where the problems are, for messages.
    pub(super) fn places(&self) -> Places {
        Places { path: self.path.clone(), rows: self.rows.clone() }
    }
}

/// What becomes of rows of a data file that are no problems: not JSON, broken UTF-8, no question, no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BadRows {
    /// The file is refused, with the first of them and how many there are.
    #[default]
    Refuse,
    /// They are left out, counted, and the first is named.
    Skip,
}

/// The file and row that problems come from, by their index.
#[derive(Debug, Clone, Default)]
pub struct Places {
    path: PathBuf,
    rows: Vec<usize>,
}

impl Places {
    /// `FILE:ROW` of a problem; `None` of one that is made and not read.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<String> {
        Some(format!("{}:{}", self.path.display(), self.rows.get(index)?))
    }
}

/// Names of the question, the first that is there counts.
const PROMPT_FIELDS: [&str; 3] = ["problem", "question", "prompt"];
/// Names of the gold answer, the first that is there counts.
const ANSWER_FIELDS: [&str; 2] = ["answer", "gold"];
/// The row's own verifier, for data sets that mix tasks.
const VERIFIER_FIELD: &str = "verifier";

/// Whether a column of a table can matter.
#[cfg(feature = "parquet")]
pub(super) fn is_known(field: &str) -> bool {
    field == VERIFIER_FIELD || PROMPT_FIELDS.contains(&field) || ANSWER_FIELDS.contains(&field)
}

/// The problem that a row states. `verifier` wins over the row's own, which wins over `math`.
///
/// # Errors
/// [`Fault`] names the field.
pub(super) fn problem(row: &Map<String, Value>, verifier: Option<VerifierKind>) -> Result<Problem, Fault> {
    let (prompt, answer, verifier) = fields(row, verifier).map_err(Fault::Malformed)?;
    Problem::new(prompt, answer, verifier).map_err(|error| Fault::Ungradable(error.to_string()))
}

fn fields(row: &Map<String, Value>, verifier: Option<VerifierKind>) -> Result<(String, String, VerifierKind), String> {
    let prompt = text(row, &PROMPT_FIELDS)?;
    let answer = gold(&text(row, &ANSWER_FIELDS)?);
    let verifier = match (verifier, row.get(VERIFIER_FIELD)) {
        (Some(kind), _) => kind,
        (None, None | Some(Value::Null)) => VerifierKind::Math,
        (None, Some(Value::String(name))) => {
            name.parse().map_err(|error| format!("field `{VERIFIER_FIELD}`: {error}"))?
        }
        (None, Some(other)) => return Err(format!("field `{VERIFIER_FIELD}`: is {}, not text", kind(other))),
    };
    Ok((prompt, answer, verifier))
}

fn text(row: &Map<String, Value>, names: &[&str]) -> Result<String, String> {
    let found = names.iter().find_map(|&name| match row.get(name) {
        None | Some(Value::Null) => None,
        Some(value) => Some((name, value)),
    });
    match found {
        Some((name, Value::String(text))) if text.trim().is_empty() => Err(format!("field `{name}`: is empty")),
        Some((_, Value::String(text))) => Ok(text.clone()),
        Some((_, Value::Number(number))) => Ok(number.to_string()),
        Some((name, other)) => Err(format!("field `{name}`: is {}, not text or a number", kind(other))),
        None => {
            let there: Vec<String> = row.keys().take(12).map(|key| format!("`{}`", key.escape_debug())).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            Err(format!("needs a field `{}`; its fields: {there}", names.join("` or `")))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// What follows the last `####`, as in GSM8K, or else the whole answer; without white space around it.
fn gold(answer: &str) -> String {
    answer.rsplit("####").next().unwrap_or(answer).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, verifier: Option<VerifierKind>) -> Result<Problem, Fault> {
        problem(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap(), verifier)
    }

    #[test]
    fn every_pair_of_field_names_is_read() {
        for (question, answer) in [("problem", "answer"), ("question", "gold"), ("prompt", "answer")] {
            let problem = read(&format!(r#"{{"{question}": "1+1?", "{answer}": "2", "id": 7}}"#), None).unwrap();
            assert_eq!((problem.prompt.as_str(), problem.answer.as_str()), ("1+1?", "2"));
            assert_eq!(problem.verifier, VerifierKind::Math);
        }
    }

    #[test]
    fn a_gsm8k_answer_keeps_what_follows_the_marks() {
        let problem = read(r#"{"question": "?", "answer": "40+2 = <<40+2=42>>42\n#### 42"}"#, None).unwrap();
        assert_eq!(problem.answer, "42");
    }

    #[test]
    fn an_answer_may_be_a_number() {
        assert_eq!(read(r#"{"problem": "?", "answer": 70}"#, None).unwrap().answer, "70");
    }

    #[test]
    fn the_verifier_is_the_callers_then_the_rows_then_math() {
        let row = r#"{"problem": "?", "answer": "x", "verifier": "exact"}"#;
        assert_eq!(read(row, None).unwrap().verifier, VerifierKind::Exact);
        assert_eq!(read(row, Some(VerifierKind::Math)).unwrap().verifier, VerifierKind::Math);
        let error = read(r#"{"problem": "?", "answer": "x", "verifier": "ju\nge"}"#, None).unwrap_err();
        let expected = "field `verifier`: unknown verifier `ju ge`: use math, countdown or exact";
        assert_eq!(error, Fault::Malformed(expected.to_owned()));
    }

    #[test]
    fn faults_name_the_field() {
        let error = |json: &str| match read(json, None) {
            Err(Fault::Malformed(what)) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            error(r#"{"text": "?", "answer": "1"}"#),
            "needs a field `problem` or `question` or `prompt`; its fields: `text`, `answer`"
        );
        assert_eq!(error(r#"{"problem": " ", "answer": "1"}"#), "field `problem`: is empty");
        assert_eq!(error(r#"{"problem": "?", "answer": [1]}"#), "field `answer`: is a list, not text or a number");
    }

    #[test]
    fn a_gold_that_no_response_can_match_is_a_fault_of_its_own() {
        let fault = read(r#"{"problem": "?", "answer": "so ####"}"#, None).unwrap_err();
        assert_eq!(fault, Fault::Ungradable("the gold answer is empty".to_owned()));
    }
}
