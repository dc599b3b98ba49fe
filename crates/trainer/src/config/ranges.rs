//! What a value has to be, as a clause: the checks that settings are made of.

use crate::data::Source;

/// A value that has the right type and does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key with its section; of several that contradict each other, all.
    pub keys: &'static [&'static str],
    /// What the value has to be, as a clause.
    pub problem: String,
}

pub(super) type Check = Result<(), Violation>;

/// Everything that does not do, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Violation>);

impl Findings {
    /// Notes what a check found. That keys contradict each other says nothing where one of them is wrong by itself.
    pub(super) fn add(&mut self, check: Check) {
        if let Err(violation) = check
            && !violation.keys.iter().any(|key| self.names(key))
        {
            self.0.push(violation);
        }
    }

    /// Whether something is wrong with this key.
    pub(super) fn names(&self, key: &str) -> bool {
        self.0.iter().any(|violation| violation.keys.contains(&key))
    }

    /// All of it, as an error.
    pub(super) fn into_result(self) -> Result<(), Vec<Violation>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// Refuses unless `holds`.
pub(super) fn require(holds: bool, keys: &'static [&'static str], problem: impl Into<String>) -> Check {
    if holds { Ok(()) } else { Err(Violation { keys, problem: problem.into() }) }
}

/// No count of a run comes near this, and products of two stay within 64 bits.
const LARGEST: usize = u32::MAX as usize;

pub(super) fn at_least_one(value: usize, key: &'static [&'static str]) -> Check {
    require(value >= 1, key, "must be at least 1")?;
    not_absurd(value, key)
}

pub(super) fn not_absurd(value: usize, key: &'static [&'static str]) -> Check {
    require(value <= LARGEST, key, format!("must be at most {LARGEST}"))
}

// The comparisons below are all false for NaN, so that NaN is refused with the rest.

pub(super) fn above_zero(value: f64, key: &'static [&'static str]) -> Check {
    require(value > 0.0 && value.is_finite(), key, "must be a finite number above 0")
}

pub(super) fn zero_or_more(value: f64, key: &'static [&'static str]) -> Check {
    require(value >= 0.0 && value.is_finite(), key, "must be a finite number, 0 or more")
}

pub(super) fn share(value: f64, key: &'static [&'static str]) -> Check {
    require((0.0..=1.0).contains(&value), key, "must be from 0 to 1")
}

pub(super) fn nucleus(value: f64, key: &'static [&'static str]) -> Check {
    require(value > 0.0 && value <= 1.0, key, "must be above 0 and at most 1 (1 is off)")
}

pub(super) fn decay(value: f64, key: &'static [&'static str]) -> Check {
    require((0.0..1.0).contains(&value), key, "must be from 0 up to, but not, 1")
}

pub(super) fn named(value: &str, key: &'static [&'static str]) -> Check {
    require(!value.trim().is_empty(), key, "must not be empty")
}

pub(super) fn source(name: &str, key: &'static [&'static str]) -> Check {
    let parsed = name.parse::<Source>().map(drop);
    parsed.map_err(|error| Violation { keys: key, problem: format!("must name a data set: {error}") })
}
