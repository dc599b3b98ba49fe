//! `trainer sft`: the supervised warm start.

use crate::cli::SftArgs;
use crate::config::{Overrides, SftConfig};

/// Makes a policy from traces.
pub(super) fn run(args: &SftArgs) -> anyhow::Result<()> {
    let overrides = Overrides { seed: args.seed, out: args.out.clone(), device: args.device, cycles: None };
    let config = SftConfig::resolve(args.config.as_deref(), &args.set, &overrides)?;
    super::use_threads(config.run.threads)?;
    crate::sft::run(config)
}
