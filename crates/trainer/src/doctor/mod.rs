//! What a run needs against what the machine has, and what would fail, before anything is downloaded.

pub mod copy;
pub mod disk;
pub mod machine;
pub mod memory;
pub mod policy;
mod unsupported;

pub use unsupported::unsupported;

use std::fmt::Write;

use crate::config::{Config, DeviceChoice, Dtype};
use crate::data::{self, Source, Use};
use machine::Memory;
use memory::{Need, Phase, show, thousands};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Lines for a person, one fact each.
    pub text: String,
    /// What would fail, and what to do about it; empty when a run can start.
    pub failures: Vec<String>,
}

impl Report {
    fn fact(&mut self, name: &str, value: impl AsRef<str>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name:<10} {}", value.as_ref());
    }
}

/// Looks at the machine, the policy and the data that `config` names.
pub fn examine(config: &Config) -> Report {
    let mut report = Report::default();
    look_at_machine(config, &mut report);
    look_at_policy(config, &mut report);
    look_at_data(config, &mut report);
    if let Some(out) = &config.run.out
        && let Err(there) = crate::run::preflight::refuse_existing(out)
    {
        report.failures.push(there.to_string());
    }
    if report.failures.is_empty() {
        report.fact("verdict", "a run with these settings can start");
    }
    for failure in report.failures.clone() {
        report.fact("fails", failure);
    }
    report
}

fn look_at_machine(config: &Config, report: &mut Report) {
    report.fact("program", format!("trainer {}", env!("CARGO_PKG_VERSION")));
    let has = |(name, there): &(&str, bool)| format!("{name} {}", if *there { "yes" } else { "no" });
    let instructions: Vec<String> = machine::vector_instructions().iter().map(has).collect();
    let threads = machine::threads();
    let used = config.run.threads.unwrap_or(threads);
    report.fact("cpu", format!("{}, {}", std::env::consts::ARCH, instructions.join(", ")));
    report.fact("threads", format!("{used} used of {threads}"));
    let Memory { total, available } = machine::memory();
    report.fact("memory", format!("{} available of {}", show(available), show(total)));
    for device in [DeviceChoice::Cuda, DeviceChoice::Metal] {
        let state = machine::usable(device).map_or_else(|reason| format!("no: {reason}"), |()| "yes".into());
        report.fact(&device.to_string(), state);
    }
    let device = machine::resolve(config.run.device);
    report.fact("device", format!("{device} (run.device = \"{}\")", config.run.device));
    match machine::open(device) {
        Ok(candle_core::Device::Cpu) => {}
        Ok(opened) => {
            let memory = machine::device_memory(device);
            let memory = memory.map(|m| format!(", {} available of {}", show(m.available), show(m.total)));
            report.fact("", format!("{}{}", model::device::name(&opened), memory.unwrap_or_default()));
        }
        Err(reason) => report.failures.push(format!("run.device = \"{device}\": {reason}")),
    }
}

fn look_at_policy(config: &Config, report: &mut Report) {
    let found = policy::find(&config.model.path);
    report.fact("model", format!("{}: {}", config.model.path, found.place));
    report.failures.extend(found.failure);
    let device = machine::resolve(config.run.device);
    report.failures.extend(unsupported(config));
    let Some(shape) = found.shape else {
        report.fact("needs", "unknown until config.json can be read");
        return;
    };
    report.failures.extend(too_long(&shape, config));
    let folder = config.run.out.clone().unwrap_or_else(|| "runs".into());
    let disk = disk::look(&folder, &disk::Need::of(&shape, config));
    report.fact("disk", disk.fact);
    report.failures.extend(disk.failure);
    let there = machine::device_memory(device);
    let need = memory::estimate(&shape, &memory::planned(&shape, config, device, there), device);
    report.fact("needs", format!("{}, about, at its peak:", show(need.total())));
    for item in &need.items {
        let when = match item.phase {
            Phase::Always => "",
            Phase::Rollouts => ", in rollouts",
            Phase::Updates => ", in updates",
        };
        let _ = writeln!(report.text, "{:>10} {:<16} {}{when}", show(item.bytes), item.name, item.formula);
    }
    report.fact("saves", copy::HostCopy::here(&shape, config, device, &need).fact(config));
    match there {
        Some(there) => report.failures.extend(shortage(&need, there, config)),
        None => report.fact("there", format!("the memory of {device} cannot be told")),
    }
}

/// What to say when a sequence may be longer than the model's positions.
pub fn too_long(shape: &model::config::Config, config: &Config) -> Option<String> {
    let longest = memory::longest_sequence(config);
    (longest > shape.max_positions).then(|| {
        format!(
            "a prompt of {} tokens with the largest budget makes {longest}, and the model ends at {}; lower \
             schedule.l_max, evaluate.max_tokens or data.max_prompt_tokens",
            config.data.max_prompt_tokens, shape.max_positions
        )
    })
}

/// What to say when `need` does not fit into what is `there`.
pub fn shortage(need: &Need, there: Memory, config: &Config) -> Option<String> {
    if need.total() <= there.available {
        return None;
    }
    let mut remedies = Vec::new();
    if config.model.recompute == Some(false) {
        remedies.push("set model.recompute = true");
    }
    if config.model.lora.is_none() {
        remedies.push("train adapters (model.lora)");
    }
    if config.model.dtype == Dtype::F32 {
        remedies.push("set model.dtype = \"bf16\"");
    }
    if need.bytes("key-value cache") > need.total() / 4 {
        remedies.push("lower sampler.cache_memory");
    }
    remedies.push("lower model.micro_batch_tokens, sampler.max_rows or schedule.l_max");
    Some(format!(
        "memory: about {} needed, {} available of {}; {}",
        show(need.total()),
        show(there.available),
        show(there.total),
        remedies.join(", or ")
    ))
}

fn look_at_data(config: &Config, report: &mut Report) {
    let data = [("data.train", &config.data.train, Use::Train), ("data.eval", &config.data.eval, Use::Evaluate)];
    for (key, name, purpose) in data {
        let loaded = name
            .parse::<Source>()
            .and_then(|source| data::load(&source, purpose, &crate::run::preflight::settings(config)));
        match loaded {
            Ok(loaded) => {
                let count =
                    loaded.problems.len().map_or("problems without end".into(), |count| format!("{count} problems"));
                report.fact("data", format!("{key} = {name}: {count}"));
                if !loaded.left_out.is_empty() {
                    report.fact(
                        "",
                        format!("{} rows left out, the first: {}", loaded.left_out.len(), loaded.left_out[0]),
                    );
                }
            }
            Err(error) => {
                report.fact("data", format!("{key} = {name}: cannot be loaded"));
                report.failures.push(format!("{key}: {error}"));
            }
        }
    }
    let steps = config.schedule.cycles * config.schedule.cycle_steps;
    let rollouts = steps.saturating_mul(config.sampler.prompts_per_step * config.sampler.group_size);
    report.fact("work", format!("{} steps, {} rollouts", thousands(steps as u64), thousands(rollouts as u64)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_settings_can_start() {
        let mut config = Config::countdown();
        config.run.device = DeviceChoice::Cpu;
        let report = examine(&config);
        assert_eq!(report.failures, Vec::<String>::new(), "{}", report.text);
        assert!(report.text.contains("a run with these settings can start"), "{}", report.text);
    }

    #[test]
    fn what_would_fail_is_said_with_its_remedy() {
        let mut config = Config::countdown();
        config.sampler.top_k = 5;
        config.run.device = DeviceChoice::Cpu;
        config.schedule.l_max = 1_000_000;
        config.data.train = "no/such/file.jsonl".into();
        config.data.eval = "countdwon".into();
        let failures = examine(&config).failures.join("\n");
        for expected in ["sampler.top_p = 1", "lower schedule.l_max", "no/such/file.jsonl", "countdwon"] {
            assert!(failures.contains(expected), "{expected}: {failures}");
        }
    }

    #[test]
    fn a_shortage_names_both_sizes() {
        let config = Config::countdown();
        let item = memory::Item { name: "weights", phase: Phase::Always, bytes: 3 << 30, formula: String::new() };
        let need = Need { items: vec![item] };
        assert_eq!(shortage(&need, Memory { total: 4 << 30, available: 3 << 30 }, &config), None);
        let message = shortage(&need, Memory { total: 4 << 30, available: 2 << 30 }, &config).unwrap();
        assert!(message.starts_with("memory: about 3.0 GiB needed, 2.0 GiB available of 4.0 GiB; "), "{message}");
    }
}
