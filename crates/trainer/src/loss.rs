//! The loss of a policy: the clipped objective, its KL penalty and entropy bonus, over tokens of packed sequences.
//!
//! Every function takes one value a token, `[tokens]`, in the order in which the sequences were packed. A batch is split
//! over micro-batches and their gradients are added, so the divisor of a mean belongs to the whole batch: it is a
//! *weight* for each token, made once by [`sequence_weights`], and the loss of a micro-batch is a plain weighted sum.

use anyhow::{Result, bail, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// What the sum of the token losses is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// The mean over all tokens of the batch: each token weighs `1 / sum of lengths`. DAPO (arXiv 2503.14476).
    #[default]
    Token,
    /// The mean over a sequence's tokens, then over the sequences: `1 / (sequences * length)`. GRPO (arXiv 2402.03300).
    Sequence,
    /// Divided by a constant, so that no length counts for less: `1 / (sequences * constant)`. Dr. GRPO
    /// (arXiv 2503.20783).
    Constant,
}

/// The weight that each token of a sequence has in the loss, one a sequence, in the order of `lengths`.
///
/// `lengths` are the numbers of response tokens of *all* sequences of the batch, whatever the micro-batch they go to;
/// `constant` is the divisor in tokens of [`Aggregation::Constant`] (the largest budget, say) and is not read otherwise.
/// A sequence without tokens has no loss, but counts as a sequence.
///
/// # Errors
/// If `constant` is 0 where it is needed.
pub fn sequence_weights(aggregation: Aggregation, lengths: &[usize], constant: usize) -> Result<Vec<f32>> {
    let sequences = lengths.len() as f64;
    let tokens = lengths.iter().sum::<usize>() as f64;
    if aggregation == Aggregation::Constant && constant == 0 {
        bail!("loss aggregation `constant` needs a length of at least 1 token to divide by, not 0");
    }
    let weight = |&length: &usize| match aggregation {
        _ if length == 0 => 0.0,
        Aggregation::Token => 1.0 / tokens,
        Aggregation::Sequence => 1.0 / (sequences * length as f64),
        Aggregation::Constant => 1.0 / (sequences * constant as f64),
    };
    Ok(lengths.iter().map(|length| weight(length) as f32).collect())
}

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

/// The knobs of [`policy_loss`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// The probability ratio is clipped at `1 - clip_low` where the advantage is negative.
    pub clip_low: f64,
    /// The probability ratio is clipped at `1 + clip_high` where the advantage is positive.
    pub clip_high: f64,
    /// Dual clip: the ratio is clipped at this (above 1) where the advantage is negative. `None` leaves it unbounded.
    pub clip_dual: Option<f64>,
    /// Weight of the KL penalty against the reference model; 0 is none.
    pub kl_beta: f64,
    /// Weight of the mean entropy that is taken off the loss; 0 is none.
    pub entropy_bonus: f64,
}

impl Default for LossSettings {
    /// SIRI's: clip 0.2 and 0.28, nothing else.
    fn default() -> Self {
        Self { clip_low: 0.2, clip_high: 0.28, clip_dual: None, kl_beta: 0.0, entropy_bonus: 0.0 }
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

/// Sums over the tokens of one or more micro-batches; [`LossMetrics::merge`] them, then divide.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossMetrics {
    /// Number of tokens that are not masked.
    pub tokens: u64,
    /// The loss, whose divisor is in the weights: its sum over the micro-batches is the loss of the batch.
    pub loss: f64,
    /// Tokens whose ratio is held at `1 - clip_low`.
    pub clipped_low: u64,
    /// Tokens whose ratio is held at `1 + clip_high`.
    pub clipped_high: u64,
    /// Tokens whose ratio is held at `clip_dual`.
    pub clipped_dual: u64,
    /// Sum of the ratios `exp(new - old)`.
    pub ratio: f64,
    /// The largest ratio.
    pub ratio_max: f64,
    /// Sum of the k3 estimates of `KL(old || new)`: how far the policy has moved since its rollouts.
    pub policy_kl: f64,
    /// Sum of the k3 estimates of `KL(new || reference)`; 0 without a reference.
    pub reference_kl: f64,
    /// Sum of the importance weights; the number of tokens without them.
    pub importance: f64,
    /// Sum of the entropies; 0 if they were not given.
    pub entropy: f64,
}

impl LossMetrics {
    /// Adds another micro-batch's sums.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.loss += other.loss;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.clipped_dual += other.clipped_dual;
        self.ratio += other.ratio;
        self.ratio_max = self.ratio_max.max(other.ratio_max);
        self.policy_kl += other.policy_kl;
        self.reference_kl += other.reference_kl;
        self.importance += other.importance;
        self.entropy += other.entropy;
    }

    /// Clipped tokens, on either side, divided by the tokens.
    #[must_use]
    pub fn clip_fraction(&self) -> f64 {
        self.mean((self.clipped_low + self.clipped_high + self.clipped_dual) as f64)
    }

    /// A sum, divided by the tokens: `metrics.mean(metrics.entropy)`. 0 if there are no tokens.
    #[must_use]
    pub fn mean(&self, sum: f64) -> f64 {
        if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 }
    }
}

/// The clipped policy loss of a micro-batch, differentiable in `new_log_probs` and `entropy`: the sum over tokens `t` of
///
/// ```text
/// w_t (-c_t clip(r_t, low_t, high_t) A_t + kl_beta k3_t - entropy_bonus H_t)
///
/// r  = exp(new - old)                          the probability ratio
/// k3 = exp(ref - new) - (ref - new) - 1        an estimate of KL(new || ref) that is never negative
/// low, high = 0, 1 + clip_high                 where A >= 0
///             1 - clip_low, clip_dual or inf   where A < 0
/// ```
///
/// The bounds by sign are `min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)` of PPO (arXiv 1707.06347) with the two
/// sides decoupled as in DAPO (arXiv 2503.14476), and `clip_dual` is the dual clip of arXiv 1912.09729. A clipped token
/// has no gradient, one that is exactly on the bound has its full one. `c` is the importance weight or 1, a constant.
/// k3 is Schulman's (*Approximating KL Divergence*, 2020), used as a loss by GRPO.
///
/// `new_log_probs` and `entropy` are `[tokens]`, f32.
///
/// # Errors
/// If an input has another length, `kl_beta` or `entropy_bonus` is set without what it applies to, or the loss is not
/// finite (a log-prob is missing or the policy has diverged).
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
        bail!(
            "the loss of {tokens} tokens is {}: a log-prob is not finite or the policy has diverged (largest ratio {:e}); \
             lower optimizer.learning_rate or set loss.importance_cap",
            metrics.loss,
            metrics.ratio_max
        );
    }
    Ok(LossOutput { loss, metrics })
}

/// The k3 estimate of `KL(new || reference)` for each token, `[tokens]`, and 0 where `active` is 0.
fn masked_k3(new: &Tensor, reference: &[f32], active: &[u8], device: &Device) -> Result<Tensor> {
    let tokens = reference.len();
    let reference = Tensor::from_slice(reference, tokens, device)?;
    let gap = (reference - new)?;
    let gap = Tensor::from_slice(active, tokens, device)?.where_cond(&gap, &gap.zeros_like()?)?;
    Ok(((gap.exp()? - gap)? - 1.0)?)
}

fn k3(gap: f64) -> f64 {
    gap.exp() - gap - 1.0
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
            let held = held_at(ratio, advantage, settings, metrics);
            plan.old[t] = inputs.old_log_probs[t];
            plan.active[t] = 1;
            plan.free[t] = u8::from(held.is_none());
            plan.bound[t] = held.unwrap_or(1.0) as f32;
            plan.coefficient[t] = -weight * importance * advantage;

            metrics.tokens += 1;
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

/// The bound that a ratio is held at, if it is past the one on the side where its advantage would push it further.
fn held_at(ratio: f64, advantage: f32, settings: &LossSettings, metrics: &mut LossMetrics) -> Option<f64> {
    let (low, high) = (1.0 - settings.clip_low, 1.0 + settings.clip_high);
    if advantage > 0.0 && ratio > high {
        metrics.clipped_high += 1;
        return Some(high);
    }
    if advantage < 0.0 && ratio < low {
        metrics.clipped_low += 1;
        return Some(low);
    }
    if let Some(dual) = settings.clip_dual.filter(|&dual| advantage < 0.0 && ratio > dual) {
        metrics.clipped_dual += 1;
        return Some(dual);
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn settings() -> LossSettings {
        LossSettings::default()
    }

    fn inputs<'a>(old: &'a [f32], advantages: &'a [f32], weights: &'a [f32]) -> LossInputs<'a> {
        LossInputs { old_log_probs: old, advantages, weights, importance: None, reference_log_probs: None }
    }

    /// The loss, its gradient in the new log-probs, and its metrics.
    fn run(new: &[f32], inputs: &LossInputs, settings: &LossSettings) -> (f32, Vec<f32>, LossMetrics) {
        let var = Var::from_slice(new, new.len(), &Device::Cpu).unwrap();
        let output = policy_loss(&var, inputs, None, settings).unwrap();
        let gradients = output.loss.backward().unwrap();
        let gradient = gradients.get(&var).unwrap().to_vec1().unwrap();
        (output.loss.to_scalar().unwrap(), gradient, output.metrics)
    }

    fn assert_close(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 2e-6, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn weights_of_a_batch_of_one_and_three_tokens() {
        let lengths = [1, 3];
        let weights = |aggregation| sequence_weights(aggregation, &lengths, 8).unwrap();
        assert_eq!(weights(Aggregation::Token), [1.0 / 4.0, 1.0 / 4.0]);
        assert_eq!(weights(Aggregation::Sequence), [1.0 / 2.0, 1.0 / 6.0]);
        assert_eq!(weights(Aggregation::Constant), [1.0 / 16.0, 1.0 / 16.0]);
        assert!(sequence_weights(Aggregation::Constant, &lengths, 0).is_err());
        let none = sequence_weights(Aggregation::Token, &[], 0).unwrap();
        assert!(none.is_empty());
        assert_eq!(sequence_weights(Aggregation::Sequence, &[0, 2], 0).unwrap(), [0.0, 0.25]);
    }

    #[test]
    fn importance_is_truncated() {
        let (trainer, sampler) = ([0.0, -1.0], [-4.0_f32.ln(), -1.0 + 2.0_f32.ln()]);
        assert_close(&importance_weights(&trainer, &sampler, 2.0).unwrap(), &[2.0, 0.5]);
        assert!(importance_weights(&trainer, &sampler[..1], 2.0).is_err());
    }

    #[test]
    fn on_policy_the_gradient_is_minus_weight_times_advantage() {
        let log_probs = [-1.0, -0.5, -2.0];
        let (loss, gradient, metrics) =
            run(&log_probs, &inputs(&log_probs, &[1.5, -0.5, 0.0], &[0.25; 3]), &settings());
        assert_close(&[loss], &[-0.25]);
        assert_close(&gradient, &[-0.375, 0.125, 0.0]);
        assert_eq!(metrics.tokens, 3);
        assert_eq!(metrics.clip_fraction(), 0.0);
        assert_eq!(metrics.mean(metrics.ratio), 1.0);
        assert_eq!(metrics.policy_kl, 0.0);
    }

    /// Ratios 1.5 and 0.5 with advantages of both signs: clipped only where moving on would still pay.
    #[test]
    fn clips_each_side_by_its_own_bound() {
        let new = [1.5_f32.ln(), 1.5_f32.ln(), 0.5_f32.ln(), 0.5_f32.ln()];
        let (loss, gradient, metrics) = run(&new, &inputs(&[0.0; 4], &[1.0, -1.0, 1.0, -1.0], &[1.0; 4]), &settings());
        // -1.28 (held), +1.5 (free), -0.5 (free), +0.8 (held)
        assert_close(&[loss], &[-1.28 + 1.5 - 0.5 + 0.8]);
        assert_close(&gradient, &[0.0, 1.5, -0.5, 0.0]);
        assert_eq!((metrics.clipped_high, metrics.clipped_low), (1, 1));
        assert_eq!(metrics.clip_fraction(), 0.5);
        assert_eq!(metrics.mean(metrics.ratio), {
            let ratio = |x: f32| f64::from(x).exp();
            new.iter().map(|&x| ratio(x)).sum::<f64>() / 4.0
        });
    }

    /// At a bound there is the whole gradient, just past it none.
    #[test]
    fn the_gradient_stops_past_the_bound() {
        let just = |ratio: f32, past: f32| (ratio + past * 1e-5).ln();
        let new = [just(1.28, -1.0), just(1.28, 1.0), just(0.8, 1.0), just(0.8, -1.0)];
        let (_, gradient, _) = run(&new, &inputs(&[0.0; 4], &[1.0, 1.0, -1.0, -1.0], &[1.0; 4]), &settings());
        assert_close(&gradient, &[-(1.28 - 1e-5), 0.0, 0.8 + 1e-5, 0.0]);
        let exact = LossSettings { clip_low: 0.0, clip_high: 0.0, ..settings() };
        let (_, gradient, _) = run(&[-1.0], &inputs(&[-1.0], &[2.0], &[1.0]), &exact);
        assert_close(&gradient, &[-2.0]);
    }

    #[test]
    fn dual_clip_bounds_a_negative_advantage() {
        let dual = LossSettings { clip_dual: Some(3.0), ..settings() };
        let new = [4.0_f32.ln(), 2.0_f32.ln()];
        let (loss, gradient, metrics) = run(&new, &inputs(&[0.0; 2], &[-1.0; 2], &[1.0; 2]), &dual);
        assert_close(&[loss], &[3.0 + 2.0]);
        assert_close(&gradient, &[0.0, 2.0]);
        assert_eq!(metrics.clipped_dual, 1);
    }

    #[test]
    fn importance_scales_the_objective_but_not_the_penalty() {
        let new = [0.0, 0.0];
        let reference = [2.0_f32.ln(), 0.0];
        let batch = LossInputs {
            importance: Some(&[0.5, 2.0]),
            reference_log_probs: Some(&reference),
            ..inputs(&[0.0; 2], &[1.0; 2], &[0.5; 2])
        };
        let penalised = LossSettings { kl_beta: 0.1, ..settings() };
        let (loss, gradient, metrics) = run(&new, &batch, &penalised);
        // k3 = 2 - ln 2 - 1; its gradient in the new log-prob is 1 - 2 = -1.
        let k3 = 1.0 - 2.0_f32.ln();
        assert_close(&[loss], &[-0.5 * 2.5 + 0.05 * k3]);
        assert_close(&gradient, &[-0.25 - 0.05, -1.0]);
        assert!((metrics.reference_kl - f64::from(k3)).abs() < 1e-6);
        assert_eq!(metrics.importance, 2.5);
        // Without a penalty the reference is reported all the same.
        let (loss, _, metrics) = run(&new, &batch, &settings());
        assert_close(&[loss], &[-1.25]);
        assert!(metrics.reference_kl > 0.3);
    }

    #[test]
    fn the_entropy_bonus_lowers_the_loss() {
        let entropy = Var::from_slice(&[1.0_f32, 3.0], 2, &Device::Cpu).unwrap();
        let new = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        let bonus = LossSettings { entropy_bonus: 0.01, ..settings() };
        let batch = inputs(&[0.0; 2], &[0.0; 2], &[0.5; 2]);
        let output = policy_loss(&new, &batch, Some(&entropy), &bonus).unwrap();
        assert_close(&[output.loss.to_scalar().unwrap()], &[-0.02]);
        let gradients = output.loss.backward().unwrap();
        assert_close(&gradients.get(&entropy).unwrap().to_vec1().unwrap(), &[-0.005; 2]);
        assert_eq!(output.metrics.entropy, 4.0);
    }

    #[test]
    fn masked_tokens_are_not_read() {
        let batch = LossInputs {
            reference_log_probs: Some(&[f32::NAN, 0.0]),
            importance: Some(&[f32::NAN, 1.0]),
            ..inputs(&[f32::NEG_INFINITY, 0.0], &[f32::NAN, 1.0], &[0.0, 1.0])
        };
        let penalised = LossSettings { kl_beta: 0.1, ..settings() };
        let (loss, gradient, metrics) = run(&[-90.0, 0.0], &batch, &penalised);
        assert_close(&[loss], &[-1.0]);
        assert_close(&gradient, &[0.0, -1.0]);
        assert_eq!(metrics.tokens, 1);
    }

    #[test]
    fn a_clipped_token_whose_ratio_overflows_has_no_gradient() {
        let (loss, gradient, _) = run(&[0.0], &inputs(&[-100.0], &[1.0], &[1.0]), &settings());
        assert_close(&[loss], &[-1.28]);
        assert_eq!(gradient, [0.0]);
    }

    /// The metrics and gradients of two micro-batches add up to those of the batch.
    #[test]
    fn micro_batches_add_up() {
        let (new, old) = ([-1.0, -0.2, -0.7, -0.4], [-1.1, -0.5, -0.6, -0.9]);
        let (advantages, weights) = ([1.0, -1.0, -1.0, 1.0], [0.5, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]);
        let whole = run(&new, &inputs(&old, &advantages, &weights), &settings());
        let part = |r: std::ops::Range<usize>| {
            let batch = inputs(&old[r.clone()], &advantages[r.clone()], &weights[r.clone()]);
            run(&new[r], &batch, &settings())
        };
        let (first, second) = (part(0..1), part(1..4));
        assert_close(&[first.0 + second.0], &[whole.0]);
        assert_eq!([first.1, second.1].concat(), whole.1);
        let mut merged = first.2;
        merged.merge(&second.2);
        assert!((merged.ratio - whole.2.ratio).abs() < 1e-12);
        assert_eq!(merged.clip_fraction(), whole.2.clip_fraction());
        assert_eq!(merged.ratio_max, whole.2.ratio_max);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let new = [-1.0, -0.3, -2.0, -0.8, -0.05];
        let reference = [-1.2, -0.1, -1.5, -0.8, -0.5];
        let batch = LossInputs {
            importance: Some(&[1.0, 0.7, 1.4, 2.0, 0.3]),
            reference_log_probs: Some(&reference),
            ..inputs(&[-1.1, -0.5, -1.9, -0.2, -0.9], &[1.5, -0.5, 0.7, 0.3, -2.0], &[0.2, 0.1, 0.3, 0.1, 0.3])
        };
        let penalised = LossSettings { clip_dual: Some(3.0), kl_beta: 0.3, ..settings() };
        let (_, gradient, _) = run(&new, &batch, &penalised);
        for t in 0..new.len() {
            let step = 1.0 / 256.0;
            let at = |delta: f32| {
                let mut moved = new;
                moved[t] += delta;
                run(&moved, &batch, &penalised).0
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            assert!((gradient[t] - numeric).abs() < 1e-4, "token {t}: {} is not {numeric}", gradient[t]);
        }
    }

    #[test]
    fn wrong_inputs_are_refused() {
        let new = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        let message = |batch: &LossInputs, settings: &LossSettings| {
            policy_loss(&new, batch, None, settings).unwrap_err().to_string()
        };
        let short = inputs(&[0.0; 2], &[0.0; 1], &[1.0; 2]);
        assert!(message(&short, &settings()).contains("`advantages` has 1 values for 2 tokens"));
        let batch = inputs(&[0.0; 2], &[0.0; 2], &[1.0; 2]);
        let penalised = LossSettings { kl_beta: 0.1, ..settings() };
        assert!(message(&batch, &penalised).contains("reference"));
        let broken = inputs(&[f32::NAN; 2], &[1.0; 2], &[1.0; 2]);
        assert!(message(&broken, &settings()).contains("not finite"));
    }
}
