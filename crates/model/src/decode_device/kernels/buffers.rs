//! What a step computes in: as large as the largest step until now needed, allocated before it begins.

use super::Layout;
use crate::error::Result;
use crate::ops::cuda::Machine;
use crate::ops::cuda::decode_attention;
use crate::qwen2::Qwen2;
use candle_core::DType;

/// What a step computes in.
pub(super) struct Buffers<M> {
    /// The residual stream, `[tokens, hidden]`.
    pub x: M,
    pub normed: M,
    pub q: M,
    pub k: M,
    pub v: M,
    pub mixed: M,
    pub gate: M,
    pub up: M,
    /// Between the two factors of an adapter, `[tokens, rank]`.
    pub low: M,
    /// The rows whose logits are wanted, `[wanted, hidden]`.
    pub last: M,
    /// f32, `[wanted, vocab]`.
    pub logits: M,
    /// f32: what chunks of sequences give.
    pub parts: M,
    /// What the host sends.
    pub step: M,
    /// What it gets back.
    pub result: M,
}

/// How many elements each of the [`Buffers`] has, in their order.
pub(super) type Sizes = [usize; 14];

impl<M> Buffers<M> {
    /// Room for so many elements each, where floats are of type `dtype`.
    pub fn allocate(machine: &impl Machine<Memory = M>, sizes: &Sizes, dtype: DType) -> Result<Self> {
        let mut each = sizes.iter().enumerate();
        let mut make = || match each.next() {
            Some((i, &len)) => machine.allocate(dtype_of(i, dtype), len.max(1)),
            None => machine.allocate(dtype, 1),
        };
        Ok(Self {
            x: make()?,
            normed: make()?,
            q: make()?,
            k: make()?,
            v: make()?,
            mixed: make()?,
            gate: make()?,
            up: make()?,
            low: make()?,
            last: make()?,
            logits: make()?,
            parts: make()?,
            step: make()?,
            result: make()?,
        })
    }
}

pub(super) fn sizes(model: &Qwen2, layout: &Layout) -> Sizes {
    let config = model.config();
    let (n, h, (q, kv), f) = (layout.tokens, config.hidden_size, config.widths(), config.intermediate_size);
    let rank = model.lora().map_or(0, |lora| lora.rank);
    [
        n * h,
        n * h,
        n * q,
        n * kv,
        n * kv,
        n * q,
        n * f,
        n * f,
        n * rank,
        layout.wanted * h,
        layout.wanted * config.vocab_size,
        decode_attention::parts_len(n, config.heads, layout.width),
        layout.tables().end,
        2 * layout.draws,
    ]
}

fn dtype_of(buffer: usize, dtype: DType) -> DType {
    match buffer {
        10 | 11 => DType::F32,
        12.. => DType::U32,
        _ => dtype,
    }
}

/// Bytes that steps of up to so many tokens, of which `rows` want logits, compute in.
#[cfg(feature = "cuda")]
pub(crate) fn bytes(model: &Qwen2, tokens: usize, rows: usize, width: usize) -> u64 {
    let of = |tokens: usize| sizes(model, &Layout { tokens, spans: rows, wanted: rows, draws: rows, width });
    // Parts of sequences are kept for few tokens only.
    let (large, small) = (of(tokens), of(tokens.min(decode_attention::MANY)));
    let each = large.iter().zip(small).map(|(a, b)| (*a).max(b)).enumerate();
    each.map(|(i, len)| (len * dtype_of(i, model.embedding.dtype()).size_in_bytes()) as u64).sum()
}
