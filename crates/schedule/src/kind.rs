//! The names of the schedules and of the two phases of a cycle.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Which formula gives the budget; [`crate::Budget`] lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Always `l_max`.
    Constant,
    /// `l_min` while compressing, `l_max` while expanding.
    Stair,
    /// One cosine wave a cycle, from `l_max` down to `l_min` and back.
    Cosine,
    /// The cosine with rests at both ends.
    StairCosine,
    /// A list of steps and lengths.
    Staged,
    /// A straight line over the whole run, from `l_max` down to `l_min`.
    Linear,
    /// A straight line over the whole run, from `l_min` up to `l_max`.
    LinearUp,
}

impl Kind {
    /// Every kind, in the order in which it is documented.
    pub const ALL: [Kind; 7] =
        [Kind::Constant, Kind::Stair, Kind::Cosine, Kind::StairCosine, Kind::Staged, Kind::Linear, Kind::LinearUp];

    /// The name used in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Constant => "constant",
            Kind::Stair => "stair",
            Kind::Cosine => "cosine",
            Kind::StairCosine => "stair-cosine",
            Kind::Staged => "staged",
            Kind::Linear => "linear",
            Kind::LinearUp => "linear-up",
        }
    }

    /// The names of all kinds.
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|kind| kind.name()).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == value)
            .ok_or_else(|| Error::UnknownKind { value: value.into() })
    }
}

/// Which half of a cycle a step is in.
///
/// It depends only on the position in the cycle and not on the kind of schedule, so that controls without a wave are
/// evaluated at the same steps as the runs they are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The first half of a cycle, in which a wave falls.
    Compress,
    /// The second half of a cycle, in which a wave rises.
    Expand,
}

impl Phase {
    /// The name used in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Compress => "compress",
            Phase::Expand => "expand",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_as_its_kind() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
    }

    #[test]
    fn an_unknown_kind_is_named_with_the_choices() {
        let message = "cosin".parse::<Kind>().unwrap_err().to_string();
        assert!(message.contains("\"cosin\"") && message.contains("stair-cosine"), "{message}");
    }
}
