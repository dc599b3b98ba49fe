//! `trainer export`.

use crate::cli::ExportArgs;

/// Writes a checkpoint out.
pub(super) fn run(_args: &ExportArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
