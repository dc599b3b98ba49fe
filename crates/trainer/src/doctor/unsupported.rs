//! Settings that the configuration has room for and this version cannot compute: refused, never passed over in silence.

use crate::config::{Config, DeviceChoice, Dtype};

/// What a run with `config` on `device` would have to refuse, one line each that names the key and what to set.
pub fn unsupported(config: &Config, device: DeviceChoice) -> Vec<String> {
    let mut refused = Vec::new();
    let mut refuse = |holds: bool, what: &str| {
        if holds {
            refused.push(what.to_string());
        }
    };
    let on_cpu = device == DeviceChoice::Cpu;
    refuse(!on_cpu, "run.device: this version samples rollouts on the CPU only; use --device cpu");
    refuse(
        on_cpu && config.model.dtype != Dtype::F32,
        "model.dtype = \"bf16\": the CPU computes in f32; set model.dtype = \"f32\"",
    );
    refuse(config.model.lora.is_some(), "model.lora: this version trains all weights only; set model.lora = \"none\"");
    refuse(
        config.sampler.top_p < 1.0 || config.sampler.top_k > 0,
        "sampler.top_p and sampler.top_k: training needs the log-probs of the whole distribution; set sampler.top_p = 1 \
         and sampler.top_k = 0 (evaluate.top_p may differ)",
    );
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_run_is_supported_and_each_refusal_names_its_key() {
        let config = Config::countdown();
        assert!(unsupported(&config, DeviceChoice::Cpu).is_empty());
        let mut other = config.clone();
        other.model.dtype = Dtype::Bf16;
        other.sampler.top_p = 0.9;
        let refused = unsupported(&other, DeviceChoice::Cpu);
        assert_eq!(refused.len(), 2);
        assert!(refused[0].starts_with("model.dtype") && refused[1].starts_with("sampler.top_p"));
        assert!(unsupported(&config, DeviceChoice::Cuda)[0].starts_with("run.device"));
    }
}
