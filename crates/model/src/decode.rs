//! One decoding step on the CPU without a graph: packed weights, a caller-owned cache, rows that do not see each other.
//!
//! A step takes a span of tokens a row (a whole prompt, or the one token sampled last) and gives the logits behind its
//! last token. Rows are shared out over the threads for the whole depth of the model, so a step synchronises once.
//! The twin is [`crate::qwen2::Qwen2::scores`]: a test holds that both give the same log-probabilities.

use crate::block::Projection;
use crate::cache::{LANES, Part, Sequence};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kernels::{for_each_chunk, math, may_fork, vectorized};
use crate::ops::{Heads, RopeTable};
use crate::packed_model::{Matrix, PackedProjection, Rows, bias, pack_head, values};
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
    head: Matrix,
    rope: RopeTable,
    /// Of the packed matrices.
    bytes: usize,
}

/// What the products of generation are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// f32. Weights in bf16 are widened, a panel at a time.
    #[default]
    F32,
    /// Weights and inputs are rounded to bf16, and sums are f32: twice as fast where the CPU multiplies bf16.
    Bf16,
    /// Weights and inputs of blocks are rounded to eight bits ([`crate::kernels::int8`]), the head's to bf16.
    Int8,
}

/// Bytes of weights from which on the threads share each product instead of the rows: more than a core's own cache holds.
const LARGE: usize = 8 << 20;

/// Rows for each thread whose products are as fast as those of more, of weights that are not `LARGE`.
const ENOUGH_ROWS: usize = 16;

/// Rows at a time from which on a token does not become cheaper, for so many bytes of packed weights; none where every row
/// does that, since weights are read once a step.
///
/// A small model's weights stay in the cores' caches, and its steps are bound by reading keys and values: more rows only push
/// each other's out (measured: the embedded policy makes a quarter more tokens a second with 32 rows on two cores than with 192).
pub fn enough_rows(weights: usize, threads: usize) -> Option<usize> {
    (weights <= LARGE).then_some(ENOUGH_ROWS * threads)
}

/// What one row feeds in a step, its cache being blocks of payload `P`.
pub struct Span<'a, P: ?Sized = [f32]> {
    /// Tokens that follow what the sequence already holds; at least one.
    pub tokens: Cow<'a, [u32]>,
    /// The row's keys and values, with room for the tokens.
    pub sequence: &'a mut Sequence<P>,
    /// Whether the logits behind the last token are wanted.
    pub logits: bool,
}

impl<P: ?Sized> Span<'_, P> {
    /// Refuses what a model of this shape cannot take.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        let vocab = config.vocab_size;
        let end = self.sequence.len() + self.tokens.len();
        if self.tokens.is_empty() {
            return Err(Error::Unsupported("a decoding step needs at least one token a row".into()));
        }
        if let Some(token) = self.tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Unsupported(format!("token {token} is beyond the vocabulary of {vocab}")));
        }
        let limit = self.sequence.capacity().min(config.max_positions);
        if end > limit {
            return Err(Error::Unsupported(format!("a sequence of {end} tokens is beyond the limit of {limit}")));
        }
        Ok(())
    }
}

impl Decoder {
    /// Packs a model's current weights: a copy, made anew after each update. Weights in bf16 stay so.
    ///
    /// # Errors
    /// When the weights are not f32 or bf16 on the CPU.
    pub fn pack(model: &Qwen2, compute: Compute) -> Result<Self> {
        let config = model.config().clone();
        if !model.device().is_cpu() || !matches!(model.embedding.dtype(), DType::F32 | DType::BF16) {
            return Err(Error::Unsupported("the packed decoder needs f32 or bf16 weights on the CPU".into()));
        }
        let stack = |parts: &[&Projection]| PackedProjection::stack(parts, compute);
        let layers: Vec<PackedLayer> = model
            .layers
            .iter()
            .map(|l| {
                Ok(PackedLayer {
                    input_norm: values(&l.input_norm)?,
                    qkv: stack(&[&l.q, &l.k, &l.v])?,
                    qkv_bias: [bias(&l.q)?, bias(&l.k)?, bias(&l.v)?].concat(),
                    qk_norm: l.qk_norm.as_ref().map(|(q, k)| Ok::<_, Error>([values(q)?, values(k)?])).transpose()?,
                    o: stack(&[&l.o])?,
                    o_bias: bias(&l.o)?,
                    post_norm: values(&l.post_norm)?,
                    gate_up: stack(&[&l.gate, &l.up])?,
                    down: stack(&[&l.down])?,
                })
            })
            .collect::<Result<_>>()?;
        let head = pack_head(model.head_weight(), compute)?;
        let projections = layers.iter().flat_map(|l| [&l.qkv, &l.o, &l.gate_up, &l.down]);
        Ok(Self {
            bytes: head.bytes() + projections.map(PackedProjection::bytes).sum::<usize>(),
            identity: model.identity().clone(),
            embedding: Rows::new(model)?,
            layers,
            norm: values(&model.norm)?,
            head,
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

    /// Rows at a time from which on a token does not become cheaper, with the threads that there are; see [`enough_rows`].
    pub fn enough_rows(&self) -> Option<usize> {
        enough_rows(self.bytes, rayon::current_num_threads())
    }

    /// Feeds the spans, and calls `pick(row, logits)` for each row that wants the logits `[vocab]` behind its last token;
    /// what it returns comes back in the order of the rows. Rows may run in parallel.
    ///
    /// # Errors
    /// When a token is beyond the vocabulary or a sequence beyond its room or the model's positions.
    pub fn step<T: Send>(
        &self,
        workspace: &mut Workspace,
        mut spans: Vec<Span>,
        pick: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Result<Vec<Option<T>>> {
        for span in &spans {
            span.check(&self.config)?;
        }
        let mut parts = self.parts(&spans);
        workspace.0.resize_with(parts.len().max(workspace.0.len()), Buffers::default);
        let mut jobs = Vec::with_capacity(parts.len());
        let (mut rest, mut first) = (spans.as_mut_slice(), 0);
        for (count, buffers) in parts.drain(..).zip(&mut workspace.0) {
            let (spans, others) = rest.split_at_mut(count);
            jobs.push((first, spans, buffers));
            (rest, first) = (others, first + count);
        }
        let run = |(first, spans, buffers): (usize, &mut [Span], &mut Buffers)| {
            self.forward(spans, buffers)?;
            let rows: Vec<usize> = (0..spans.len()).filter(|&row| spans[row].logits).collect();
            let mut picked: Vec<Option<T>> = spans.iter().map(|_| None).collect();
            let vocab = self.config.vocab_size;
            let one = |(row, logits): (&usize, &mut [f32])| pick(first + row, logits);
            let tokens: Vec<T> = if may_fork() && rows.len() > 1 {
                rows.par_iter().zip(buffers.logits.par_chunks_exact_mut(vocab)).map(one).collect()
            } else {
                rows.iter().zip(buffers.logits.chunks_exact_mut(vocab)).map(one).collect()
            };
            for (row, token) in rows.into_iter().zip(tokens) {
                picked[row] = Some(token);
            }
            Ok(picked)
        };
        let picked: Result<Vec<Vec<Option<T>>>> =
            if jobs.len() > 1 { jobs.into_par_iter().map(run).collect() } else { jobs.into_iter().map(run).collect() };
        Ok(picked?.into_iter().flatten().collect())
    }

    /// How many spans each thread takes through the whole model, about as many tokens each; all of them together where
    /// the model is large, since its weights are then read once, and the threads share each product.
    fn parts(&self, spans: &[Span]) -> Vec<usize> {
        let threads = rayon::current_num_threads();
        if self.bytes > LARGE || threads == 1 {
            return vec![spans.len()];
        }
        let tokens: usize = spans.iter().map(|s| s.tokens.len()).sum();
        let mut parts = Vec::with_capacity(threads);
        let (mut fed, mut count) = (0, 0);
        for span in spans {
            (fed, count) = (fed + span.tokens.len(), count + 1);
            if fed * threads >= tokens * (parts.len() + 1) {
                parts.push(std::mem::take(&mut count));
            }
        }
        if count > 0 {
            parts.push(count);
        }
        parts
    }

    /// The whole model over a few rows; leaves the logits that are wanted, `[rows, vocab]`.
    fn forward(&self, spans: &mut [Span], buffers: &mut Buffers) -> Result<()> {
        let Config { hidden_size: h, intermediate_size: inner, .. } = self.config;
        let eps = self.config.rms_norm_eps as f32;
        buffers.fit(spans.iter().map(|s| s.tokens.len()).sum(), &self.config);
        let Buffers { x, normed, qkv, mixed, gate_up, gated, update, .. } = buffers;
        for token in spans.iter().flat_map(|s| s.tokens.iter()) {
            self.embedding.append(*token as usize, x);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            norm_rows(x, &layer.input_norm, eps, normed);
            layer.qkv.matmul(normed, qkv);
            self.attend(index, spans, qkv, mixed)?;
            layer.o.matmul(mixed, update);
            add_bias(update, &layer.o_bias);
            add(x, update);
            norm_rows(x, &layer.post_norm, eps, normed);
            layer.gate_up.matmul(normed, gate_up);
            gate(gate_up, inner, gated);
            layer.down.matmul(gated, update);
            add(x, update);
        }
        // The rows that are wanted take the place of all rows.
        let mut end = 0;
        mixed.clear();
        for span in spans.iter_mut() {
            end += span.tokens.len();
            span.sequence.advance(span.tokens.len());
            if span.logits {
                mixed.extend_from_slice(&x[(end - 1) * h..end * h]);
            }
        }
        normed.resize(mixed.len(), 0.0);
        norm_rows(mixed, &self.norm, eps, normed);
        buffers.logits.resize(mixed.len() / h * self.config.vocab_size, 0.0);
        self.head.matmul(&buffers.normed, &mut buffers.logits);
        Ok(())
    }

    /// Adds biases, normalises (Qwen3) and rotates queries and keys, writes the cache and attends;
    /// `mixed: [tokens, query * dim]`.
    fn attend(&self, layer: usize, spans: &mut [Span], qkv: &mut [f32], mixed: &mut [f32]) -> Result<()> {
        let heads = self.config.heads;
        let part = Part { heads, layer };
        let (q_width, kv_width) = self.config.widths();
        let width = q_width + 2 * kv_width;
        let mut rows = qkv.chunks_exact_mut(width);
        for Span { sequence, tokens, .. } in spans.iter_mut() {
            for (position, qkv) in (sequence.len()..sequence.len() + tokens.len()).zip(&mut rows) {
                self.place(layer, position, qkv);
                let (k, v) = qkv[q_width..].split_at(kv_width);
                let written = sequence.write(part, position, k, v);
                written.ok_or_else(|| Error::Unsupported("a row wrote to a block that others share".into()))?;
            }
        }
        let seen = spans.iter().flat_map(|s| (1..=s.tokens.len()).map(|t| (&*s.sequence, s.sequence.len() + t)));
        let rows = qkv.chunks_exact(width).zip(mixed.chunks_exact_mut(q_width)).zip(seen);
        let jobs: Vec<Attention> = rows
            .map(|((qkv, mixed), (sequence, len))| Attention { part, q: &qkv[..q_width], sequence, len, mixed })
            .collect();
        if may_fork() {
            jobs.into_par_iter().for_each(Attention::run);
        } else {
            jobs.into_iter().for_each(Attention::run);
        }
        Ok(())
    }
}

/// The attention of one token in one layer.
struct Attention<'a> {
    part: Part,
    /// `[query heads, dim]`.
    q: &'a [f32],
    sequence: &'a Sequence,
    /// Positions seen, the token's own included.
    len: usize,
    /// `[query heads, dim]`, written.
    mixed: &'a mut [f32],
}

impl Attention<'_> {
    fn run(self) {
        let Heads { query, key_value, dim } = self.part.heads;
        let group = query / key_value * dim;
        let mut scores = vec![0.0; 2 * self.len.next_multiple_of(LANES)];
        for (head, (q, mixed)) in self.q.chunks_exact(group).zip(self.mixed.chunks_exact_mut(group)).enumerate() {
            self.sequence.seen(self.part, head, self.len).attend(q, mixed, &mut scores);
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

/// What the steps of one caller compute in, kept from one to the next.
#[derive(Default)]
pub struct Workspace(Vec<Buffers>);

/// Working space of one forward pass, a row a token.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    update: Vec<f32>,
    /// A row a span that wants them.
    logits: Vec<f32>,
}

impl Buffers {
    /// `x` empty and the rest of so many rows.
    fn fit(&mut self, tokens: usize, config: &Config) {
        let (q, kv) = config.widths();
        self.x.clear();
        let sizes = [
            (&mut self.normed, config.hidden_size),
            (&mut self.qkv, q + 2 * kv),
            (&mut self.mixed, q),
            (&mut self.gate_up, 2 * config.intermediate_size),
            (&mut self.gated, config.intermediate_size),
            (&mut self.update, config.hidden_size),
        ];
        for (buffer, width) in sizes {
            buffer.resize(tokens * width, 0.0);
        }
    }
}

/// Rows that one task of an elementwise step takes.
const ROWS: usize = 16;

fn norm_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let width = w.len();
    for_each_chunk(y, ROWS * width, |i, y| {
        let x = &x[i * ROWS * width..][..y.len()];
        vectorized!({
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                math::rms_norm_row(x, w, eps, y);
            }
        });
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
    for_each_chunk(gated, ROWS * inner, |i, gated| {
        let gate_up = &gate_up[2 * i * ROWS * inner..][..2 * gated.len()];
        vectorized!({
            for (row, out) in gate_up.chunks_exact(2 * inner).zip(gated.chunks_exact_mut(inner)) {
                let (gate, up) = row.split_at(inner);
                for ((y, &z), &u) in out.iter_mut().zip(gate).zip(up) {
                    *y = z * math::sigmoid(z) * u;
                }
            }
        });
    });
}
