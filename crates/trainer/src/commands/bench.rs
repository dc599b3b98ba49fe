//! `trainer bench`.

use crate::cli::BenchArgs;

/// Measures speed.
pub(super) fn run(_args: &BenchArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
