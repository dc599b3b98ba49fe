//! A loaded policy: weights, text side and files, on a device.

use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use model::lora::{self, Saved};
use model::{Files, Qwen2, Source, Text, weights};
use sampler::{Endings, Sampling};

use crate::commands::{UsageError, note};
use crate::config::{Config, DeviceChoice, Dtype, Lora};
use crate::doctor::machine;
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
        Self::open(name, device, |_, _| Ok(compute_type(dtype)))
    }

    /// The same on the CPU, to be written in `dtype` with its adapters merged in. The sum of weights and adapters is f32 and
    /// rounded when it is written; weights that loading would round already are loaded in f32.
    ///
    /// # Errors
    /// As [`Policy::load`].
    pub fn to_merge(name: &str, dtype: Dtype) -> Result<Self> {
        Self::open(name, &Device::Cpu, |files, adapted| {
            let dtype = compute_type(dtype);
            Ok(if adapted && !weights::are_in(files, dtype)? { DType::F32 } else { dtype })
        })
    }

    /// `dtype` says what the weights of these files are loaded in, which adapters are added to or not.
    fn open(name: &str, device: &Device, dtype: impl Fn(&Files, bool) -> Result<DType>) -> Result<Self> {
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
        let model = weights::load(&files, dtype(&files, saved.is_some())?, device)?;
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
        write(&self.model, &self.files, &self.source, folder)
    }

    /// What [`Policy::save`] writes, as it is now.
    ///
    /// # Errors
    /// When there is no memory for a copy of what is trained.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let (files, source) = (self.files.clone(), self.source.clone());
        Ok(Snapshot { model: self.model.host_copy()?, files, source })
    }
}

/// A policy as it was at some step, in memory of its own.
pub struct Snapshot {
    model: Qwen2,
    files: Files,
    source: Source,
}

impl Snapshot {
    /// Writes it as [`Policy::save`] would have.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        write(&self.model, &self.files, &self.source, folder)
    }
}

fn write(model: &Qwen2, files: &Files, source: &Source, folder: &Path) -> Result<()> {
    if model.lora().is_none() {
        return Ok(weights::save_folder(model, files, folder, None)?);
    }
    let dtype = model.weights()[0].1.dtype();
    weights::save_small_files(files, folder, dtype)?;
    let base = match source {
        // A relative path would mean another folder from elsewhere.
        Source::Folder(base) => std::path::absolute(base)?.display().to_string(),
        other => other.to_string(),
    };
    Ok(lora::save(model, &base, folder)?)
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

/// Opens the device a run asks for; `auto` takes the best one this program was built for and the machine has, and says so
/// in one line where it was built for one that the machine has not.
///
/// # Errors
/// When a device is asked for by name and is not there.
pub fn open_device(choice: DeviceChoice) -> Result<Device> {
    static SAID: Once = Once::new();
    choose(choice, &machine::built_for(), machine::open, |line| SAID.call_once(|| note(&line)))
}

/// [`open_device`] of a program built for `built` besides the CPU, best first; `open` says why a device cannot be used.
fn choose(
    choice: DeviceChoice,
    built: &[DeviceChoice],
    open: impl Fn(DeviceChoice) -> Result<Device, String>,
    say: impl Fn(String),
) -> Result<Device> {
    if choice != DeviceChoice::Auto {
        let advice = "use --device cpu, or --device auto for the best one there is";
        return open(choice)
            .map_err(|reason| UsageError::new(format!("run.device = \"{choice}\": {reason}; {advice}")).into());
    }
    let mut reasons = Vec::new();
    for &device in built {
        match open(device) {
            Ok(device) => return Ok(device),
            Err(reason) => reasons.push(format!("this program has {device}, this machine does not: {reason}")),
        }
    }
    if !reasons.is_empty() {
        say(format!("{}; using the CPU", reasons.join("; ")));
    }
    Ok(Device::Cpu)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What a machine without any GPU says.
    fn without(device: DeviceChoice) -> Result<Device, String> {
        match device {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            _ => Err("there is no driver".into()),
        }
    }

    #[test]
    fn auto_falls_back_to_the_cpu_with_one_line() {
        let said = RefCell::new(Vec::new());
        let say = |line| said.borrow_mut().push(line);
        assert!(choose(DeviceChoice::Auto, &[DeviceChoice::Cuda], without, say).unwrap().is_cpu());
        let expected = "this program has cuda, this machine does not: there is no driver; using the CPU";
        assert_eq!(*said.borrow(), [expected]);
    }

    #[test]
    fn auto_takes_the_first_that_opens_and_says_nothing_of_what_it_was_not_built_for() {
        let opened = RefCell::new(Vec::new());
        // A CPU stands for each device that opens.
        let open = |device| {
            opened.borrow_mut().push(device);
            Ok(Device::Cpu)
        };
        let silent = |line: String| panic!("said {line}");
        choose(DeviceChoice::Auto, &[DeviceChoice::Cuda, DeviceChoice::Metal], open, silent).unwrap();
        assert_eq!(*opened.borrow(), [DeviceChoice::Cuda]);
        assert!(choose(DeviceChoice::Auto, &[], without, silent).unwrap().is_cpu());
        assert!(choose(DeviceChoice::Cpu, &[DeviceChoice::Cuda], without, silent).unwrap().is_cpu());
    }

    #[test]
    fn a_device_asked_for_by_name_is_taken_or_refused() {
        for device in [DeviceChoice::Cuda, DeviceChoice::Metal] {
            let error = choose(device, &[device], without, |line| panic!("said {line}")).unwrap_err();
            assert!(error.is::<UsageError>());
            let expected = format!("run.device = \"{device}\": there is no driver; use --device cpu");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }
}
