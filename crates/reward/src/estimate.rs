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
}
