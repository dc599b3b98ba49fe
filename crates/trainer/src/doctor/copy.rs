//! Whether there is memory for a copy of what is trained, so that checkpoints are written while the run goes on.

use model::config::Config as Shape;
use model::lora;

use super::machine;
use super::memory::{Need, PROGRAM, show};
use crate::config::{Config, DeviceChoice};

/// A copy of what is trained, on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostCopy {
    /// Bytes that it takes while a checkpoint is written.
    pub bytes: u64,
    /// Whether there is room for it beside the run.
    pub fits: bool,
}

impl HostCopy {
    /// A copy takes what the weights take, or the adapters, and what AdamW does ([`super::memory::update`] has both). `need`:
    /// what a run takes; `available`: bytes of the host.
    pub fn of(shape: &Shape, config: &Config, device: DeviceChoice, need: &Need, available: u64) -> Self {
        let adapters = config.model.lora.as_ref().map(|lora| 4 * lora::Settings::from(lora).parameters(shape) as u64);
        let bytes = adapters.unwrap_or(need.bytes("weights")) + need.bytes("AdamW");
        let run = if device == DeviceChoice::Cpu { need.total() } else { PROGRAM };
        Self { bytes, fits: run.saturating_add(bytes) <= available }
    }

    /// The same for this machine.
    pub fn here(shape: &Shape, config: &Config, device: DeviceChoice, need: &Need) -> Self {
        Self::of(shape, config, device, need, machine::memory().available)
    }

    /// Whether checkpoints are written while the run goes on: as `checkpoint.background` says, or where the copy fits.
    pub fn is_made(&self, config: &Config) -> bool {
        config.checkpoint.background.unwrap_or(self.fits)
    }

    /// A line for a person.
    pub fn fact(&self, config: &Config) -> String {
        let how = if self.is_made(config) { "while the run goes on" } else { "while the run waits" };
        let fits = if self.fits { "fits" } else { "does not fit beside the run" };
        format!("written {how}; a copy of what is trained takes {} and {fits}", show(self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Dtype, Lora};
    use crate::doctor::memory::estimate;

    #[test]
    fn a_copy_is_made_where_it_fits_or_is_asked_for() {
        let mut config = Config::countdown();
        let shape = crate::doctor::policy::find("embedded").shape.unwrap();
        let need = estimate(&shape, &config, DeviceChoice::Cpu);
        let (run, bytes) = (need.total(), 12 * shape.parameters() as u64);
        let cpu = |config: &Config, available| HostCopy::of(&shape, config, DeviceChoice::Cpu, &need, available);
        assert_eq!(cpu(&config, run + bytes), HostCopy { bytes, fits: true });
        assert_eq!(cpu(&config, run + bytes - 1), HostCopy { bytes, fits: false });
        // On a device the run's own memory is elsewhere.
        assert!(HostCopy::of(&shape, &config, DeviceChoice::Cuda, &need, PROGRAM + bytes).fits);
        assert!(cpu(&config, u64::MAX).is_made(&config) && !cpu(&config, 0).is_made(&config));
        for asked in [true, false] {
            config.checkpoint.background = Some(asked);
            assert!([0, u64::MAX].iter().all(|&available| cpu(&config, available).is_made(&config) == asked));
        }
        config.model.lora = Some(Lora { rank: 1, alpha: 1.0, targets: vec!["q_proj".into()] });
        let adapters = lora::Settings::from(config.model.lora.as_ref().unwrap()).parameters(&shape) as u64;
        let bytes = |config: &Config| {
            HostCopy::of(&shape, config, DeviceChoice::Cpu, &estimate(&shape, config, DeviceChoice::Cpu), 0).bytes
        };
        assert_eq!(bytes(&config), 12 * adapters);
        (config.model.lora, config.model.dtype) = (None, Dtype::Bf16);
        assert_eq!(bytes(&config), 14 * shape.parameters() as u64);
        config.optimizer.state = Dtype::Bf16;
        assert_eq!(bytes(&config), 10 * shape.parameters() as u64);
    }
}
