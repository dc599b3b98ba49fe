//! The loss of a policy: the clipped objective, its KL penalty and entropy bonus, over tokens of packed sequences.
//!
//! Every function takes one value a token, `[tokens]`, in the order in which the sequences were packed; what the sum over
//! them is divided by is in their weights ([`sequence_weights`]).

mod clip;
mod importance;
mod kl;
mod metrics;
#[cfg(test)]
mod tests;
mod weights;

use anyhow::{Result, bail};
use candle_core::Tensor;

pub use clip::{Clip, Side};
pub use importance::importance_weights;
pub use kl::k3;
use kl::masked_k3;
pub use metrics::LossMetrics;
pub use weights::{Aggregation, sequence_weights};

/// The knobs of [`policy_loss`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Where the probability ratio is held.
    pub clip: Clip,
    /// Weight of the KL penalty against the reference model; 0 is none.
    pub kl_beta: f64,
    /// Weight of the mean entropy that is taken off the loss; 0 is none.
    pub entropy_bonus: f64,
}

impl Default for LossSettings {
    /// SIRI's: clip 0.2 and 0.28, nothing else.
    fn default() -> Self {
        Self { clip: Clip { low: 0.2, high: 0.28, dual: None }, kl_beta: 0.0, entropy_bonus: 0.0 }
    }
}

/// What [`policy_loss`] knows about the tokens of a micro-batch; each slice has one value a token.
#[derive(Clone, Copy, Debug)]
pub struct LossInputs<'a> {
    /// Log-probs of the tokens under the policy before the update.
    pub old_log_probs: &'a [f32],
    /// Advantage of the rollout that each token belongs to.
    pub advantages: &'a [f32],
    /// Weight of each token, from [`sequence_weights`]. A token of weight 0 is masked: it has no part in the loss or in
    /// the metrics, and its other values are not read.
    pub weights: &'a [f32],
    /// Factors of the clipped objective, from [`importance_weights`].
    pub importance: Option<&'a [f32]>,
    /// Log-probs of the tokens under the reference model.
    pub reference_log_probs: Option<&'a [f32]>,
}

/// The loss of a micro-batch and what to report about it.
#[derive(Debug)]
pub struct LossOutput {
    /// Scalar f32, to call `backward` on.
    pub loss: Tensor,
    /// Sums over the tokens.
    pub metrics: LossMetrics,
}

/// A loss that cannot be differentiated.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loss of {tokens} tokens is {loss}: a log-prob is not finite or the policy has diverged (largest ratio \
     {ratio_max:e}); lower optimizer.learning_rate or set loss.importance_cap"
)]
pub struct NotFinite {
    tokens: usize,
    loss: f64,
    ratio_max: f64,
}

/// The clipped policy loss of a micro-batch, differentiable in `new_log_probs` and `entropy`: the sum over tokens `t` of
///
/// ```text
/// w_t (-c_t clip(r_t, low_t, high_t) A_t + kl_beta k3_t - entropy_bonus H_t)
///
/// r  = exp(new - old)                          the probability ratio
/// k3 = exp(ref - new) - (ref - new) - 1        an estimate of KL(new || ref) that is never negative
/// low, high = 0, 1 + clip.high                 where A >= 0
///             1 - clip.low, clip.dual or inf   where A < 0
/// ```
///
/// The bounds are those of [`Clip::held`]; a clipped token has no gradient, one that is exactly on the bound has its full
/// one. `c` is the weight of [`importance_weights`] or 1, a constant. k3 is [`k3`].
///
/// `new_log_probs` and `entropy` are `[tokens]`, f32.
///
/// # Errors
/// If an input has another length, `kl_beta` or `entropy_bonus` is set without what it applies to, or the loss is not
/// finite ([`NotFinite`]: a log-prob is missing or the policy has diverged).
pub fn policy_loss(
    new_log_probs: &Tensor,
    inputs: &LossInputs,
    entropy: Option<&Tensor>,
    settings: &LossSettings,
) -> Result<LossOutput> {
    let tokens = new_log_probs.dims1()?;
    check(tokens, inputs, entropy, settings)?;
    let new: Vec<f32> = new_log_probs.to_vec1()?;
    let entropies: Option<Vec<f32>> = entropy.map(Tensor::to_vec1).transpose()?;
    let mut metrics = LossMetrics::default();
    let plan = Plan::new(&new, entropies.as_deref(), inputs, settings, &mut metrics);
    let device = new_log_probs.device();
    let vector = |values: &[f32]| Tensor::from_slice(values, tokens, device);

    // The clipped tokens' log-ratio is replaced before `exp`, because 0 times an infinite ratio would be their gradient.
    let old = vector(&plan.old)?;
    let zeros = old.zeros_like()?;
    let free = Tensor::from_slice(&plan.free, tokens, device)?;
    let log_ratio = free.where_cond(&(new_log_probs - old)?, &zeros)?;
    let ratio = free.where_cond(&log_ratio.exp()?, &vector(&plan.bound)?)?;
    let mut loss = (ratio * vector(&plan.coefficient)?)?.sum_all()?;

    if let Some(reference) = inputs.reference_log_probs.filter(|_| settings.kl_beta != 0.0) {
        let kl = masked_k3(new_log_probs, reference, &plan.active, device)?;
        let penalty = (kl * vector(inputs.weights)?)?.sum_all()?;
        loss = (loss + (penalty * settings.kl_beta)?)?;
    }
    if let Some(entropy) = entropy.filter(|_| settings.entropy_bonus != 0.0) {
        let active = Tensor::from_slice(&plan.active, tokens, device)?;
        let bonus = (active.where_cond(entropy, &zeros)? * vector(inputs.weights)?)?.sum_all()?;
        loss = (loss - (bonus * settings.entropy_bonus)?)?;
    }
    metrics.loss = f64::from(loss.to_scalar::<f32>()?);
    if !metrics.loss.is_finite() {
        let error = NotFinite { tokens, loss: metrics.loss, ratio_max: metrics.ratio_max };
        return Err(error.into());
    }
    Ok(LossOutput { loss, metrics })
}

/// The constants of the clipped objective, one a token, which depend on the log-probs only through comparisons.
struct Plan {
    /// Log-probs before the update; 0 where masked.
    old: Vec<f32>,
    /// 1 where the token is in the loss.
    active: Vec<u8>,
    /// 1 where the ratio is free, 0 where it is held at `bound`.
    free: Vec<u8>,
    /// The ratio of the held tokens.
    bound: Vec<f32>,
    /// `-w c A`, what the ratio is multiplied with.
    coefficient: Vec<f32>,
}

impl Plan {
    fn new(
        new: &[f32],
        entropies: Option<&[f32]>,
        inputs: &LossInputs,
        settings: &LossSettings,
        metrics: &mut LossMetrics,
    ) -> Self {
        let tokens = new.len();
        let mut plan = Self {
            old: vec![0.0; tokens],
            active: vec![0; tokens],
            free: vec![0; tokens],
            bound: vec![1.0; tokens],
            coefficient: vec![0.0; tokens],
        };
        for t in (0..tokens).filter(|&t| inputs.weights[t] != 0.0) {
            let (advantage, weight) = (inputs.advantages[t], inputs.weights[t]);
            let importance = inputs.importance.map_or(1.0, |values| values[t]);
            let log_ratio = f64::from(new[t]) - f64::from(inputs.old_log_probs[t]);
            let ratio = log_ratio.exp();
            let held = settings.clip.held(ratio, f64::from(advantage));
            plan.old[t] = inputs.old_log_probs[t];
            plan.active[t] = 1;
            plan.free[t] = u8::from(held.is_none());
            plan.bound[t] = held.map_or(1.0, |side| settings.clip.bound(side)) as f32;
            plan.coefficient[t] = -weight * importance * advantage;

            metrics.tokens += 1;
            match held {
                Some(Side::Low) => metrics.clipped_low += 1,
                Some(Side::High) => metrics.clipped_high += 1,
                Some(Side::Dual) => metrics.clipped_dual += 1,
                None => {}
            }
            metrics.ratio += ratio;
            metrics.ratio_max = metrics.ratio_max.max(ratio);
            metrics.policy_kl += k3(log_ratio);
            metrics.importance += f64::from(importance);
            if let Some(reference) = inputs.reference_log_probs {
                metrics.reference_kl += k3(f64::from(reference[t]) - f64::from(new[t]));
            }
            metrics.entropy += entropies.map_or(0.0, |values| f64::from(values[t]));
        }
        plan
    }
}

fn check(tokens: usize, inputs: &LossInputs, entropy: Option<&Tensor>, settings: &LossSettings) -> Result<()> {
    let lengths = [
        ("old_log_probs", Some(inputs.old_log_probs.len())),
        ("advantages", Some(inputs.advantages.len())),
        ("weights", Some(inputs.weights.len())),
        ("importance", inputs.importance.map(<[f32]>::len)),
        ("reference_log_probs", inputs.reference_log_probs.map(<[f32]>::len)),
        ("entropy", entropy.map(Tensor::dims1).transpose()?),
    ];
    for (name, length) in lengths {
        if let Some(length) = length.filter(|&length| length != tokens) {
            bail!("loss: `{name}` has {length} values for {tokens} tokens");
        }
    }
    if settings.kl_beta != 0.0 && inputs.reference_log_probs.is_none() {
        bail!("loss: kl_beta is {} but there are no log-probs of a reference model", settings.kl_beta);
    }
    if settings.entropy_bonus != 0.0 && entropy.is_none() {
        bail!("loss: entropy_bonus is {} but there are no entropies", settings.entropy_bonus);
    }
    Ok(())
}
