//! Settings: one TOML file, typed, every key documented, nothing unknown accepted.
//!
//! Values come in layers; a later one wins:
//!
//! 1. the built-in `configs/countdown.toml`; under a file that names another model than `embedded`, the
//!    built-in `configs/siri-1.5b.toml` instead, because a learning rate for a policy of a million parameters
//!    would ruin one of a billion;
//! 2. the file given by `--config`, which may leave any key out;
//! 3. `--set section.key=value`, in the order given;
//! 4. flags such as `--cycles`.
//!
//! The built-in files spell every key out, so each default stands in exactly one place. An optional key is
//! switched off by the string `"none"`, because TOML has no null.

#![deny(clippy::indexing_slicing)]

mod error;
mod layers;
mod ranges;
mod settings;
mod sft;
mod validate;
mod value;

use std::path::Path;

pub use error::{ConfigError, Origin};
pub use settings::*;
pub use sft::*;

pub use ranges::Violation;

use layers::Layers;

/// The settings of `cargo run -p trainer`: the embedded policy on Countdown.
pub const COUNTDOWN: &str = include_str!("../../../../configs/countdown.toml");
/// The paper's settings on DeepSeek-R1-Distill-Qwen-1.5B.
pub const SIRI_1_5B: &str = include_str!("../../../../configs/siri-1.5b.toml");
/// The warm start that makes the embedded policy.
pub const COUNTDOWN_SFT: &str = include_str!("../../../../configs/countdown-sft.toml");

impl Config {
    /// Resolves the layers into checked settings.
    ///
    /// `file`: the path given by `--config`; `sets`: the `section.key=value` texts of `--set`, in order;
    /// `overrides`: the flags that stand for a key.
    ///
    /// # Errors
    /// Files that cannot be read or are not TOML, unknown keys, values of the wrong type or out of range, all at once:
    /// each names where the value came from, the key and what to do.
    pub fn resolve(file: Option<&Path>, sets: &[String], overrides: &Overrides) -> Result<Self, ConfigError> {
        let (file, sets) = written_layers(file, sets)?;
        let model_path = sets
            .iter()
            .rev()
            .map(|(table, _)| table)
            .chain(file.iter().map(|(table, _)| table))
            .find_map(|table| table.get("model")?.get("path")?.as_str());
        let mut layers = match (&file, model_path) {
            (Some(_), Some(path)) if path != EMBEDDED => Layers::built_in("configs/siri-1.5b.toml", SIRI_1_5B)?,
            _ => Layers::built_in("configs/countdown.toml", COUNTDOWN)?,
        };
        for (table, origin) in file.into_iter().chain(sets).chain(overrides.layers()) {
            layers.fill(table, origin);
        }
        layers.settle(Self::check)
    }

    /// The built-in `configs/countdown.toml`.
    ///
    /// # Panics
    /// Never in a program whose tests pass: they resolve the built-in file.
    #[allow(clippy::expect_used, reason = "what is compiled in cannot be wrong at run time alone")]
    pub fn countdown() -> Self {
        Self::resolve(None, &[], &Overrides::default()).expect("configs/countdown.toml is checked by a test")
    }

    /// The settings as a TOML file that resolves to them again, headed by the program's version.
    pub fn to_toml(&self) -> String {
        written(self)
    }
}

impl SftConfig {
    /// Resolves `configs/countdown-sft.toml`, the file and `--set` into checked settings, as [`Config::resolve`].
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn resolve(file: Option<&Path>, sets: &[String], overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut layers = Layers::built_in("configs/countdown-sft.toml", COUNTDOWN_SFT)?;
        let (file, sets) = written_layers(file, sets)?;
        for (table, origin) in file.into_iter().chain(sets).chain(overrides.layers()) {
            layers.fill(table, origin);
        }
        layers.settle(Self::check)
    }

    /// The settings as a TOML file that resolves to them again, headed by the program's version.
    pub fn to_toml(&self) -> String {
        written(self)
    }
}

/// A table of settings and where it was written.
type Layer = (toml::Table, Origin);

/// The file and each `--set`, or what is wrong with any of them.
fn written_layers(file: Option<&Path>, sets: &[String]) -> Result<(Option<Layer>, Vec<Layer>), ConfigError> {
    let mut errors = Vec::new();
    let mut keep = |layer: Result<Layer, ConfigError>| layer.map_err(|error| errors.push(error)).ok();
    let file = file.map(layers::read_file).and_then(&mut keep);
    let sets = sets.iter().map(|text| layers::parse_set(text)).filter_map(&mut keep).collect();
    ConfigError::all(errors)?;
    Ok((file, sets))
}

#[allow(clippy::expect_used, reason = "settings are of plain types; `check` has refused what TOML cannot hold")]
fn written<T: serde::Serialize>(settings: &T) -> String {
    // `check` has refused what TOML cannot hold: a seed above i64::MAX.
    let body = toml::to_string(settings).expect("settings are plain tables, numbers and strings");
    format!("# As resolved by trainer {}.\n{body}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests;
