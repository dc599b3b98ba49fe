//! What can be wrong with the settings of a schedule; each message names the key and its value.

use thiserror::Error;

/// A setting that makes no schedule. The display form is one line that names the key and the value.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Error {
    /// A count or a length that has to be at least one is zero.
    #[error("schedule.{key} = 0: must be at least 1")]
    Zero {
        /// The key inside `[schedule]`.
        key: &'static str,
    },
    /// A count or a length beyond what a run can hold.
    #[error("schedule.{key} = {value}: must be at most {limit}")]
    TooLarge {
        /// The key inside `[schedule]`.
        key: &'static str,
        /// What was given.
        value: usize,
        /// The largest value accepted.
        limit: usize,
    },
    /// `cycles * cycle_steps` is beyond what a run can hold.
    #[error("schedule.cycles = {cycles} times schedule.cycle_steps = {cycle_steps}: must be at most {limit} steps")]
    TooManySteps {
        /// Number of cycles.
        cycles: usize,
        /// Steps in a cycle.
        cycle_steps: usize,
        /// The largest number of steps accepted.
        limit: usize,
    },
    /// The bounds are the wrong way round.
    #[error("schedule.l_min = {l_min}: must not be above schedule.l_max = {l_max}")]
    BoundsSwapped {
        /// The smallest budget, tokens.
        l_min: usize,
        /// The largest budget, tokens.
        l_max: usize,
    },
    /// `staged` without stages.
    #[error("schedule.stages = []: kind = \"staged\" needs at least one [step, length]")]
    NoStages,
    /// `staged` whose first stage does not begin with the run.
    #[error("schedule.stages[0] starts at step {step}: the first stage must start at step 0")]
    FirstStage {
        /// Where it starts.
        step: usize,
    },
    /// Two stages out of order.
    #[error("schedule.stages[{index}] starts at step {step}: must be above step {previous} of the stage before it")]
    StageOrder {
        /// Position in the list, from 0.
        index: usize,
        /// Its step.
        step: usize,
        /// The step of the stage before it.
        previous: usize,
    },
    /// A stage with no tokens.
    #[error("schedule.stages[{index}] has length 0: must be at least 1")]
    StageLength {
        /// Position in the list, from 0.
        index: usize,
    },
    /// A stage with more tokens than a run can hold.
    #[error("schedule.stages[{index}] has length {length}: must be at most {limit}")]
    StageTooLong {
        /// Position in the list, from 0.
        index: usize,
        /// Its length, tokens.
        length: usize,
        /// The longest accepted.
        limit: usize,
    },
    /// Stages given to a schedule that has none.
    #[error(
        "schedule.stages has {count} entries: only kind = \"staged\" reads them, not \"{kind}\"; remove them or change the kind"
    )]
    StagesUnused {
        /// How many stages were given.
        count: usize,
        /// The kind that was asked for.
        kind: crate::Kind,
    },
    /// A name that is no kind of schedule.
    #[error("schedule.kind = {value:?}: must be one of {}", crate::Kind::names().join(", "))]
    UnknownKind {
        /// What was given.
        value: String,
    },
    /// A name that is no decay of the learning rate.
    #[error("optimizer.decay = {value:?}: must be one of constant, linear, cosine")]
    UnknownDecay {
        /// What was given.
        value: String,
    },
    /// A learning rate that is negative, infinite or not a number.
    #[error("optimizer.learning_rate = {value}: must be a finite number, zero or above")]
    LearningRate {
        /// What was given.
        value: f64,
    },
    /// A decay with no step left after the warm-up.
    #[error(
        "optimizer.warmup_steps = {warmup_steps}: must be below the {total_steps} steps of the run when the rate decays"
    )]
    WarmupTooLong {
        /// Steps of warm-up.
        warmup_steps: usize,
        /// Steps in the run.
        total_steps: usize,
    },
}
