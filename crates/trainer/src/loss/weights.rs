//! The weight of each token in the loss: what the sum of the token losses is divided by.
//!
//! A batch is split over micro-batches and their gradients are added, so the divisor of a mean belongs to the whole batch.
//! It is made here once, from all of its lengths, and the loss of a micro-batch is a plain weighted sum.

use anyhow::{Result, bail};
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
