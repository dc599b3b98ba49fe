//! The ranges of the settings, and what one key demands of another: pure checks on plain values.

use reward::VerifierKind;

use super::settings::{Config, EMBEDDED, LORA_TARGETS, Lora, Run, bytes};
use super::sft::SftConfig;
use crate::data::Source;
use crate::data::traces::StyleError;

/// A value that has the right type and does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key with its section; of several that contradict each other, all.
    pub keys: &'static [&'static str],
    /// What the value has to be, as a clause.
    pub problem: String,
}

type Check = Result<(), Violation>;

/// Refuses unless `holds`.
fn require(holds: bool, keys: &'static [&'static str], problem: impl Into<String>) -> Check {
    if holds { Ok(()) } else { Err(Violation { keys, problem: problem.into() }) }
}

/// No count of a run comes near this, and products of two stay within 64 bits.
const LARGEST: usize = u32::MAX as usize;

fn at_least_one(value: usize, key: &'static [&'static str]) -> Check {
    require(value >= 1, key, "must be at least 1")?;
    not_absurd(value, key)
}

fn not_absurd(value: usize, key: &'static [&'static str]) -> Check {
    require(value <= LARGEST, key, format!("must be at most {LARGEST}"))
}

// The comparisons below are all false for NaN, so that NaN is refused with the rest.

fn above_zero(value: f64, key: &'static [&'static str]) -> Check {
    require(value > 0.0 && value.is_finite(), key, "must be a finite number above 0")
}

fn zero_or_more(value: f64, key: &'static [&'static str]) -> Check {
    require(value >= 0.0 && value.is_finite(), key, "must be a finite number, 0 or more")
}

fn share(value: f64, key: &'static [&'static str]) -> Check {
    require((0.0..=1.0).contains(&value), key, "must be from 0 to 1")
}

fn nucleus(value: f64, key: &'static [&'static str]) -> Check {
    require(value > 0.0 && value <= 1.0, key, "must be above 0 and at most 1 (1 is off)")
}

fn decay(value: f64, key: &'static [&'static str]) -> Check {
    require((0.0..1.0).contains(&value), key, "must be from 0 up to, but not, 1")
}

fn named(value: &str, key: &'static [&'static str]) -> Check {
    require(!value.trim().is_empty(), key, "must not be empty")
}

fn source(name: &str, key: &'static [&'static str]) -> Check {
    let parsed = name.parse::<Source>().map(drop);
    parsed.map_err(|error| Violation { keys: key, problem: format!("must name a data set: {error}") })
}

impl Config {
    /// Checks every range and every demand of one key on another.
    ///
    /// # Errors
    /// The first that does not hold, in the order of the file.
    pub fn check(&self) -> Result<(), Violation> {
        check_run(&self.run)?;
        self.check_policy()?;
        self.check_schedule()?;
        self.check_sampler()?;
        self.check_reward_and_loss()?;
        self.check_optimizer()?;
        self.check_evaluate_and_checkpoint()
    }

    fn check_policy(&self) -> Check {
        let model = &self.model;
        named(&model.path, &["model.path"])?;
        at_least_one(model.micro_batch_tokens, &["model.micro_batch_tokens"])?;
        if let Some(Lora { rank, alpha, targets }) = &model.lora {
            at_least_one(*rank, &["model.lora.rank"])?;
            above_zero(*alpha, &["model.lora.alpha"])?;
            let unknown = targets.iter().find(|target| !LORA_TARGETS.contains(&target.as_str()));
            let choices = LORA_TARGETS.join(", ");
            require(
                !targets.is_empty() && unknown.is_none(),
                &["model.lora.targets"],
                format!("must name one or more of {choices}"),
            )?;
        }
        zero_or_more(self.reference.kl_beta, &["reference.kl_beta"])?;
        share(self.reference.track, &["reference.track"])?;
        require(
            self.reference.kl_beta == 0.0 || self.reference.track == 1.0,
            &["reference.track", "reference.kl_beta"],
            "a KL penalty (kl_beta above 0) needs the KL of every rollout; set reference.track to 1 or kl_beta to 0",
        )?;
        source(&self.data.train, &["data.train"])?;
        source(&self.data.eval, &["data.eval"])?;
        at_least_one(self.data.max_prompt_tokens, &["data.max_prompt_tokens"])
    }

    fn check_schedule(&self) -> Check {
        use ::schedule::Error;
        let Err(error) = self.schedule.budget() else { return Ok(()) };
        let keys: &[&str] = match &error {
            Error::Zero { key } | Error::TooLarge { key, .. } => match *key {
                "cycles" => &["schedule.cycles"],
                "cycle_steps" => &["schedule.cycle_steps"],
                "l_max" => &["schedule.l_max"],
                _ => &["schedule.l_min"],
            },
            Error::TooManySteps { .. } => &["schedule.cycle_steps", "schedule.cycles"],
            Error::BoundsSwapped { l_min, l_max } => {
                let problem = format!("l_min ({l_min}) must not be above l_max ({l_max})");
                return require(false, &["schedule.l_max", "schedule.l_min"], problem);
            }
            Error::NoStages | Error::StagesUnused { .. } => &["schedule.stages", "schedule.kind"],
            _ => &["schedule.stages"],
        };
        // Its message opens with the key and the value, which the caller names too.
        let message = error.to_string();
        let stripped = match &error {
            Error::Zero { .. } | Error::TooLarge { .. } | Error::TooManySteps { .. } => {
                message.split_once(": ").map(|(_, problem)| problem)
            }
            _ => None,
        };
        require(false, keys, stripped.unwrap_or(&message))
    }

    fn check_sampler(&self) -> Check {
        let sampler = &self.sampler;
        at_least_one(sampler.prompts_per_step, &["sampler.prompts_per_step"])?;
        require(
            sampler.group_size >= 2,
            &["sampler.group_size"],
            "must be at least 2: an advantage compares the rollouts of a group",
        )?;
        not_absurd(sampler.group_size, &["sampler.group_size"])?;
        not_absurd(sampler.resample_tries, &["sampler.resample_tries"])?;
        not_absurd(sampler.top_k, &["sampler.top_k"])?;
        require(
            sampler.temperature > 0.0 && sampler.temperature.is_finite(),
            &["sampler.temperature"],
            "must be a finite number above 0: rollouts without chance would all be the same",
        )?;
        nucleus(sampler.top_p, &["sampler.top_p"])?;
        at_least_one(sampler.max_rows, &["sampler.max_rows"])?;
        require(
            sampler.cache_memory.as_deref().is_none_or(|size| bytes(size).is_some()),
            &["sampler.cache_memory"],
            "must be a size such as \"512MiB\" or \"4GiB\", or \"none\"",
        )
    }

    fn check_reward_and_loss(&self) -> Check {
        let verifier = self.reward.verifier.as_str();
        require(
            verifier == "auto" || self.reward.verifier_kind().is_some(),
            &["reward.verifier"],
            format!("must be one of auto, {}", VerifierKind::ALL.map(VerifierKind::name).join(", ")),
        )?;
        let loss = &self.loss;
        share(loss.clip_low, &["loss.clip_low"])?;
        zero_or_more(loss.clip_high, &["loss.clip_high"])?;
        require(
            loss.dual_clip.is_none_or(|bound| bound > 1.0 && bound.is_finite()),
            &["loss.dual_clip"],
            "must be a finite number above 1, or \"none\"",
        )?;
        zero_or_more(loss.entropy_bonus, &["loss.entropy_bonus"])?;
        require(
            loss.importance_cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()),
            &["loss.importance_cap"],
            "must be a finite number above 0, or \"none\"",
        )
    }

    fn check_optimizer(&self) -> Check {
        let optimizer = &self.optimizer;
        above_zero(optimizer.learning_rate, &["optimizer.learning_rate"])?;
        not_absurd(optimizer.warmup_steps, &["optimizer.warmup_steps"])?;
        zero_or_more(optimizer.weight_decay, &["optimizer.weight_decay"])?;
        decay(optimizer.beta1, &["optimizer.beta1"])?;
        decay(optimizer.beta2, &["optimizer.beta2"])?;
        above_zero(optimizer.epsilon, &["optimizer.epsilon"])?;
        above_zero(optimizer.max_grad_norm, &["optimizer.max_grad_norm"])?;
        at_least_one(optimizer.updates_per_step, &["optimizer.updates_per_step"])?;
        require(
            optimizer.updates_per_step <= self.sampler.prompts_per_step,
            &["optimizer.updates_per_step", "sampler.prompts_per_step"],
            format!(
                "{} updates cannot share the {} groups of a step; lower optimizer.updates_per_step or raise \
                 sampler.prompts_per_step",
                optimizer.updates_per_step, self.sampler.prompts_per_step
            ),
        )?;
        let steps = self.schedule.cycles.saturating_mul(self.schedule.cycle_steps);
        let updates = steps.saturating_mul(optimizer.updates_per_step);
        require(
            optimizer.rate(steps).is_ok(),
            &["optimizer.warmup_steps", "optimizer.decay", "schedule.cycle_steps", "schedule.cycles"],
            format!(
                "a warm-up of {} updates leaves none of the run's {updates} for the rate to decay; lower \
                 optimizer.warmup_steps or set optimizer.decay to \"constant\"",
                optimizer.warmup_steps
            ),
        )
    }

    fn check_evaluate_and_checkpoint(&self) -> Check {
        let evaluate = &self.evaluate;
        not_absurd(evaluate.every, &["evaluate.every"])?;
        at_least_one(evaluate.problems, &["evaluate.problems"])?;
        at_least_one(evaluate.samples, &["evaluate.samples"])?;
        zero_or_more(evaluate.temperature, &["evaluate.temperature"])?;
        nucleus(evaluate.top_p, &["evaluate.top_p"])?;
        at_least_one(evaluate.max_tokens.unwrap_or(1), &["evaluate.max_tokens"])?;
        not_absurd(self.checkpoint.every, &["checkpoint.every"])?;
        at_least_one(self.checkpoint.keep, &["checkpoint.keep"])
    }

    /// Whether the policy is the one compiled into the program.
    pub fn is_embedded(&self) -> bool {
        self.model.path == EMBEDDED
    }
}

impl SftConfig {
    /// Checks every range and every demand of one key on another.
    ///
    /// # Errors
    /// The first that does not hold, in the order of the file.
    pub fn check(&self) -> Result<(), Violation> {
        check_run(&self.run)?;
        named(&self.model.path, &["model.path"])?;
        above_zero(self.model.init_std, &["model.init_std"])?;
        self.data.traces.validate().map_err(|error| {
            let keys: &[&str] = match &error {
                StyleError::Probability { key: "recheck", .. } => &["data.traces.recheck"],
                StyleError::Probability { key: "give_up", .. } => &["data.traces.give_up"],
                StyleError::Probability { .. } => &["data.traces.revisit"],
                StyleError::AfterSuccess(..) => &["data.traces.after_success"],
                StyleError::Closeness(_) => &["data.traces.closeness"],
            };
            // Its message opens with the key and the value, which the caller names too.
            let message = error.to_string();
            let problem = message.split_once(": ").map_or(message.as_str(), |(_, problem)| problem);
            Violation { keys, problem: problem.to_string() }
        })?;
        let train = &self.train;
        at_least_one(train.max_length, &["train.max_length"])?;
        require(
            train.batch_tokens >= train.max_length,
            &["train.batch_tokens", "train.max_length"],
            format!(
                "an update of {} tokens cannot hold a trace of {}; raise train.batch_tokens or lower train.max_length",
                train.batch_tokens, train.max_length
            ),
        )?;
        require(
            train.tokens >= train.batch_tokens,
            &["train.tokens", "train.batch_tokens"],
            format!("{} tokens do not fill one update of {}", train.tokens, train.batch_tokens),
        )?;
        not_absurd(train.max_length, &["train.max_length"])?;
        above_zero(train.learning_rate, &["train.learning_rate"])?;
        not_absurd(train.warmup_steps, &["train.warmup_steps"])?;
        share(train.final_share, &["train.final_share"])?;
        zero_or_more(train.weight_decay, &["train.weight_decay"])?;
        decay(train.beta1, &["train.beta1"])?;
        decay(train.beta2, &["train.beta2"])?;
        above_zero(train.epsilon, &["train.epsilon"])?;
        above_zero(train.max_grad_norm, &["train.max_grad_norm"])?;
        at_least_one(self.evaluate.problems, &["evaluate.problems"])?;
        at_least_one(self.evaluate.max_tokens, &["evaluate.max_tokens"])
    }
}

fn check_run(run: &Run) -> Check {
    // A seed above i64::MAX cannot be written back to `config.toml`.
    require(i64::try_from(run.seed).is_ok(), &["run.seed"], format!("must be at most {}", i64::MAX))?;
    at_least_one(run.threads.unwrap_or(1), &["run.threads"])?;
    require(
        run.out.as_ref().is_none_or(|out| !out.as_os_str().is_empty()),
        &["run.out"],
        "must not be empty; write \"none\" for a folder named by the time",
    )
}
