//! Settings of a run that goes on against those that it was made with: what would alter its past is refused by name.

#![deny(clippy::indexing_slicing)]

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::commands::{UsageError, note};
use crate::config::{Config, Data};
use crate::data::{Problems, Source};
use crate::doctor::machine;

/// Keys that no figure depends on: where things are, how fast they go and what is kept of them.
const FREE: [&str; 13] = [
    "run.out",
    "run.threads",
    "model.recompute",
    "model.micro_batch_tokens",
    "sampler.max_rows",
    "sampler.cache_memory",
    "sampler.cuda_graphs",
    "optimizer.skip_limit",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.background",
    // They say when the run ends, which its past does not know; `budgets_agree` looks at what the first does to it.
    "schedule.cycles",
    "schedule.rollout_tokens",
];

/// The settings that the numbers of a run depend on, by key, as TOML: what a checkpoint remembers.
///
/// # Errors
/// Settings that TOML cannot hold, which checked ones never are.
pub fn lasting(config: &Config) -> Result<BTreeMap<String, String>> {
    let mut config = config.clone();
    // `auto` is the device that it means here.
    config.run.device = machine::resolve(config.run.device);
    let mut found = BTreeMap::new();
    leaves("", &Table::try_from(config).context("settings as TOML")?, &mut found);
    // The ends are kept as well, to tell whether they have changed.
    found.retain(|key, _| !FREE.contains(&key.as_str()) || key.starts_with("schedule."));
    Ok(found)
}

/// What the files that settings name hold, under keys of their own beside those of [`lasting`]: other problems under the same
/// name would make another run. Problems that are made follow from the seed.
pub fn contents(data: &Data, train: &Problems, held_out: &Problems) -> BTreeMap<String, String> {
    let of = |key: &str, name: &str, problems: &Problems| match name.parse() {
        Ok(Source::Countdown(_)) | Err(_) => None,
        Ok(_) => Some((format!("{key} (SHA-256 of its problems)"), problems.digest()?)),
    };
    let both = [of("data.train", &data.train, train), of("data.eval", &data.eval, held_out)];
    both.into_iter().flatten().collect()
}

fn leaves(section: &str, table: &Table, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match value {
            Value::Table(inner) => leaves(&key, inner, found),
            value => drop(found.insert(key, value.to_string())),
        }
    }
}

/// Refuses settings and [`contents`] that differ from those of a checkpoint where the steps done depend on them.
///
/// # Errors
/// [`UsageError`] with a line for each such key.
pub fn refuse(
    before: &BTreeMap<String, String>,
    config: &Config,
    contents: &BTreeMap<String, String>,
    steps_done: usize,
) -> Result<()> {
    let mut after = lasting(config)?;
    after.extend(contents.clone());
    let changed: Vec<(&String, &String, &String)> =
        after.iter().filter_map(|(key, new)| Some((key, before.get(key)?, new))).filter(|(_, a, b)| a != b).collect();
    // A table in the place of "none", as `model.lora` may be, or the other way round.
    let turned = |key: &str, others: &BTreeMap<String, String>| {
        others.keys().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    };
    let appeared = before.keys().filter(|key| turned(key, &after)).map(|key| (key, "none", "set"));
    let vanished = after.keys().filter(|key| turned(key, before)).map(|key| (key, "one", "none"));
    let mut refused: Vec<String> = appeared
        .chain(vanished)
        .map(|(key, old, new)| {
            format!("{key}: this run was made with {old}, and now it is {new}; leave it as it is, or start a new run with another --out")
        })
        .collect();
    let altered = changed
        .iter()
        .filter(|(key, ..)| !FREE.contains(&key.as_str()))
        .map(|(key, old, new)| {
            format!("{key} = {new}: this run was made with {old}, and the steps done depend on it; leave it as it is, or start a new run with another --out")
        });
    refused.extend(altered);
    if let Some((key, old, new)) = changed.iter().find(|(key, ..)| *key == "schedule.cycles")
        && !budgets_agree(before, config, steps_done)
    {
        refused.push(format!(
            "{key} = {new}: this run was made with {old}, and with {new} the {steps_done} steps done would have had other \
             budgets; leave it as it is, or start a new run with another --out"
        ));
    }
    let end = changed.iter().find(|(key, ..)| FREE.contains(&key.as_str()));
    if let Some((key, old, new)) = end
        && refused.is_empty()
        && config.optimizer.decay != schedule::Decay::Constant
    {
        note(&format!(
            "{key} = {new}, before {old}: from here on the learning rate decays towards the new end; the steps done had \
             the rates of the old one"
        ));
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(UsageError::several(refused).into()),
    }
}

/// Whether the steps done had the budgets that they would have now.
fn budgets_agree(before: &BTreeMap<String, String>, config: &Config, steps_done: usize) -> bool {
    let mut old = config.schedule.clone();
    let Some(cycles) = before.get("schedule.cycles").and_then(|cycles| cycles.parse().ok()) else { return false };
    old.cycles = cycles;
    let (Ok(old), Ok(new)) = (old.budget(), config.schedule.budget()) else { return false };
    steps_done <= new.total_steps() && (0..steps_done).all(|step| old.length(step) == new.length(step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;
    use reward::{Problem, VerifierKind};

    fn config(sets: &[&str]) -> Config {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Config::resolve(None, &sets, &Overrides::default()).unwrap()
    }

    fn refusal(before: &[&str], after: &[&str], done: usize) -> Option<String> {
        let before = lasting(&config(before)).unwrap();
        refuse(&before, &config(after), &BTreeMap::new(), done).err().map(|error| error.to_string())
    }

    #[test]
    fn other_problems_under_the_same_name_are_refused() {
        let problems = |answers: &[&str]| {
            let of = |answer: &&str| Problem::new("1 + 1?", *answer, VerifierKind::Math).unwrap();
            Problems::List(answers.iter().map(of).collect())
        };
        let (two, one) = (problems(&["2", "2"]), problems(&["2"]));
        assert_eq!(two.digest(), problems(&["2", "2"]).digest());
        let mut before = lasting(&config(&[])).unwrap();
        let data = config(&["data.eval=some.jsonl"]).data;
        before.extend(contents(&data, &one, &two));
        let refused = |held_out: &Problems| {
            // Those of `countdown` are not looked at.
            let now = contents(&data, &two, held_out);
            refuse(&before, &config(&[]), &now, 3).err().map(|error| error.to_string())
        };
        assert_eq!(refused(&two), None);
        assert!(refused(&one).unwrap().starts_with("data.eval (SHA-256 of its problems) = "));
    }

    #[test]
    fn what_the_past_does_not_know_may_change() {
        let free = ["run.threads=1", "run.out=x", "checkpoint.keep=5", "sampler.max_rows=3", "schedule.cycles=4"];
        assert_eq!(refusal(&[], &free, 30), None);
        assert_eq!(refusal(&["run.device=auto"], &["run.device=cpu"], 30), None);
        assert_eq!(refusal(&["schedule.rollout_tokens=1000"], &[], 30), None);
    }

    #[test]
    fn what_alters_the_past_is_refused_by_name_all_at_once() {
        let message = refusal(&[], &["optimizer.learning_rate=1e-3", "run.seed=2", "schedule.l_max=500"], 3).unwrap();
        for (line, expected) in
            message.lines().zip(["optimizer.learning_rate = 0.001", "run.seed = 2", "schedule.l_max"])
        {
            assert!(line.starts_with(expected) && line.contains("this run was made with"), "{message}");
        }
        assert_eq!(message.lines().count(), 3, "{message}");
        let message = refusal(&[], &["schedule.cycles=1"], 30).unwrap();
        assert!(message.starts_with("schedule.cycles = 1: this run was made with 3"), "{message}");
        // Another kind of value: a table where there was none.
        let lora = ["model.lora={rank=2,alpha=4.0,targets=['q_proj']}"];
        for (before, after) in [(&lora[..], &[][..]), (&[], &lora)] {
            let message = refusal(before, after, 3).unwrap();
            assert!(message.starts_with("model.lora: this run was made with "), "{message}");
        }
        // A budget that falls over the whole run is another one when the run is longer.
        let linear = ["schedule.kind=linear"];
        let message = refusal(&linear, &["schedule.kind=linear", "schedule.cycles=4"], 30).unwrap();
        assert!(message.contains("other budgets"), "{message}");
    }
}
