//! Launches of `decode.cu`.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use crate::cache::LANES;
use crate::ops::Heads;
use candle_core::{DType, Result, bail};

/// The keys and values of one layer, `[slots, key_value heads * dim]` each.
pub(crate) struct Cached<M> {
    pub keys: M,
    pub values: M,
}

fn kernel<'a>(name: &'a mut String, of: &str, dtype: DType) -> Result<Kernel<'a>> {
    *name = format!("decode_{of}_{}", suffix(dtype)?);
    Ok(Kernel { file: "decode", name })
}

/// `y_r = table_i(r)` for rows of `width`: `indices` has one for each row of `y`.
pub(crate) fn rows<M: Machine>(
    machine: &M,
    table: View<'_, M::Memory>,
    indices: View<'_, M::Memory>,
    y: &mut M::Memory,
    width: usize,
) -> Result<()> {
    let name = &mut String::new();
    let arguments =
        &mut [Argument::Read(table), Argument::Read(indices), Argument::Write(y, 0), Argument::size(width)?];
    // SAFETY: `decode_rows_*(table, indices, y, width)`; one block a row, and the caller's indices are rows of the table.
    unsafe { machine.launch(kernel(name, "rows", table.dtype)?, Grid::line(indices.len, 128), arguments) }
}

/// What [`place`] takes beside the products of queries, keys and values.
pub(crate) struct Place<'a, M> {
    pub heads: Heads,
    pub eps: f32,
    /// Of queries, keys and values.
    pub biases: [Option<View<'a, M>>; 3],
    /// Of a head of queries and of keys.
    pub norms: [Option<View<'a, M>>; 2],
    /// Cosines and sines of every position, `[positions, dim / 2]`, f32.
    pub rope: [View<'a, M>; 2],
    /// Of each token.
    pub positions: View<'a, M>,
    /// Of each token.
    pub slots: View<'a, M>,
}

/// Adds biases, normalises and rotates queries (in place) and keys, and writes keys and values to the cache.
pub(crate) fn place<M: Machine>(
    machine: &M,
    of: &Place<'_, M::Memory>,
    q: &mut M::Memory,
    [k, v]: [View<'_, M::Memory>; 2],
    cache: &mut Cached<M::Memory>,
) -> Result<()> {
    let Heads { query, key_value, dim } = of.heads;
    let tokens = of.positions.len;
    if k.len != tokens * key_value * dim || v.len != k.len || of.slots.len != tokens {
        bail!("decode: {} keys and {} values for {tokens} tokens", k.len, v.len);
    }
    fn or_null<M>(view: Option<View<'_, M>>) -> Argument<'_, M> {
        view.map_or(Argument::Null, Argument::Read)
    }
    let name = &mut String::new();
    let [q_bias, k_bias, v_bias] = of.biases.map(or_null);
    let [q_norm, k_norm] = of.norms.map(or_null);
    let [cos, sin] = of.rope.map(Argument::Read);
    let arguments = &mut [
        Argument::Write(q, 0),
        Argument::Read(k),
        Argument::Read(v),
        q_bias,
        k_bias,
        v_bias,
        q_norm,
        k_norm,
        cos,
        sin,
        Argument::Read(of.positions),
        Argument::Read(of.slots),
        Argument::Write(&mut cache.keys, 0),
        Argument::Write(&mut cache.values, 0),
        Argument::size(query)?,
        Argument::size(key_value)?,
        Argument::size(dim)?,
        Argument::F32(of.eps),
    ];
    // Four warps a block, each with a head.
    let grid = Grid { blocks: [tokens, (query + 2 * key_value).div_ceil(4), 1], threads: 128, shared: 0 };
    // SAFETY: the arguments of `decode_place_*`; the caller's positions are in the table and its slots in the cache.
    unsafe { machine.launch(kernel(name, "place", k.dtype)?, grid, arguments) }
}

/// `gate = silu(gate) up` of the first `up.len` numbers.
pub(crate) fn gate<M: Machine>(machine: &M, gate: &mut M::Memory, up: View<'_, M::Memory>) -> Result<()> {
    let name = &mut String::new();
    let arguments = &mut [Argument::Write(gate, 0), Argument::Read(up), Argument::size(up.len)?];
    // SAFETY: `decode_gate_*(gate, up, count)`; `gate` is the caller's, of at least as many.
    unsafe { machine.launch(kernel(name, "gate", up.dtype)?, Grid::over(up.len), arguments) }
}

/// `y_r += bias` of the first `rows` rows.
pub(crate) fn add_bias<M: Machine>(
    machine: &M,
    y: &mut M::Memory,
    bias: View<'_, M::Memory>,
    rows: usize,
) -> Result<()> {
    let name = &mut String::new();
    let arguments = &mut [Argument::Write(y, 0), Argument::Read(bias), Argument::size(bias.len)?];
    // SAFETY: `decode_add_bias_*(y, bias, width)`; one block a row of the caller's `y`.
    unsafe { machine.launch(kernel(name, "add_bias", bias.dtype)?, Grid::line(rows, 128), arguments) }
}

/// Copies blocks of one layer: `pairs` are sources and targets, none of which is both.
pub(crate) fn copy_blocks<M: Machine>(
    machine: &M,
    pairs: View<'_, M::Memory>,
    cache: &mut Cached<M::Memory>,
    (width, dtype): (usize, DType),
) -> Result<()> {
    let name = &mut String::new();
    let arguments = &mut [
        Argument::Read(pairs),
        Argument::Write(&mut cache.keys, 0),
        Argument::Write(&mut cache.values, 0),
        Argument::size(LANES * width)?,
    ];
    // SAFETY: `decode_copy_blocks_*(pairs, keys, values, elements)`; one block a pair, whose blocks are in the cache.
    unsafe { machine.launch(kernel(name, "copy_blocks", dtype)?, Grid::line(pairs.len / 2, 128), arguments) }
}
