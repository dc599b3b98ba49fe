//! Advantages: how much better a rollout's reward is than its group's.
//!
//! A *group* is the rewards of the `G` rollouts of one prompt. Everything here is host-side `f64` arithmetic; a rollout
//! has one advantage, which the loss gives to each of its tokens.

use serde::{Deserialize, Serialize};

/// How rewards become advantages. `R_i` is the reward of rollout `i` and `mean` is over its group.
///
/// Every `std` is the sample standard deviation (divided by `n - 1`), as in verl and TRL, the frameworks that the
/// published runs used; the papers do not say. Those two add 1e-6 and 1e-4 to the divisor, so that a group without
/// spread is finite; here such a group gets zeros, and the divisor is left exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Advantage {
    /// `(R_i - mean) / std(group)`: GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2), and SIRI (arXiv 2509.25176).
    #[default]
    Group,
    /// `R_i - mean`: Dr. GRPO (arXiv 2503.20783), which drops the division because it favours groups that are almost
    /// always right or almost always wrong.
    GroupMean,
    /// `(R_i - mean) / s`, with `s` the standard deviation of all centred rewards `R_i - mean` of the batch: DLER
    /// (arXiv 2510.15110), after REINFORCE++ with a baseline (arXiv 2501.03262). Their mean is 0, so only the scale is
    /// the batch's.
    Batch,
    /// `R_i` minus the mean of the *other* rewards of the group, which equals `G / (G - 1) (R_i - mean)`: RLOO
    /// (arXiv 2402.14740).
    LeaveOneOut,
}

impl Advantage {
    /// The advantages of all rollouts of a batch, in the order and grouping of `groups`.
    ///
    /// Groups may differ in size. A group without signal (see [`has_signal`]), one of a single rollout included, gets
    /// zeros. [`Advantage::Batch`] divides by the spread of what it is given, so pass the groups that enter the loss.
    #[must_use]
    pub fn compute(self, groups: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let centred: Vec<Vec<f64>> = groups.iter().map(|group| centre(group)).collect();
        match self {
            Self::GroupMean => centred,
            Self::Group => centred
                .into_iter()
                .map(|group| {
                    let std = sample_std(&group);
                    scaled(group, std.recip())
                })
                .collect(),
            Self::Batch => {
                let std = sample_std(&centred.concat());
                centred.into_iter().map(|group| scaled(group, std.recip())).collect()
            }
            Self::LeaveOneOut => centred
                .into_iter()
                .map(|group| {
                    let size = group.len() as f64;
                    scaled(group, size / (size - 1.0))
                })
                .collect(),
        }
    }
}

/// Whether a group's rewards differ. If they don't, every advantage is zero and its tokens would only dilute the mean.
#[must_use]
pub fn has_signal(rewards: &[f64]) -> bool {
    rewards.windows(2).any(|pair| pair[0] != pair[1])
}

/// `R_i - mean`, and exact zeros where rounding of the mean would leave dust in a group of equal rewards.
fn centre(group: &[f64]) -> Vec<f64> {
    if !has_signal(group) {
        return vec![0.0; group.len()];
    }
    let mean = group.iter().sum::<f64>() / group.len() as f64;
    group.iter().map(|reward| reward - mean).collect()
}

/// The standard deviation of values whose mean is zero, divided by `n - 1`.
fn sample_std(centred: &[f64]) -> f64 {
    let squares: f64 = centred.iter().map(|value| value * value).sum();
    (squares / (centred.len() as f64 - 1.0)).sqrt()
}

/// `values * factor`; zeros stay zeros, whatever the factor, because a group without spread has an infinite one.
fn scaled(values: Vec<f64>, factor: f64) -> Vec<f64> {
    values.into_iter().map(|value| if value == 0.0 { 0.0 } else { value * factor }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One right answer in four: mean 1/4, centred 3/4 and -1/4, sum of squares 12/16.
    const ONE_IN_FOUR: [f64; 4] = [1.0, 0.0, 0.0, 0.0];

    fn assert_close(actual: &[Vec<f64>], expected: &[&[f64]]) {
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(expected) {
            assert_eq!(actual.len(), expected.len());
            for (a, e) in actual.iter().zip(*expected) {
                assert!((a - e).abs() < 1e-12, "{actual:?} is not {expected:?}");
            }
        }
    }

    #[test]
    fn group_divides_by_the_sample_standard_deviation() {
        // sqrt((12/16) / 3) = 1/2, so 3/4 becomes 3/2 and -1/4 becomes -1/2.
        let advantages = Advantage::Group.compute(&[ONE_IN_FOUR.to_vec()]);
        assert_close(&advantages, &[&[1.5, -0.5, -0.5, -0.5]]);
    }

    #[test]
    fn group_mean_only_centres() {
        let advantages = Advantage::GroupMean.compute(&[ONE_IN_FOUR.to_vec()]);
        assert_close(&advantages, &[&[0.75, -0.25, -0.25, -0.25]]);
    }

    #[test]
    fn batch_divides_every_group_by_one_deviation() {
        // Sums of squares 12/16 and 2 * 1/4; six rollouts: std = sqrt((3/4 + 1/2) / 5) = 1/2.
        let advantages = Advantage::Batch.compute(&[ONE_IN_FOUR.to_vec(), vec![0.0, 1.0]]);
        assert_close(&advantages, &[&[1.5, -0.5, -0.5, -0.5], &[-1.0, 1.0]]);
    }

    #[test]
    fn leave_one_out_compares_with_the_others() {
        // The others' mean is 0 for the right one and 1/3 for the wrong ones.
        let third = 1.0 / 3.0;
        let advantages = Advantage::LeaveOneOut.compute(&[ONE_IN_FOUR.to_vec()]);
        assert_close(&advantages, &[&[1.0, -third, -third, -third]]);
    }

    #[test]
    fn no_spread_means_zero_for_every_rule() {
        let groups = [vec![0.1; 3], vec![1.0], vec![]];
        for rule in [Advantage::Group, Advantage::GroupMean, Advantage::Batch, Advantage::LeaveOneOut] {
            assert_eq!(rule.compute(&groups), [vec![0.0; 3], vec![0.0], vec![]], "{rule:?}");
        }
        // A silent group beside a speaking one stays silent.
        let advantages = Advantage::Group.compute(&[vec![1.0, 1.0], vec![0.0, 1.0]]);
        let half = 0.5 / 0.5_f64.sqrt();
        assert_close(&advantages, &[&[0.0, 0.0], &[-half, half]]);
    }

    #[test]
    fn signal_is_any_difference() {
        assert!(has_signal(&[0.0, 0.0, 1.0]));
        assert!(!has_signal(&[1.0, 1.0, 1.0]));
        assert!(!has_signal(&[1.0]));
        assert!(!has_signal(&[]));
    }

    #[test]
    fn names_are_kebab_case() {
        let json = serde_json::to_string(&[Advantage::GroupMean, Advantage::LeaveOneOut]).unwrap();
        assert_eq!(json, r#"["group-mean","leave-one-out"]"#);
        assert_eq!(serde_json::from_str::<Advantage>(r#""batch""#).unwrap(), Advantage::Batch);
    }
}
