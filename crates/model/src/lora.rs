//! Low-rank adapters: `y = x W^T + b + (alpha / rank) (x A^T) B^T`, with `W` frozen (Hu et al. 2021, arXiv 2106.09685).
//!
//! Adapters are kept beside the weights, also when they generate: merged into bf16 weights a small step would be lost to
//! rounding. [`Qwen2::merged`] makes plain weights of them for an export. On disk they are in PEFT's format:
//! `adapter_config.json` and `adapter_model.safetensors`.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::kernels::packed::Compute;
use crate::ops::linear;
use crate::qwen2::{Qwen2, expected};
use crate::shards::Shard;
use candle_core::{DType, Device, Tensor, Var};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The file that says what the adapters are of.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The adapters.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Projections of a block that can be adapted.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// What is adapted, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Rows of `A` and columns of `B`, at least 1.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// Names out of [`TARGETS`].
    pub targets: Vec<String>,
}

impl Settings {
    /// What the product of the adapters is multiplied with.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Numbers in the adapters of a model: `rank (in + out)` for each adapted projection.
    pub fn parameters(&self, config: &Config) -> usize {
        self.shapes(config).iter().map(|(_, shape)| shape[0] * shape[1]).sum()
    }

    /// Numbers that the adapters of one block add to, for one token.
    pub fn outputs(&self, config: &Config) -> usize {
        let b = self.shapes(config).into_iter().filter(|(name, _)| name.ends_with("lora_B.weight"));
        b.map(|(_, shape)| shape[0]).sum::<usize>() / config.num_layers
    }

    /// Names, as PEFT gives them, and shapes: `A: [rank, in]`, then `B: [out, rank]`, in the order of the forward pass.
    fn shapes(&self, config: &Config) -> Vec<(String, [usize; 2])> {
        let adapted = expected(config).into_iter().filter_map(|(name, shape)| {
            let module = name.strip_suffix(".weight")?.to_string();
            let target = module.rsplit('.').next()?;
            self.targets.iter().any(|t| t == target).then_some((module, shape))
        });
        adapted
            .flat_map(|(module, shape)| {
                [(a_name(&module), [self.rank, shape[1]]), (b_name(&module), [shape[0], self.rank])]
            })
            .collect()
    }

    fn check(&self) -> Result<()> {
        let unknown = self.targets.iter().find(|target| !TARGETS.contains(&target.as_str()));
        let problem = match unknown {
            Some(target) => format!("LoRA target {target:?} is none of {}", TARGETS.join(", ")),
            None if self.targets.is_empty() => "LoRA without a target".into(),
            None if self.rank == 0 => "LoRA of rank 0".into(),
            None if !self.alpha.is_finite() => format!("LoRA with alpha {}", self.alpha),
            None => return Ok(()),
        };
        Err(Error::Unsupported(problem))
    }
}

fn a_name(module: &str) -> String {
    format!("base_model.model.{module}.lora_A.weight")
}

fn b_name(module: &str) -> String {
    format!("base_model.model.{module}.lora_B.weight")
}

/// The adapters of a model: trainable, f32 whatever the type of the weights.
#[derive(Clone)]
pub(crate) struct Adapters {
    pub settings: Settings,
    pub variables: Vec<(String, Var)>,
}

impl Adapters {
    /// `A` uniform in `±1 / sqrt(in)`, as PEFT starts it, `B` zero: the policy begins as the base.
    pub fn fresh(settings: Settings, config: &Config, seed: u64, device: &Device) -> Result<Self> {
        settings.check()?;
        let mut state = seed;
        let variables = settings.shapes(config).into_iter().map(|(name, shape)| {
            let count = shape[0] * shape[1];
            let values: Vec<f32> = if name.ends_with("lora_A.weight") {
                let bound = (shape[1] as f64).sqrt().recip();
                (0..count).map(|_| ((2.0 * crate::init::uniform(&mut state) - 1.0) * bound) as f32).collect()
            } else {
                vec![0.0; count]
            };
            Ok((name, Var::from_vec(values, shape.to_vec(), device)?))
        });
        Ok(Self { variables: variables.collect::<Result<_>>()?, settings })
    }

    fn saved(saved: Saved, config: &Config, device: &Device) -> Result<Self> {
        let Saved { settings, mut tensors, .. } = saved;
        let mut variables = Vec::new();
        for (name, shape) in settings.shapes(config) {
            let tensor =
                tensors.remove(&name).ok_or_else(|| Error::Unsupported(format!("the adapter has no tensor {name}")))?;
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(Error::Unsupported(format!("tensor {name} is {found:?}, the base model needs {shape:?}")));
            }
            variables.push((name, Var::from_tensor(&tensor.to_dtype(DType::F32)?.to_device(device)?)?));
        }
        match tensors.keys().next() {
            Some(name) => Err(Error::Unsupported(format!("tensor {name} is not one of the adapters' of this model"))),
            None => Ok(Self { settings, variables }),
        }
    }

    /// The adapter of the projection `module`, if it has one; `view` gives the tensors.
    pub fn of(&self, module: &str, view: impl Fn(&Var) -> Tensor) -> Option<Adapter> {
        let find = |name: String| self.variables.iter().find(|(n, _)| *n == name).map(|(_, var)| view(var));
        Some(Adapter { a: find(a_name(module))?, b: find(b_name(module))?, scale: self.settings.scale() })
    }
}

/// The adapter of one projection.
pub(crate) struct Adapter {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[out, rank]`.
    pub b: Tensor,
    pub scale: f64,
}

impl Adapter {
    /// What is added to the projection of `x: [tokens, in]`: `[tokens, out]`.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        // In f32 whatever the rest is in: adapters are small, and their steps are too.
        let down = linear(x, &self.a.to_dtype(x.dtype())?, None, Compute::F32)?;
        Ok(linear(&(down * self.scale)?, &self.b.to_dtype(x.dtype())?, None, Compute::F32)?)
    }

    /// The gradients of [`Self::apply`]'s `x`, `A` and `B` for the gradient `g: [tokens, out]` of its value, without a graph.
    pub fn gradients(&self, x: &Tensor, g: &Tensor) -> Result<[Tensor; 3]> {
        let (a, b) = (self.a.to_dtype(x.dtype())?, self.b.to_dtype(x.dtype())?);
        let down = (linear(x, &a.detach(), None, Compute::F32)? * self.scale)?;
        let up = linear::gradients(&down, &b, None, g, Compute::F32)?;
        let down = linear::gradients(x, &a, None, &(up.x * self.scale)?, Compute::F32)?;
        match (down.w, up.w) {
            (Some(da), Some(db)) => Ok([down.x, da, db]),
            _ => Err(Error::Unsupported("adapters that are not trained have no gradient".into())),
        }
    }

    /// What is added to the weights, `[out, in]` in f32.
    pub fn delta(&self) -> Result<Tensor> {
        Ok((self.b.detach().matmul(&self.a.detach())? * self.scale)?)
    }
}

impl Qwen2 {
    /// The same model with its weights frozen and fresh adapters to train, which change nothing yet.
    ///
    /// # Errors
    /// When a setting is out of range, or there is no memory for them.
    pub fn with_adapters(self, settings: Settings, seed: u64) -> Result<Self> {
        let adapters = Adapters::fresh(settings, self.config(), seed, self.device())?;
        Ok(self.adapted(adapters))
    }

    /// The same model with its weights frozen and the adapters of a folder.
    ///
    /// # Errors
    /// When they are not of a model of this shape.
    pub fn with_saved_adapters(self, saved: Saved) -> Result<Self> {
        let adapters = Adapters::saved(saved, self.config(), self.device())?;
        Ok(self.adapted(adapters))
    }
}

/// Adapters as read from a folder.
pub struct Saved {
    /// What they are.
    pub settings: Settings,
    /// The model that they are of: a folder, a Hub id, or `embedded`.
    pub base: String,
    tensors: BTreeMap<String, Tensor>,
}

/// The keys of `adapter_config.json` that change the computation.
#[derive(Deserialize)]
struct File {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    target_modules: Value,
    bias: Option<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    modules_to_save: Option<Value>,
    rank_pattern: Option<BTreeMap<String, Value>>,
    alpha_pattern: Option<BTreeMap<String, Value>>,
}

impl File {
    /// The first option that would change the computation and is not there.
    fn unsupported(&self) -> Option<String> {
        let filled = |map: &Option<BTreeMap<String, Value>>| map.as_ref().is_some_and(|map| !map.is_empty());
        let extra = self.modules_to_save.as_ref().is_some_and(|v| v.as_array().is_some_and(|list| !list.is_empty()));
        [
            (self.peft_type.as_deref().is_some_and(|kind| kind != "LORA"), "peft_type other than LORA"),
            (self.bias.as_deref().is_some_and(|bias| bias != "none"), "bias other than none"),
            (self.fan_in_fan_out, "fan_in_fan_out"),
            (self.use_rslora, "use_rslora"),
            (self.use_dora, "use_dora"),
            (extra, "modules_to_save"),
            (filled(&self.rank_pattern), "rank_pattern"),
            (filled(&self.alpha_pattern), "alpha_pattern"),
        ]
        .into_iter()
        .find_map(|(holds, what)| holds.then(|| format!("{what} is not supported")))
    }

    fn settings(&self) -> std::result::Result<Settings, String> {
        let list = || {
            let names = self.target_modules.as_array()?;
            names.iter().map(|name| name.as_str().map(String::from)).collect::<Option<Vec<_>>>()
        };
        let targets = match self.target_modules.as_str() {
            // PEFT's word for all projections of the blocks.
            Some("all-linear") => TARGETS.map(String::from).to_vec(),
            _ => list().ok_or("target_modules has to be a list of names, or all-linear")?,
        };
        let settings = Settings { rank: self.r, alpha: self.lora_alpha, targets };
        settings.check().map_err(|e| e.to_string())?;
        Ok(settings)
    }
}

/// Whether a folder holds adapters and not a whole model.
pub fn is_adapter(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has(CONFIG_FILE) && !has("model.safetensors") && !has("model.safetensors.index.json")
}

/// What `adapter_config.json` of a folder says: the adapters' settings and the name of their base.
///
/// # Errors
/// When it cannot be read, or asks for a kind of adapter that is not there.
pub fn read_config(folder: &Path) -> Result<(Settings, String)> {
    let path = folder.join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let file: File = serde_json::from_str(&text).map_err(|e| Error::invalid(&path, e))?;
    if let Some(problem) = file.unsupported() {
        return Err(Error::Unsupported(format!("{}: {problem}", path.display())));
    }
    let settings = file.settings().map_err(|problem| Error::invalid(&path, problem))?;
    let base = file.base_model_name_or_path.filter(|base| !base.is_empty());
    let base = base.ok_or_else(|| Error::invalid(&path, "base_model_name_or_path does not name the base model"))?;
    Ok((settings, base))
}

impl Saved {
    /// Reads a folder in PEFT's format.
    ///
    /// # Errors
    /// When a file is missing or torn, or asks for a kind of adapter that is not there.
    pub fn open(folder: &Path) -> Result<Self> {
        let (settings, base) = read_config(folder)?;
        let mut tensors = BTreeMap::new();
        Shard::open(&folder.join(WEIGHTS_FILE))?.read(|name, tensor| {
            tensors.insert(name, tensor);
            Ok(())
        })?;
        Ok(Self { settings, base, tensors })
    }

    /// Sets the adapters of a model to these.
    ///
    /// # Errors
    /// When they are of other projections, or of another rank.
    pub fn restore(self, model: &Qwen2) -> Result<()> {
        let saved = Adapters::saved(self, model.config(), model.device())?;
        if model.adapters().map(|a| &a.settings) != Some(&saved.settings) {
            return Err(Error::Unsupported("the adapters were made with other settings (model.lora)".into()));
        }
        for ((_, var), (_, value)) in model.variables().iter().zip(&saved.variables) {
            var.set(&value.as_detached_tensor())?;
        }
        Ok(())
    }
}

/// Writes a model's adapters to a folder in PEFT's format; `base` names the model that they are of.
///
/// # Errors
/// When the model has none, or a file cannot be written.
pub fn save(model: &Qwen2, base: &str, folder: &Path) -> Result<()> {
    let adapters = model.adapters().ok_or_else(|| Error::Unsupported("the model has no adapters".into()))?;
    let Settings { rank, alpha, targets } = &adapters.settings;
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": alpha,
        "lora_dropout": 0.0, "target_modules": targets, "bias": "none", "fan_in_fan_out": false, "use_rslora": false,
        "use_dora": false, "init_lora_weights": true, "modules_to_save": null, "inference_mode": true,
    });
    let path = folder.join(CONFIG_FILE);
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;
    let tensors: BTreeMap<&str, Tensor> = adapters
        .variables
        .iter()
        .map(|(name, var)| Ok((name.as_str(), var.as_detached_tensor().to_device(&Device::Cpu)?)))
        .collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let path = folder.join(WEIGHTS_FILE);
    safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(|e| Error::invalid(path, e))
}
