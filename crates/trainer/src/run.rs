//! run

/// Placeholder until the loop is here.
///
/// # Errors
/// Always.
pub fn train(_config: crate::config::Config, _resume: Option<std::path::PathBuf>) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
