//! Clock and memory of a bench: repeats, medians and percentiles, and the largest resident set.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Repeats after the first, which is not counted: at least so many ..
const LEAST_REPEATS: usize = 3;
/// .. and, until [`PATIENCE`] is spent, at most so many.
const MOST_REPEATS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(5);

/// Seconds of each of so many repeats; of 0, of the first, which the others do not count. `work` is told
/// whether its time counts, and is done when its device is.
pub(super) fn repeat(repeats: Option<usize>, mut work: impl FnMut(bool) -> Result<()>) -> Result<Vec<f64>> {
    // The first fills caches and allocates.
    let first = Instant::now();
    work(repeats == Some(0))?;
    if repeats == Some(0) {
        return Ok(vec![first.elapsed().as_secs_f64()]);
    }
    let started = Instant::now();
    let mut seconds = Vec::new();
    let more = |done: usize| match repeats {
        Some(repeats) => done < repeats,
        None => done < LEAST_REPEATS || (done < MOST_REPEATS && started.elapsed() < PATIENCE),
    };
    while more(seconds.len()) {
        let one = Instant::now();
        work(true)?;
        seconds.push(one.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// The value in the middle, or the mean of the two there.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// The smallest value that a share of the values does not exceed (nearest rank).
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The largest resident set of this process so far in bytes, where the system says.
pub(super) fn peak_memory() -> Option<u64> {
    std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(peak)
}

/// `VmHWM` of Linux's `/proc/self/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_odd_and_even_many() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.95), 19.0);
        assert_eq!(percentile(&values, 0.951), 20.0);
        assert_eq!((percentile(&values, 0.0), percentile(&values, 1.0), percentile(&[7.0], 0.95)), (1.0, 20.0, 7.0));
    }

    #[test]
    fn the_peak_is_read_from_what_linux_says() {
        let status = "Name:\ttrainer\nVmPeak:\t  300000 kB\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n";
        assert_eq!(peak(status), Some(2 << 20));
        assert_eq!(peak("Name:\ttrainer\n"), None);
    }
}
