//! A rollout as the loss sees it, and the response tokens of a micro-batch, one value a token.

use anyhow::Result;

use super::{Group, Learner};
use crate::loss::{LossInputs, importance_weights};
use crate::update::Sequence;

/// A rollout as the loss sees it.
pub(super) struct Example {
    pub sequence: Sequence,
    /// The sampler's log-probs.
    sampled: Vec<f32>,
    /// The trainer's log-probs at the same weights, where the loss needs them.
    old: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
    advantage: f32,
}

impl Learner<'_> {
    /// The kept rollouts of each group, with what the loss needs to know of them. A group comes with the reference model's
    /// log-probs of its rollouts, which only a penalty needs.
    pub(super) fn examples(&self, groups: Vec<(Group, Vec<Vec<f32>>)>) -> Result<Vec<Vec<Example>>> {
        let rewards: Vec<Vec<f64>> = groups.iter().map(|(group, _)| group.rewards.to_vec()).collect();
        let advantages = self.config.loss.advantage.compute(&rewards);
        let penalty = self.reference.is_some() && self.config.reference.kl_beta > 0.0;
        let mut examples: Vec<Vec<Example>> = groups
            .into_iter()
            .zip(advantages)
            .map(|((group, scores), advantages)| kept(&group, &advantages, penalty.then_some(scores)))
            .collect();
        if self.config.loss.importance_cap.is_some() {
            let sequences: Vec<Sequence> = examples.iter().flatten().map(|e| e.sequence.clone()).collect();
            let scores = self.score(&self.model.detached(), &sequences)?;
            for (example, scores) in examples.iter_mut().flatten().zip(scores) {
                example.old = Some(scores);
            }
        }
        Ok(examples)
    }
}

/// `reference`: log-probs of all of the group's rollouts.
fn kept(group: &Group, advantages: &[f64], mut reference: Option<Vec<Vec<f32>>>) -> Vec<Example> {
    let kept = (0..group.rollouts.len()).filter(|&i| group.kept[i]);
    kept.map(|i| Example {
        sequence: group.sequence(i),
        sampled: group.rollouts[i].log_probs.clone(),
        old: None,
        reference: reference.as_mut().map(|scores| std::mem::take(&mut scores[i])),
        advantage: advantages[i] as f32,
    })
    .collect()
}

/// What the loss knows of the response tokens of a micro-batch, one value a token.
pub(super) struct Tokens {
    sampled: Vec<f32>,
    old: Vec<f32>,
    advantages: Vec<f32>,
    weights: Vec<f32>,
    importance: Option<Vec<f32>>,
    reference: Option<Vec<f32>>,
}

impl Tokens {
    /// Lays out `examples`; `weights` has one value an example, `cap` is that of the importance weights.
    pub fn new(examples: &[&Example], weights: &[f32], cap: Option<f64>) -> Result<Self> {
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

    /// As the loss takes them.
    pub fn inputs(&self) -> LossInputs<'_> {
        LossInputs {
            old_log_probs: &self.old,
            advantages: &self.advantages,
            weights: &self.weights,
            importance: self.importance.as_deref(),
            reference_log_probs: self.reference.as_deref(),
        }
    }

    /// Sum of `|trainer - sampler|` over the tokens.
    pub fn gap(&self, trainer: &[f32]) -> f64 {
        trainer.iter().zip(&self.sampled).map(|(t, s)| f64::from((t - s).abs())).sum()
    }
}
