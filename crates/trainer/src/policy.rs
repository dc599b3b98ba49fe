//! A loaded policy: weights, text side and files, on a device.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use model::lora::{self, Saved};
use model::{Files, Qwen2, Source, Text, weights};
use sampler::{Endings, Sampling};

use crate::commands::UsageError;
use crate::config::{Config, DeviceChoice, Dtype, Lora};
use crate::doctor::memory::NARROW_REFERENCE_ABOVE;

/// A model ready to train, generate or score.
pub struct Policy {
    /// The weights.
    pub model: Qwen2,
    /// Tokenizer, chat template, stop tokens.
    pub text: Text,
    /// Where it came from, and what a checkpoint carries along.
    pub files: Files,
    /// The name it was asked for by.
    pub source: Source,
}

impl Policy {
    /// Loads `embedded`, a folder or a Hub id; of a folder with adapters, the model that they are of with the adapters.
    ///
    /// # Errors
    /// When the name is not one, a file is missing or torn, or the model is not one this program runs.
    pub fn load(name: &str, dtype: Dtype, device: &Device) -> Result<Self> {
        let source: Source = name.parse().map_err(|e: model::Error| UsageError::new(e.to_string()))?;
        let (saved, of) = match &source {
            Source::Folder(folder) if lora::is_adapter(folder) => {
                let saved = Saved::open(folder)?;
                let base = saved.base.parse().with_context(|| format!("{}: its base model", folder.display()))?;
                (Some(saved), base)
            }
            _ => (None, source.clone()),
        };
        let files = Files::open(&of).with_context(|| format!("cannot open model {of}"))?;
        let text = Text::new(&files)?;
        let model = weights::load(&files, compute_type(dtype), device)?;
        let model = match saved {
            Some(saved) => model.with_saved_adapters(saved).with_context(|| source.to_string())?,
            None => model,
        };
        Ok(Self { model, text, files, source })
    }

    /// The policy as training begins: with fresh adapters, if `model.lora` asks for them.
    ///
    /// # Errors
    /// When it is a folder of adapters, which are of another model, or there is no memory for new ones.
    pub fn to_train(self, config: &Config) -> Result<Self> {
        if self.model.lora().is_some() {
            let message = "a folder of adapters is no start; export it to a whole model (trainer export) and give that";
            return Err(UsageError::new(format!("{}: {message}", self.source)).into());
        }
        let trained = match &config.model.lora {
            Some(lora) => self.with_adapters(lora, config.run.seed)?,
            None => self,
        };
        Ok(trained.computed_in(config.model.compute))
    }

    /// The same, whose products in training are computed in `compute` on the CPU.
    #[must_use]
    pub fn computed_in(mut self, compute: Dtype) -> Self {
        self.model = self.model.computed_in(compute.into());
        self
    }

    /// The policy as it is, to measure a KL to, where one is measured or penalised: the weights under the adapters, or a
    /// copy. A copy of a large model is bf16.
    ///
    /// # Errors
    /// When there is no memory for a copy.
    pub fn reference(&self, config: &Config) -> Result<Option<Qwen2>> {
        if !config.reference.is_used() {
            return Ok(None);
        }
        if self.model.lora().is_some() {
            return Ok(Some(self.model.base()));
        }
        let large = self.model.config().parameters() > NARROW_REFERENCE_ABOVE;
        let dtype = if large { DType::BF16 } else { self.model.weights()[0].1.dtype() };
        Ok(Some(self.model.frozen_copy(dtype)?))
    }

    /// The same policy with its weights frozen and fresh adapters to train.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn with_adapters(self, settings: &Lora, seed: u64) -> Result<Self> {
        Ok(Self { model: self.model.with_adapters(settings.into(), seed)?, ..self })
    }

    /// The first variable with a value that is infinite or not a number.
    ///
    /// # Errors
    /// When a device fails.
    pub fn first_not_finite(&self) -> Result<Option<&str>> {
        for (name, var) in self.model.variables() {
            // Zero times anything finite is zero; the sum is anything else only where one is not.
            let sum = (var.as_detached_tensor().to_dtype(DType::F32)? * 0.0)?.sum_all()?.to_scalar::<f32>()?;
            if sum != 0.0 {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Writes the policy to a folder that a run goes on from: its small files with the adapters alone, where it has some,
    /// else with all weights, in the types that they have.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if self.model.lora().is_none() {
            return Ok(weights::save_folder(&self.model, &self.files, folder, None)?);
        }
        let dtype = self.model.weights()[0].1.dtype();
        weights::save_small_files(&self.files, folder, dtype)?;
        let base = match &self.source {
            // A relative path would mean another folder from elsewhere.
            Source::Folder(base) => std::path::absolute(base)?.display().to_string(),
            other => other.to_string(),
        };
        Ok(lora::save(&self.model, &base, folder)?)
    }
}

/// How answers are taken from a model's responses in training: boxed only, outside of the thought its prompt opens.
///
/// # Errors
/// When the chat template fails.
pub fn extraction(text: &Text) -> Result<reward::Policy> {
    Ok(reward::Policy { fallback: reward::Fallback::None, prompt_opens_thought: text.opens_thought()? })
}

/// How a model's responses are drawn: at a temperature, until one of its stop tokens or of the texts in `stop`.
///
/// # Errors
/// When a stop string is none that can end a response.
pub fn sampling(text: &Text, temperature: f64, stop: &[String]) -> Result<Sampling> {
    let mut sampling = Sampling::at(temperature, text.stop_tokens());
    if !stop.is_empty() {
        let strings = text.stop_strings(stop).map_err(|error| UsageError::new(error.to_string()))?;
        sampling.endings = Some(Endings::new(move || {
            let mut matcher = strings.matcher();
            Box::new(move |token| Ok(matcher.push(token)?))
        }));
    }
    Ok(sampling)
}

/// The tensor type of a `model.dtype`.
pub fn compute_type(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Opens the device a run asks for; `auto` takes the best one this program was built for and the machine has.
///
/// # Errors
/// When a device is asked for by name and is not there.
pub fn open_device(choice: DeviceChoice) -> Result<Device> {
    let missing = |name: &str, error: candle_core::Error| {
        let advice = format!("build with --features {name} on a machine that has it, or use --device cpu");
        UsageError::new(format!("run.device = {name}: {error}; {advice}")).into()
    };
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda => Device::new_cuda(0).map_err(|e| missing("cuda", e)),
        DeviceChoice::Metal => Device::new_metal(0).map_err(|e| missing("metal", e)),
        DeviceChoice::Auto if candle_core::utils::cuda_is_available() => Ok(Device::new_cuda(0)?),
        DeviceChoice::Auto if candle_core::utils::metal_is_available() => Ok(Device::new_metal(0)?),
        DeviceChoice::Auto => Ok(Device::Cpu),
    }
}
