//! The learning rate of every update: linear warm-up, then constant or decaying.

use std::{f64::consts::PI, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// What the rate does after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls in a straight line and would reach 0 one step after the last.
    Linear,
    /// Falls as half a cosine wave and would reach 0 one step after the last.
    Cosine,
}

impl fmt::Display for Decay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Decay::Constant => "constant",
            Decay::Linear => "linear",
            Decay::Cosine => "cosine",
        })
    }
}

impl FromStr for Decay {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        [Decay::Constant, Decay::Linear, Decay::Cosine]
            .into_iter()
            .find(|decay| decay.to_string() == value)
            .ok_or_else(|| Error::UnknownDecay { value: value.into() })
    }
}

/// The learning rate as a function of the step `t`, from 0. With peak `η`, `W` steps of warm-up and `S` steps in all:
///
/// - warm-up, `t < W`: `η (t + 1) / W`, so that the first update is not lost and update `W` has the full rate;
/// - then, with `p = (t - W) / (S - W)`: `η` (constant), `η (1 - p)` (linear) or `η (1 + cos π p) / 2` (cosine).
///
/// A step past `S` has the rate of `p = 1`. A run that may end before its last step, because its tokens are spent, says
/// itself how much of it is done: [`LearningRate::at_share`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    peak: f64,
    warmup_steps: usize,
    total_steps: usize,
    decay: Decay,
}

impl LearningRate {
    /// Linear warm-up over `warmup_steps` (0 for none), then `peak` for good.
    ///
    /// # Errors
    /// `peak` is negative, infinite or not a number.
    pub fn new(peak: f64, warmup_steps: usize) -> Result<Self, Error> {
        if !peak.is_finite() || peak < 0.0 {
            return Err(Error::LearningRate { value: peak });
        }
        Ok(Self { peak, warmup_steps, total_steps: 0, decay: Decay::Constant })
    }

    /// The same warm-up, then `decay` until the end of a run of `total_steps`.
    ///
    /// # Errors
    /// The rate decays, but the warm-up leaves no step for it.
    pub fn with_decay(self, decay: Decay, total_steps: usize) -> Result<Self, Error> {
        if decay != Decay::Constant && self.warmup_steps >= total_steps {
            return Err(Error::WarmupTooLong { warmup_steps: self.warmup_steps, total_steps });
        }
        Ok(Self { decay, total_steps, ..self })
    }

    /// The rate of the update at `step`, from 0.
    pub fn at(&self, step: usize) -> f64 {
        // During the warm-up, and when the rate is constant, the share does not matter.
        let done = step.saturating_sub(self.warmup_steps) as f64;
        self.at_share(step, done / self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64)
    }

    /// The rate of the update at `step`, from 0, when `share` of the decay is done (the `p` of the formulas; above 1 counts
    /// as 1).
    pub fn at_share(&self, step: usize, share: f64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let share = share.min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => self.peak * (1.0 - share),
            Decay::Cosine => self.peak * (1.0 + (PI * share).cos()) / 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rises_in_equal_steps_to_the_peak() {
        let rate = LearningRate::new(8.0, 4).unwrap();
        let rates: Vec<f64> = (0..6).map(|step| rate.at(step)).collect();
        assert_eq!(rates, [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_peak() {
        assert_eq!(LearningRate::new(1e-6, 0).unwrap().at(0), 1e-6);
    }

    #[test]
    fn linear_decay_ends_one_step_short_of_zero() {
        let rate = LearningRate::new(8.0, 2).unwrap().with_decay(Decay::Linear, 6).unwrap();
        let rates: Vec<f64> = (0..8).map(|step| rate.at(step)).collect();
        assert_eq!(rates, [4.0, 8.0, 8.0, 6.0, 4.0, 2.0, 0.0, 0.0]);
    }

    #[test]
    fn cosine_decay_is_at_half_the_peak_half_way() {
        let rate = LearningRate::new(2.0, 0).unwrap().with_decay(Decay::Cosine, 6).unwrap();
        assert_eq!(rate.at(0), 2.0);
        assert!((rate.at(2) - 1.5).abs() < 1e-12, "cos 60 degrees is a half");
        assert!((rate.at(3) - 1.0).abs() < 1e-12);
        assert!(rate.at(6).abs() < 1e-12);
    }

    #[test]
    fn a_run_that_ends_early_decays_by_its_share() {
        let rate = LearningRate::new(8.0, 2).unwrap().with_decay(Decay::Linear, 1000).unwrap();
        let rates =
            [(0, 0.0), (1, 0.1), (2, 0.25), (9, 1.0), (10, 1.5)].map(|(step, share)| rate.at_share(step, share));
        assert_eq!(rates, [4.0, 8.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for peak in [f64::NAN, f64::INFINITY, -1e-6] {
            let message = LearningRate::new(peak, 0).unwrap_err().to_string();
            assert!(message.starts_with("optimizer.learning_rate ="), "{message}");
        }
        let late = LearningRate::new(1.0, 6).unwrap().with_decay(Decay::Linear, 6);
        assert_eq!(late, Err(Error::WarmupTooLong { warmup_steps: 6, total_steps: 6 }));
        assert!("quadratic".parse::<Decay>().unwrap_err().to_string().contains("\"quadratic\""));
    }
}
