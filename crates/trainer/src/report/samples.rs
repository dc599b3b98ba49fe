//! Sample responses: for a few problems, the first response that a run kept and the last.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::metrics::read_rows;

/// How many problems a report shows.
const SHOWN: usize = 3;

/// One row of a file in `rollouts/`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Sample {
    /// Steps done when it was sampled.
    pub step: usize,
    /// The prompt, as text.
    pub prompt: String,
    /// The response, as text.
    pub response: String,
    /// Its reward.
    pub reward: f64,
    /// Why it ended: `stop` or `length`.
    pub finish: String,
    /// Its tokens, where they were counted.
    #[serde(default)]
    pub tokens: Option<usize>,
}

/// An early and a late response. They answer the same problem where the run kept one twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// From early in the run.
    pub before: Sample,
    /// From late in the run.
    pub after: Sample,
}

/// Reads every `*.jsonl` file in `dir` and chooses pairs. A run that has kept nothing yet gives none.
///
/// # Errors
/// A file cannot be read, or a line is not a row; the message names the file and the line.
pub(super) fn read(dir: &Path) -> Result<Vec<Pair>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let unreadable = || format!("{}: cannot read", dir.display());
    let entries =
        fs::read_dir(dir).with_context(unreadable)?.collect::<Result<Vec<_>, _>>().with_context(unreadable)?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    // Folders list in any order; the report must not depend on it.
    paths.sort();
    let mut chooser = Chooser::default();
    for path in paths {
        read_rows::<Sample>(&path)?.into_iter().for_each(|sample| chooser.add(sample));
    }
    Ok(chooser.pairs())
}

/// Keeps the first and the last sample of every problem, so that a long run fits in memory.
#[derive(Debug, Default)]
struct Chooser {
    pairs: Vec<Pair>,
    by_prompt: HashMap<String, usize>,
}

impl Chooser {
    fn add(&mut self, sample: Sample) {
        match self.by_prompt.get(&sample.prompt) {
            None => {
                self.by_prompt.insert(sample.prompt.clone(), self.pairs.len());
                self.pairs.push(Pair { before: sample.clone(), after: sample });
            }
            Some(&index) => {
                let pair = &mut self.pairs[index];
                // Of several at one step the first is kept, so that no choice depends on how a response turned out.
                if sample.step < pair.before.step {
                    pair.before = sample;
                } else if sample.step > pair.after.step {
                    pair.after = sample;
                }
            }
        }
    }

    /// The problems seen furthest apart, in the order of the files; where none was seen twice, the first problems beside
    /// the last ones.
    fn pairs(mut self) -> Vec<Pair> {
        let span = |pair: &Pair| pair.after.step - pair.before.step;
        let widest = self.pairs.iter().map(span).max().unwrap_or(0);
        if widest > 0 {
            self.pairs.retain(|pair| span(pair) > 0);
            self.pairs.sort_by_key(|pair| std::cmp::Reverse(span(pair)));
            self.pairs.truncate(SHOWN);
            return self.pairs;
        }
        self.pairs.sort_by_key(|pair| pair.before.step);
        let Some(last_step) = self.pairs.last().map(|pair| pair.before.step) else { return Vec::new() };
        let late = self.pairs.iter().filter(|pair| pair.before.step == last_step);
        let early = self.pairs.iter().filter(|pair| pair.before.step < last_step);
        early
            .zip(late)
            .take(SHOWN)
            .map(|(first, last)| Pair { before: first.before.clone(), after: last.before.clone() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: usize, prompt: &str, response: &str) -> Sample {
        Sample {
            step,
            prompt: prompt.into(),
            response: response.into(),
            reward: 0.0,
            finish: "length".into(),
            tokens: None,
        }
    }

    fn choose(samples: &[Sample]) -> Vec<(String, String)> {
        let mut chooser = Chooser::default();
        samples.iter().cloned().for_each(|sample| chooser.add(sample));
        chooser.pairs().into_iter().map(|pair| (pair.before.response, pair.after.response)).collect()
    }

    fn pair(before: &str, after: &str) -> (String, String) {
        (before.into(), after.into())
    }

    #[test]
    fn the_same_problem_is_shown_first_and_last() {
        let samples = [
            sample(1, "once", "o"),
            sample(1, "p", "p1"),
            sample(1, "p", "p1 again"),
            sample(2, "q", "q2"),
            sample(4, "q", "q4"),
            sample(9, "p", "p9"),
        ];
        assert_eq!(choose(&samples), [pair("p1", "p9"), pair("q2", "q4")]);
    }

    #[test]
    fn without_a_repeat_early_stands_beside_late() {
        let samples = [sample(1, "a", "a1"), sample(1, "b", "b1"), sample(5, "c", "c5"), sample(9, "d", "d9")];
        assert_eq!(choose(&samples), [pair("a1", "d9")]);
        assert_eq!(choose(&samples[..2]), [], "one step is no comparison");
        assert_eq!(choose(&[]), []);
    }

    #[test]
    fn a_bad_row_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("none")).unwrap(), []);
        fs::write(dir.path().join("step-1.jsonl"), "{\"step\":1}\n").unwrap();
        let message = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(message.contains("step-1.jsonl: line 1"), "{message}");
    }
}
