//! The key-value cache: blocks of [`LANES`] positions from a pool with a limit, and sequences that are lists of blocks.
//!
//! Who holds which block is decided here, for every device alike: blocks are counted references, a full block never changes
//! again, so sequences that begin alike may share it, and only blocks that one sequence has for itself are written. What a
//! block *is* is the [`Store`]'s: on the CPU ([`Host`]) the numbers themselves, on a device a place in its memory
//! ([`crate::decode_device`]).
//!
//! On the CPU a block holds its positions for all layers and heads. Within a head, keys are transposed (`[dim, LANES]`), so
//! that the scores of sixteen positions are one multiply-add a dimension and nothing is summed across a register; values
//! lie by position.

use crate::config::Config;
pub use crate::kernels::decode_attention::LANES;
use crate::kernels::decode_attention::Seen;
use crate::ops::Heads;
use std::sync::Arc;

/// Where blocks are kept.
pub trait Store {
    /// What a decoder finds in a block.
    type Payload: ?Sized;

    /// A block that nobody has yet; `None` when there is none left.
    fn make(&mut self) -> Option<Arc<Self::Payload>>;

    /// Takes back a block that nobody holds any more.
    fn unmake(&mut self, block: Arc<Self::Payload>);

    /// Makes the block `to`, which nobody else holds, a copy of `from`.
    fn copy(&mut self, from: &Self::Payload, to: &mut Self::Payload);
}

/// A counted reference to a block of the store `S`.
pub type Block<S> = Arc<<S as Store>::Payload>;

/// Blocks needed for so many tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(LANES)
}

/// Blocks in this machine's memory: `[layers, key_value heads, 2, LANES * dim]` each, keys and values in f32.
pub struct Host {
    block_len: usize,
}

impl Store for Host {
    type Payload = [f32];

    fn make(&mut self) -> Option<Arc<[f32]>> {
        Some(vec![0.0; self.block_len].into())
    }

    fn unmake(&mut self, block: Arc<[f32]>) {
        drop(block);
    }

    fn copy(&mut self, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Host {
    /// Blocks for a model of this shape.
    pub fn new(config: &Config) -> Self {
        Self { block_len: LANES * config.cache_per_token() }
    }

    /// Bytes of one block.
    pub fn block_bytes(config: &Config) -> usize {
        LANES * config.cache_per_token() * size_of::<f32>()
    }
}

/// The blocks of a cache: made when they are first needed, never more than the limit, and used again.
pub struct Pool<S: Store = Host> {
    store: S,
    free: Vec<Block<S>>,
    made: usize,
    limit: usize,
}

/// One sequence's keys and values, in blocks of payload `P`. They return to the pool through [`Pool::release`] alone.
pub struct Sequence<P: ?Sized = [f32]> {
    blocks: Vec<Arc<P>>,
    len: usize,
}

impl<P: ?Sized> Default for Sequence<P> {
    fn default() -> Self {
        Self { blocks: Vec::new(), len: 0 }
    }
}

impl<S: Store> Pool<S> {
    /// A pool of at most `limit` blocks of a store.
    pub fn new(store: S, limit: usize) -> Self {
        Self { store, free: Vec::new(), made: 0, limit }
    }

    /// Where the blocks are.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Where the blocks are, to write to them.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Blocks that can still be taken.
    pub fn available(&self) -> usize {
        self.free.len() + self.limit.saturating_sub(self.made)
    }

    /// Gives the sequence room for so many more tokens; says whether there were enough blocks, and takes none if not.
    pub fn reserve(&mut self, sequence: &mut Sequence<S::Payload>, tokens: usize) -> bool {
        let missing = blocks_for(sequence.len + tokens).saturating_sub(sequence.blocks.len());
        if missing > self.available() {
            return false;
        }
        sequence.blocks.extend((0..missing).filter_map(|_| self.take()));
        true
    }

    /// A sequence that holds the same tokens: full blocks are shared, the last one is copied if it is not full. `None`
    /// when there is no block for it.
    pub fn fork(&mut self, sequence: &Sequence<S::Payload>) -> Option<Sequence<S::Payload>> {
        let full = sequence.len / LANES;
        let mut blocks = sequence.blocks[..full].to_vec();
        if !sequence.len.is_multiple_of(LANES) {
            let mut copy = self.take()?;
            self.store.copy(&sequence.blocks[full], Arc::get_mut(&mut copy)?);
            blocks.push(copy);
        }
        Some(Sequence { blocks, len: sequence.len })
    }

    /// Takes a sequence's blocks back, those that no other holds.
    pub fn release(&mut self, sequence: Sequence<S::Payload>) {
        sequence.blocks.into_iter().for_each(|block| self.give(block));
    }

    /// Takes a block back, unless a sequence still holds it.
    pub fn give(&mut self, mut block: Block<S>) {
        if Arc::get_mut(&mut block).is_some() {
            self.free.push(block);
        }
    }

    fn take(&mut self) -> Option<Block<S>> {
        if let Some(block) = self.free.pop() {
            return Some(block);
        }
        let block = if self.made < self.limit { self.store.make()? } else { return None };
        self.made += 1;
        Some(block)
    }

    /// Changes the limit; free blocks beyond it go back to the store.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        while self.made > limit
            && let Some(block) = self.free.pop()
        {
            self.store.unmake(block);
            self.made -= 1;
        }
    }
}

impl<P: ?Sized> Sequence<P> {
    /// A sequence that begins with these full blocks of another.
    pub fn beginning(blocks: Vec<Arc<P>>) -> Self {
        Self { len: blocks.len() * LANES, blocks }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it has room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * LANES
    }

    /// The blocks, those beyond its length included.
    pub fn blocks(&self) -> &[Arc<P>] {
        &self.blocks
    }

    /// Notes that so many more tokens were written behind those that are held.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The block of a position, to write to, if no other sequence holds it.
    #[inline(always)]
    pub fn own_block(&mut self, position: usize) -> Option<&mut P> {
        Arc::get_mut(self.blocks.get_mut(position / LANES)?)
    }
}

impl Sequence {
    /// Stores the keys and values `[key_value heads, dim]` of a position of one layer; `None` when it has no block
    /// there for itself.
    #[inline(always)]
    pub(crate) fn write(&mut self, part: Part, position: usize, keys: &[f32], values: &[f32]) -> Option<()> {
        let Heads { key_value, dim, .. } = part.heads;
        let block = self.own_block(position)?;
        let lane = position % LANES;
        for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate().take(key_value) {
            let at = part.head(head);
            let (transposed, rows) = block[at..at + 2 * LANES * dim].split_at_mut(LANES * dim);
            for (lanes, &k) in transposed.chunks_exact_mut(LANES).zip(key) {
                lanes[lane] = k;
            }
            rows[lane * dim..][..dim].copy_from_slice(value);
        }
        Some(())
    }

    /// The first `len` positions as one head of a layer sees them.
    #[inline(always)]
    pub(crate) fn seen(&self, part: Part, head: usize, len: usize) -> Seen<'_> {
        Seen { dim: part.heads.dim, len, blocks: &self.blocks, at: part.head(head) }
    }
}

/// One layer's part of every block.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub heads: Heads,
    pub layer: usize,
}

impl Part {
    /// Where a head's keys start.
    #[inline(always)]
    fn head(self, head: usize) -> usize {
        (self.layer * self.heads.key_value + head) * 2 * LANES * self.heads.dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn pool(limit: usize) -> Pool {
        let text = r#"{"model_type": "qwen2", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#;
        let config = Config::parse(text, Path::new("config.json")).unwrap();
        assert_eq!(Host::block_bytes(&config), LANES * 2 * 2 * 4 * 4);
        Pool::new(Host::new(&config), limit)
    }

    #[test]
    fn takes_what_is_there_or_nothing() {
        let mut pool = pool(3);
        let (mut a, mut b) = (Sequence::default(), Sequence::default());
        assert!(pool.reserve(&mut a, LANES + 1));
        assert!(!pool.reserve(&mut b, LANES + 1));
        assert_eq!((a.capacity(), b.capacity(), pool.available()), (2 * LANES, 0, 1));
        pool.release(a);
        assert!(pool.reserve(&mut b, LANES + 1));
        assert_eq!(pool.available(), 1);
        pool.release(b);
        pool.set_limit(1);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_fork_shares_full_blocks_and_copies_the_last() {
        let mut pool = pool(4);
        let mut a = Sequence::default();
        assert!(pool.reserve(&mut a, LANES + 3));
        let part = Part { heads: Heads { query: 2, key_value: 1, dim: 4 }, layer: 1 };
        for position in 0..LANES + 3 {
            a.write(part, position, &[position as f32; 4], &[0.5; 4]).unwrap();
        }
        a.advance(LANES + 3);
        let mut b = pool.fork(&a).unwrap();
        assert!(Arc::ptr_eq(&a.blocks[0], &b.blocks[0]) && !Arc::ptr_eq(&a.blocks[1], &b.blocks[1]));
        assert_eq!(a.blocks, b.blocks);
        assert!(a.write(part, 0, &[9.0; 4], &[9.0; 4]).is_none(), "a shared block was written");
        assert!(b.write(part, LANES + 3, &[9.0; 4], &[9.0; 4]).is_some());
        assert_ne!(a.blocks, b.blocks);
        pool.release(a);
        assert_eq!(pool.available(), 2, "the other still holds the shared block");
        pool.release(b);
        assert_eq!(pool.available(), 4);
    }
}
