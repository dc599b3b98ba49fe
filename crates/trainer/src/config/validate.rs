//! The ranges of the settings, and what one key demands of another: pure checks on plain values.

use reward::VerifierKind;

use super::ranges::{
    Findings, Violation, above_zero, at_least_one, decay, named, not_absurd, nucleus, require, share, source,
    zero_or_more,
};
use super::settings::{Config, EMBEDDED, LORA_TARGETS, Lora, Run, bytes};
use super::sft::SftConfig;
use crate::data::traces::StyleError;

impl Config {
    /// Checks every range and every demand of one key on another.
    ///
    /// # Errors
    /// All that do not hold, in the order of the file.
    pub fn check(&self) -> Result<(), Vec<Violation>> {
        let mut found = Findings::default();
        check_run(&self.run, &mut found);
        self.check_policy(&mut found);
        self.check_schedule(&mut found);
        self.check_sampler(&mut found);
        self.check_reward_and_loss(&mut found);
        self.check_optimizer(&mut found);
        self.check_evaluate_and_checkpoint(&mut found);
        found.into_result()
    }

    fn check_policy(&self, found: &mut Findings) {
        let model = &self.model;
        found.add(named(&model.path, &["model.path"]));
        if let Some(tokens) = model.micro_batch_tokens {
            found.add(at_least_one(tokens, &["model.micro_batch_tokens"]));
        }
        if let Some(Lora { rank, alpha, targets }) = &model.lora {
            found.add(at_least_one(*rank, &["model.lora.rank"]));
            found.add(above_zero(*alpha, &["model.lora.alpha"]));
            let unknown = targets.iter().find(|target| !LORA_TARGETS.contains(&target.as_str()));
            let choices = LORA_TARGETS.join(", ");
            found.add(require(
                !targets.is_empty() && unknown.is_none(),
                &["model.lora.targets"],
                format!("must name one or more of {choices}"),
            ));
        }
        found.add(zero_or_more(self.reference.kl_beta, &["reference.kl_beta"]));
        found.add(share(self.reference.track, &["reference.track"]));
        found.add(require(
            self.reference.kl_beta == 0.0 || self.reference.track == 1.0,
            &["reference.track", "reference.kl_beta"],
            "a KL penalty (kl_beta above 0) needs the KL of every rollout; set reference.track to 1 or kl_beta to 0",
        ));
        found.add(source(&self.data.train, &["data.train"]));
        found.add(source(&self.data.eval, &["data.eval"]));
        found.add(at_least_one(self.data.max_prompt_tokens, &["data.max_prompt_tokens"]));
    }

    fn check_schedule(&self, found: &mut Findings) {
        let (stages, others): (Vec<Violation>, Vec<Violation>) = (self.schedule.unchecked().problems().iter())
            .map(schedule_violation)
            .partition(|violation| violation.keys == STAGES);
        others.into_iter().for_each(|violation| found.add(Err(violation)));
        // One key, so one line.
        let problems: Vec<String> = stages.into_iter().map(|violation| violation.problem).collect();
        found.add(require(problems.is_empty(), STAGES, problems.join("; ")));
    }

    fn check_sampler(&self, found: &mut Findings) {
        let sampler = &self.sampler;
        found.add(at_least_one(sampler.prompts_per_step, &["sampler.prompts_per_step"]));
        found.add(require(
            sampler.group_size >= 2,
            &["sampler.group_size"],
            "must be at least 2: an advantage compares the rollouts of a group",
        ));
        found.add(not_absurd(sampler.group_size, &["sampler.group_size"]));
        found.add(not_absurd(sampler.resample_tries, &["sampler.resample_tries"]));
        found.add(not_absurd(sampler.top_k, &["sampler.top_k"]));
        found.add(require(
            sampler.temperature > 0.0 && sampler.temperature.is_finite(),
            &["sampler.temperature"],
            "must be a finite number above 0: rollouts without chance would all be the same",
        ));
        found.add(nucleus(sampler.top_p, &["sampler.top_p"]));
        found.add(require(
            sampler.stop.iter().all(|text| !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER)),
            &["sampler.stop"],
            "must be a list of texts none of which is empty or has U+FFFD, such as [\"</answer>\"]",
        ));
        found.add(at_least_one(sampler.max_rows, &["sampler.max_rows"]));
        found.add(require(
            sampler.cache_memory.as_deref().is_none_or(|size| bytes(size).is_some()),
            &["sampler.cache_memory"],
            "must be a size such as \"512MiB\" or \"4GiB\", or \"none\"",
        ));
    }

    fn check_reward_and_loss(&self, found: &mut Findings) {
        let verifier = self.reward.verifier.as_str();
        found.add(require(
            verifier == "auto" || self.reward.verifier_kind().is_some(),
            &["reward.verifier"],
            format!("must be one of auto, {}", VerifierKind::ALL.map(VerifierKind::name).join(", ")),
        ));
        let loss = &self.loss;
        found.add(share(loss.clip_low, &["loss.clip_low"]));
        found.add(zero_or_more(loss.clip_high, &["loss.clip_high"]));
        found.add(require(
            loss.dual_clip.is_none_or(|bound| bound > 1.0 && bound.is_finite()),
            &["loss.dual_clip"],
            "must be a finite number above 1, or \"none\"",
        ));
        found.add(zero_or_more(loss.entropy_bonus, &["loss.entropy_bonus"]));
        found.add(require(
            loss.importance_cap.is_none_or(|cap| cap > 0.0 && cap.is_finite()),
            &["loss.importance_cap"],
            "must be a finite number above 0, or \"none\"",
        ));
    }

    fn check_optimizer(&self, found: &mut Findings) {
        let optimizer = &self.optimizer;
        found.add(above_zero(optimizer.learning_rate, &["optimizer.learning_rate"]));
        found.add(not_absurd(optimizer.warmup_steps, &["optimizer.warmup_steps"]));
        found.add(zero_or_more(optimizer.weight_decay, &["optimizer.weight_decay"]));
        found.add(decay(optimizer.beta1, &["optimizer.beta1"]));
        found.add(decay(optimizer.beta2, &["optimizer.beta2"]));
        found.add(above_zero(optimizer.epsilon, &["optimizer.epsilon"]));
        found.add(above_zero(optimizer.max_grad_norm, &["optimizer.max_grad_norm"]));
        found.add(at_least_one(optimizer.skip_limit, &["optimizer.skip_limit"]));
        found.add(at_least_one(optimizer.updates_per_step, &["optimizer.updates_per_step"]));
        found.add(require(
            optimizer.updates_per_step <= self.sampler.prompts_per_step,
            &["optimizer.updates_per_step", "sampler.prompts_per_step"],
            format!(
                "{} updates cannot share the {} groups of a step; lower optimizer.updates_per_step or raise \
                 sampler.prompts_per_step",
                optimizer.updates_per_step, self.sampler.prompts_per_step
            ),
        ));
        let steps = self.schedule.cycles.saturating_mul(self.schedule.cycle_steps);
        let updates = steps.saturating_mul(optimizer.updates_per_step);
        let unsound = ["optimizer.learning_rate", "optimizer.updates_per_step"].iter().any(|key| found.names(key));
        let decays = unsound || optimizer.rate(steps).is_ok();
        found.add(require(
            decays,
            &["optimizer.warmup_steps", "optimizer.decay", "schedule.cycle_steps", "schedule.cycles"],
            format!(
                "a warm-up of {} updates leaves none of the run's {updates} for the rate to decay; lower \
                 optimizer.warmup_steps or set optimizer.decay to \"constant\"",
                optimizer.warmup_steps
            ),
        ));
    }

    fn check_evaluate_and_checkpoint(&self, found: &mut Findings) {
        let evaluate = &self.evaluate;
        found.add(not_absurd(evaluate.every, &["evaluate.every"]));
        found.add(at_least_one(evaluate.problems, &["evaluate.problems"]));
        found.add(at_least_one(evaluate.samples, &["evaluate.samples"]));
        found.add(zero_or_more(evaluate.temperature, &["evaluate.temperature"]));
        found.add(nucleus(evaluate.top_p, &["evaluate.top_p"]));
        found.add(at_least_one(evaluate.max_tokens.unwrap_or(1), &["evaluate.max_tokens"]));
        found.add(not_absurd(self.checkpoint.every, &["checkpoint.every"]));
        found.add(at_least_one(self.checkpoint.keep, &["checkpoint.keep"]));
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
    /// All that do not hold, in the order of the file.
    pub fn check(&self) -> Result<(), Vec<Violation>> {
        let mut found = Findings::default();
        check_run(&self.run, &mut found);
        found.add(named(&self.model.path, &["model.path"]));
        found.add(above_zero(self.model.init_std, &["model.init_std"]));
        found.add(self.data.traces.validate().map_err(|error| {
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
        }));
        let train = &self.train;
        found.add(at_least_one(train.max_length, &["train.max_length"]));
        found.add(require(
            train.batch_tokens >= train.max_length,
            &["train.batch_tokens", "train.max_length"],
            format!(
                "an update of {} tokens cannot hold a trace of {}; raise train.batch_tokens or lower train.max_length",
                train.batch_tokens, train.max_length
            ),
        ));
        found.add(require(
            train.tokens >= train.batch_tokens,
            &["train.tokens", "train.batch_tokens"],
            format!("{} tokens do not fill one update of {}", train.tokens, train.batch_tokens),
        ));
        found.add(not_absurd(train.max_length, &["train.max_length"]));
        found.add(above_zero(train.learning_rate, &["train.learning_rate"]));
        found.add(not_absurd(train.warmup_steps, &["train.warmup_steps"]));
        let unsound = found.names("train.max_length");
        found.add(require(
            unsound || train.warmup_steps < train.updates(),
            &["train.tokens", "train.batch_tokens", "train.warmup_steps"],
            format!(
                "a warm-up of {} updates leaves none of the {} for the rate to fall; lower train.warmup_steps or raise \
                 train.tokens",
                train.warmup_steps,
                train.updates()
            ),
        ));
        found.add(share(train.final_share, &["train.final_share"]));
        found.add(zero_or_more(train.weight_decay, &["train.weight_decay"]));
        found.add(decay(train.beta1, &["train.beta1"]));
        found.add(decay(train.beta2, &["train.beta2"]));
        found.add(above_zero(train.epsilon, &["train.epsilon"]));
        found.add(above_zero(train.max_grad_norm, &["train.max_grad_norm"]));
        found.add(at_least_one(self.evaluate.problems, &["evaluate.problems"]));
        found.add(at_least_one(self.evaluate.max_tokens, &["evaluate.max_tokens"]));
        found.into_result()
    }
}

/// The key of everything that is wrong with a stage.
const STAGES: &[&str] = &["schedule.stages"];

/// What the schedule says of its settings, under their keys.
fn schedule_violation(error: &::schedule::Error) -> Violation {
    use ::schedule::Error;
    let keys: &[&str] = match error {
        Error::Zero { key } | Error::TooLarge { key, .. } => match *key {
            "cycles" => &["schedule.cycles"],
            "cycle_steps" => &["schedule.cycle_steps"],
            "l_max" => &["schedule.l_max"],
            _ => &["schedule.l_min"],
        },
        Error::TooManySteps { .. } => &["schedule.cycle_steps", "schedule.cycles"],
        Error::BoundsSwapped { .. } => &["schedule.l_max", "schedule.l_min"],
        Error::NoStages | Error::StagesUnused { .. } => &["schedule.stages", "schedule.kind"],
        _ => STAGES,
    };
    let message = error.to_string();
    let problem = match error {
        Error::BoundsSwapped { l_min, l_max } => format!("l_min ({l_min}) must not be above l_max ({l_max})"),
        // Its message opens with the key and the value, which the caller names too.
        Error::Zero { .. } | Error::TooLarge { .. } | Error::TooManySteps { .. } => {
            message.split_once(": ").map_or(message.as_str(), |(_, problem)| problem).to_owned()
        }
        _ => message,
    };
    Violation { keys, problem }
}

fn check_run(run: &Run, found: &mut Findings) {
    // A seed above i64::MAX cannot be written back to `config.toml`.
    found.add(require(i64::try_from(run.seed).is_ok(), &["run.seed"], format!("must be at most {}", i64::MAX)));
    found.add(at_least_one(run.threads.unwrap_or(1), &["run.threads"]));
    found.add(require(
        run.out.as_ref().is_none_or(|out| !out.as_os_str().is_empty()),
        &["run.out"],
        "must not be empty; write \"none\" for a folder named by the time",
    ));
}
