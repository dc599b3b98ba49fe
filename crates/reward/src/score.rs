//! Scores from verdicts and lengths: the length-capping reward and the alternatives it is compared with.
//!
//! Lengths and budgets are in tokens of the response. Decoding tokens to text is the caller's business: where
//! a rule grades a shortened response, it asks the caller with the number of tokens to keep.

/// SIRI's length-capping reward: 1 if the answer in `clip(y, L)`, the first `L` tokens, is correct, else 0.
///
/// `correct_within(n)` grades the first `n` tokens of the response; it is called once, with
/// `n = min(length, budget)`. There is no length penalty: what counts is whether the answer comes in time.
///
/// Source: *SIRI: Scaling Iterative Reinforcement Learning with Interleaved Compression* (arXiv 2509.25176).
pub fn length_capped(length: usize, budget: usize, correct_within: impl FnOnce(usize) -> bool) -> f64 {
    if correct_within(length.min(budget)) { 1.0 } else { 0.0 }
}

/// DAPO's soft overlong punishment, in `[-1, 0]`, to be added to the reward of correctness.
///
/// With `C` the cache (the width of the ramp) and `L_max` the hard limit:
///
/// ```text
/// 0                           for |y| <= L_max - C
/// ((L_max - C) - |y|) / C     for L_max - C < |y| <= L_max
/// -1                          for |y| > L_max
/// ```
///
/// A cache wider than `max_length` starts its ramp at zero. With `cache = 0` the ramp is a step.
///
/// Source: *DAPO: An Open-Source LLM Reinforcement Learning System at Scale* (arXiv 2503.14476), eq. 13.
pub fn soft_overlong_penalty(length: usize, max_length: usize, cache: usize) -> f64 {
    let cache = cache.min(max_length);
    let soft_limit = max_length - cache;
    if length <= soft_limit {
        0.0
    } else if length <= max_length {
        -((length - soft_limit) as f64) / cache as f64
    } else {
        -1.0
    }
}

/// When a response counts as an outlier of its group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutlierRule {
    /// Standard deviations above the mean.
    pub sigmas: f64,
    /// Least tokens above the threshold for a response to be cut.
    pub min_excess: usize,
}

impl Default for OutlierRule {
    /// The published rule: 3 standard deviations, 32 tokens.
    fn default() -> Self {
        Self { sigmas: 3.0, min_excess: 32 }
    }
}

impl OutlierRule {
    /// The length threshold of one group, `T = floor(mean + sigmas * std)`; `None` unless every response is
    /// correct. The mean and the (population) standard deviation divide by the group size `G`.
    ///
    /// No response is more than `sqrt(G - 1)` such deviations above its group's mean, so that with 3 sigmas
    /// a group needs more than 10 responses to have an outlier.
    ///
    /// Source: DOT, dynamic outlier truncation (arXiv 2601.03969).
    pub fn threshold(&self, lengths: &[usize], correct: &[bool]) -> Option<usize> {
        if lengths.is_empty() || lengths.len() != correct.len() || !correct.iter().all(|&c| c) {
            return None;
        }
        let count = lengths.len() as f64;
        let mean = lengths.iter().map(|&n| n as f64).sum::<f64>() / count;
        let variance = lengths.iter().map(|&n| (n as f64 - mean).powi(2)).sum::<f64>() / count;
        Some((mean + self.sigmas * variance.sqrt()).floor() as usize)
    }

    /// For each response of a group: the length to cut it to, after which it is graded again, or `None` to
    /// leave it alone.
    pub fn cuts(&self, lengths: &[usize], correct: &[bool]) -> Vec<Option<usize>> {
        let Some(threshold) = self.threshold(lengths, correct) else {
            return vec![None; lengths.len()];
        };
        let outlier = |length: usize| length > threshold && length - threshold >= self.min_excess;
        lengths.iter().map(|&length| outlier(length).then_some(threshold)).collect()
    }
}

/// Overlong filtering: which responses stay in the loss, i.e. those that were not cut off.
///
/// SIRI does not filter (being cut off is its signal); DAPO (arXiv 2503.14476, section 3.4) and DeepScaleR's
/// successors do.
pub fn overlong_mask(truncated: &[bool]) -> Vec<bool> {
    truncated.iter().map(|&cut| !cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_grades_what_fits() {
        // The answer stands at token 5.
        let answered = |kept: usize| kept >= 5;
        assert_eq!(length_capped(8, 6, answered), 1.0);
        assert_eq!(length_capped(8, 4, answered), 0.0);
        assert_eq!(length_capped(3, 6, answered), 0.0);
    }

    #[test]
    fn the_soft_penalty_is_a_ramp() {
        let penalty = |length| soft_overlong_penalty(length, 100, 20);
        assert_eq!(penalty(80), 0.0);
        assert_eq!(penalty(85), -0.25);
        assert_eq!(penalty(100), -1.0);
        assert_eq!(penalty(500), -1.0);
        assert_eq!(soft_overlong_penalty(100, 100, 0), 0.0);
        assert_eq!(soft_overlong_penalty(101, 100, 0), -1.0);
        assert_eq!(soft_overlong_penalty(5, 10, 50), -0.5);
    }

    #[test]
    fn outliers_of_correct_groups_are_cut() {
        // 15 of 100 and one of 500: mean 125, variance 9375, std 96.82, T = floor(415.47).
        let mut lengths = vec![100; 15];
        lengths.push(500);
        let rule = OutlierRule::default();
        assert_eq!(rule.threshold(&lengths, &[true; 16]), Some(415));
        let mut expected = vec![None; 15];
        expected.push(Some(415));
        assert_eq!(rule.cuts(&lengths, &[true; 16]), expected);
        let mut one_wrong = [true; 16];
        one_wrong[3] = false;
        assert_eq!(rule.cuts(&lengths, &one_wrong), vec![None; 16]);
        // 485 - 415 >= 32 holds, 500 - 415 >= 90 does not.
        let patient = OutlierRule { min_excess: 90, ..rule };
        assert_eq!(patient.cuts(&lengths, &[true; 16]), vec![None; 16]);
        assert_eq!(rule.cuts(&[], &[]), vec![]);
    }

    #[test]
    fn overlong_responses_leave_the_loss() {
        assert_eq!(overlong_mask(&[true, false]), [false, true]);
    }
}
