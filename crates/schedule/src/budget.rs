//! The token budget `L(t)` of every step, with the phase and the cycle that the step is in.

use std::f64::consts::TAU;

use crate::{Error, Kind, Phase};

/// Steps and tokens are kept below this, so that every product below stays exact in integers and in `f64`.
const LIMIT: usize = u32::MAX as usize;
/// The most steps of a run: far beyond any, and few enough to be listed.
const STEPS: usize = 10_000_000;

/// The `[schedule]` section of a configuration, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The formula.
    pub kind: Kind,
    /// How many compressions, each followed by an expansion.
    pub cycles: usize,
    /// `T`, the steps of one cycle; may be odd.
    pub cycle_steps: usize,
    /// The largest budget, response tokens. `staged` does not read it.
    pub l_max: usize,
    /// The smallest budget, response tokens. `staged` and `constant` do not read it.
    pub l_min: usize,
    /// `[step, length]` pairs for `staged`: from `step` on the budget is `length` tokens. Empty for every other kind.
    pub stages: Vec<[usize; 2]>,
}

impl Settings {
    /// Everything that makes these settings no schedule: zero or oversized counts and lengths, `l_min` above `l_max`, and
    /// stages that are missing, out of order, empty, or given to a kind that does not read them. A bound that the kind does
    /// not read is not looked at.
    pub fn problems(&self) -> Vec<Error> {
        let Settings { kind, cycles, cycle_steps, .. } = *self;
        let mut problems: Vec<Error> =
            [("cycles", cycles), ("cycle_steps", cycle_steps)].into_iter().filter_map(out_of_range).collect();
        // What two values make together says nothing where one of them is wrong by itself.
        if problems.is_empty() && cycles.checked_mul(cycle_steps).is_none_or(|steps| steps > STEPS) {
            problems.push(Error::TooManySteps { cycles, cycle_steps, limit: STEPS });
        }
        if kind == Kind::Staged {
            problems.extend(stage_problems(&self.stages));
            return problems;
        }
        problems.extend(self.bound_problems());
        if !self.stages.is_empty() {
            problems.push(Error::StagesUnused { count: self.stages.len(), kind });
        }
        problems
    }

    /// What is wrong with the bounds that the kind reads.
    fn bound_problems(&self) -> Vec<Error> {
        let Settings { kind, l_max, l_min, .. } = *self;
        let top = out_of_range(("l_max", l_max));
        if kind == Kind::Constant {
            return top.into_iter().collect();
        }
        let problems: Vec<Error> = top.into_iter().chain(out_of_range(("l_min", l_min))).collect();
        // Which is the larger says nothing where one of them is wrong by itself.
        if problems.is_empty() && l_min > l_max { vec![Error::BoundsSwapped { l_min, l_max }] } else { problems }
    }
}

/// The checked schedule of a run: what a response may cost at each step.
///
/// `t` is the step, from 0; `T = cycle_steps`; `S = cycles * T` the steps of the run;
/// `mid = (l_max + l_min) / 2`, `amp = (l_max - l_min) / 2`. Wen et al., *SIRI* (arXiv 2509.25176), section 3:
///
/// | kind | `L(t)` |
/// | --- | --- |
/// | `constant` | `l_max` |
/// | `stair` | `l_min` while `2 (t mod T) < T`, else `l_max` |
/// | `cosine` | `mid + amp cos(2π t / T)` |
/// | `stair-cosine`, `φ = 2π (t mod T) / T` | `l_max` for `φ < π/4` or `φ ≥ 7π/4`; `mid + amp cos 2(φ - π/4)` for `π/4 ≤ φ < 3π/4`; `l_min` for `3π/4 ≤ φ < 5π/4`; `mid + amp cos 2(φ - 3π/4)` for `5π/4 ≤ φ < 7π/4` |
/// | `staged` | the length of the last stage that has started |
/// | `linear` | `l_max + (l_min - l_max) t / (S - 1)`; `l_max` if `S = 1` |
/// | `linear-up` | `l_min + (l_max - l_min) t / (S - 1)`; `l_min` if `S = 1` |
///
/// A real-valued `L` is rounded to the nearest token, half away from zero. Where the cosine is rational (0, ±1/2, ±1)
/// it is taken exactly, so that a half is a half and not a rounding error beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    settings: Settings,
}

/// Where one cycle has its two checkpoints, as numbers of updates done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The cycle, from 1.
    pub cycle: usize,
    /// Updates done at the end of its compression.
    pub low: usize,
    /// Updates done at the end of its expansion.
    pub high: usize,
}

impl Budget {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first of [`Settings::problems`].
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        if let Some(error) = settings.problems().into_iter().next() {
            return Err(error);
        }
        Ok(Self { settings: settings.clone() })
    }

    /// The settings it was made of.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// `L(t)`: the most tokens that a response may have at `step` (from 0). Defined past the end of the run too: waves
    /// go on, lines and stages stay where they ended.
    pub fn length(&self, step: usize) -> usize {
        let Settings { kind, cycle_steps, l_max, l_min, .. } = self.settings;
        let within = step % cycle_steps;
        match kind {
            Kind::Constant => l_max,
            Kind::Stair => match self.phase(step) {
                Phase::Compress => l_min,
                Phase::Expand => l_max,
            },
            Kind::Cosine => wave(l_min, l_max, within as u64, cycle_steps as u64),
            Kind::StairCosine => stair_cosine(l_min, l_max, within as u64, cycle_steps as u64),
            Kind::Staged => staged(&self.settings.stages, step),
            Kind::Linear => line(l_max, l_min, step, self.total_steps()),
            Kind::LinearUp => line(l_min, l_max, step, self.total_steps()),
        }
    }

    /// Which half of its cycle `step` (from 0) is in: compress while `2 (t mod T) < T`. With an odd `T` the compression
    /// is one step longer.
    pub fn phase(&self, step: usize) -> Phase {
        let cycle_steps = self.settings.cycle_steps;
        if 2 * (step % cycle_steps) < cycle_steps { Phase::Compress } else { Phase::Expand }
    }

    /// The cycle of `step` (from 0), counted from 1.
    pub fn cycle(&self, step: usize) -> usize {
        step / self.settings.cycle_steps + 1
    }

    /// How many steps the run has: `cycles * cycle_steps`.
    pub fn total_steps(&self) -> usize {
        self.settings.cycles * self.settings.cycle_steps
    }

    /// The largest budget of any step of the run.
    pub fn largest(&self) -> usize {
        self.lengths().max().unwrap_or(self.settings.l_max)
    }

    /// The smallest budget of any step of the run.
    pub fn smallest(&self) -> usize {
        self.lengths().min().unwrap_or(self.settings.l_min)
    }

    /// The updates done at the end of each compression and of each expansion, cycle by cycle.
    pub fn marks(&self) -> Vec<Mark> {
        let cycle_steps = self.settings.cycle_steps;
        (0..self.settings.cycles)
            .map(|done| Mark {
                cycle: done + 1,
                low: done * cycle_steps + cycle_steps.div_ceil(2),
                high: (done + 1) * cycle_steps,
            })
            .collect()
    }

    /// The budgets of all steps of the run, in order.
    fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.total_steps()).map(|step| self.length(step))
    }
}

/// What is wrong with a count or a length: it is zero, or above [`LIMIT`].
fn out_of_range((key, value): (&'static str, usize)) -> Option<Error> {
    match value {
        0 => Some(Error::Zero { key }),
        value if value > LIMIT => Some(Error::TooLarge { key, value, limit: LIMIT }),
        _ => None,
    }
}

/// At least one stage, the first at step 0, steps strictly increasing, lengths in range.
fn stage_problems(stages: &[[usize; 2]]) -> Vec<Error> {
    let Some(&[first, _]) = stages.first() else { return vec![Error::NoStages] };
    let mut problems = Vec::new();
    if first != 0 {
        problems.push(Error::FirstStage { step: first });
    }
    let mut previous = None;
    for (index, &[step, length]) in stages.iter().enumerate() {
        if let Some(previous) = previous.filter(|&previous| step <= previous) {
            problems.push(Error::StageOrder { index, step, previous });
        }
        if length == 0 {
            problems.push(Error::StageLength { index });
        }
        if length > LIMIT {
            problems.push(Error::StageTooLong { index, length, limit: LIMIT });
        }
        previous = Some(step);
    }
    problems
}

/// The length of the last stage that starts at or before `step`.
fn staged(stages: &[[usize; 2]], step: usize) -> usize {
    let started = stages.partition_point(|&[start, _]| start <= step);
    stages[started - 1][1]
}

/// `mid + amp cos(2π part / whole)`, rounded.
fn wave(l_min: usize, l_max: usize, part: u64, whole: u64) -> usize {
    let (low, high) = (l_min as f64, l_max as f64);
    let (mid, amp) = ((high + low) / 2.0, (high - low) / 2.0);
    // `f64::round` takes halves away from zero.
    (mid + amp * cos_turn(part, whole)).round() as usize
}

/// The four pieces of the stair-cosine, with `φ = 2π within / steps` compared in eighths of a turn, which is exact.
fn stair_cosine(l_min: usize, l_max: usize, within: u64, steps: u64) -> usize {
    let eighths = 8 * within;
    if eighths < steps || eighths >= 7 * steps {
        l_max
    } else if eighths < 3 * steps {
        // 2 (φ - π/4) is 2π (8 within - steps) / (4 steps).
        wave(l_min, l_max, eighths - steps, 4 * steps)
    } else if eighths < 5 * steps {
        l_min
    } else {
        // 2 (φ - 3π/4) is 2π (8 within - 3 steps) / (4 steps).
        wave(l_min, l_max, eighths - 3 * steps, 4 * steps)
    }
}

/// A straight line from `first` at step 0 to `last` at step `steps - 1`, rounded, and flat from there on.
fn line(first: usize, last: usize, step: usize, steps: usize) -> usize {
    if steps == 1 {
        return first;
    }
    let share = step.min(steps - 1) as f64;
    let rise = last as f64 - first as f64;
    // One division at the end: the numerator is exact, so a half comes out as a half.
    ((first as f64 * (steps - 1) as f64 + rise * share) / (steps - 1) as f64).round() as usize
}

/// `cos(2π part / whole)` for `part <= whole`, exact where it is rational and symmetric about half a turn.
fn cos_turn(part: u64, whole: u64) -> f64 {
    let part = part.min(whole - part);
    if part == 0 {
        1.0
    } else if 6 * part == whole {
        0.5
    } else if 4 * part == whole {
        0.0
    } else if 3 * part == whole {
        -0.5
    } else if 2 * part == whole {
        -1.0
    } else {
        (TAU * part as f64 / whole as f64).cos()
    }
}
