//! One decoding step on the CPU without a graph: packed weights, a caller-owned cache, rows that do not see each other.
//!
//! A step takes a span of tokens a row (a whole prompt, or the one token sampled last) and gives the logits behind its
//! last token. Rows are shared out over the threads for the whole depth of the model, so a step synchronises once.
//! The twin is [`crate::qwen2::Qwen2::scores`]: a test holds that both give the same log-probabilities.

use crate::cache::{KvCache, LANES, Slot};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kernels::packed::Packed;
use crate::kernels::{math, vectorized};
use crate::ops::RopeTable;
use crate::packed_model::{PackedProjection, Rows, bias, pack, values};
use crate::qwen2::Qwen2;
use candle_core::DType;
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;

/// The weights of one block, packed; projections that share an input are stacked.
struct PackedLayer {
    input_norm: Vec<f32>,
    qkv: PackedProjection,
    /// Empty where there is none.
    qkv_bias: Vec<f32>,
    /// Norms of each head of the queries and of the keys, `[dim]`.
    qk_norm: Option<[Vec<f32>; 2]>,
    o: PackedProjection,
    /// Empty where there is none.
    o_bias: Vec<f32>,
    post_norm: Vec<f32>,
    gate_up: PackedProjection,
    down: PackedProjection,
}

/// A decoder's weights, packed for generation.
pub struct Decoder {
    config: Config,
    /// Of the weights without their adapters.
    identity: Arc<()>,
    embedding: Rows,
    layers: Vec<PackedLayer>,
    norm: Vec<f32>,
    head: Packed,
    rope: RopeTable,
}

/// What one row feeds in a step.
pub struct Span<'a> {
    /// Tokens that follow what the slot already holds; at least one.
    pub tokens: Cow<'a, [u32]>,
    /// The row's place in the cache.
    pub slot: &'a mut Slot,
}

impl Decoder {
    /// Packs a model's current weights, in the type that they have: a copy, made anew after each update.
    ///
    /// # Errors
    /// When the weights are not f32 or bf16 on the CPU.
    pub fn pack(model: &Qwen2) -> Result<Self> {
        let config = model.config().clone();
        if !model.device().is_cpu() || !matches!(model.embedding.dtype(), DType::F32 | DType::BF16) {
            return Err(Error::Unsupported("the packed decoder needs f32 or bf16 weights on the CPU".into()));
        }
        let layers = model
            .layers
            .iter()
            .map(|l| {
                Ok(PackedLayer {
                    input_norm: values(&l.input_norm)?,
                    qkv: PackedProjection::stack(&[&l.q, &l.k, &l.v])?,
                    qkv_bias: [bias(&l.q)?, bias(&l.k)?, bias(&l.v)?].concat(),
                    qk_norm: l.qk_norm.as_ref().map(|(q, k)| Ok::<_, Error>([values(q)?, values(k)?])).transpose()?,
                    o: PackedProjection::stack(&[&l.o])?,
                    o_bias: bias(&l.o)?,
                    post_norm: values(&l.post_norm)?,
                    gate_up: PackedProjection::stack(&[&l.gate, &l.up])?,
                    down: PackedProjection::stack(&[&l.down])?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            identity: model.identity().clone(),
            embedding: Rows::new(model)?,
            layers,
            norm: values(&model.norm)?,
            head: pack(&[model.head_weight()])?,
            rope: model.rope.clone(),
            config,
        })
    }

    /// Takes a model's current adapters, if it is one whose frozen weights are packed here; says whether it is.
    ///
    /// # Errors
    /// When the adapters are not on the CPU.
    pub fn refresh(&mut self, model: &Qwen2) -> Result<bool> {
        if model.lora().is_none() || !Arc::ptr_eq(&self.identity, model.identity()) {
            return Ok(false);
        }
        for (packed, l) in self.layers.iter_mut().zip(&model.layers) {
            packed.qkv.adapt(&[&l.q, &l.k, &l.v])?;
            packed.o.adapt(&[&l.o])?;
            packed.gate_up.adapt(&[&l.gate, &l.up])?;
            packed.down.adapt(&[&l.down])?;
        }
        Ok(true)
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An empty cache of `slots` sequences of up to `capacity` tokens.
    pub fn cache(&self, slots: usize, capacity: usize) -> KvCache {
        KvCache::new(&self.config, slots, capacity)
    }

    /// Feeds the spans, and calls `pick(row, logits)` for each row with the logits `[vocab]` behind its last token;
    /// what it returns comes back in the order of the rows. Rows may run in parallel.
    ///
    /// # Errors
    /// When a token is beyond the vocabulary or a sequence beyond the cache or the model's positions.
    pub fn step<T: Send>(&self, mut spans: Vec<Span>, pick: impl Fn(usize, &mut [f32]) -> T + Sync) -> Result<Vec<T>> {
        for span in &spans {
            self.check(span)?;
        }
        let rows_per_thread = spans.len().div_ceil(rayon::current_num_threads()).max(1);
        let picked: Vec<Vec<T>> = spans
            .par_chunks_mut(rows_per_thread)
            .enumerate()
            .map(|(chunk, spans)| {
                let mut logits = self.forward(spans);
                let rows = logits.chunks_exact_mut(self.config.vocab_size).enumerate();
                rows.map(|(row, logits)| pick(chunk * rows_per_thread + row, logits)).collect()
            })
            .collect();
        Ok(picked.into_iter().flatten().collect())
    }

    fn check(&self, span: &Span) -> Result<()> {
        let vocab = self.config.vocab_size;
        let end = span.slot.len() + span.tokens.len();
        if span.tokens.is_empty() {
            return Err(Error::Unsupported("a decoding step needs at least one token a row".into()));
        }
        if let Some(token) = span.tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Unsupported(format!("token {token} is beyond the vocabulary of {vocab}")));
        }
        let limit = span.slot.capacity().min(self.config.max_positions);
        if end > limit {
            return Err(Error::Unsupported(format!("a sequence of {end} tokens is beyond the limit of {limit}")));
        }
        Ok(())
    }

    /// The whole model over a few rows, on the calling thread; logits of the last token of each, `[rows, vocab]`.
    fn forward(&self, spans: &mut [Span]) -> Vec<f32> {
        let Config { hidden_size: h, intermediate_size: inner, .. } = self.config;
        let eps = self.config.rms_norm_eps as f32;
        let tokens: usize = spans.iter().map(|s| s.tokens.len()).sum();
        let mut x = Vec::with_capacity(tokens * h);
        for token in spans.iter().flat_map(|s| s.tokens.iter()) {
            self.embedding.append(*token as usize, &mut x);
        }
        let mut buffers = Buffers::new(tokens, &self.config);
        for (index, layer) in self.layers.iter().enumerate() {
            let Buffers { normed, qkv, mixed, gate_up, gated, update } = &mut buffers;
            norm_rows(&x, &layer.input_norm, eps, normed);
            layer.qkv.matmul(normed, qkv);
            self.attend(index, spans, qkv, mixed);
            layer.o.matmul(mixed, update);
            add_bias(update, &layer.o_bias);
            add(&mut x, update);
            norm_rows(&x, &layer.post_norm, eps, normed);
            layer.gate_up.matmul(normed, gate_up);
            gate(gate_up, inner, gated);
            layer.down.matmul(gated, update);
            add(&mut x, update);
        }
        self.logits(spans, &x, eps)
    }

    fn logits(&self, spans: &mut [Span], x: &[f32], eps: f32) -> Vec<f32> {
        let h = self.config.hidden_size;
        let mut last = Vec::with_capacity(spans.len() * h);
        let mut end = 0;
        for span in spans.iter_mut() {
            end += span.tokens.len();
            span.slot.advance(span.tokens.len());
            last.extend_from_slice(&x[(end - 1) * h..end * h]);
        }
        let mut normed = vec![0.0; last.len()];
        norm_rows(&last, &self.norm, eps, &mut normed);
        let mut logits = vec![0.0; spans.len() * self.config.vocab_size];
        self.head.matmul(&normed, &mut logits);
        logits
    }

    /// Adds biases, normalises (Qwen3) and rotates queries and keys, writes the cache and attends;
    /// `mixed: [tokens, query * dim]`.
    fn attend(&self, layer: usize, spans: &mut [Span], qkv: &mut [f32], mixed: &mut [f32]) {
        let heads = self.config.heads;
        let (q_width, kv_width) = self.config.widths();
        let width = q_width + 2 * kv_width;
        let group = heads.query / heads.key_value;
        let mut rows = qkv.chunks_exact_mut(width).zip(mixed.chunks_exact_mut(q_width));
        let longest = spans.iter().map(|s| s.slot.len() + s.tokens.len()).max().unwrap_or(0);
        let mut scores = vec![0.0; longest.next_multiple_of(LANES)];
        for span in spans {
            let first = span.slot.len();
            for (position, (qkv, mixed)) in (first..first + span.tokens.len()).zip(&mut rows) {
                self.place(layer, position, qkv);
                let (q, kv) = qkv.split_at(q_width);
                let (k, v) = kv.split_at(kv_width);
                for head in 0..heads.key_value {
                    let at = head * heads.dim..(head + 1) * heads.dim;
                    let mut cache = span.slot.head(layer, head);
                    cache.write(position, &k[at.clone()], &v[at]);
                    let queries = head * group * heads.dim..(head + 1) * group * heads.dim;
                    cache.seen(position + 1).attend(&q[queries.clone()], &mut mixed[queries], &mut scores);
                }
            }
        }
    }
}

impl Decoder {
    /// Makes the products `qkv: [query + 2 key_value, dim]` of one token queries, keys and values at `position`.
    fn place(&self, layer: usize, position: usize, qkv: &mut [f32]) {
        let ((q_width, kv_width), dim) = (self.config.widths(), self.config.heads.dim);
        let PackedLayer { qkv_bias, qk_norm, .. } = &self.layers[layer];
        let eps = self.config.rms_norm_eps as f32;
        let (cos, sin) = self.rope.at(position);
        vectorized!({
            math::axpy(qkv, 1.0, qkv_bias);
            if let Some([q_norm, k_norm]) = qk_norm {
                let (q, k) = qkv[..q_width + kv_width].split_at_mut(q_width);
                for (part, norm) in [(q, q_norm), (k, k_norm)] {
                    part.chunks_exact_mut(dim).for_each(|head| math::rms_norm_in_place(head, norm, eps));
                }
            }
            for head in qkv[..q_width + kv_width].chunks_exact_mut(dim) {
                math::rotate(head, cos, sin);
            }
        });
    }
}

/// Working space of one forward pass.
struct Buffers {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    update: Vec<f32>,
}

impl Buffers {
    fn new(tokens: usize, config: &Config) -> Self {
        let (q, kv) = config.widths();
        let of = |width: usize| vec![0.0; tokens * width];
        Self {
            normed: of(config.hidden_size),
            qkv: of(q + 2 * kv),
            mixed: of(q),
            gate_up: of(2 * config.intermediate_size),
            gated: of(config.intermediate_size),
            update: of(config.hidden_size),
        }
    }
}

fn norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    vectorized!({
        for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
            math::rms_norm_row(x, w, eps, y);
        }
    });
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        vectorized!(rows.chunks_exact_mut(bias.len()).for_each(|row| math::axpy(row, 1.0, bias)));
    }
}

fn add(x: &mut [f32], update: &[f32]) {
    vectorized!({
        for (x, u) in x.iter_mut().zip(update) {
            *x += u;
        }
    });
}

/// `gated = silu(gate) * up` of rows `[gate, up]`.
fn gate(gate_up: &[f32], inner: usize, gated: &mut [f32]) {
    vectorized!({
        for (row, out) in gate_up.chunks_exact(2 * inner).zip(gated.chunks_exact_mut(inner)) {
            let (gate, up) = row.split_at(inner);
            for ((y, &z), &u) in out.iter_mut().zip(gate).zip(up) {
                *y = z * math::sigmoid(z) * u;
            }
        }
    });
}
