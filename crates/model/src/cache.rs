//! The key-value cache: owned by the caller, one slot a sequence, allocated once.
//!
//! Keys lie by blocks of [`LANES`] positions, transposed (`[block, dim, LANES]`), so that the scores of sixteen positions
//! are one multiply-add a dimension and nothing is summed across a register. Values lie by position.

use crate::config::Config;
pub use crate::kernels::decode_attention::LANES;
use crate::kernels::decode_attention::Seen;
use crate::ops::Heads;

/// Keys and values of a fixed number of sequences.
pub struct KvCache {
    slots: Vec<Slot>,
}

/// Keys and values of one sequence, all layers.
pub struct Slot {
    heads: Heads,
    capacity: usize,
    len: usize,
    /// `[layers, key_value heads, capacity / LANES, dim, LANES]`.
    keys: Vec<f32>,
    /// `[layers, key_value heads, capacity, dim]`.
    values: Vec<f32>,
}

impl KvCache {
    /// `slots` empty sequences of up to `capacity` tokens each.
    pub fn new(config: &Config, slots: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(LANES);
        let size = config.num_layers * config.heads.key_value * config.heads.dim * capacity;
        let slot = || Slot { heads: config.heads, capacity, len: 0, keys: vec![0.0; size], values: vec![0.0; size] };
        Self { slots: (0..slots).map(|_| slot()).collect() }
    }

    /// Bytes that a cache of this size takes.
    pub fn bytes(config: &Config, slots: usize, capacity: usize) -> usize {
        slots * capacity.next_multiple_of(LANES) * config.cache_per_token() * size_of::<f32>()
    }

    /// Whether it has so many slots, of so many tokens each.
    pub fn fits(&self, slots: usize, capacity: usize) -> bool {
        self.slots.len() >= slots && self.slots.iter().all(|slot| slot.capacity >= capacity)
    }

    /// The sequences, each to be borrowed by its row.
    pub fn slots_mut(&mut self) -> &mut [Slot] {
        &mut self.slots
    }
}

impl Slot {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the sequence.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The part of one key-value head of one layer.
    #[inline(always)]
    pub(crate) fn head(&mut self, layer: usize, head: usize) -> HeadCache<'_> {
        let size = self.capacity * self.heads.dim;
        let at = (layer * self.heads.key_value + head) * size;
        HeadCache { dim: self.heads.dim, keys: &mut self.keys[at..at + size], values: &mut self.values[at..at + size] }
    }
}

/// One head's keys and values.
pub(crate) struct HeadCache<'a> {
    dim: usize,
    keys: &'a mut [f32],
    values: &'a mut [f32],
}

impl HeadCache<'_> {
    /// Stores the key and value `[dim]` of a position.
    #[inline(always)]
    pub fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let block = &mut self.keys[position / LANES * self.dim * LANES..][..self.dim * LANES];
        for (lanes, &k) in block.chunks_exact_mut(LANES).zip(key) {
            lanes[position % LANES] = k;
        }
        self.values[position * self.dim..][..self.dim].copy_from_slice(value);
    }

    /// The keys and values of the first `len` positions, for [`super::kernels::decode_attention`].
    #[inline(always)]
    pub fn seen(&self, len: usize) -> Seen<'_> {
        Seen { dim: self.dim, len, keys: self.keys, values: self.values }
    }
}
