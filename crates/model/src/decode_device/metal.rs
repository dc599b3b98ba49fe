//! The device decoder's step on Metal: the model's own blocks, whose operations are kernels there, around kernels that read
//! and write the cache; tokens are drawn on the device, and the host waits for them alone.

use super::plan::Plan;
use super::store::Blocks;
use super::{Draws, STEP_TOKENS, composed};
use crate::error::Result;
use crate::ops::metal::decode;
use crate::qwen2::Qwen2;

/// Of the memory that Metal recommends to stay within, so many parts of [`ALL_PARTS`] may be taken.
const PARTS: u64 = 9;
const ALL_PARTS: u64 = 10;

/// Whether a model's weights are on Metal, and its heads and vocabulary are such that there are kernels for them.
pub(super) fn fits(model: &Qwen2) -> bool {
    let config = model.config();
    model.device().is_metal() && decode::fits(config.heads, config.vocab_size, model.embedding.dtype())
}

/// Feeds the tokens of a plan and draws; the tokens of all draws, in their order.
pub(super) fn step(model: &Qwen2, store: &mut Blocks, plan: &Plan, draws: &Draws) -> Result<Vec<(u32, f32)>> {
    let step = decode::Step {
        heads: model.config().heads,
        angles: &model.rope,
        positions: &plan.positions.as_slice().into(),
        slots: &plan.slots.as_slice().into(),
        owners: &plan.owners.as_slice().into(),
        tables: &plan.tables.as_slice().into(),
        width: plan.width,
    };
    let logits = composed::forward(model, store, plan, None, &|cache, [q, k, v]| Ok(step.attend(cache, q, k, v)?))?;
    let Some(logits) = logits else { return Ok(Vec::new()) };
    let (mut rows, mut numbers) = (Vec::new(), Vec::new());
    for (row, at) in plan.logits_of.iter().zip(draws.at).filter_map(|(row, at)| Some(((*row)?, at))) {
        rows.extend(at.iter().map(|_| row as u32));
        numbers.extend_from_slice(at);
    }
    Ok(decode::draw(&logits, &rows, &numbers, draws.from)?)
}

/// Bytes that a cache may take beside what is allocated now and what steps of so many rows are computed in; `None` where the
/// device does not tell.
pub(super) fn room(model: &Qwen2, rows: usize) -> Option<u64> {
    let free = crate::device::memory(model.device())?.available;
    let (config, size) = (model.config(), model.embedding.dtype().size_in_bytes());
    let (q, kv) = config.widths();
    let of_token = 4 * config.hidden_size + 2 * q + 3 * kv + 3 * config.intermediate_size;
    // Buffers are as large as the next power of two.
    let steps = 2 * ((STEP_TOKENS + rows) * of_token * size + rows * config.vocab_size * (size + 4));
    Some((free / ALL_PARTS * PARTS).saturating_sub(steps as u64))
}
