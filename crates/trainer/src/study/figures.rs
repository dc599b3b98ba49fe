//! From evaluations to the figures of the tables: means over seeds, and changes paired by seed, with their errors.

use std::collections::BTreeMap;

use reward::estimate;
use serde::Serialize;

use super::{execute::Missing, folder::Ended, plan::Curriculum};
use crate::{config::Config, metrics::EvalRow};

/// A figure and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// Over seeds; over problems where there is one seed; null where there is one problem too.
    pub se: Option<f64>,
}

/// A checkpoint as it is over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The schedule.
    pub schedule: Curriculum,
    /// `start`, `cycle-3-low`, ...; `end` is a run's last evaluation.
    pub checkpoint: String,
    /// How many seeds it is a mean over.
    pub seeds: usize,
    /// Accuracy, percent.
    pub accuracy: Figure,
    /// What it gained on the start of the same seed, points.
    pub accuracy_change: Figure,
    /// Mean response tokens.
    pub tokens: Figure,
    /// Their change against the start of the same seed, percent.
    pub tokens_change: Figure,
    /// Responses cut off by the evaluation's limit, percent.
    pub truncated: f64,
    /// Mean count of the word "wait" in a response, where it was counted.
    pub markers_per_response: Option<f64>,
    /// Mean of the steps done.
    pub steps: f64,
    /// Mean of the rollout tokens spent.
    pub rollout_tokens: f64,
}

/// SIRI's end less the end of another schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Against {
    /// The other schedule.
    pub schedule: Curriculum,
    /// Seeds that have both.
    pub seeds: usize,
    /// SIRI's accuracy less the other's, points.
    pub accuracy: Figure,
    /// How much longer SIRI's responses are than the other's, percent.
    pub tokens: Figure,
}

/// A run and its evaluations.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seed {
    /// The schedule.
    pub schedule: Curriculum,
    /// The seed.
    pub seed: u64,
    /// Steps done.
    pub steps: usize,
    /// Rollout tokens spent.
    pub rollout_tokens: u64,
    /// Its evaluations, in order.
    pub evals: Vec<EvalRow>,
}

/// All figures of a study.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Study {
    /// The cycles of the SIRI run.
    pub cycles: usize,
    /// The runs, by schedule and seed.
    pub runs: Vec<Seed>,
    /// SIRI from the start through every low and high.
    pub siri: Vec<Row>,
    /// The last low of every wave and the end of every schedule.
    pub schedules: Vec<Row>,
    /// SIRI's end against those of the others.
    pub against: Vec<Against>,
    /// What a reader has to know of single runs.
    pub notes: Vec<String>,
    /// The runs that the study lacks.
    pub missing: Vec<Missing>,
}

/// The name of a run's last evaluation.
pub const END: &str = "end";

impl Study {
    /// The figures of the complete `runs`; `config` is the SIRI run's.
    pub fn new(config: &Config, runs: &BTreeMap<(Curriculum, u64), Ended>, missing: Vec<Missing>) -> Self {
        let cycles = config.schedule.cycles;
        let runs: Vec<Seed> = runs
            .iter()
            .map(|(&(schedule, seed), run)| {
                let evals = run.evals.clone();
                Seed { schedule, seed, steps: run.steps, rollout_tokens: run.tokens, evals }
            })
            .collect();
        let of = |schedule: Curriculum| -> Vec<&Seed> { runs.iter().filter(|run| run.schedule == schedule).collect() };
        let siri_runs = of(Curriculum::Cosine);
        let names = (1..=cycles).flat_map(|cycle| ["low", "high"].map(|end| format!("cycle-{cycle}-{end}")));
        let siri = std::iter::once("start".to_string())
            .chain(names)
            .filter_map(|name| row(Curriculum::Cosine, &name, &siri_runs))
            .collect();
        let mut schedules: Vec<Row> = row(Curriculum::Cosine, "start", &siri_runs).into_iter().collect();
        for curriculum in Curriculum::ALL {
            let low = curriculum.is_wave().then(|| format!("cycle-{cycles}-low"));
            let names = low.into_iter().chain([END.to_string()]);
            schedules.extend(names.filter_map(|name| row(curriculum, &name, &of(curriculum))));
        }
        let others = Curriculum::ALL.into_iter().filter(|&curriculum| curriculum != Curriculum::Cosine);
        let against = others.filter_map(|other| against(other, &siri_runs, &of(other))).collect();
        let notes = notes(&runs);
        Self { cycles, siri, schedules, against, notes, missing, runs }
    }

    /// The runs of SIRI.
    pub fn siri_runs(&self) -> impl Iterator<Item = &Seed> {
        self.runs.iter().filter(|run| run.schedule == Curriculum::Cosine)
    }
}

impl Seed {
    /// The evaluation called `name`; [`END`] is the last one.
    pub fn eval(&self, name: &str) -> Option<&EvalRow> {
        if name == END { self.evals.last() } else { self.evals.iter().find(|row| row.name == name) }
    }
}

/// The row of the checkpoint `name` over the runs that have it; `None` where none has.
fn row(schedule: Curriculum, name: &str, runs: &[&Seed]) -> Option<Row> {
    let pairs: Vec<(&EvalRow, &EvalRow)> =
        runs.iter().filter_map(|run| Some((run.eval("start")?, run.eval(name)?))).collect();
    let (accuracy_change, tokens_change) = changes(&pairs)?;
    let rows: Vec<&EvalRow> = pairs.iter().map(|(_, row)| *row).collect();
    let mean = |of: &dyn Fn(&EvalRow) -> f64| rows.iter().map(|row| of(row)).sum::<f64>() / rows.len() as f64;
    let markers: Option<Vec<f64>> = rows.iter().map(|row| row.markers_per_response).collect();
    Some(Row {
        schedule,
        checkpoint: name.into(),
        seeds: rows.len(),
        accuracy: figure(rows.iter().map(|row| 100.0 * row.pass_at_1), || percent(rows[0].pass_at_1_se)),
        accuracy_change,
        tokens: figure(rows.iter().map(|row| row.response_tokens), || rows[0].response_tokens_se),
        tokens_change,
        truncated: mean(&|row| 100.0 * row.truncated),
        markers_per_response: markers.map(|counts| estimate::mean(&counts).mean),
        steps: mean(&|row| row.step as f64),
        rollout_tokens: mean(&|row| row.tokens_total as f64),
    })
}

/// SIRI's end less that of `other`, over the seeds that have both.
fn against(other: Curriculum, siri: &[&Seed], runs: &[&Seed]) -> Option<Against> {
    let pairs: Vec<(&EvalRow, &EvalRow)> = siri
        .iter()
        .filter_map(|run| {
            let same = runs.iter().find(|other| other.seed == run.seed)?;
            Some((same.eval(END)?, run.eval(END)?))
        })
        .collect();
    let (accuracy, tokens) = changes(&pairs)?;
    Some(Against { schedule: other, seeds: pairs.len(), accuracy, tokens })
}

/// Means of the changes from the first to the second of each pair: accuracy in points, tokens in percent of the first.
///
/// One pair has no spread over seeds: its errors are those over problems, as if the two were measured apart. For the
/// ratio `r = b / a` that is `r sqrt((se_a / a)² + (se_b / b)²)`.
fn changes(pairs: &[(&EvalRow, &EvalRow)]) -> Option<(Figure, Figure)> {
    let &(from, to) = pairs.first()?;
    let accuracy = figure(pairs.iter().map(|(from, to)| 100.0 * (to.pass_at_1 - from.pass_at_1)), || {
        if std::ptr::eq(from, to) { Some(0.0) } else { percent(both(from.pass_at_1_se, to.pass_at_1_se)) }
    });
    let tokens =
        figure(pairs.iter().map(|(from, to)| 100.0 * (to.response_tokens / from.response_tokens - 1.0)), || {
            let relative = |row: &EvalRow| row.response_tokens_se.map(|error| error / row.response_tokens);
            let ratio = to.response_tokens / from.response_tokens;
            let error = percent(both(relative(from), relative(to))).map(|error| ratio * error);
            if std::ptr::eq(from, to) { Some(0.0) } else { error }
        });
    Some((accuracy, tokens))
}

fn percent(share: Option<f64>) -> Option<f64> {
    share.map(|share| 100.0 * share)
}

/// The error of a difference: `sqrt(a² + b²)`, where both are known.
fn both(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    Some(a?.hypot(b?))
}

/// The mean of one value a seed with its standard error, the sample standard deviation over `sqrt(n)`; of a single
/// value the error is `over_problems`.
fn figure(values: impl Iterator<Item = f64>, over_problems: impl FnOnce() -> Option<f64>) -> Figure {
    let values: Vec<f64> = values.collect();
    let estimate = estimate::mean(&values);
    Figure { mean: estimate.mean, se: if values.len() < 2 { over_problems() } else { Some(estimate.se) } }
}

/// Runs that make a comparison less than it looks.
fn notes(runs: &[Seed]) -> Vec<String> {
    let mut notes = Vec::new();
    for run in runs.iter().filter(|run| run.schedule != Curriculum::Cosine) {
        let name = format!("{}-seed-{}", run.schedule.name(), run.seed);
        let Some(siri) = runs.iter().find(|other| other.schedule == Curriculum::Cosine && other.seed == run.seed)
        else {
            continue;
        };
        if run.rollout_tokens < siri.rollout_tokens {
            notes.push(format!(
                "{name} came to its last step ({}) with {} of {} rollout tokens spent",
                run.steps, run.rollout_tokens, siri.rollout_tokens
            ));
        }
        let start = |run: &Seed| run.eval("start").map(|row| (row.pass_at_1, row.response_tokens, row.problems));
        if start(run) != start(siri) {
            notes.push(format!(
                "{name} did not start as cosine-seed-{} did: they are of different programs or machines",
                run.seed
            ));
        }
    }
    notes
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::metrics::tests::eval_row;

    /// A run from 50% and 300 tokens to the given end; waves have a low of five points and 20 tokens less.
    fn ended(schedule: Curriculum, end: (f64, f64)) -> Ended {
        let (accuracy, tokens) = end;
        let mut evals = vec![eval_row(0, "start", 0.5, 300.0)];
        if schedule.is_wave() {
            evals.push(eval_row(1, "cycle-1-low", accuracy - 0.05, tokens - 20.0));
        }
        let name = if schedule == Curriculum::Cosine { "cycle-1-high" } else { "end" };
        evals.push(eval_row(2, name, accuracy, tokens));
        Ended { evals, steps: 2, tokens: 119_136 }
    }

    pub(in crate::study) fn study(ends: &[(Curriculum, u64, (f64, f64))], missing: Vec<Missing>) -> (Study, Config) {
        let mut config = Config::countdown();
        config.schedule.cycles = 1;
        let runs = ends.iter().map(|&(schedule, seed, end)| ((schedule, seed), ended(schedule, end))).collect();
        (Study::new(&config, &runs, missing), config)
    }

    fn close(figure: Figure, mean: f64, se: f64) {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(near(figure.mean, mean) && near(figure.se.unwrap(), se), "{figure:?} is not {mean} ± {se}");
    }

    #[test]
    fn means_and_errors_are_over_seeds() {
        let cosine = |seed, end| (Curriculum::Cosine, seed, end);
        let (study, _) = study(&[cosine(1, (0.6, 270.0)), cosine(2, (0.7, 240.0)), cosine(3, (0.8, 210.0))], vec![]);
        let [start, low, high] = &study.siri[..] else { panic!("{:?}", study.siri) };
        assert_eq!([&start.checkpoint, &low.checkpoint, &high.checkpoint], ["start", "cycle-1-low", "cycle-1-high"]);
        // 60, 70, 80: s = 10, s / sqrt(3).
        close(high.accuracy, 70.0, 10.0 / 3f64.sqrt());
        close(high.accuracy_change, 20.0, 10.0 / 3f64.sqrt());
        // 270, 240, 210: s = 30; -10, -20, -30 percent of 300.
        close(high.tokens, 240.0, 30.0 / 3f64.sqrt());
        close(high.tokens_change, -20.0, 10.0 / 3f64.sqrt());
        close(low.accuracy, 65.0, 10.0 / 3f64.sqrt());
        close(start.accuracy, 50.0, 0.0);
        close(start.tokens_change, 0.0, 0.0);
        assert_eq!((high.seeds, high.steps, high.rollout_tokens), (3, 2.0, 119_136.0));
    }

    #[test]
    fn one_seed_has_errors_over_problems() {
        let (study, _) = study(&[(Curriculum::Cosine, 1, (0.7, 150.0))], vec![]);
        let (start, end) = (&study.siri[0], study.siri.last().unwrap());
        close(end.accuracy, 70.0, 2.0);
        close(end.accuracy_change, 20.0, 8f64.sqrt());
        close(end.tokens, 150.0, 5.0);
        // Half as long: 0.5 sqrt((5 / 300)² + (5 / 150)²).
        close(end.tokens_change, -50.0, 50.0 * (5.0 / 300f64).hypot(5.0 / 150.0));
        close(start.accuracy_change, 0.0, 0.0);
    }

    #[test]
    fn one_problem_of_one_seed_has_no_error() {
        let mut run = ended(Curriculum::Cosine, (0.7, 150.0));
        run.evals.iter_mut().for_each(|row| (row.pass_at_1_se, row.response_tokens_se) = (None, None));
        let runs = BTreeMap::from([((Curriculum::Cosine, 1), run)]);
        let study = Study::new(&Config::countdown(), &runs, vec![]);
        let end = study.siri.last().unwrap();
        assert_eq!([end.accuracy.se, end.accuracy_change.se, end.tokens.se, end.tokens_change.se], [None; 4]);
        assert!(serde_json::to_string(&study).unwrap().contains(r#""se":null"#));
    }

    #[test]
    fn schedules_are_compared_seed_by_seed() {
        let (study, _) = study(
            &[
                (Curriculum::Cosine, 1, (0.6, 240.0)),
                (Curriculum::Cosine, 2, (0.8, 180.0)),
                (Curriculum::Stair, 2, (0.7, 200.0)),
                (Curriculum::Staged, 1, (0.5, 300.0)),
                (Curriculum::Staged, 2, (0.6, 300.0)),
            ],
            vec![],
        );
        let names: Vec<(&str, &str)> =
            study.schedules.iter().map(|row| (row.schedule.name(), row.checkpoint.as_str())).collect();
        let expected = [
            ("cosine", "start"),
            ("cosine", "cycle-1-low"),
            ("cosine", "end"),
            ("stair", "cycle-1-low"),
            ("stair", "end"),
            ("staged", "end"),
        ];
        assert_eq!(names, expected);
        let [stair, staged] = &study.against[..] else { panic!("{:?}", study.against) };
        // Only seed 2 has both.
        assert_eq!((stair.schedule, stair.seeds, staged.seeds), (Curriculum::Stair, 1, 2));
        close(stair.accuracy, 10.0, 8f64.sqrt());
        // 10 and 20 points: s = 7.07, se = 5. 240/300 and 180/300: -20 and -40 percent.
        close(staged.accuracy, 15.0, 5.0);
        close(staged.tokens, -30.0, 10.0);
    }

    #[test]
    fn what_spoils_a_comparison_is_noted() {
        let mut runs: BTreeMap<(Curriculum, u64), Ended> = BTreeMap::new();
        runs.insert((Curriculum::Cosine, 1), ended(Curriculum::Cosine, (0.6, 240.0)));
        let mut staged = ended(Curriculum::Staged, (0.6, 240.0));
        (staged.tokens, staged.evals[0].pass_at_1) = (100, 0.4);
        runs.insert((Curriculum::Staged, 1), staged);
        let notes = Study::new(&Config::countdown(), &runs, vec![]).notes;
        assert!(notes[0].contains("staged-seed-1") && notes[0].contains("100 of 119136"), "{notes:?}");
        assert!(notes[1].contains("did not start as cosine-seed-1"), "{notes:?}");
    }
}
