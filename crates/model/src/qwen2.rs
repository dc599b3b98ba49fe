//! The Qwen2 decoder over packed sequences, with the options that make it a Qwen3: one set of weights, differentiable.
//!
//! Sequences lie one behind the other in `[tokens, hidden]`; nothing is padded. [`Qwen2::detached`] gives a second view of
//! the same storage that builds no graph, and sees each update of the optimiser at once.

use crate::block::{Layer, Projection};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kernels::packed::Compute;
use crate::lora::{self, Adapters};
use crate::ops::log_prob::Scored;
use crate::ops::{HeadScores, RopeTable, embedding, log_prob, rms_norm};
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A decoder-only transformer with grouped-query attention, RoPE, SwiGLU and RMSNorm.
pub struct Qwen2 {
    config: Config,
    device: Device,
    /// What products are computed in on the CPU.
    compute: Compute,
    /// Every tensor of the checkpoint.
    weights: Vec<(String, Var)>,
    /// Where there are some, they are what is trained.
    adapters: Option<Adapters>,
    /// The same in every view of the same weights.
    identity: Arc<()>,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// `None` when the head is the embedding.
    pub(crate) head: Option<Tensor>,
    pub(crate) rope: RopeTable,
}

/// What a view is made of.
struct Parts {
    config: Config,
    device: Device,
    compute: Compute,
    weights: Vec<(String, Var)>,
    adapters: Option<Adapters>,
    identity: Arc<()>,
    rope: RopeTable,
}

/// The type that a tensor of `rank` dimensions is kept in. The CPU computes in f32, over matrices in `dtype` that are
/// widened as they are used; norms and biases, small as they are, are f32 there.
pub(crate) fn kept_in(dtype: DType, device: &Device, rank: usize) -> DType {
    if device.is_cpu() && rank < 2 { DType::F32 } else { dtype }
}

/// Sequences laid one behind the other, and the tokens that are scored.
#[derive(Clone, Debug)]
pub struct PackedBatch {
    /// Token ids, all sequences.
    pub tokens: Vec<u32>,
    /// The sequence `i` is `offsets[i]..offsets[i + 1]`.
    pub offsets: Arc<[usize]>,
    /// Position of each token in its sequence.
    pub positions: Arc<[u32]>,
    /// Rows whose *next* token is scored.
    pub rows: Arc<[u32]>,
    /// That next token, one a row.
    pub targets: Arc<[u32]>,
}

impl PackedBatch {
    /// Packs sequences; of each, the tokens from `first_scored` on are scored (the response, given the prompt).
    ///
    /// # Panics
    /// When `first_scored` is zero: the first token has nothing before it to predict it.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut tokens, mut offsets, mut positions) = (Vec::new(), vec![0], Vec::new());
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (sequence, first_scored) in sequences {
            assert!(first_scored > 0, "the first token of a sequence cannot be scored");
            let start = tokens.len();
            for (t, &token) in sequence.iter().enumerate().skip(first_scored) {
                rows.push((start + t - 1) as u32);
                targets.push(token);
            }
            tokens.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            offsets.push(tokens.len());
        }
        Self {
            tokens,
            offsets: offsets.into(),
            positions: positions.into(),
            rows: rows.into(),
            targets: targets.into(),
        }
    }
}

impl Qwen2 {
    /// Builds the decoder over tensors named as in a Hugging Face checkpoint, all of them trainable. Matrices are kept in
    /// `dtype`; on the CPU norms and biases are f32.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, or is not part of the model.
    pub fn new(config: Config, mut tensors: BTreeMap<String, Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let mut weights = Vec::new();
        for (name, shape) in expected(&config) {
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| Error::Unsupported(format!("the weights have no tensor {name}")))?;
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(Error::Unsupported(format!("tensor {name} is {found:?}, config.json says {shape:?}")));
            }
            let dtype = kept_in(dtype, device, shape.len());
            weights.push((name, Var::from_tensor(&tensor.to_dtype(dtype)?.to_device(device)?)?));
        }
        // A tied checkpoint may carry the head a second time.
        tensors.retain(|name, _| !(config.tied_head && name == "lm_head.weight"));
        if let Some(name) = tensors.keys().next() {
            return Err(Error::Unsupported(format!("tensor {name} is not part of a model of this configuration")));
        }
        let rope = RopeTable::scaled(config.heads.dim, &config.rope, config.max_positions);
        let parts = Parts {
            config,
            device: device.clone(),
            compute: Compute::F32,
            weights,
            adapters: None,
            identity: Arc::new(()),
            rope,
        };
        Ok(Self::assemble(parts, true))
    }

    /// The same model, whose products are computed in `compute` on the CPU; views made of it too. Elsewhere products are in
    /// the type of the weights.
    #[must_use]
    pub fn computed_in(mut self, compute: Compute) -> Self {
        self.compute = compute;
        self
    }

    /// What products are computed in on the CPU.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The same weights without a gradient: no graph is built, updates of the variables are seen.
    pub fn detached(&self) -> Self {
        Self::assemble(self.parts(), false)
    }

    /// The same weights without adapters and without a gradient: with LoRA, the model before training.
    pub fn base(&self) -> Self {
        Self::assemble(Parts { adapters: None, ..self.parts() }, false)
    }

    /// A copy of the weights as they are now, of its own storage, without adapters and without a gradient: the reference
    /// model. Matrices are kept in `dtype`.
    ///
    /// # Errors
    /// When the copy cannot be allocated.
    pub fn frozen_copy(&self, dtype: DType) -> Result<Self> {
        let copy = |var: &Var| {
            let dtype = kept_in(dtype, &self.device, var.rank());
            Var::from_tensor(&var.as_detached_tensor().to_dtype(dtype)?)
        };
        let weights = self.weights.iter().map(|(name, var)| Ok((name.clone(), copy(var)?)));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        Ok(Self::assemble(Parts { weights, adapters: None, identity: Arc::new(()), ..self.parts() }, false))
    }

    /// What is trained as it is now, on the host and of its own storage, to be written while training goes on; with
    /// adapters the weights under them, which do not change, are shared.
    ///
    /// # Errors
    /// When the copy cannot be allocated.
    pub fn host_copy(&self) -> Result<Self> {
        let copy = |(name, var): &(String, Var)| {
            let host = var.as_detached_tensor().to_device(&Device::Cpu)?;
            // Of a tensor that is on the host this is the one copy.
            Ok((name.clone(), Var::from_tensor(&host)?))
        };
        let copies = |variables: &[(String, Var)]| variables.par_iter().map(copy).collect::<Result<Vec<_>>>();
        let parts = match &self.adapters {
            Some(Adapters { settings, variables }) => {
                let adapters = Adapters { settings: settings.clone(), variables: copies(variables)? };
                Parts { adapters: Some(adapters), ..self.parts() }
            }
            None => Parts { weights: copies(&self.weights)?, device: Device::Cpu, ..self.parts() },
        };
        Ok(Self::assemble(Parts { identity: Arc::new(()), ..parts }, false))
    }

    /// The same model with its weights frozen and adapters to train.
    pub(crate) fn adapted(self, adapters: Adapters) -> Self {
        Self::assemble(Parts { adapters: Some(adapters), ..self.parts() }, true)
    }

    fn parts(&self) -> Parts {
        Parts {
            config: self.config.clone(),
            device: self.device.clone(),
            compute: self.compute,
            weights: self.weights.clone(),
            adapters: self.adapters.clone(),
            identity: self.identity.clone(),
            rope: self.rope.clone(),
        }
    }

    /// Puts a model together; what is trained is the adapters if there are some, else all weights, or nothing.
    fn assemble(parts: Parts, trained: bool) -> Self {
        let Parts { config, device, compute, weights, adapters, identity, rope } = parts;
        let view = |var: &Var, trained: bool| if trained { var.as_tensor().clone() } else { var.as_detached_tensor() };
        let all = trained && adapters.is_none();
        let by_name: BTreeMap<&str, Tensor> = weights.iter().map(|(n, v)| (n.as_str(), view(v, all))).collect();
        let get = |name: &str| by_name[name].clone();
        let layers = (0..config.num_layers)
            .map(|i| {
                let at = |name: &str| get(&format!("model.layers.{i}.{name}"));
                // `expected` has made sure that the biases are there that the configuration asks for, and no others.
                let projection = |name: &str| {
                    let module = format!("model.layers.{i}.{name}");
                    Projection {
                        weight: get(&format!("{module}.weight")),
                        bias: by_name.get(format!("{module}.bias").as_str()).cloned(),
                        adapter: adapters.as_ref().and_then(|a| a.of(&module, |var| view(var, trained))),
                    }
                };
                Layer {
                    input_norm: at("input_layernorm.weight"),
                    q: projection("self_attn.q_proj"),
                    k: projection("self_attn.k_proj"),
                    v: projection("self_attn.v_proj"),
                    qk_norm: config.qk_norm.then(|| (at("self_attn.q_norm.weight"), at("self_attn.k_norm.weight"))),
                    o: projection("self_attn.o_proj"),
                    post_norm: at("post_attention_layernorm.weight"),
                    gate: projection("mlp.gate_proj"),
                    up: projection("mlp.up_proj"),
                    down: projection("mlp.down_proj"),
                }
            })
            .collect();
        let embedding = get("model.embed_tokens.weight");
        let norm = get("model.norm.weight");
        let head = (!config.tied_head).then(|| get("lm_head.weight"));
        Self { config, device, compute, weights, adapters, identity, embedding, layers, norm, head, rope }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every trainable variable in a fixed order: the weights by their checkpoint names, or the adapters where there are
    /// some, by PEFT's.
    pub fn variables(&self) -> &[(String, Var)] {
        self.adapters.as_ref().map_or(&self.weights, |adapters| &adapters.variables)
    }

    /// Every tensor of the checkpoint by its name, in a fixed order, without what adapters add.
    pub fn weights(&self) -> &[(String, Var)] {
        &self.weights
    }

    /// Every tensor of the checkpoint by its name, with what adapters add, one made at a time. A sum is f32.
    ///
    /// # Errors
    /// An item that cannot be allocated.
    pub fn merged(&self) -> impl Iterator<Item = Result<(&str, Tensor)>> {
        self.weights.iter().map(|(name, var)| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let adapter = self.adapters.as_ref().and_then(|a| a.of(module, Var::as_detached_tensor));
            let weight = var.as_detached_tensor();
            let weight = match adapter {
                Some(adapter) => (weight.to_dtype(DType::F32)? + adapter.delta()?)?,
                None => weight,
            };
            Ok((name.as_str(), weight))
        })
    }

    pub(crate) fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// The settings of the adapters, where there are some.
    pub fn lora(&self) -> Option<&lora::Settings> {
        self.adapters.as_ref().map(|adapters| &adapters.settings)
    }

    /// The same in every view of the same weights.
    pub(crate) fn identity(&self) -> &Arc<()> {
        &self.identity
    }

    /// Whether another view is of the same weights and the same adapters: what one is given, the other sees.
    pub(crate) fn is_same_view(&self, other: &Self) -> bool {
        let ids = |model: &Self| {
            let adapters = model.adapters.iter().flat_map(|adapters| &adapters.variables);
            adapters.map(|(_, var)| var.as_tensor().id()).collect::<Vec<_>>()
        };
        Arc::ptr_eq(&self.identity, &other.identity) && ids(self) == ids(other)
    }

    pub(crate) fn head_weight(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The residual stream before the first block, `[tokens, hidden]`.
    pub(crate) fn embed(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.embed_tokens(&batch.tokens)
    }

    /// The same of given tokens.
    pub(crate) fn embed_tokens(&self, tokens: &[u32]) -> Result<Tensor> {
        let vocab = self.config.vocab_size;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Unsupported(format!("token {token} is beyond the vocabulary of {vocab}")));
        }
        let rows = embedding(&self.embedding, &tokens.into())?;
        Ok(if self.device.is_cpu() { rows.to_dtype(DType::F32)? } else { rows })
    }

    /// The norm between the last block and the head.
    pub(crate) fn last_norm(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, &self.norm, self.config.rms_norm_eps)?)
    }

    /// What the head is to score.
    pub(crate) fn scored(&self, batch: &PackedBatch, temperature: f64) -> Scored {
        Scored {
            rows: batch.rows.clone(),
            targets: batch.targets.clone(),
            temperature: temperature as f32,
            compute: self.compute,
        }
    }

    /// The last norm and the head over the residual stream after the last block.
    pub(crate) fn head_scores(&self, x: &Tensor, batch: &PackedBatch, temperature: f64) -> Result<HeadScores> {
        Ok(log_prob(&self.last_norm(x)?, self.head_weight(), &self.scored(batch, temperature))?)
    }

    /// Log-probability and entropy of each scored token under the distribution at `temperature`.
    ///
    /// # Errors
    /// When a token is beyond the vocabulary or a position beyond the model's limit.
    pub fn scores(&self, batch: &PackedBatch, temperature: f64) -> Result<HeadScores> {
        let blocks = 0..self.config.num_layers;
        let x = blocks.into_iter().try_fold(self.embed(batch)?, |x, i| self.block(i, &x, batch))?;
        self.head_scores(&x, batch, temperature)
    }
}

/// Names and shapes of every tensor of a checkpoint, in the order of the forward pass.
pub(crate) fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = config.widths();
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![config.vocab_size, h])];
    for layer in 0..config.num_layers {
        let mut add = |there: bool, name: &str, shape: &[usize]| {
            if there {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            }
        };
        add(true, "input_layernorm.weight", &[h]);
        for (name, width) in [("q", q), ("k", kv), ("v", kv)] {
            add(true, &format!("self_attn.{name}_proj.weight"), &[width, h]);
            add(config.qkv_bias, &format!("self_attn.{name}_proj.bias"), &[width]);
        }
        add(config.qk_norm, "self_attn.q_norm.weight", &[config.heads.dim]);
        add(config.qk_norm, "self_attn.k_norm.weight", &[config.heads.dim]);
        add(true, "self_attn.o_proj.weight", &[h, q]);
        add(config.o_bias, "self_attn.o_proj.bias", &[h]);
        add(true, "post_attention_layernorm.weight", &[h]);
        add(true, "mlp.gate_proj.weight", &[i, h]);
        add(true, "mlp.up_proj.weight", &[i, h]);
        add(true, "mlp.down_proj.weight", &[h, i]);
    }
    all.push(("model.norm.weight".into(), vec![h]));
    if !config.tied_head {
        all.push(("lm_head.weight".into(), vec![config.vocab_size, h]));
    }
    all
}
