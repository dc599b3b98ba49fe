//! The schedules of a study, and the settings that make each of them cost the same.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use schedule::{Budget, Kind, Settings};
use serde::Serialize;

use crate::{
    cli::SettingsArgs,
    config::{Config, ConfigError, Overrides},
};

/// Cycles that a control may have for each of SIRI's: its runs end when the rollout tokens are spent, and a policy
/// that says little has to make many steps for that.
const CYCLES: usize = 4;

/// A way to move the budget over a run. In the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curriculum {
    /// SIRI: a cosine wave a cycle
    #[value(alias = "siri")]
    Cosine,
    /// SIRI's stairs: the smallest budget, then the largest
    Stair,
    /// SIRI's cosine with rests at both ends
    StairCosine,
    /// The largest budget throughout
    #[value(name = "constant-l-max")]
    #[serde(rename = "constant-l-max")]
    ConstantLargest,
    /// The smallest budget throughout
    #[value(name = "constant-l-min")]
    #[serde(rename = "constant-l-min")]
    ConstantSmallest,
    /// DeepScaleR's stages: a third of the largest budget, two thirds, all of it
    Staged,
    /// From the largest budget straight down to the smallest over the steps of the cosine run, then the smallest
    Linear,
}

impl Curriculum {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cosine,
        Self::Stair,
        Self::StairCosine,
        Self::ConstantLargest,
        Self::ConstantSmallest,
        Self::Staged,
        Self::Linear,
    ];

    /// Its name on the command line, in folders and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Stair => "stair",
            Self::StairCosine => "stair-cosine",
            Self::ConstantLargest => "constant-l-max",
            Self::ConstantSmallest => "constant-l-min",
            Self::Staged => "staged",
            Self::Linear => "linear",
        }
    }

    /// Whether it has lows and highs.
    pub fn is_wave(self) -> bool {
        matches!(self, Self::Cosine | Self::Stair | Self::StairCosine)
    }
}

/// A run to make.
#[derive(Clone, Debug)]
pub struct Job {
    pub curriculum: Curriculum,
    pub seed: u64,
    pub folder: PathBuf,
    pub name: String,
}

/// What `--set` changes to make a run of `curriculum` out of the settings of the SIRI run `config`. `rollout_tokens`
/// is what a control may spend; the cosine run has all its steps.
pub fn sets(curriculum: Curriculum, config: &Config, rollout_tokens: Option<u64>) -> Vec<String> {
    let schedule = &config.schedule;
    let (l_max, l_min, steps) = (schedule.l_max, schedule.l_min, schedule.cycles * schedule.cycle_steps);
    let mut sets = vec![format!("evaluate.max_tokens={}", config.evaluate.max_tokens.unwrap_or(l_max))];
    let mut set = |key: &str, value: String| sets.push(format!("schedule.{key}={value}"));
    let (kind, stages) = match curriculum {
        Curriculum::Cosine => (Kind::Cosine, Vec::new()),
        Curriculum::Stair => (Kind::Stair, Vec::new()),
        Curriculum::StairCosine => (Kind::StairCosine, Vec::new()),
        Curriculum::ConstantLargest => (Kind::Constant, Vec::new()),
        Curriculum::ConstantSmallest => {
            set("l_max", l_min.to_string());
            (Kind::Constant, Vec::new())
        }
        Curriculum::Staged => (Kind::Staged, thirds(l_max, steps)),
        Curriculum::Linear => (Kind::Staged, line(config, steps)),
    };
    set("kind", kind.name().into());
    set("stages", format!("{stages:?}"));
    if curriculum != Curriculum::Cosine {
        set("cycles", (CYCLES * schedule.cycles).to_string());
        set("rollout_tokens", rollout_tokens.map_or("none".into(), |tokens| tokens.to_string()));
    } else {
        set("rollout_tokens", "none".into());
    }
    sets
}

/// DeepScaleR's 8K, 16K and 24K in proportion to the largest budget, a third of SIRI's steps each; the last is open.
fn thirds(l_max: usize, steps: usize) -> Vec<[usize; 2]> {
    let mut stages: Vec<[usize; 2]> =
        (0..3).map(|third| [third * steps / 3, ((third + 1) * l_max).div_ceil(3)]).collect();
    // Fewer than three steps have no room for three stages: the later one counts.
    stages.reverse();
    stages.dedup_by_key(|stage| stage[0]);
    stages.reverse();
    stages
}

/// A straight fall over `steps` as stages, because a `linear` schedule would stretch with the steps of the run.
fn line(config: &Config, steps: usize) -> Vec<[usize; 2]> {
    let schedule = &config.schedule;
    let settings = Settings {
        kind: Kind::Linear,
        cycles: schedule.cycles,
        cycle_steps: schedule.cycle_steps,
        l_max: schedule.l_max,
        l_min: schedule.l_min,
        stages: Vec::new(),
    };
    // Only bounds that were not checked have none; no stages at all are refused where the settings are resolved.
    let Ok(budget) = Budget::new(&settings) else { return Vec::new() };
    let mut stages: Vec<[usize; 2]> = (0..steps).map(|step| [step, budget.length(step)]).collect();
    stages.dedup_by_key(|stage| stage[1]);
    stages
}

/// The settings of a run, as its process will resolve them.
///
/// # Errors
/// As [`Config::resolve`].
pub fn resolve(settings: &SettingsArgs, sets: &[String], seed: u64, folder: &Path) -> Result<Config, ConfigError> {
    let all: Vec<String> = settings.set.iter().chain(sets).cloned().collect();
    let overrides = Overrides { seed: Some(seed), out: Some(folder.into()), ..Overrides::default() };
    Config::resolve(settings.config.as_deref(), &all, &overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(curriculum: Curriculum) -> Config {
        let sets = sets(curriculum, &Config::countdown(), Some(1_000_000));
        resolve(&SettingsArgs::default(), &sets, 3, Path::new("out")).unwrap()
    }

    fn budgets(curriculum: Curriculum, steps: &[usize]) -> Vec<usize> {
        let budget = resolved(curriculum).schedule.budget().unwrap();
        steps.iter().map(|&step| budget.length(step)).collect()
    }

    #[test]
    fn every_run_is_measured_alike_and_only_the_schedule_differs() {
        let base = Config::countdown();
        let l_max = base.schedule.l_max;
        for curriculum in Curriculum::ALL {
            let mut config = resolved(curriculum);
            assert_eq!(config.evaluate.max_tokens, Some(l_max), "{curriculum:?}");
            assert_eq!(config.run.seed, 3);
            let limit = (curriculum != Curriculum::Cosine).then_some(1_000_000);
            assert_eq!(config.schedule.rollout_tokens, limit, "{curriculum:?}");
            assert_eq!(config.schedule.cycle_steps, base.schedule.cycle_steps);
            config.schedule = base.schedule.clone();
            config.run = base.run.clone();
            config.evaluate.max_tokens = base.evaluate.max_tokens;
            assert_eq!(config, base, "{curriculum:?}");
        }
    }

    #[test]
    fn budgets_are_those_of_their_names() {
        let Config { schedule, .. } = Config::countdown();
        assert_eq!((schedule.l_max, schedule.l_min, schedule.cycles * schedule.cycle_steps), (448, 128, 84));
        assert_eq!(budgets(Curriculum::ConstantLargest, &[0, 12, 200]), [448; 3]);
        assert_eq!(budgets(Curriculum::ConstantSmallest, &[0, 12, 200]), [128; 3]);
        // A third of 448 is 149.3, two thirds 298.7.
        assert_eq!(budgets(Curriculum::Staged, &[0, 27, 28, 55, 56, 200]), [150, 150, 299, 299, 448, 448]);
        // 320 tokens over 83 steps: 3.9 a step.
        assert_eq!(budgets(Curriculum::Linear, &[0, 1, 83, 84, 200]), [448, 444, 128, 128, 128]);
        assert_eq!(budgets(Curriculum::Cosine, &[0, 14]), [448, 128]);
        assert_eq!(budgets(Curriculum::Stair, &[0, 13, 14, 27, 98]), [128, 128, 448, 448, 448]);
    }

    #[test]
    fn the_shortest_run_has_stages() {
        assert_eq!(thirds(9, 1), [[0, 9]]);
        assert_eq!(thirds(9, 2), [[0, 6], [1, 9]]);
        assert_eq!(thirds(9, 3), [[0, 3], [1, 6], [2, 9]]);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for curriculum in Curriculum::ALL {
            assert_eq!(Curriculum::from_str(curriculum.name(), false), Ok(curriculum));
            assert_eq!(serde_json::to_value(curriculum).unwrap(), curriculum.name());
        }
        assert_eq!(Curriculum::from_str("siri", false), Ok(Curriculum::Cosine));
    }
}
