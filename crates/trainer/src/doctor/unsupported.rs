//! Settings that the configuration has room for and this version cannot compute: refused, never passed over in silence.

use crate::config::Config;

/// What a run with `config` would have to refuse, one line each that names the key and what to set.
pub fn unsupported(config: &Config) -> Vec<String> {
    let mut refused = Vec::new();
    let mut refuse = |holds: bool, what: &str| {
        if holds {
            refused.push(what.to_string());
        }
    };
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
        assert!(unsupported(&config).is_empty());
        let mut other = config.clone();
        other.sampler.top_p = 0.9;
        let refused = unsupported(&other);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("sampler.top_p"));
    }
}
