//! Truncated importance sampling: tokens were drawn by the sampler and are trained on by the trainer.

use anyhow::{Result, ensure};

/// Truncated importance weights `min(exp(trainer - sampler), cap)`, one a token: what corrects a policy gradient whose
/// tokens were drawn from the sampler's distribution and not from the trainer's. Yao et al., *Your Efficient RL
/// Framework Secretly Brings You Off-Policy RL Training* (2025).
///
/// `trainer` and `sampler` are log-probs of the same tokens under the same weights, before the update.
///
/// # Errors
/// If the two differ in length.
pub fn importance_weights(trainer: &[f32], sampler: &[f32], cap: f64) -> Result<Vec<f32>> {
    ensure!(
        trainer.len() == sampler.len(),
        "{} log-probs from the trainer, {} from the sampler: one of each a token is needed",
        trainer.len(),
        sampler.len()
    );
    let weight = |(&t, &s): (&f32, &f32)| (f64::from(t) - f64::from(s)).exp().min(cap) as f32;
    Ok(trainer.iter().zip(sampler).map(weight).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn importance_is_truncated() {
        let (trainer, sampler) = ([0.0, -1.0], [-4.0_f32.ln(), -1.0 + 2.0_f32.ln()]);
        let weights = importance_weights(&trainer, &sampler, 2.0).unwrap();
        assert_eq!(weights[0], 2.0, "the ratio of 4 is cut");
        assert!((weights[1] - 0.5).abs() < 1e-6);
        assert!(importance_weights(&trainer, &sampler[..1], 2.0).is_err());
    }
}
