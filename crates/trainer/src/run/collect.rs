//! Rollouts of a step and what they are worth: `G` responses a problem at the budget, graded, scored, and more problems
//! for those whose responses are all worth the same.

use anyhow::Result;
use reward::{GradeRow, Problem, Verdict, score};
use sampler::{Engine, Finish, Request, Rollout, pick};

use super::interrupt;
use super::open::Run;
use crate::config::Overlong;
use crate::grading::{self, grade_all};
use crate::{learn, policy};

/// The rollouts of one problem.
pub struct Group {
    /// The problem.
    pub problem: Problem,
    /// Token ids of its prompt.
    pub prompt: Vec<u32>,
    /// The `G` responses.
    pub rollouts: Vec<Rollout>,
    /// Their texts.
    pub responses: Vec<String>,
    /// Whether each is right, as it stands after any cut.
    pub correct: Vec<bool>,
    /// What each is worth.
    pub rewards: Vec<f64>,
    /// Which enter the loss.
    pub kept: Vec<bool>,
    /// Responses that the verifier failed on.
    pub graders_failed: usize,
}

impl Group {
    /// As the step takes it.
    pub fn recorded(&self) -> learn::Group<'_> {
        learn::Group { prompt: &self.prompt, rollouts: &self.rollouts, rewards: &self.rewards, kept: &self.kept }
    }
}

/// The rollouts of one step.
pub struct Batch {
    /// One group a problem, those that do not enter the loss included.
    pub groups: Vec<Group>,
    /// Response tokens as they were sampled, before any cut.
    sampled: usize,
}

impl Batch {
    /// Response tokens sampled.
    pub fn tokens(&self) -> usize {
        self.sampled
    }

    /// Whether every token's log-prob is a number, as it is not where weights have become infinite.
    pub fn is_finite(&self) -> bool {
        let rollouts = self.groups.iter().flat_map(|group| &group.rollouts);
        rollouts.flat_map(|rollout| &rollout.log_probs).all(|log_prob| log_prob.is_finite())
    }

    /// Responses that the verifier failed on, which score 0.
    pub fn graders_failed(&self) -> usize {
        self.groups.iter().map(|group| group.graders_failed).sum()
    }

    /// The mean of `of(group, i)` over all rollouts.
    pub fn mean(&self, of: impl Fn(&Group, usize) -> f64) -> f64 {
        let values = self.groups.iter().flat_map(|g| (0..g.rollouts.len()).map(move |i| (g, i)));
        let (sum, count) = values.fold((0.0, 0usize), |(sum, n), (g, i)| (sum + of(g, i), n + 1));
        sum / count.max(1) as f64
    }
}

/// The stream of training rollouts, apart from that of evaluation.
const ROLLOUTS: u64 = 0x726f_6c6c;

/// Samples, grades and scores a step's problems.
///
/// Dynamic sampling (DAPO, arXiv 2503.14476): as long as `sampler.resample_tries` allow, as many further problems are
/// sampled as groups are missing that enter the loss. Which problems those are depends on the seed, the step and the
/// problems before them alone.
pub fn rollouts(run: &mut Run, budget: usize) -> Result<Batch> {
    let (wanted, seed) = (run.config.sampler.prompts_per_step, run.config.run.seed);
    let mut problems = run.problems.batch(run.step, wanted, seed);
    let mut seen: Vec<usize> = problems.iter().map(|&(index, _)| index).collect();
    let mut batch = Batch { groups: Vec::new(), sampled: 0 };
    for tries_left in (0..=run.config.sampler.resample_tries).rev() {
        sample(run, problems, budget, &mut batch)?;
        let used = batch.groups.iter().filter(|group| group.recorded().is_used()).count();
        if tries_left == 0 || used >= wanted {
            break;
        }
        problems = run.problems.replacements(run.step, wanted - used, seed, &seen);
        if problems.is_empty() {
            break;
        }
        seen.extend(problems.iter().map(|&(index, _)| index));
    }
    Ok(batch)
}

/// Adds the groups of `problems` to the batch.
fn sample(run: &mut Run, problems: Vec<(usize, Problem)>, budget: usize, batch: &mut Batch) -> Result<()> {
    let text = &run.policy.text;
    let prompts = problems.iter().map(|(_, p)| Ok(text.prompt(&p.prompt)?)).collect::<Result<Vec<_>>>()?;
    let (seed, step, size) = (run.config.run.seed, run.step as u64, run.config.sampler.group_size);
    let first = batch.groups.len();
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .flat_map(|(p, prompt)| {
            (0..size).map(move |sample| Request {
                prompt,
                stream: pick::stream(&[seed, ROLLOUTS, step, (first + p) as u64, sample as u64]),
                max_new_tokens: budget,
            })
        })
        .collect();
    let sampling = policy::sampling(text, run.config.sampler.temperature, &run.config.sampler.stop)?;
    let mut rollouts = run.engine.generate(&requests, &sampling, &mut |_| interrupt::control())?;
    batch.sampled += rollouts.iter().map(|r| r.tokens.len()).sum::<usize>();
    let mut groups = Vec::with_capacity(problems.len());
    for ((_, problem), prompt) in problems.into_iter().zip(prompts) {
        let rest = rollouts.split_off(size.min(rollouts.len()));
        let rollouts = std::mem::replace(&mut rollouts, rest);
        groups.push(Group {
            problem,
            prompt,
            responses: Vec::new(),
            correct: Vec::new(),
            rewards: Vec::new(),
            kept: vec![true; rollouts.len()],
            graders_failed: 0,
            rollouts,
        });
    }
    grade(run, &mut groups)?;
    cut_outliers(run, &mut groups)?;
    groups.iter_mut().for_each(|group| worth(run.config.reward.overlong, group, budget));
    batch.groups.append(&mut groups);
    Ok(())
}

/// Grades every response as it stands, all groups in parallel.
fn grade(run: &Run, groups: &mut [Group]) -> Result<()> {
    for group in groups.iter_mut() {
        let texts = group.rollouts.iter().map(|r| Ok(run.policy.text.decode(&r.tokens)?));
        group.responses = texts.collect::<Result<_>>()?;
    }
    let rows: Vec<GradeRow> = groups
        .iter()
        .flat_map(|g| g.responses.iter().map(|r| (g.problem.verifier, g.problem.answer.as_str(), r.as_str())))
        .collect();
    let mut verdicts = grade_all(&rows, &run.extraction).into_iter();
    for group in groups {
        let verdicts: Vec<Verdict> = verdicts.by_ref().take(group.rollouts.len()).collect();
        group.correct = verdicts.iter().map(|verdict| verdict.correct).collect();
        group.graders_failed = grading::failures(&verdicts);
    }
    Ok(())
}

/// DOT: in groups that are all correct, outliers in length are cut and graded again.
fn cut_outliers(run: &Run, groups: &mut [Group]) -> Result<()> {
    if !run.config.reward.outlier_truncation {
        return Ok(());
    }
    let mut any = false;
    for group in groups.iter_mut() {
        let lengths: Vec<usize> = group.rollouts.iter().map(|r| r.tokens.len()).collect();
        let cuts = score::OutlierRule::default().cuts(&lengths, &group.correct);
        for (rollout, cut) in group.rollouts.iter_mut().zip(cuts) {
            if let Some(length) = cut {
                rollout.tokens.truncate(length);
                rollout.log_probs.truncate(length);
                rollout.finish = Finish::Length;
                any = true;
            }
        }
    }
    if any { grade(run, groups) } else { Ok(()) }
}

/// SIRI's length-capped reward, and what the options add. The sampler stops at the budget, so a response is its own clip.
fn worth(overlong: Overlong, group: &mut Group, budget: usize) {
    let truncated: Vec<bool> = group.rollouts.iter().map(Rollout::truncated).collect();
    group.rewards = group
        .rollouts
        .iter()
        .zip(&group.correct)
        .map(|(rollout, &correct)| {
            let length = rollout.tokens.len();
            let capped = score::length_capped(length, budget, |_| correct);
            match overlong {
                // DAPO's proportion: the last fifth of the budget.
                Overlong::Soft => capped + score::soft_overlong_penalty(length, budget, (budget / 5).max(1)),
                Overlong::None | Overlong::Filter => capped,
            }
        })
        .collect();
    if overlong == Overlong::Filter {
        group.kept = score::overlong_mask(&truncated);
    }
}
