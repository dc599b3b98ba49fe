//! How far the policy is from the reference model, measured on the policy's own rollouts.

use anyhow::Result;

use super::{Group, Learner};
use crate::loss::k3;
use crate::update::Sequence;

impl Learner<'_> {
    /// The mean over response tokens of the k3 estimate of `KL(policy || reference)`, nats, on the first rollouts of every
    /// group, as many as `reference.track` asks for; `None` without a reference or a rollout.
    pub(super) fn reference_kl(&self, groups: &[Group]) -> Result<Option<f64>> {
        let Some(reference) = self.reference else { return Ok(None) };
        let settings = &self.config.reference;
        let share = if settings.kl_beta > 0.0 { 1.0 } else { settings.track };
        let tracked = |g: &Group| ((g.rollouts.len() as f64 * share).ceil() as usize).min(g.rollouts.len());
        let chosen: Vec<(&Group, usize)> = groups.iter().flat_map(|g| (0..tracked(g)).map(move |i| (g, i))).collect();
        let sequences: Vec<Sequence> = chosen.iter().map(|&(g, i)| g.sequence(i)).collect();
        let scores = self.score(reference, &sequences)?;
        let (mut sum, mut count) = (0.0, 0usize);
        for ((group, i), scores) in chosen.into_iter().zip(scores) {
            for (&policy, &reference) in group.rollouts[i].log_probs.iter().zip(&scores) {
                sum += k3(f64::from(reference) - f64::from(policy));
                count += 1;
            }
        }
        Ok((count > 0).then(|| sum / count as f64))
    }
}
