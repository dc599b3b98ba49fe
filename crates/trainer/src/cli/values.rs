//! How the values of flags are read, each with what it has to be.

use std::path::PathBuf;

use sampler::Compute;

pub(super) fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, 0 or more, of at most 64 bits".into())
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("must be a whole number, at least 1".into()),
    }
}

pub(super) fn compute(text: &str) -> Result<Compute, String> {
    [("f32", Compute::F32), ("bf16", Compute::Bf16), ("int8", Compute::Int8)]
        .into_iter()
        .find_map(|(name, compute)| (name == text).then_some(compute))
        .ok_or_else(|| "must be f32, bf16 or int8".into())
}

pub(super) fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a finite number, 0 or more".into()),
    }
}

pub(super) fn nucleus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1.0 => Ok(number),
        _ => Err("must be above 0 and at most 1".into()),
    }
}

/// A path that settings can hold: TOML is UTF-8, and so is what clap hands over here.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    Ok(text.into())
}
