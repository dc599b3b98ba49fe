//! Blocks of prompts that were computed already, by the tokens that they and all before them hold.

use model::cache::{Block, LANES, Pool, Sequence, Store};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Full blocks at the beginning of sequences. A block's name is its predecessor's with its own tokens, so equal names
/// mean equal beginnings.
pub struct Prefixes<S: Store> {
    known: HashMap<Name, Known<S>>,
    next: u64,
}

impl<S: Store> Default for Prefixes<S> {
    fn default() -> Self {
        Self { known: HashMap::new(), next: START }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Name {
    before: u64,
    tokens: [u32; LANES],
}

struct Known<S: Store> {
    id: u64,
    block: Block<S>,
}

/// The predecessor of a first block.
const START: u64 = 0;

impl<S: Store> Prefixes<S> {
    /// The blocks of the longest known beginning of `tokens`, without the last token: what follows it is still to be
    /// computed.
    pub fn find(&self, tokens: &[u32]) -> Vec<Block<S>> {
        let mut before = START;
        let mut blocks = Vec::new();
        let (full, _) = tokens[..tokens.len().saturating_sub(1)].as_chunks();
        for &tokens in full {
            let Some(known) = self.known.get(&Name { before, tokens }) else { break };
            before = known.id;
            blocks.push(known.block.clone());
        }
        blocks
    }

    /// Remembers the full blocks of a sequence that begins with `tokens`.
    pub fn insert(&mut self, tokens: &[u32], sequence: &Sequence<S::Payload>) {
        let mut before = START;
        let (full, _) = tokens[..tokens.len().min(sequence.len())].as_chunks();
        for (&tokens, block) in full.iter().zip(sequence.blocks()) {
            before = match self.known.entry(Name { before, tokens }) {
                Entry::Occupied(entry) => entry.get().id,
                Entry::Vacant(entry) => {
                    self.next += 1;
                    entry.insert(Known { id: self.next, block: block.clone() }).id
                }
            };
        }
    }

    /// Returns the blocks that no sequence holds to the pool; says whether there were any.
    pub fn evict(&mut self, pool: &mut Pool<S>) -> bool {
        let before = pool.available();
        let held = std::mem::take(&mut self.known);
        for (name, mut known) in held {
            if std::sync::Arc::get_mut(&mut known.block).is_some() {
                pool.give(known.block);
            } else {
                self.known.insert(name, known);
            }
        }
        pool.available() > before
    }

    /// Forgets everything.
    pub fn clear(&mut self, pool: &mut Pool<S>) {
        std::mem::take(&mut self.known).into_values().for_each(|known| pool.give(known.block));
    }
}
