//! How far the policy is from the reference model, measured on the policy's own rollouts.

use anyhow::Result;

use super::{Group, Learner};
use crate::loss::k3;
use crate::update::Sequence;

impl Learner<'_> {
    /// The reference model's log-probs of the first rollouts of each group, as many as `reference.track` asks for, or of
    /// all where the loss has a penalty of them; none without a reference.
    pub(super) fn reference_scores(&self, groups: &[Group]) -> Result<Vec<Vec<Vec<f32>>>> {
        let Some(reference) = self.reference else { return Ok(vec![Vec::new(); groups.len()]) };
        let settings = &self.config.reference;
        let share = if settings.kl_beta > 0.0 { 1.0 } else { settings.track };
        let tracked = |g: &Group| ((g.rollouts.len() as f64 * share).ceil() as usize).min(g.rollouts.len());
        let sequences: Vec<Sequence> =
            groups.iter().flat_map(|g| (0..tracked(g)).map(move |i| g.sequence(i))).collect();
        let mut scores = self.score(reference, &sequences)?.into_iter();
        Ok(groups.iter().map(|g| scores.by_ref().take(tracked(g)).collect()).collect())
    }
}

/// The mean over response tokens of the k3 estimate of `KL(policy || reference)`, nats, on the rollouts that the reference
/// has scored; `None` where there are none.
pub(super) fn mean_kl(groups: &[Group], scores: &[Vec<Vec<f32>>]) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for (group, scores) in groups.iter().zip(scores) {
        for (rollout, scores) in group.rollouts.iter().zip(scores) {
            for (&policy, &reference) in rollout.log_probs.iter().zip(scores) {
                sum += k3(f64::from(reference) - f64::from(policy));
                count += 1;
            }
        }
    }
    (count > 0).then(|| sum / count as f64)
}
