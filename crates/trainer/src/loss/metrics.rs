//! What a loss reports about its tokens: sums that add up over micro-batches and are divided at the end.

/// Sums over the tokens of one or more micro-batches; [`LossMetrics::merge`] them, then divide.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossMetrics {
    /// Number of tokens that are not masked.
    pub tokens: u64,
    /// The loss, whose divisor is in the weights: its sum over the micro-batches is the loss of the batch.
    pub loss: f64,
    /// Tokens whose ratio is held at `1 - clip.low`.
    pub clipped_low: u64,
    /// Tokens whose ratio is held at `1 + clip.high`.
    pub clipped_high: u64,
    /// Tokens whose ratio is held at `clip.dual`.
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
