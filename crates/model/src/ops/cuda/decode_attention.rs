//! Launches of `decode_attention.cu`.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use crate::cache::LANES;
use crate::ops::Heads;
use candle_core::{Result, bail};

/// Positions that are summed together, as in the kernel.
const CHUNK: usize = 256;
const THREADS: usize = 128;
const WARPS: usize = THREADS / 32;
/// Numbers of a head that one thread holds.
const ELEMENTS: usize = 8;
/// The widest head: a warp holds it.
const WIDEST: usize = 32 * ELEMENTS;
/// Tokens above which each has blocks enough to keep a GPU busy without cutting its sequence among several.
pub(crate) const MANY: usize = 512;

/// What new tokens attend to.
pub(crate) struct Reads<'a, M> {
    pub heads: Heads,
    /// `[tokens, query heads * dim]`.
    pub q: View<'a, M>,
    /// A layer's keys, `[slots, key_value heads * dim]`.
    pub keys: View<'a, M>,
    /// Likewise.
    pub values: View<'a, M>,
    /// Of each token.
    pub positions: View<'a, M>,
    /// Of each token, its row of `tables`.
    pub owners: View<'a, M>,
    /// `[rows, width]`.
    pub tables: View<'a, M>,
    pub width: usize,
}

/// f32 numbers of working space for so many tokens, none of which sees more than `width` blocks.
pub(crate) fn parts_len(tokens: usize, heads: Heads, width: usize) -> usize {
    if tokens > MANY { 0 } else { tokens * heads.query * chunks(width) * (heads.dim + 2) }
}

fn chunks(width: usize) -> usize {
    (width * LANES).div_ceil(CHUNK)
}

/// Writes `mixed: [tokens, query heads * dim]`; `parts` has at least [`parts_len`] numbers.
pub(crate) fn attend<M: Machine>(
    machine: &M,
    of: &Reads<'_, M::Memory>,
    mixed: &mut M::Memory,
    parts: &mut M::Memory,
) -> Result<()> {
    let Heads { query, key_value, dim } = of.heads;
    let (tokens, dtype) = (of.positions.len, of.q.dtype);
    if dim > WIDEST {
        bail!("decode: heads of width {dim}; no kernel takes more than {WIDEST}");
    }
    if of.q.len != tokens * query * dim || of.owners.len != tokens {
        bail!("decode: {} queries for {tokens} tokens", of.q.len);
    }
    let group = query / key_value;
    // Wide heads leave no shared memory for eight of them.
    let queries = group.next_power_of_two().min(if dim > 192 { 4 } else { 8 });
    let (lanes, chunks, split) = (dim.div_ceil(ELEMENTS).next_power_of_two(), chunks(of.width), tokens <= MANY);
    let grid = Grid {
        blocks: [tokens, key_value * group.div_ceil(queries), if split { chunks } else { 1 }],
        threads: THREADS,
        shared: (1 + WARPS) * queries * dim * size_of::<f32>(),
    };
    let suffix = suffix(dtype)?;
    let arguments = &mut [
        Argument::Read(of.q),
        Argument::Read(of.keys),
        Argument::Read(of.values),
        Argument::Read(of.positions),
        Argument::Read(of.owners),
        Argument::Read(of.tables),
        Argument::Write(&mut *mixed, 0),
        if split { Argument::Write(&mut *parts, 0) } else { Argument::Null },
        Argument::size(query)?,
        Argument::size(key_value)?,
        Argument::size(dim)?,
        Argument::size(of.width)?,
        Argument::size(chunks)?,
        Argument::size(lanes)?,
    ];
    let kernel = Kernel { file: "decode_attention", name: &format!("decode_attention_{suffix}_{queries}") };
    // SAFETY: the arguments of `decode_attention_*`; a block takes a token, up to `queries` queries of one key-value head, and
    // one chunk or all; the caller's tables name slots of the cache for every position up to the token's.
    unsafe { machine.launch(kernel, grid, arguments)? };
    if !split {
        return Ok(());
    }
    let len = parts_len(tokens, of.heads, of.width);
    let arguments = &mut [
        Argument::Read(View::whole(parts, candle_core::DType::F32, len)),
        Argument::Read(of.positions),
        Argument::Write(mixed, 0),
        Argument::size(query)?,
        Argument::size(dim)?,
        Argument::size(chunks)?,
    ];
    let kernel = Kernel { file: "decode_attention", name: &format!("decode_attention_combine_{suffix}") };
    let grid = Grid { blocks: [tokens, query, 1], threads: dim.next_multiple_of(32).min(THREADS), shared: 0 };
    // SAFETY: `decode_attention_combine_*(parts, positions, mixed, query, dim, chunks)`; a block takes a token's query head,
    // whose chunks up to its position the kernel above has written.
    unsafe { machine.launch(kernel, grid, arguments) }
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, result, shim};
    use super::*;
    use crate::ops::testing::variable;
    use candle_core::{CpuStorage, DType, Device, Tensor};

    /// Two sequences whose blocks lie about in the cache, and tokens of them: the next one, and a span.
    struct Case {
        heads: Heads,
        lengths: [usize; 2],
        tables: Vec<u32>,
        width: usize,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: Vec<u32>,
        owners: Vec<u32>,
    }

    impl Case {
        fn new(heads: Heads, lengths: [usize; 2], span: usize, dtype: DType) -> Self {
            let width = lengths.iter().max().unwrap().div_ceil(LANES);
            let count = 2 * width + 1;
            // Seven is coprime to an odd count that is no multiple of it; each block comes once.
            let step = if count.is_multiple_of(7) { 5 } else { 7 };
            let tables = (0..2 * width).map(|i| (i * step % count) as u32).collect();
            let span = span.min(lengths[1]);
            let positions = std::iter::once(lengths[0] - 1).chain(lengths[1] - span..lengths[1]);
            let positions: Vec<u32> = positions.map(|p| p as u32).collect();
            let owners = (0..=span).map(|i| u32::from(i > 0)).collect();
            let make = |rows: usize, heads: usize, dim: usize, seed| {
                variable(&[rows, heads * dim], seed).to_dtype(dtype).unwrap().detach()
            };
            let q = make(span + 1, heads.query, heads.dim, 1);
            let keys = make(count * LANES, heads.key_value, heads.dim, 2);
            let values = make(count * LANES, heads.key_value, heads.dim, 3);
            Self { heads, lengths, tables, width, q, keys, values, positions, owners }
        }

        /// By the formula, in f64, of the numbers as they are in their type.
        fn plain(&self) -> Vec<f32> {
            let Heads { query, key_value, dim } = self.heads;
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            let (q, keys, values) = (wide(&self.q), wide(&self.keys), wide(&self.values));
            let mut out = Vec::new();
            for (token, (&position, &owner)) in self.positions.iter().zip(&self.owners).enumerate() {
                let table = &self.tables[owner as usize * self.width..];
                let slot = |p: usize| table[p / LANES] as usize * LANES + p % LANES;
                for head in 0..query {
                    let (at, kv) = (head * dim, head / (query / key_value) * dim);
                    let score = |p| -> f64 {
                        let dot: f64 = (0..dim).map(|d| q[token][at + d] * keys[slot(p)][kv + d]).sum();
                        dot / (dim as f64).sqrt()
                    };
                    let weights: Vec<f64> = (0..=position as usize).map(|p| score(p).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mix =
                        |d| weights.iter().enumerate().map(|(p, w)| w / total * values[slot(p)][kv + d]).sum::<f64>();
                    out.extend((0..dim).map(|d| mix(d) as f32));
                }
            }
            out
        }

        /// The kernels; the tokens are repeated until there are so many.
        fn fused(&self, tokens: usize) -> Option<Vec<f32>> {
            let shim = shim()?;
            let repeat = |values: &[u32]| -> Vec<u32> { values.iter().copied().cycle().take(tokens).collect() };
            let rows = repeat(&(0..self.positions.len() as u32).collect::<Vec<_>>());
            let q = self.q.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
            let [q, keys, values] = [&q, &self.keys, &self.values].map(Copied::new);
            let numbers = [repeat(&self.positions), repeat(&self.owners), self.tables.clone()].map(CpuStorage::U32);
            let [positions, owners, tables] = std::array::from_fn(|i| {
                View::whole(&numbers[i], DType::U32, if i < 2 { tokens } else { self.tables.len() })
            });
            let of = Reads {
                heads: self.heads,
                q: q.view(),
                keys: keys.view(),
                values: values.view(),
                positions,
                owners,
                tables,
                width: self.width,
            };
            let count = tokens * self.heads.query * self.heads.dim;
            let mut mixed = shim.allocate(self.q.dtype(), count).unwrap();
            let mut parts = shim.allocate(DType::F32, parts_len(tokens, self.heads, self.width)).unwrap();
            attend(&shim, &of, &mut mixed, &mut parts).unwrap();
            Some(result(&mixed, &[count]).to_vec1::<f32>().unwrap())
        }
    }

    #[test]
    fn is_the_formula_for_every_shape_of_heads() {
        for (query, key_value, dim, lengths, span) in [
            (1, 1, 4, [1, 1], 1),
            (2, 1, 16, [16, 33], 3),
            (4, 2, 24, [17, 257], 2),
            (6, 1, 10, [300, 5], 5),
            (12, 2, 64, [520, 40], 2),
            (9, 1, 32, [100, 256], 1),
            (3, 3, 128, [31, 2], 2),
            (5, 1, 256, [40, 300], 1),
        ] {
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 1e-2)] {
                let case = Case::new(Heads { query, key_value, dim }, lengths, span, dtype);
                let Some(got) = case.fused(case.positions.len()) else { return };
                for (i, (got, want)) in got.iter().zip(case.plain()).enumerate() {
                    let close = (got - want).abs() < tolerance;
                    assert!(close, "{dtype:?} {:?} {:?}: {got}, not {want} at {i}", case.heads, case.lengths);
                }
            }
        }
    }

    #[test]
    fn chunks_side_by_side_and_one_after_the_other_give_the_same_bits() {
        let case = Case::new(Heads { query: 2, key_value: 1, dim: 8 }, [600, 270], 2, DType::F32);
        let (Some(split), Some(whole)) = (case.fused(3), case.fused(MANY + 1)) else { return };
        assert_eq!(split, whole[..split.len()]);
    }
}
