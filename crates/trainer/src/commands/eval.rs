//! `trainer eval`.

use crate::cli::EvalArgs;

/// Measures a policy.
pub(super) fn run(_args: &EvalArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
