//! Estimates over problems and their samples: avg@k, pass@k, maj@k, means and ratios, each with an error.
//!
//! Samples of one problem are not independent, so every standard error is clustered: problems are the units,
//! and `n` is the number of problems. Input is one `Vec` per problem, with one entry per sample.

use std::collections::BTreeMap;

/// A mean and its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The estimate; NaN without problems.
    pub mean: f64,
    /// Its standard error over problems; NaN with fewer than two problems.
    pub se: f64,
    /// How many problems it rests on.
    pub problems: usize,
}

/// The mean of one value per problem, with `se = s / sqrt(n)`, `s` the sample standard deviation (`n - 1`).
pub fn mean(values: &[f64]) -> Estimate {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    let se = if n < 2 { f64::NAN } else { (squares / (n as f64 - 1.0) / n as f64).sqrt() };
    Estimate { mean, se, problems: n }
}

/// avg@k: the mean over problems of the share of correct samples. Problems without samples are left out.
pub fn avg_at_k(correct: &[Vec<bool>]) -> Estimate {
    mean(&shares(correct))
}

fn shares(correct: &[Vec<bool>]) -> Vec<f64> {
    let share = |samples: &Vec<bool>| samples.iter().filter(|&&c| c).count() as f64 / samples.len() as f64;
    correct.iter().filter(|samples| !samples.is_empty()).map(share).collect()
}

/// The unbiased estimate of pass@k for one problem with `correct` of `samples` right:
/// `1 - C(n - c, k) / C(n, k)`, the chance that `k` samples drawn without replacement hold a correct one.
/// `None` when `k` is zero or more than `samples`, or `correct` is more than `samples`.
///
/// Source: *Evaluating Large Language Models Trained on Code* (arXiv 2107.03374), eq. 1.
pub fn pass_at_k_of(samples: usize, correct: usize, k: usize) -> Option<f64> {
    if k == 0 || k > samples || correct > samples {
        return None;
    }
    if samples - correct < k {
        return Some(1.0);
    }
    // C(n - c, k) / C(n, k) as a product of factors in [0, 1): no large number appears.
    let miss: f64 = (samples - correct + 1..=samples).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - miss)
}

/// pass@k over problems. `None` when a problem has fewer than `k` samples, or `k` is zero.
pub fn pass_at_k(correct: &[Vec<bool>], k: usize) -> Option<Estimate> {
    let per_problem: Option<Vec<f64>> =
        correct.iter().map(|samples| pass_at_k_of(samples.len(), samples.iter().filter(|&&c| c).count(), k)).collect();
    per_problem.map(|values| mean(&values))
}

/// One sample for a vote: the answer it gives (in a form in which equal answers are equal texts; `None` does
/// not vote) and whether that answer is correct.
pub type Vote<'a> = (Option<&'a str>, bool);

/// maj@k over problems, `k` being each problem's number of samples: whether the most frequent answer is
/// correct. Tied answers share the vote, which is the expected value of breaking the tie by lot. A problem in
/// which no sample votes counts as wrong.
pub fn maj_at_k(votes: &[Vec<Vote<'_>>]) -> Estimate {
    let winners = votes.iter().filter(|samples| !samples.is_empty()).map(|samples| {
        let mut counts: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
        for (answer, correct) in samples.iter().filter_map(|&(answer, correct)| Some((answer?, correct))) {
            let entry = counts.entry(answer).or_insert((0, correct));
            entry.0 += 1;
        }
        let most = counts.values().map(|&(count, _)| count).max().unwrap_or(0);
        let tied: Vec<bool> = counts.values().filter(|v| v.0 == most).map(|v| v.1).collect();
        if tied.is_empty() { 0.0 } else { tied.iter().filter(|&&c| c).count() as f64 / tied.len() as f64 }
    });
    mean(&winners.collect::<Vec<_>>())
}

/// The ratio `sum(y) / sum(x)` over problems given as `(y, x)`, with the linearised standard error
/// `sqrt(n / (n - 1) * sum((y - r x)^2)) / |sum(x)|`.
///
/// With `y` the tokens and `x` the samples of a problem it is the mean length over samples.
pub fn ratio(pairs: &[(f64, f64)]) -> Estimate {
    let n = pairs.len();
    let (sum_y, sum_x) = pairs.iter().fold((0.0, 0.0), |(y, x), pair| (y + pair.0, x + pair.1));
    let r = sum_y / sum_x;
    let squares: f64 = pairs.iter().map(|(y, x)| (y - r * x).powi(2)).sum();
    let se = if n < 2 { f64::NAN } else { (squares * n as f64 / (n as f64 - 1.0)).sqrt() / sum_x.abs() };
    Estimate { mean: r, se, problems: n }
}

/// The mean number of tokens over samples, with the clustered error of [`ratio`].
pub fn mean_tokens(tokens: &[Vec<usize>]) -> Estimate {
    let pairs: Vec<(f64, f64)> = tokens
        .iter()
        .filter(|samples| !samples.is_empty())
        .map(|samples| (samples.iter().map(|&n| n as f64).sum(), samples.len() as f64))
        .collect();
    ratio(&pairs)
}

/// The mean of `after - before` over problems that both lists hold in the same order, one value per problem.
/// Pairing removes the spread between easy and hard problems from the error. `None` for unequal lengths.
pub fn paired_difference(before: &[f64], after: &[f64]) -> Option<Estimate> {
    if before.len() != after.len() {
        return None;
    }
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    Some(mean(&differences))
}

/// The share of correct samples of each problem, for [`paired_difference`]; NaN for a problem without samples.
pub fn per_problem(correct: &[Vec<bool>]) -> Vec<f64> {
    correct.iter().map(|s| s.iter().filter(|&&c| c).count() as f64 / s.len() as f64).collect()
}

/// A confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How to bootstrap.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bootstrap {
    /// Number of resamples, each as large as the data.
    pub resamples: usize,
    /// Coverage, such as 0.95.
    pub level: f64,
    /// Seed of the resampling; the same seed gives the same interval.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The percentile interval of the mean of one value per problem, by resampling problems.
    /// `None` without values or resamples, or for a level outside (0, 1).
    pub fn interval(&self, values: &[f64]) -> Option<Interval> {
        if values.is_empty() || self.resamples == 0 || !(self.level > 0.0 && self.level < 1.0) {
            return None;
        }
        let mut random = SplitMix64(self.seed);
        let mut means: Vec<f64> = (0..self.resamples)
            .map(|_| {
                let total: f64 = values.iter().map(|_| values[random.below(values.len())]).sum();
                total / values.len() as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        let quantile = |q: f64| means[((q * (self.resamples - 1) as f64).round() as usize).min(self.resamples - 1)];
        Some(Interval { low: quantile(tail), high: quantile(1.0 - tail) })
    }
}

/// The SplitMix64 generator (Steele, Lea and Flood, 2014): 64 bits of state, enough for resampling.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, by the high half of a product; its bias is below `n / 2^64`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn avg_is_clustered_over_problems() {
        // Shares 1, 0.5, 0: mean 0.5, s = 0.5, se = 0.5 / sqrt(3).
        let data = [vec![true, true], vec![true, false], vec![false, false]];
        let estimate = avg_at_k(&data);
        close(estimate.mean, 0.5);
        close(estimate.se, 0.5 / 3f64.sqrt());
        assert_eq!(estimate.problems, 3);
        assert!(avg_at_k(&[]).mean.is_nan());
        assert!(avg_at_k(&[vec![true]]).se.is_nan());
    }

    #[test]
    fn pass_at_k_by_hand() {
        // 4 samples, 1 correct, 2 drawn: 1 - C(3,2)/C(4,2) = 1 - 3/6.
        close(pass_at_k_of(4, 1, 2).unwrap(), 0.5);
        close(pass_at_k_of(5, 2, 3).unwrap(), 1.0 - 1.0 / 10.0);
        close(pass_at_k_of(8, 3, 1).unwrap(), 3.0 / 8.0);
        close(pass_at_k_of(8, 0, 8).unwrap(), 0.0);
        close(pass_at_k_of(8, 1, 8).unwrap(), 1.0);
        assert_eq!(pass_at_k_of(4, 1, 5), None);
        assert_eq!(pass_at_k_of(4, 1, 0), None);
        let data = [vec![true, false, false, false], vec![false; 4]];
        close(pass_at_k(&data, 2).unwrap().mean, 0.25);
        assert!(pass_at_k(&data, 5).is_none());
    }

    #[test]
    fn majority_shares_ties() {
        let votes = [
            vec![(Some("5"), true), (Some("5"), true), (Some("6"), false)],
            vec![(Some("5"), true), (Some("6"), false)],
            vec![(None, false), (None, false), (Some("7"), false)],
            vec![(None, false)],
        ];
        close(maj_at_k(&votes).mean, (1.0 + 0.5) / 4.0);
    }

    #[test]
    fn ratios_by_hand() {
        // r = 30/3 = 10; residuals 0, 0 for (10, 1), (20, 2).
        let exact = ratio(&[(10.0, 1.0), (20.0, 2.0)]);
        close(exact.mean, 10.0);
        close(exact.se, 0.0);
        // r = 15; residuals -5 and 5: sqrt(2 * 50) / 2 = 5.
        let spread = mean_tokens(&[vec![10], vec![20]]);
        close(spread.mean, 15.0);
        close(spread.se, 5.0);
        // Equal counts: the same as the mean of means.
        close(mean_tokens(&[vec![10, 30], vec![40, 60]]).se, mean(&[20.0, 50.0]).se);
    }

    #[test]
    fn pairing_removes_difficulty() {
        let difference = paired_difference(&[0.0, 0.5, 1.0], &[0.25, 0.75, 1.25]).unwrap();
        close(difference.mean, 0.25);
        close(difference.se, 0.0);
        assert!(paired_difference(&[0.0], &[]).is_none());
        close(per_problem(&[vec![true, false]])[0], 0.5);
    }

    #[test]
    fn bootstrap_is_seeded_and_covers() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let bootstrap = Bootstrap { seed: 7, ..Bootstrap::default() };
        let interval = bootstrap.interval(&values).unwrap();
        assert_eq!(bootstrap.interval(&values), Some(interval));
        // Mean 0.5, se 0.025: the interval is about 0.5 -+ 0.049.
        assert!((interval.low - 0.451).abs() < 0.008, "{interval:?}");
        assert!((interval.high - 0.549).abs() < 0.008, "{interval:?}");
        assert_eq!(bootstrap.interval(&[]), None);
        // The generator's published first outputs for seed 0.
        assert_eq!(SplitMix64(0).next(), 0xe220_a839_7b1d_cdaf);
    }
}
