//! From graded rollouts to new weights: advantages, loss by micro-batches, optimiser steps.

use anyhow::Result;
use model::Qwen2;

use super::collect::{Batch, Group};
use super::setup::Run;
use crate::advantage::has_signal;
use crate::loss::{LossInputs, LossMetrics, LossSettings, importance_weights, policy_loss, sequence_weights};
use crate::update::{self, Pass, Sequence};

/// What an update did, for the step's row.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// Optimiser steps made.
    pub updates: usize,
    /// Groups that carried a signal.
    pub groups_used: usize,
    /// Tokens (prompts included) that went through forward and backward.
    pub tokens: usize,
    /// Means over the updates, or over their response tokens.
    pub entropy: f64,
    /// To the reference, nats a response token, where it is tracked.
    pub kl: Option<f64>,
    /// Share of tokens whose ratio was clipped.
    pub clip_fraction: f64,
    /// Mean loss of the updates.
    pub loss: f64,
    /// Mean gradient norm of the updates, before clipping.
    pub grad_norm: f64,
    /// Rate of the last update.
    pub learning_rate: f64,
    /// Mean absolute gap of the sampler's and the trainer's log-probs before the first update.
    pub logprob_gap: f64,
}

/// A rollout as the loss sees it.
struct Example {
    sequence: Sequence,
    /// The sampler's log-probs.
    sampled: Vec<f32>,
    /// The trainer's log-probs at the same weights, where the loss needs them.
    old: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
    advantage: f32,
}

/// Updates the policy from a batch of rollouts.
pub fn update(run: &mut Run, batch: &Batch, budget: usize) -> Result<Learned> {
    let used: Vec<&Group> = batch.groups.iter().filter(|g| has_signal(&g.rewards)).collect();
    let mut learned = Learned { groups_used: used.len(), kl: reference_kl(run, batch)?, ..Learned::default() };
    let groups = examples(run, &used)?;
    let examples: Vec<&Example> = groups.iter().flatten().collect();
    if examples.is_empty() {
        return Ok(learned);
    }
    let per_update = groups.len().div_ceil(run.config.optimizer.updates_per_step);
    let mut metrics = LossMetrics::default();
    for (i, groups) in groups.chunks(per_update).enumerate() {
        let examples: Vec<&Example> = groups.iter().flatten().collect();
        if examples.is_empty() {
            continue;
        }
        let rate = run.rate.at_share(run.updates + i, run.share_done());
        let done = optimise(run, &examples, budget, rate)?;
        if i == 0 {
            learned.logprob_gap = done.gap;
        }
        learned.updates += 1;
        learned.learning_rate = rate;
        learned.grad_norm += done.grad_norm;
        learned.tokens += examples.iter().map(|e| e.sequence.tokens.len()).sum::<usize>();
        metrics.merge(&done.metrics);
    }
    let updates = learned.updates.max(1) as f64;
    learned.grad_norm /= updates;
    learned.loss = metrics.loss / updates;
    learned.entropy = metrics.mean(metrics.entropy);
    learned.clip_fraction = metrics.clip_fraction();
    Ok(learned)
}

/// The rollouts of each group that enter the loss, with what the loss needs to know of them.
fn examples(run: &Run, groups: &[&Group]) -> Result<Vec<Vec<Example>>> {
    let rewards: Vec<Vec<f64>> = groups.iter().map(|g| g.rewards.clone()).collect();
    let advantages = run.config.loss.advantage.compute(&rewards);
    let mut examples: Vec<Vec<Example>> = groups
        .iter()
        .zip(advantages)
        .map(|(group, advantages)| {
            let all = (0..group.rollouts.len()).filter(|&i| group.kept[i]);
            all.map(|i| Example {
                sequence: sequence(group, i),
                sampled: group.rollouts[i].log_probs.clone(),
                old: None,
                reference: None,
                advantage: advantages[i] as f32,
            })
            .collect()
        })
        .collect();
    if run.config.loss.importance_cap.is_some() {
        attach(run, &run.policy.model.detached(), &mut examples, |e, scores| e.old = Some(scores))?;
    }
    if let Some(reference) = run.reference.as_ref().filter(|_| run.config.reference.kl_beta > 0.0) {
        attach(run, reference, &mut examples, |e, scores| e.reference = Some(scores))?;
    }
    Ok(examples)
}

fn sequence(group: &Group, i: usize) -> Sequence {
    Sequence { tokens: [&group.prompt[..], &group.rollouts[i].tokens].concat(), prompt: group.prompt.len() }
}

fn attach(run: &Run, model: &Qwen2, examples: &mut [Vec<Example>], put: impl Fn(&mut Example, Vec<f32>)) -> Result<()> {
    let sequences: Vec<Sequence> = examples.iter().flatten().map(|e| e.sequence.clone()).collect();
    let scores = score(run, model, &sequences)?;
    for (example, scores) in examples.iter_mut().flatten().zip(scores) {
        put(example, scores);
    }
    Ok(())
}

/// Log-probs of every response token at the sampler's temperature, without a graph.
fn score(run: &Run, model: &Qwen2, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len()).collect();
    let cuts = update::micro_batches(&lengths, run.config.model.micro_batch_tokens);
    let parts = update::each(model, &cuts, |range| {
        Ok(model
            .scores(&update::pack(&sequences[range]), run.config.sampler.temperature)?
            .log_probs
            .to_vec1::<f32>()?)
    })?;
    let mut all = parts.into_iter().flatten();
    Ok(sequences.iter().map(|s| all.by_ref().take(s.response_len()).collect()).collect())
}

/// The k3 estimate (Schulman 2020) of `KL(policy || reference)` over the first rollouts of every group, as many as
/// `reference.track` asks for: `mean(e^d - d - 1)`, `d = log reference - log policy`, on the policy's own tokens.
fn reference_kl(run: &Run, batch: &Batch) -> Result<Option<f64>> {
    let Some(reference) = &run.reference else { return Ok(None) };
    let share = if run.config.reference.kl_beta > 0.0 { 1.0 } else { run.config.reference.track };
    let tracked = |g: &Group| ((g.rollouts.len() as f64 * share).ceil() as usize).min(g.rollouts.len());
    let chosen: Vec<(&Group, usize)> = batch.groups.iter().flat_map(|g| (0..tracked(g)).map(move |i| (g, i))).collect();
    let sequences: Vec<Sequence> = chosen.iter().map(|&(g, i)| sequence(g, i)).collect();
    let scores = score(run, reference, &sequences)?;
    let (mut sum, mut count) = (0.0, 0usize);
    for ((group, i), scores) in chosen.into_iter().zip(scores) {
        for (&policy, &reference) in group.rollouts[i].log_probs.iter().zip(&scores) {
            let d = f64::from(reference) - f64::from(policy);
            sum += d.exp() - d - 1.0;
            count += 1;
        }
    }
    Ok((count > 0).then(|| sum / count as f64))
}

/// What one optimiser step did.
struct Optimised {
    metrics: LossMetrics,
    grad_norm: f64,
    gap: f64,
}

/// One optimiser step on `examples`; every mean is over all of them, whatever the micro-batches.
fn optimise(run: &mut Run, examples: &[&Example], budget: usize, rate: f64) -> Result<Optimised> {
    let loss = &run.config.loss;
    let settings = LossSettings {
        clip_low: loss.clip_low,
        clip_high: loss.clip_high,
        clip_dual: loss.dual_clip,
        kl_beta: run.config.reference.kl_beta,
        entropy_bonus: loss.entropy_bonus,
    };
    let responses: Vec<usize> = examples.iter().map(|e| e.sequence.response_len()).collect();
    let weights = sequence_weights(loss.aggregation, &responses, run.schedule.largest().max(budget))?;
    let lengths: Vec<usize> = examples.iter().map(|e| e.sequence.tokens.len()).collect();
    let cuts = update::micro_batches(&lengths, run.config.model.micro_batch_tokens);
    let sequences: Vec<Sequence> = examples.iter().map(|e| e.sequence.clone()).collect();
    let (model, cap) = (&run.policy.model, loss.importance_cap);
    let pass = Pass { temperature: run.config.sampler.temperature, recompute: run.config.model.recompute };
    let (gradients, parts) = update::gradients(model, &sequences, &cuts, pass, |range, scores| {
        let tokens = Tokens::new(&examples[range.clone()], &weights[range], cap)?;
        let gap = tokens.gap(&scores.log_probs.to_vec1::<f32>()?);
        // A bonus needs the entropy's gradient; a figure does not.
        let entropy = if settings.entropy_bonus > 0.0 { scores.entropy.clone() } else { scores.entropy.detach() };
        let output = policy_loss(&scores.log_probs, &tokens.inputs(), Some(&entropy), &settings)?;
        Ok((output.loss, (output.metrics, gap)))
    })?;
    let report = run.optimizer.step(&gradients, rate)?;
    let (mut metrics, mut gap) = (LossMetrics::default(), 0.0);
    for (part, part_gap) in &parts {
        metrics.merge(part);
        gap += part_gap;
    }
    Ok(Optimised { gap: metrics.mean(gap), metrics, grad_norm: report.grad_norm })
}

/// What the loss knows of the response tokens of a micro-batch, one value a token.
struct Tokens {
    sampled: Vec<f32>,
    old: Vec<f32>,
    advantages: Vec<f32>,
    weights: Vec<f32>,
    importance: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
}

impl Tokens {
    fn new(examples: &[&Example], weights: &[f32], cap: Option<f64>) -> Result<Self> {
        let spread = |of: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let counts = examples.iter().map(|e| e.sequence.response_len()).enumerate();
            counts.flat_map(|(i, n)| std::iter::repeat_n(of(i), n)).collect()
        };
        let sampled: Vec<f32> = examples.iter().flat_map(|e| e.sampled.iter().copied()).collect();
        let joined = |of: &dyn Fn(&Example) -> Option<&Vec<f32>>| -> Option<Vec<f32>> {
            let parts: Option<Vec<&Vec<f32>>> = examples.iter().map(|e| of(e)).collect();
            parts.map(|parts| parts.into_iter().flatten().copied().collect())
        };
        let trainer = joined(&|e| e.old.as_ref());
        let importance = match (cap, &trainer) {
            (Some(cap), Some(trainer)) => Some(importance_weights(trainer, &sampled, cap)?),
            _ => None,
        };
        Ok(Self {
            old: trainer.unwrap_or_else(|| sampled.clone()),
            sampled,
            advantages: spread(&|i| examples[i].advantage),
            weights: spread(&|i| weights[i]),
            importance,
            reference: joined(&|e| e.reference.as_ref()),
        })
    }

    fn inputs(&self) -> LossInputs<'_> {
        LossInputs {
            old_log_probs: &self.old,
            advantages: &self.advantages,
            weights: &self.weights,
            importance: self.importance.as_deref(),
            reference_log_probs: self.reference.as_deref(),
        }
    }

    /// Sum of `|trainer - sampler|` over the tokens.
    fn gap(&self, trainer: &[f32]) -> f64 {
        trainer.iter().zip(&self.sampled).map(|(t, s)| f64::from((t - s).abs())).sum()
    }
}
