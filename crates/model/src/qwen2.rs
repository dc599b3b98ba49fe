//! The Qwen2 decoder over packed sequences: one set of weights, differentiable.
//!
//! Sequences lie one behind the other in `[tokens, hidden]`; nothing is padded. [`Qwen2::detached`] gives a second view of
//! the same storage that builds no graph, and sees each update of the optimiser at once.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::log_prob::Scored;
use crate::ops::{HeadScores, RopeTable, attention, linear, log_prob, rms_norm, rope, swiglu};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The weights of one decoder block, named as in the checkpoint.
pub(crate) struct Layer {
    pub input_norm: Tensor,
    pub q: (Tensor, Tensor),
    pub k: (Tensor, Tensor),
    pub v: (Tensor, Tensor),
    pub o: Tensor,
    pub post_norm: Tensor,
    pub gate: Tensor,
    pub up: Tensor,
    pub down: Tensor,
}

/// A decoder-only transformer with grouped-query attention, RoPE, SwiGLU and RMSNorm.
pub struct Qwen2 {
    config: Config,
    device: Device,
    variables: Vec<(String, Var)>,
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    /// `None` when the head is the embedding.
    pub(crate) head: Option<Tensor>,
    pub(crate) rope: RopeTable,
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
    /// Builds the decoder over tensors named as in a Hugging Face checkpoint, all of them trainable.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, or is not part of the model.
    pub fn new(config: Config, mut tensors: BTreeMap<String, Tensor>, dtype: DType, device: &Device) -> Result<Self> {
        let mut variables = Vec::new();
        for (name, shape) in expected(&config) {
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| Error::Unsupported(format!("the weights have no tensor {name}")))?;
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(Error::Unsupported(format!("tensor {name} is {found:?}, config.json says {shape:?}")));
            }
            variables.push((name, Var::from_tensor(&tensor.to_dtype(dtype)?.to_device(device)?)?));
        }
        // A tied checkpoint may carry the head a second time.
        tensors.retain(|name, _| !(config.tied_head && name == "lm_head.weight"));
        if let Some(name) = tensors.keys().next() {
            return Err(Error::Unsupported(format!("tensor {name} is not part of a Qwen2 of this configuration")));
        }
        let rope = RopeTable::new(config.heads.dim, config.rope_theta, config.max_positions);
        Ok(Self::assemble(config, device.clone(), variables, rope, |v| v.as_tensor().clone()))
    }

    /// The same weights without a gradient: no graph is built, updates of the variables are seen.
    pub fn detached(&self) -> Self {
        self.view(self.variables.clone(), |v| v.as_detached_tensor())
    }

    /// A copy of the weights as they are now, of its own storage and without a gradient: the reference model.
    ///
    /// # Errors
    /// When the copy cannot be allocated.
    pub fn frozen_copy(&self) -> Result<Self> {
        let copies = self
            .variables
            .iter()
            .map(|(name, var)| Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor().copy()?)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.view(copies, |v| v.as_detached_tensor()))
    }

    fn view(&self, variables: Vec<(String, Var)>, view: fn(&Var) -> Tensor) -> Self {
        Self::assemble(self.config.clone(), self.device.clone(), variables, self.rope.clone(), view)
    }

    fn assemble(
        config: Config,
        device: Device,
        variables: Vec<(String, Var)>,
        rope: RopeTable,
        view: fn(&Var) -> Tensor,
    ) -> Self {
        let by_name: BTreeMap<&str, Tensor> = variables.iter().map(|(n, v)| (n.as_str(), view(v))).collect();
        let get = |name: &str| by_name[name].clone();
        let layers = (0..config.num_layers)
            .map(|i| {
                let at = |name: &str| get(&format!("model.layers.{i}.{name}"));
                let biased =
                    |name: &str| (at(&format!("self_attn.{name}.weight")), at(&format!("self_attn.{name}.bias")));
                Layer {
                    input_norm: at("input_layernorm.weight"),
                    q: biased("q_proj"),
                    k: biased("k_proj"),
                    v: biased("v_proj"),
                    o: at("self_attn.o_proj.weight"),
                    post_norm: at("post_attention_layernorm.weight"),
                    gate: at("mlp.gate_proj.weight"),
                    up: at("mlp.up_proj.weight"),
                    down: at("mlp.down_proj.weight"),
                }
            })
            .collect();
        let embedding = get("model.embed_tokens.weight");
        let norm = get("model.norm.weight");
        let head = (!config.tied_head).then(|| get("lm_head.weight"));
        Self { config, device, variables, embedding, layers, norm, head, rope }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every trainable variable by its checkpoint name, in a fixed order.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    pub(crate) fn head_weight(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// The residual stream before the first block, `[tokens, hidden]`.
    pub(crate) fn embed(&self, batch: &PackedBatch) -> Result<Tensor> {
        let vocab = self.config.vocab_size;
        if let Some(token) = batch.tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Unsupported(format!("token {token} is beyond the vocabulary of {vocab}")));
        }
        let ids = Tensor::new(batch.tokens.as_slice(), &self.device)?;
        Ok(self.embedding.index_select(&ids, 0)?)
    }

    /// One decoder block over the residual stream.
    pub(crate) fn block(&self, index: usize, x: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        let Config { heads, rms_norm_eps: eps, .. } = self.config;
        let layer = &self.layers[index];
        let normed = rms_norm(x, &layer.input_norm, eps)?;
        let q = rope(&linear(&normed, &layer.q.0, Some(&layer.q.1))?, &self.rope, &batch.positions)?;
        let k = rope(&linear(&normed, &layer.k.0, Some(&layer.k.1))?, &self.rope, &batch.positions)?;
        let v = linear(&normed, &layer.v.0, Some(&layer.v.1))?;
        let mixed = attention(&q, &k, &v, heads, &batch.offsets)?;
        let x = (x + linear(&mixed, &layer.o, None)?)?;
        let normed = rms_norm(&x, &layer.post_norm, eps)?;
        let gated = swiglu(&linear(&normed, &layer.gate, None)?, &linear(&normed, &layer.up, None)?)?;
        Ok((x + linear(&gated, &layer.down, None)?)?)
    }

    /// The last norm and the head over the residual stream after the last block.
    pub(crate) fn head_scores(&self, x: &Tensor, batch: &PackedBatch, temperature: f64) -> Result<HeadScores> {
        let scored =
            Scored { rows: batch.rows.clone(), targets: batch.targets.clone(), temperature: temperature as f32 };
        Ok(log_prob(&rms_norm(x, &self.norm, self.config.rms_norm_eps)?, self.head_weight(), &scored)?)
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

/// Names and shapes of every trainable tensor, in the order of the forward pass.
pub(crate) fn expected(config: &Config) -> Vec<(String, Vec<usize>)> {
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.heads.query * config.heads.dim, config.heads.key_value * config.heads.dim);
    let mut all = vec![("model.embed_tokens.weight".to_string(), vec![config.vocab_size, h])];
    for layer in 0..config.num_layers {
        let parts: [(&str, Vec<usize>); 12] = [
            ("input_layernorm.weight", vec![h]),
            ("self_attn.q_proj.weight", vec![q, h]),
            ("self_attn.q_proj.bias", vec![q]),
            ("self_attn.k_proj.weight", vec![kv, h]),
            ("self_attn.k_proj.bias", vec![kv]),
            ("self_attn.v_proj.weight", vec![kv, h]),
            ("self_attn.v_proj.bias", vec![kv]),
            ("self_attn.o_proj.weight", vec![h, q]),
            ("post_attention_layernorm.weight", vec![h]),
            ("mlp.gate_proj.weight", vec![i, h]),
            ("mlp.up_proj.weight", vec![i, h]),
            ("mlp.down_proj.weight", vec![h, i]),
        ];
        all.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    all.push(("model.norm.weight".into(), vec![h]));
    if !config.tied_head {
        all.push(("lm_head.weight".into(), vec![config.vocab_size, h]));
    }
    all
}
