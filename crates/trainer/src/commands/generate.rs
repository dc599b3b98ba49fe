//! `trainer generate`.

use crate::cli::GenerateArgs;

/// Streams responses.
pub(super) fn run(_args: &GenerateArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
