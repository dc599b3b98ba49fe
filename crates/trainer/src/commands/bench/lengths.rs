//! `--lengths`: how many tokens each response of a bench has, all alike or with a long tail.

use std::path::Path;

use anyhow::Result;
use sampler::pick;

use crate::commands::UsageError;

/// The stream of the random lengths.
const LENGTHS: u64 = 0x6c65_6e67;

/// `count` lengths of at least 1 and at most `limit`: `limit` where nothing is asked for, else as `asked` says,
/// `lognormal:MEDIAN:SIGMA` or a file with a whole number a line, which begins anew when it is at its end. The same ones
/// each time.
///
/// # Errors
/// [`UsageError`] where `asked` is neither, or the file has something else in it.
pub(super) fn lengths(asked: Option<&str>, count: usize, limit: usize) -> Result<Vec<usize>> {
    let Some(asked) = asked else { return Ok(vec![limit; count]) };
    let lengths = match asked.strip_prefix("lognormal:") {
        Some(shape) => lognormal(shape, count)?,
        None => from_file(Path::new(asked))?.into_iter().cycle().take(count).collect(),
    };
    Ok(lengths.into_iter().map(|length| length.clamp(1, limit)).collect())
}

/// `median · exp(sigma z)` rounded, with `z` normal by Box and Muller's transform.
fn lognormal(shape: &str, count: usize) -> Result<Vec<usize>> {
    let numbers = shape.split_once(':').and_then(|(median, sigma)| Some((positive(median)?, positive(sigma)?)));
    let Some((median, sigma)) = numbers else {
        let message = "must be lognormal:MEDIAN:SIGMA with two numbers above 0, such as lognormal:128:1";
        return Err(UsageError::new(format!("--lengths lognormal:{shape}: {message}")).into());
    };
    let length = |i: usize| {
        let u = |t| pick::uniform(pick::stream(&[LENGTHS, i as u64]), t);
        let z = (-2.0 * (1.0 - u(0)).ln()).sqrt() * (std::f64::consts::TAU * u(1)).cos();
        (median * (sigma * z).exp()).round() as usize
    };
    Ok((0..count).map(length).collect())
}

fn positive(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite())
}

fn from_file(path: &Path) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| {
        UsageError::new(format!("--lengths {}: neither lognormal:MEDIAN:SIGMA nor a file: {error}", path.display()))
    })?;
    let number = |(i, line): (usize, &str)| match line.trim().parse() {
        Ok(length) if length >= 1 => Ok(length),
        _ => {
            let place = format!("--lengths {}:{}", path.display(), i + 1);
            Err(UsageError::new(format!("{place}: {line:?} must be a whole number, at least 1")).into())
        }
    };
    let lengths: Vec<usize> = text.lines().enumerate().map(number).collect::<Result<_>>()?;
    if lengths.is_empty() {
        return Err(UsageError::new(format!("--lengths {}: the file is empty", path.display())).into());
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_has_its_median_and_its_tail_and_is_cut() {
        let mut lengths = lengths(Some("lognormal:128:1"), 4001, 100_000).unwrap();
        assert_eq!(lengths, super::lengths(Some("lognormal:128:1"), 4001, 100_000).unwrap());
        lengths.sort_unstable();
        assert!((lengths[2000] as f64 / 128.0 - 1.0).abs() < 0.06, "{}", lengths[2000]);
        // The 95th percentile of exp(z) is exp(1.645).
        assert!((lengths[3800] as f64 / (128.0 * 5.18) - 1.0).abs() < 0.12, "{}", lengths[3800]);
        assert_eq!(super::lengths(Some("lognormal:128:1"), 500, 200).unwrap().into_iter().max(), Some(200));
        assert_eq!(super::lengths(None, 3, 200).unwrap(), [200; 3]);
    }

    #[test]
    fn a_file_begins_anew_and_what_is_no_length_is_refused_by_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = folder.path().join("lengths");
            std::fs::write(&path, text).unwrap();
            lengths(path.to_str(), 5, 50)
        };
        assert_eq!(file("3\n 70\n1\n").unwrap(), [3, 50, 1, 3, 50]);
        for (text, expected) in [("3\n0\n", ":2: \"0\""), ("x", ":1: \"x\""), ("", "is empty")] {
            let message = file(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        for shape in ["lognormal:128", "lognormal:0:1", "lognormal:a:1", "lognormal:2:inf", "no/such/file"] {
            let message = lengths(Some(shape), 5, 50).unwrap_err().to_string();
            assert!(message.starts_with(&format!("--lengths {shape}: ")), "{message}");
        }
    }
}
