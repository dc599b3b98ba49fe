//! `trainer score`.

use crate::cli::ScoreArgs;

/// Scores given responses.
pub(super) fn run(_args: &ScoreArgs) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
