//! The example at the end of a run: one problem before and after, chosen for what training did to its response.

#![deny(clippy::indexing_slicing)]

use anyhow::Result;
use std::fs;
use std::path::Path;

use super::record::{FOLDER, Row};
use crate::metrics::read_rows;

/// The responses to one held-out problem at the first evaluation and at the last that show what training did: to the
/// first problem that was answered wrong and then right; without one, to the one that was right both times and whose
/// response shrank most. `None` where nothing changed for the better.
pub fn before_and_after(folder: &Path) -> Result<Option<[Row; 2]>> {
    let folder = folder.join(FOLDER);
    if !folder.is_dir() {
        // A full disk had no room for any.
        return Ok(None);
    }
    let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|file| file.file_name().to_string_lossy().starts_with("eval-"));
    files.sort_by_key(fs::DirEntry::file_name);
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(None) };
    let (first, last) = (read_rows::<Row>(&first.path())?, read_rows::<Row>(&last.path())?);
    Ok(telling(first.into_iter().zip(last)))
}

/// The pair of a first and a last response that tells most.
fn telling(pairs: impl Iterator<Item = (Row, Row)>) -> Option<[Row; 2]> {
    let mut shrunk: Option<(usize, [Row; 2])> = None;
    for (before, after) in pairs.filter(|(a, b)| a.prompt == b.prompt && a.step < b.step) {
        if !after.is_right() {
            continue;
        }
        if !before.is_right() {
            return Some([before, after]);
        }
        let saved = saved(&before, &after);
        if saved > shrunk.as_ref().map_or(0, |(most, _)| *most) {
            shrunk = Some((saved, [before, after]));
        }
    }
    shrunk.map(|(_, pair)| pair)
}

/// How much shorter the second is: in tokens, or in characters where an older program did not count the first one's.
fn saved(before: &Row, after: &Row) -> usize {
    let characters = |row: &Row| row.response.chars().count();
    let lengths = before.tokens.zip(after.tokens).unwrap_or_else(|| (characters(before), characters(after)));
    lengths.0.saturating_sub(lengths.1)
}

impl Row {
    /// Whether a response of an evaluation is right; those are worth 1 or 0.
    fn is_right(&self) -> bool {
        self.reward > 0.5
    }

    /// What became of a response of an evaluation, in a few words.
    pub fn verdict(&self) -> String {
        let verdict = match (self.is_right(), self.finish.as_str()) {
            (true, _) => "right",
            (false, "length") => "cut off",
            (false, _) => "wrong",
        };
        self.tokens.map_or_else(|| verdict.into(), |tokens| format!("{verdict}, {tokens} tokens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of an evaluation.
    fn sample(prompt: &str, reward: f64, tokens: usize) -> Row {
        let (prompt, response, finish) = (prompt.into(), "!".into(), "stop".into());
        Row { step: 0, prompt, response, reward, finish, tokens: Some(tokens) }
    }

    /// Reward and tokens of a response.
    type Outcome = (f64, usize);

    /// What is chosen of problems with what came of them before and after.
    fn chosen(problems: &[(&str, Outcome, Outcome)]) -> Option<String> {
        let pairs = problems.iter().map(|&(name, before, after)| {
            (sample(name, before.0, before.1), Row { step: 9, ..sample(name, after.0, after.1) })
        });
        telling(pairs).map(|[before, _]| before.prompt)
    }

    #[test]
    fn the_example_shows_what_training_did() {
        let (worse, same) = (("worse", (1.0, 50), (0.0, 9)), ("same", (1.0, 50), (1.0, 50)));
        let (shorter, shortest) = (("shorter", (1.0, 50), (1.0, 40)), ("shortest", (1.0, 50), (1.0, 20)));
        let (learned, wrong) = (("learned", (0.0, 50), (1.0, 60)), ("wrong", (0.0, 50), (0.0, 9)));
        assert_eq!(chosen(&[worse, shorter, learned, shortest]).as_deref(), Some("learned"));
        assert_eq!(chosen(&[same, wrong, shorter, shortest]).as_deref(), Some("shortest"));
        assert_eq!(chosen(&[worse, wrong, same]), None);
        // Tokens are not compared with characters.
        let old = Row { tokens: None, response: "!!!".into(), ..sample("a", 1.0, 0) };
        assert_eq!([saved(&old, &sample("a", 1.0, 1)), saved(&sample("a", 1.0, 9), &old)], [2, 0]);
        // The only evaluation is no comparison.
        assert_eq!(telling([(sample("a", 0.0, 9), sample("a", 1.0, 9))].into_iter()), None);
    }

    #[test]
    fn a_verdict_is_in_words_and_old_rows_have_no_tokens() {
        let cut = Row { finish: "length".into(), ..sample("?", 0.0, 448) };
        let old = Row { tokens: None, ..sample("?", 1.0, 0) };
        assert_eq!(
            [cut.verdict(), old.verdict(), sample("?", 0.0, 3).verdict()],
            ["cut off, 448 tokens", "right", "wrong, 3 tokens"]
        );
        let line = r#"{"step":1,"prompt":"?","response":"!","reward":1.0,"finish":"stop"}"#;
        assert_eq!(serde_json::from_str::<Row>(line).unwrap().tokens, None);
    }
}
