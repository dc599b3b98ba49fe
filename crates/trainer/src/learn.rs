//! One step of learning: from graded rollouts to new weights, by advantages, the loss and optimiser steps.
//!
//! What it reads is in its arguments, so that recorded rollouts give the step of the run that they come from.

mod example;
mod reference;

use std::ops::Range;

use anyhow::Result;
use model::Qwen2;
use model::backward::Pass;
use sampler::Rollout;

use crate::advantage::has_signal;
use crate::config::Config;
use crate::loss::{self, Clip, LossMetrics, LossSettings, policy_loss, sequence_weights};
use crate::metrics::LearningFigures;
use crate::optimizer::{AdamW, Gradients, NotFinite};
use crate::update::{self, Sequence};
use example::{Example, Tokens};
use reference::mean_kl;

/// The rollouts of one problem, one value each in every list.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Token ids of the prompt.
    pub prompt: &'a [u32],
    /// The responses, with the sampler's log-probs.
    pub rollouts: &'a [Rollout],
    /// What each is worth.
    pub rewards: &'a [f64],
    /// Which may enter the loss.
    pub kept: &'a [bool],
}

impl Group<'_> {
    /// Whether the group enters the loss: its rewards differ, and at least one rollout is kept.
    #[must_use]
    pub fn is_used(&self) -> bool {
        has_signal(self.rewards) && self.kept.contains(&true)
    }

    fn sequence(&self, i: usize) -> Sequence {
        Sequence { tokens: [self.prompt, &self.rollouts[i].tokens].concat(), prompt: self.prompt.len() }
    }
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// What its row shows.
    pub figures: LearningFigures,
    /// Sums over the response tokens of all updates.
    pub metrics: LossMetrics,
    /// Optimiser steps made.
    pub updates: usize,
    /// Tokens (prompts included) that went through forward and backward.
    pub tokens: usize,
    /// Why updates were skipped: a loss or gradient that is infinite or not a number. One line each.
    pub skipped: Vec<String>,
    /// Updates skipped in a row at the end of the step, those of the steps before included.
    pub skipped_in_a_row: usize,
}

/// What a step works on.
pub struct Learner<'a> {
    /// `loss`, `reference`, `optimizer`, `model.micro_batch_tokens`, `model.recompute` and `sampler.temperature` are read.
    pub config: &'a Config,
    /// The policy, which sampled the rollouts.
    pub model: &'a Qwen2,
    /// The reference model, where its KL is measured or penalised.
    pub reference: Option<&'a Qwen2>,
    /// The optimiser of the policy's variables.
    pub optimizer: &'a mut AdamW,
    /// Where gradients are summed, of the same variables; what it holds does not matter.
    pub gradients: &'a mut Gradients,
    /// The largest budget of the run in tokens: the divisor of `loss.aggregation = "constant"`.
    pub largest_budget: usize,
    /// Updates skipped in a row before this step.
    pub skipped_in_a_row: usize,
}

impl Learner<'_> {
    /// Updates the policy from the rollouts of a step; `rate(i)` is the learning rate of its update `i`, from 0.
    ///
    /// Groups that do not enter the loss are passed over; if none does, there is no update.
    ///
    /// An update whose loss or gradient is infinite or not a number is skipped, and nothing of it enters the figures.
    ///
    /// # Errors
    /// If a device fails.
    pub fn step(&mut self, groups: &[Group], rate: impl Fn(usize) -> f64) -> Result<Learned> {
        let scores = self.reference_scores(groups)?;
        let kl = mean_kl(groups, &scores);
        let used: Vec<(Group, Vec<Vec<f32>>)> =
            groups.iter().copied().zip(scores).filter(|(group, _)| group.is_used()).collect();
        let mut learned = Learned {
            figures: LearningFigures { groups_used: used.len(), kl, ..LearningFigures::default() },
            skipped_in_a_row: self.skipped_in_a_row,
            ..Learned::default()
        };
        let examples = self.examples(used)?;
        for (i, range) in parts(examples.len(), self.config.optimizer.updates_per_step).enumerate() {
            let examples: Vec<&Example> = examples[range].iter().flatten().collect();
            let rate = rate(i);
            learned.tokens += examples.iter().map(|e| e.sequence.tokens.len()).sum::<usize>();
            let done = match self.optimise(&examples, rate)? {
                Ok(done) => done,
                Err(why) => {
                    learned.skipped.push(why);
                    learned.skipped_in_a_row += 1;
                    continue;
                }
            };
            learned.skipped_in_a_row = 0;
            if i == 0 {
                learned.figures.logprob_gap = done.gap;
            }
            learned.updates += 1;
            learned.figures.learning_rate = rate;
            learned.figures.grad_norm += done.grad_norm;
            learned.metrics.merge(&done.metrics);
        }
        let updates = learned.updates.max(1) as f64;
        let metrics = &learned.metrics;
        learned.figures.grad_norm /= updates;
        learned.figures.loss = metrics.loss / updates;
        learned.figures.entropy = metrics.mean(metrics.entropy);
        learned.figures.clip_fraction = metrics.clip_fraction();
        Ok(learned)
    }

    /// One optimiser step on `examples`; every mean is over all of them, whatever the micro-batches. The inner error says
    /// why there was none.
    fn optimise(&mut self, examples: &[&Example], rate: f64) -> Result<Result<Optimised, String>> {
        let settings = self.loss_settings();
        let (loss, model) = (&self.config.loss, &self.config.model);
        let responses: Vec<usize> = examples.iter().map(|e| e.sequence.response_len()).collect();
        let weights = sequence_weights(loss.aggregation, &responses, self.largest_budget)?;
        let sequences: Vec<Sequence> = examples.iter().map(|e| e.sequence.clone()).collect();
        let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
        let cuts = update::micro_batches(&lengths, model.micro_batch_tokens);
        let pass = Pass { temperature: self.config.sampler.temperature, recompute: model.recompute };
        let batch = (sequences.as_slice(), cuts.as_slice());
        self.gradients.begin(self.optimizer.step_count())?;
        let differentiated = update::gradients(self.gradients, self.model, batch, pass, |range, scores| {
            let tokens = Tokens::new(&examples[range.clone()], &weights[range], loss.importance_cap)?;
            let gap = tokens.gap(&scores.log_probs.to_vec1::<f32>()?);
            // A bonus needs the entropy's gradient; a figure does not.
            let entropy = if settings.entropy_bonus > 0.0 { scores.entropy.clone() } else { scores.entropy.detach() };
            let output = policy_loss(&scores.log_probs, &tokens.inputs(), Some(&entropy), &settings)?;
            Ok((output.loss, (output.metrics, gap)))
        });
        let parts = match differentiated {
            Ok(parts) => parts,
            Err(error) if error.is::<loss::NotFinite>() => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let (mut metrics, mut gap) = (LossMetrics::default(), 0.0);
        for (part, part_gap) in &parts {
            metrics.merge(part);
            gap += part_gap;
        }
        if !metrics.loss.is_finite() {
            return Ok(Err(format!("the loss is {}", metrics.loss)));
        }
        match self.optimizer.step(self.gradients, rate) {
            Ok(report) => Ok(Ok(Optimised { gap: metrics.mean(gap), metrics, grad_norm: report.grad_norm })),
            Err(error) if error.is::<NotFinite>() => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn loss_settings(&self) -> LossSettings {
        let loss = &self.config.loss;
        LossSettings {
            clip: Clip { low: loss.clip_low, high: loss.clip_high, dual: loss.dual_clip },
            kl_beta: self.config.reference.kl_beta,
            entropy_bonus: loss.entropy_bonus,
        }
    }

    /// Log-probs of every response token at the sampler's temperature, without a graph.
    fn score(&self, model: &Qwen2, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
        let cuts = update::micro_batches(&lengths, self.config.model.micro_batch_tokens);
        let temperature = self.config.sampler.temperature;
        let parts = update::each(model, &cuts, |range| {
            Ok(model.scores(&update::pack(&sequences[range]), temperature)?.log_probs.to_vec1::<f32>()?)
        })?;
        let mut all = parts.into_iter().flatten();
        Ok(sequences.iter().map(|s| all.by_ref().take(s.response_len()).collect()).collect())
    }
}

/// What one optimiser step did.
struct Optimised {
    metrics: LossMetrics,
    grad_norm: f64,
    gap: f64,
}

/// Cuts `0..count` into at most `parts` ranges in order, none of them empty, whose sizes differ by one at most.
fn parts(count: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = parts.min(count);
    (0..parts).map(move |i| count * i / parts..count * (i + 1) / parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_shared_out_evenly_over_the_updates() {
        let cut = |count, updates| parts(count, updates).collect::<Vec<_>>();
        assert_eq!(cut(24, 2), [0..12, 12..24]);
        assert_eq!(cut(5, 4), [0..1, 1..2, 2..3, 3..5]);
        assert_eq!(cut(2, 4), [0..1, 1..2], "no update without a group");
        assert!(cut(0, 4).is_empty());
    }

    #[test]
    fn a_group_needs_a_difference_and_a_kept_rollout() {
        let used = |rewards: &[f64], kept: &[bool]| Group { prompt: &[1], rollouts: &[], rewards, kept }.is_used();
        assert!(used(&[0.0, 1.0], &[true, false]));
        assert!(!used(&[1.0, 1.0], &[true, true]));
        assert!(!used(&[0.0, 1.0], &[false, false]));
    }
}
