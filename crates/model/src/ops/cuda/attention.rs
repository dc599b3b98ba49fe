//! Launches of `attention_tiles.cu` (bf16, heads of up to 128, on the tensor cores) and `attention.cu` (everything else).

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use crate::ops::Heads;
use candle_core::{DType, Result, bail};
use std::cell::RefCell;
use std::sync::Arc;

/// Queries or keys of a block on the tensor cores.
const TILE: usize = 64;
/// Tokens of a block without them: one a warp.
const WARPS: usize = 4;
/// The widest head without tensor cores.
const WIDEST: usize = 256;
/// Padded widths of heads that there are kernels for.
const WIDTHS: [usize; 3] = [32, 64, 128];

/// What the kernels know of the sequences.
pub(crate) struct Spans {
    /// `[tiles, 3]`: first token and end of the sequence, first token of the tile. Tiles of queries that see the most keys
    /// come first, so that no long one is left over at the end.
    queries: Arc<[u32]>,
    /// The same, tiles of keys that are seen by the most queries first.
    keys: Arc<[u32]>,
    /// `[tokens, 2]`: first token and end of each token's sequence.
    bounds: Arc<[u32]>,
    tokens: usize,
}

impl Spans {
    /// Of sequences `offsets[i]..offsets[i + 1]`.
    pub fn new(offsets: &[usize]) -> Self {
        let spans = || offsets.windows(2).map(|w| [w[0] as u32, w[1] as u32]).filter(|[start, end]| start < end);
        let mut tiles: Vec<[u32; 3]> =
            spans().flat_map(|[start, end]| (start..end).step_by(TILE).map(move |first| [start, end, first])).collect();
        tiles.sort_by_key(|[start, _, first]| std::cmp::Reverse(first - start));
        let queries = tiles.as_flattened().into();
        tiles.sort_by_key(|[_, end, first]| std::cmp::Reverse(end - first));
        let keys = tiles.as_flattened().into();
        let bounds =
            spans().flat_map(|span| std::iter::repeat_n(span, (span[1] - span[0]) as usize).flatten()).collect();
        Self { queries, keys, bounds, tokens: offsets.last().copied().unwrap_or(0) }
    }

    /// [`Self::new`], the last of which is kept: the layers of a model have one batch's.
    pub fn of(offsets: &Arc<[usize]>) -> Arc<Self> {
        thread_local! {
            static LAST: RefCell<Last> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| match last {
            Some((of, spans)) if Arc::ptr_eq(of, offsets) => spans.clone(),
            _ => {
                let spans = Arc::new(Self::new(offsets));
                *last = Some((offsets.clone(), spans.clone()));
                spans
            }
        })
    }
}

/// Offsets, and what was made of them.
type Last = Option<(Arc<[usize]>, Arc<Spans>)>;

/// Attention of some heads over some sequences.
pub(crate) struct Attention<'a, D: Machine> {
    pub machine: &'a D,
    /// `[tokens, query * dim]`.
    pub q: View<'a, D::Memory>,
    /// `[tokens, key_value * dim]`.
    pub k: View<'a, D::Memory>,
    /// As `k`.
    pub v: View<'a, D::Memory>,
    pub heads: Heads,
    pub spans: &'a Spans,
}

/// The padded width of heads that tensor cores take, if they do.
fn padded(dtype: DType, dim: usize) -> Option<usize> {
    let fits = dtype == DType::BF16 && dim.is_multiple_of(8);
    fits.then(|| WIDTHS.into_iter().find(|&width| dim <= width)).flatten()
}

/// Bytes of `count` tiles of rows that are eight elements further apart than they are wide.
fn tiles(count: usize, width: usize) -> usize {
    count * TILE * (width + 8) * DType::BF16.size_in_bytes()
}

impl<D: Machine> Attention<'_, D> {
    fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// The padded width, where tensor cores are used: rows have to begin at multiples of sixteen bytes, too.
    fn padded(&self, others: &[View<'_, D::Memory>]) -> Option<usize> {
        let aligned = |view: &View<'_, D::Memory>| view.offset.is_multiple_of(8);
        let all = [self.q, self.k, self.v].iter().all(aligned) && others.iter().all(aligned);
        padded(self.q.dtype, self.heads.dim).filter(|_| all)
    }

    fn check(&self) -> Result<()> {
        let Heads { query, key_value, dim } = self.heads;
        let tokens = self.spans.tokens;
        let fits =
            self.q.len == tokens * query * dim && [self.k, self.v].iter().all(|x| x.len == tokens * key_value * dim);
        if !fits || key_value == 0 || !query.is_multiple_of(key_value) || dim > WIDEST {
            bail!("attention: {} queries and {} keys of {tokens} tokens for {:?}", self.q.len, self.k.len, self.heads);
        }
        if self.k.dtype != self.q.dtype || self.v.dtype != self.q.dtype {
            bail!("attention: queries of {:?}, keys of {:?}", self.q.dtype, self.k.dtype);
        }
        Ok(())
    }

    /// The sizes that end each kernel's arguments; those without tensor cores know the tokens, too.
    fn sizes<'b>(&self, tokens: bool) -> Result<Vec<Argument<'b, D::Memory>>> {
        let sizes = [self.heads.query, self.group(), self.heads.dim];
        let tokens = tokens.then_some(self.spans.tokens);
        tokens.into_iter().chain(sizes).map(Argument::size).collect()
    }

    fn launch<'b>(&self, name: &str, grid: Grid, mut arguments: Vec<Argument<'b, D::Memory>>) -> Result<()> {
        let tiled = name.starts_with("attention_tiles");
        arguments.extend(self.sizes(!tiled)?);
        let file = if tiled { "attention_tiles" } else { "attention" };
        // SAFETY: every caller gives the kernel's pointers in its order, of shapes that `check` has held against the spans;
        // blocks are those of the spans' tiles, or of their tokens.
        unsafe { self.machine.launch(Kernel { file, name }, grid, &mut arguments) }
    }

    /// A grid over tokens, one a warp.
    fn by_token(&self, heads: usize) -> Grid {
        Grid { blocks: [self.spans.tokens.div_ceil(WARPS), heads, 1], threads: WARPS * 32, shared: 0 }
    }

    /// A grid over tiles with `count` of them in shared memory.
    fn by_tile(&self, heads: usize, count: usize, width: usize) -> Grid {
        Grid { blocks: [self.spans.queries.len() / 3, heads, 1], threads: 128, shared: tiles(count, width) }
    }

    /// The output `[tokens, query * dim]`, and for the backward the logarithm of each query's sum of exponentials,
    /// `[tokens, query]` in f32.
    pub fn forward(&self) -> Result<(D::Memory, D::Memory)> {
        self.check()?;
        let padded = self.padded(&[]);
        let mut out = self.machine.allocate(self.q.dtype, self.q.len)?;
        let mut lse = self.machine.allocate(DType::F32, self.spans.tokens * self.heads.query)?;
        let numbers = if padded.is_some() { &self.spans.queries } else { &self.spans.bounds };
        let memory = self.machine.resident_u32(numbers)?;
        let (name, grid) = match padded {
            Some(width) => (format!("attention_tiles_forward_{width}"), self.by_tile(self.heads.query, 3, width)),
            None => (format!("attention_forward_{}", suffix(self.q.dtype)?), self.by_token(self.heads.query)),
        };
        let arguments = vec![
            Argument::Read(self.q),
            Argument::Read(self.k),
            Argument::Read(self.v),
            Argument::Read(View::whole(&*memory, DType::U32, numbers.len())),
            Argument::Write(&mut out, 0),
            Argument::Write(&mut lse, 0),
        ];
        self.launch(&name, grid, arguments)?;
        Ok((out, lse))
    }

    /// `rowsum(dO O)` of each query and head.
    fn deltas(&self, out: View<'_, D::Memory>, g: View<'_, D::Memory>) -> Result<D::Memory> {
        let mut delta = self.machine.allocate(DType::F32, self.spans.tokens * self.heads.query)?;
        let arguments = vec![Argument::Read(out), Argument::Read(g), Argument::Write(&mut delta, 0)];
        let name = format!("attention_deltas_{}", suffix(g.dtype)?);
        self.launch(&name, self.by_token(self.heads.query), arguments)?;
        Ok(delta)
    }

    /// The gradients of queries, keys and values for the gradient `g` of the output that [`Self::forward`] gave.
    pub fn backward(
        &self,
        out: View<'_, D::Memory>,
        lse: View<'_, D::Memory>,
        g: View<'_, D::Memory>,
    ) -> Result<[D::Memory; 3]> {
        self.check()?;
        if out.len != self.q.len || g.len != self.q.len || g.dtype != self.q.dtype || out.dtype != self.q.dtype {
            bail!("attention: a gradient of {} elements of {:?} for {}", g.len, g.dtype, self.q.len);
        }
        let padded = self.padded(&[g]);
        let delta = self.deltas(out, g)?;
        let delta = View::whole(&delta, DType::F32, lse.len);
        let allocate = |like: View<'_, D::Memory>| self.machine.allocate(like.dtype, like.len);
        let (mut dq, mut dk, mut dv) = (allocate(self.q)?, allocate(self.k)?, allocate(self.v)?);
        let read = |numbers| vec![self.q, self.k, self.v, g, numbers, lse, delta].into_iter().map(Argument::Read);
        let (for_queries, for_keys) = match padded {
            Some(_) => (&self.spans.queries, &self.spans.keys),
            None => (&self.spans.bounds, &self.spans.bounds),
        };
        let (query_memory, key_memory) =
            (self.machine.resident_u32(for_queries)?, self.machine.resident_u32(for_keys)?);
        let (kind, ending) = match padded {
            Some(width) => ("attention_tiles", width.to_string()),
            None => ("attention", suffix(self.q.dtype)?.to_string()),
        };
        let grid = |heads| padded.map_or_else(|| self.by_token(heads), |width| self.by_tile(heads, 4, width));
        let numbers = View::whole(&*query_memory, DType::U32, for_queries.len());
        let arguments = read(numbers).chain([Argument::Write(&mut dq, 0)]).collect();
        self.launch(&format!("{kind}_backward_query_{ending}"), grid(self.heads.query), arguments)?;
        let numbers = View::whole(&*key_memory, DType::U32, for_keys.len());
        let arguments = read(numbers).chain([Argument::Write(&mut dk, 0), Argument::Write(&mut dv, 0)]).collect();
        self.launch(&format!("{kind}_backward_key_{ending}"), grid(self.heads.key_value), arguments)?;
        Ok([dq, dk, dv])
    }
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, close, gradients, inputs, shim};
    use super::*;
    use crate::ops::attention::composed;

    fn check(dtype: DType, heads: Heads, offsets: &[usize], tolerance: f64) {
        let Some(shim) = shim() else { return };
        let tokens = offsets[offsets.len() - 1];
        let (wide, narrow) = ([tokens, heads.query * heads.dim], [tokens, heads.key_value * heads.dim]);
        let x = inputs(&[&wide, &narrow, &narrow, &wide], dtype);
        let (y, expected) = gradients(&x[..3], &x[3], |x| composed(&x[0], &x[1], &x[2], heads, offsets));
        let copies: Vec<Copied> = x.iter().map(Copied::new).collect();
        let [q, k, v, g] = [0, 1, 2, 3].map(|i| copies[i].view());
        let spans = Spans::of(&offsets.into());
        let attention = Attention { machine: &shim, q, k, v, heads, spans: &spans };
        let (out, lse) = attention.forward().unwrap();
        close(&out, &y, tolerance);
        let (out, lse) = (View::whole(&out, dtype, q.len), View::whole(&lse, DType::F32, tokens * heads.query));
        for (found, expected) in attention.backward(out, lse, g).unwrap().iter().zip(&expected) {
            close(found, expected, tolerance);
        }
    }

    #[test]
    fn equals_its_twin_without_tensor_cores() {
        for (query, key_value, dim) in [(1, 1, 8), (4, 2, 33), (7, 1, 16), (2, 2, 130)] {
            let heads = Heads { query, key_value, dim };
            check(DType::F32, heads, &[0, 1, 36, 36, 103], 2e-5);
        }
        check(DType::BF16, Heads { query: 2, key_value: 1, dim: 12 }, &[0, 5, 50], 2e-2);
    }

    #[test]
    fn equals_its_twin_on_tensor_cores() {
        for (query, key_value, dim) in [(1, 1, 32), (3, 1, 64), (2, 2, 40), (2, 1, 128), (4, 2, 16)] {
            let heads = Heads { query, key_value, dim };
            assert!(padded(DType::BF16, dim).is_some());
            check(DType::BF16, heads, &[0, 1, 65, 65, 194], 2e-2);
        }
    }

    #[test]
    fn tiles_cover_every_token_once_with_the_longest_first() {
        let spans = Spans::new(&[0, 1, 65, 65, 194]);
        let tiles: Vec<&[u32]> = spans.queries.chunks(3).collect();
        assert_eq!(tiles, [&[65, 194, 193], &[65, 194, 129], &[0, 1, 0], &[1, 65, 1], &[65, 194, 65]]);
        let tiles: Vec<&[u32]> = spans.keys.chunks(3).collect();
        assert_eq!(tiles[..2], [&[65, 194, 65], &[65, 194, 129]]);
        assert_eq!(spans.bounds[..6], [0, 1, 1, 65, 1, 65]);
        assert_eq!(spans.bounds.len(), 2 * 194);
    }
}
