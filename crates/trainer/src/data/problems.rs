//! Loaded problems, and which of them belong to a step: a pure function of the step, so that a resume needs no state.

#![deny(clippy::indexing_slicing)]

use reward::{Problem, VerifierKind};
use sha2::{Digest, Sha256};

use super::countdown::{self, Split};
use super::error::DataError;
use super::rng::Rng;
use super::row::{BadRows, Places, Table};
use super::source::Source;
use super::{jsonl, parquet};

/// What problems are for; decides the split of a source that names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Training.
    Train,
    /// Evaluation.
    Evaluate,
}

/// Problems by index, from 0.
#[derive(Debug, Clone)]
pub enum Problems {
    /// Training problems of Countdown, made on demand and without end.
    Countdown {
        /// The seed of the sequence.
        seed: u64,
    },
    /// A list held in memory.
    List(Vec<Problem>),
}

/// What [`load`] found.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// At least one problem.
    pub problems: Problems,
    /// `FILE:ROW: why` for each row left out because its gold answer cannot be graded against, so that no response
    /// could ever be right; for the caller to report.
    pub left_out: Vec<String>,
    /// Where the problems of a file are.
    pub places: Places,
}

/// How a source is read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Decides which Countdown problems there are and in which order.
    pub seed: u64,
    /// Overrules what the data say; `None` is `auto`: the row's own, else `math`; `countdown` for Countdown.
    pub verifier: Option<VerifierKind>,
    /// What becomes of rows that are no problems.
    pub bad_rows: BadRows,
}

impl From<Problems> for Loaded {
    fn from(problems: Problems) -> Self {
        Self { problems, left_out: Vec::new(), places: Places::default() }
    }
}

impl From<Table> for Loaded {
    fn from(table: Table) -> Self {
        Self { places: table.places(), problems: Problems::List(table.problems), left_out: table.left_out }
    }
}

/// Loads a source.
///
/// # Errors
/// [`DataError`] names the file and row, or the setting, and what to do.
pub fn load(source: &Source, purpose: Use, reading: &Reading) -> Result<Loaded, DataError> {
    let Reading { seed, verifier, .. } = *reading;
    match source {
        Source::Countdown(split) => {
            if let Some(kind) = verifier.filter(|&kind| kind != VerifierKind::Countdown) {
                return Err(DataError::CountdownVerifier(kind));
            }
            match (split, purpose) {
                (Some(Split::HeldOut), Use::Train) => Err(DataError::TrainOnHeldOut),
                (Some(Split::HeldOut), Use::Evaluate) | (None, Use::Evaluate) => {
                    Ok(Problems::List(countdown::held_out(seed).iter().map(countdown_problem).collect()).into())
                }
                (Some(Split::Train), _) | (None, Use::Train) => Ok(Problems::Countdown { seed }.into()),
            }
        }
        Source::Jsonl(path) => jsonl::read(path, reading).map(Loaded::from),
        Source::Parquet(path) => parquet::read(path, reading).map(Loaded::from),
        Source::Hub { .. } => Err(DataError::Hub(source.to_string())),
    }
}

fn countdown_problem(problem: &countdown::Problem) -> Problem {
    Problem { prompt: problem.prompt(), answer: problem.gold(), verifier: VerifierKind::Countdown }
}

impl Problems {
    /// How many there are; `None` if there is no end to them.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Countdown { .. } => None,
            Self::List(problems) => Some(problems.len()),
        }
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The problem at `index`; `None` from [`len`](Self::len) on.
    pub fn get(&self, index: usize) -> Option<Problem> {
        match self {
            Self::Countdown { seed } => Some(countdown_problem(&countdown::problem(*seed, index as u64, Split::Train))),
            Self::List(problems) => problems.get(index).cloned(),
        }
    }

    /// The SHA-256 of a list, over each problem's prompt, answer and verifier; `None` for a sequence without end, which its
    /// seed decides.
    pub fn digest(&self) -> Option<String> {
        let Self::List(problems) = self else { return None };
        let mut hash = Sha256::new();
        for problem in problems {
            for part in [problem.prompt.as_str(), &problem.answer, problem.verifier.name()] {
                // The length first, so that no two lists run together alike.
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Leaves out the problems of a list that `keep` refuses, such as those whose prompt is too long, and returns how
    /// many these were. A sequence without end stays as it is.
    pub fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) -> usize {
        match self {
            Self::Countdown { .. } => 0,
            Self::List(problems) => {
                let before = problems.len();
                problems.retain(keep);
                before - problems.len()
            }
        }
    }

    /// The first `limit` problems with their indices, or all if there are fewer.
    pub fn first(&self, limit: usize) -> Vec<(usize, Problem)> {
        (0..limit).map_while(|index| Some((index, self.get(index)?))).collect()
    }

    /// The `prompts_per_step` problems of a step (from 0) with their indices.
    ///
    /// A list is gone through once an epoch, each time in an order of its own that `seed` and the epoch decide, and a
    /// batch may reach from one epoch into the next. A sequence without end is gone through once, in its order. Empty
    /// if there are no problems.
    pub fn batch(&self, step: usize, prompts_per_step: usize, seed: u64) -> Vec<(usize, Problem)> {
        let positions = step * prompts_per_step..(step + 1) * prompts_per_step;
        let Self::List(problems) = self else {
            return positions.filter_map(|index| Some((index, self.get(index)?))).collect();
        };
        if problems.is_empty() {
            return Vec::new();
        }
        let mut batch = Vec::with_capacity(prompts_per_step);
        let mut shuffled: Option<(usize, Vec<usize>)> = None;
        for position in positions {
            let epoch = position / problems.len();
            let (_, order) = match shuffled.take() {
                Some(current) if current.0 == epoch => shuffled.insert(current),
                _ => shuffled.insert((epoch, order(problems.len(), seed, epoch))),
            };
            let index = order.get(position % problems.len());
            batch.extend(index.and_then(|&index| Some((index, problems.get(index)?.clone()))));
        }
        batch
    }

    /// Up to `count` further problems for a step (from 0) that has already had those with the indices `seen`, none of
    /// which comes again. Of a list they are the next in an order that `seed` and the step decide, and fewer when it is
    /// exhausted; of a sequence without end, problems that no [`batch`](Self::batch) reaches.
    pub fn replacements(&self, step: usize, count: usize, seed: u64, seen: &[usize]) -> Vec<(usize, Problem)> {
        let Self::List(problems) = self else {
            let next = FAR + (step << 24) + seen.len();
            return (next..next + count).filter_map(|index| Some((index, self.get(index)?))).collect();
        };
        let mut order: Vec<usize> = (0..problems.len()).collect();
        Rng::keyed(&[seed, REPLACEMENTS, step as u64]).shuffle(&mut order);
        let unseen = order.into_iter().filter(|index| !seen.contains(index));
        unseen.take(count).filter_map(|index| Some((index, problems.get(index)?.clone()))).collect()
    }
}

/// The stream of replacements, apart from the order of the epochs.
const REPLACEMENTS: u64 = 0x7265_706c;

/// Where a sequence without end has its replacements: further on than any run gets, with room for 2^24 a step.
const FAR: usize = 1 << 48;

fn order(count: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Rng::keyed(&[seed, epoch as u64]).shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(count: usize) -> Problems {
        let row = |index: usize| Problem::new(format!("{index}?"), index.to_string(), VerifierKind::Exact).unwrap();
        Problems::List((0..count).map(row).collect())
    }

    fn by(seed: u64, verifier: Option<VerifierKind>) -> Reading {
        Reading { seed, verifier, ..Reading::default() }
    }

    fn indices(problems: &Problems, steps: std::ops::Range<usize>, prompts: usize) -> Vec<usize> {
        steps.flat_map(|step| problems.batch(step, prompts, 5)).map(|(index, _)| index).collect()
    }

    #[test]
    fn an_epoch_is_a_permutation_and_the_next_another() {
        let problems = list(10);
        // 5 steps of 4 are two epochs of 10; the third batch lies across them.
        let drawn = indices(&problems, 0..5, 4);
        let (first, second) = drawn.split_at(10);
        for epoch in [first, second] {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_step_is_the_same_whichever_came_before() {
        let problems = list(7);
        let all = indices(&problems, 0..6, 3);
        assert_eq!(indices(&problems, 4..6, 3), all[12..]);
        assert_ne!(problems.batch(0, 7, 5), problems.batch(0, 7, 6));
    }

    #[test]
    fn a_batch_may_be_larger_than_the_list() {
        assert_eq!(indices(&list(2), 0..1, 5).len(), 5);
        assert!(indices(&list(0), 0..1, 5).is_empty());
    }

    #[test]
    fn countdown_trains_without_end_and_evaluates_on_other_problems() {
        let source: Source = "countdown".parse().unwrap();
        let train = load(&source, Use::Train, &by(1, None)).unwrap().problems;
        let eval = load(&source, Use::Evaluate, &by(1, Some(VerifierKind::Countdown))).unwrap().problems;
        assert_eq!(train.len(), None);
        assert_eq!(eval.len(), Some(countdown::held_out(1).len()));
        assert_eq!(train.batch(3, 2, 9), [(6, train.get(6).unwrap()), (7, train.get(7).unwrap())]);
        let held_out = eval.first(usize::MAX);
        assert!(train.first(2_000).iter().all(|(_, problem)| held_out.iter().all(|(_, other)| other != problem)));
        let (_, problem) = &held_out[0];
        assert!(reward::check_gold(problem.verifier, &problem.answer).is_ok());
        assert_eq!(problem.prompt, format!("Make {}.", problem.answer));
    }

    #[test]
    fn countdown_refuses_to_train_on_held_out_problems_or_with_another_verifier() {
        let source: Source = "countdown:held-out".parse().unwrap();
        assert!(matches!(load(&source, Use::Train, &by(0, None)), Err(DataError::TrainOnHeldOut)));
        assert!(load(&source, Use::Evaluate, &by(0, None)).is_ok());
        let error = load(&source, Use::Evaluate, &by(0, Some(VerifierKind::Math))).unwrap_err().to_string();
        assert_eq!(error, "verifier `math` cannot judge Countdown: use `countdown` or `auto`");
    }

    #[test]
    fn the_countdown_verifier_accepts_what_the_traces_answer() {
        use super::super::traces::{TraceStyle, trace};
        for index in 0..300 {
            let problem = countdown::problem(2, index, Split::Train);
            let text = trace(&problem, &TraceStyle::direct(), &mut Rng::keyed(&[2, index]));
            let verdict = reward::grade(VerifierKind::Countdown, &problem.gold(), &text, &reward::Policy::default());
            assert!(verdict.correct, "{}: {text}: {}", problem.gold(), verdict.reason);
        }
    }

    #[test]
    fn hub_data_sets_and_long_prompts() {
        let hub: Source = "openai/gsm8k:test".parse().unwrap();
        let error = load(&hub, Use::Evaluate, &by(0, None)).unwrap_err().to_string();
        assert!(error.starts_with("data `openai/gsm8k:test`: "), "{error}");
        let mut problems = list(12);
        assert_eq!(problems.retain(|problem| problem.prompt.len() <= 2), 2);
        assert_eq!(problems.len(), Some(10));
    }

    #[test]
    fn replacements_are_new_to_their_step_and_repeatable() {
        let index = |drawn: Vec<(usize, Problem)>| drawn.into_iter().map(|(index, _)| index).collect::<Vec<_>>();
        for problems in [list(12), Problems::Countdown { seed: 5 }] {
            let mut seen = indices(&problems, 3..4, 4);
            for _ in 0..2 {
                let more = index(problems.replacements(3, 3, 5, &seen));
                assert_eq!(more, index(problems.replacements(3, 3, 5, &seen)));
                assert_eq!(more.len(), 3);
                seen.extend(more);
            }
            let mut distinct = seen.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 10, "{seen:?}");
            let other = index(problems.replacements(4, 3, 5, &seen[..4]));
            assert_ne!(other, seen[4..7], "each step has its own");
        }
        let all: Vec<usize> = (0..12).collect();
        assert_eq!(list(12).replacements(0, 3, 5, &all[..10]).len(), 2, "a list can be exhausted");
        assert!(list(12).replacements(0, 3, 5, &all).is_empty());
    }
}
