//! A step as a device needs it: every token's place, and every row's blocks, as flat lists of numbers.

use crate::cache::LANES;
use crate::config::Config;
use crate::decode::Span;
use crate::error::{Error, Result};
use std::ops::Range;

/// One step, made from its spans. The lists keep their memory from step to step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The token that each row of the forward pass feeds, `[tokens]`.
    pub tokens: Vec<u32>,
    /// Its position in its sequence.
    pub positions: Vec<u32>,
    /// Where its keys and values go: `block * LANES + lane`.
    pub slots: Vec<u32>,
    /// Which span it is of: its row of `tables`.
    pub owners: Vec<u32>,
    /// The blocks of each span from its first position on, `[spans, width]`; what is beyond its length is zero.
    pub tables: Vec<u32>,
    /// Blocks that a row of `tables` has room for.
    pub width: usize,
    /// The tokens of each span, as rows of the forward pass.
    pub spans: Vec<Range<usize>>,
    /// The row of the forward pass behind which logits are wanted, one a row of logits.
    pub wanted: Vec<u32>,
    /// The row of logits of each span that wants one.
    pub logits_of: Vec<Option<usize>>,
}

impl Plan {
    /// Lays the spans out. A table has room for at least `width` blocks.
    ///
    /// # Errors
    /// When a token, a position or a block is none that can be fed.
    pub(crate) fn fill(&mut self, spans: &mut [Span<u32>], config: &Config, width: usize) -> Result<()> {
        self.clear();
        let blocks = |span: &Span<u32>| (span.sequence.len() + span.tokens.len()).div_ceil(LANES);
        self.width = spans.iter().map(blocks).max().unwrap_or(0).max(width);
        for (owner, span) in spans.iter_mut().enumerate() {
            span.check(config)?;
            let (before, count, first) = (span.sequence.len(), span.tokens.len(), self.tokens.len());
            for position in before..before + count {
                let block = span.sequence.own_block(position);
                let block = *block.ok_or_else(|| Error::Unsupported(SHARED.into()))?;
                self.slots.push(block * LANES as u32 + (position % LANES) as u32);
                self.positions.push(position as u32);
                self.owners.push(owner as u32);
            }
            self.tokens.extend_from_slice(&span.tokens);
            self.spans.push(first..first + count);
            let used = blocks(span);
            self.tables.extend(span.sequence.blocks()[..used].iter().map(|block| **block));
            self.tables.resize((owner + 1) * self.width, 0);
            self.logits_of.push(span.logits.then_some(self.wanted.len()));
            if span.logits {
                self.wanted.push((first + count - 1) as u32);
            }
        }
        Ok(())
    }

    fn clear(&mut self) {
        let Self { tokens, positions, slots, owners, tables, wanted, .. } = self;
        [tokens, positions, slots, owners, tables, wanted].into_iter().for_each(Vec::clear);
        self.spans.clear();
        self.logits_of.clear();
    }

    /// Positions that the sequence of span `i` holds with its new tokens.
    pub fn len_of(&self, i: usize) -> usize {
        self.positions[self.spans[i].end - 1] as usize + 1
    }

    /// The slots of the first `len` positions of span `i`.
    pub fn slots_of(&self, i: usize, len: usize) -> impl Iterator<Item = u32> + '_ {
        let table = &self.tables[i * self.width..];
        (0..len).map(move |t| table[t / LANES] * LANES as u32 + (t % LANES) as u32)
    }

    /// Whether every span feeds one token and wants logits: the step that rollouts repeat.
    #[cfg(any(feature = "cuda", test))]
    pub fn only_decodes(&self) -> bool {
        self.wanted.len() == self.tokens.len()
    }
}

const SHARED: &str = "a row wrote to a block that others share";

/// Adds what the spans feed to their sequences.
pub(crate) fn advance(spans: &mut [Span<u32>]) {
    spans.iter_mut().for_each(|span| span.sequence.advance(span.tokens.len()));
}

#[cfg(test)]
mod tests {
    use super::super::store::Blocks;
    use super::*;
    use crate::cache::{Pool, Sequence};
    use std::path::Path;

    fn config() -> Config {
        let text = r#"{"model_type": "qwen2", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"#;
        Config::parse(text, Path::new("config.json")).unwrap()
    }

    fn feed<'a>(sequence: &'a mut Sequence<u32>, tokens: &'a [u32], logits: bool) -> Span<'a, u32> {
        Span { tokens: tokens.into(), sequence, logits }
    }

    #[test]
    fn tokens_find_their_places_across_blocks_and_forks() {
        let config = config();
        let mut pool =
            Pool::new(Blocks::new(&config, candle_core::DType::F32, &candle_core::Device::Cpu, 6).unwrap(), 6);
        let (mut a, mut plan) = (Sequence::default(), Plan::default());
        assert!(pool.reserve(&mut a, 18));
        let tokens: Vec<u32> = (0..18).collect();
        let mut spans = [feed(&mut a, &tokens, true)];
        plan.fill(&mut spans, &config, 0).unwrap();
        assert!(!plan.only_decodes());
        assert_eq!((&plan.slots[14..18], plan.width), (&[14, 15, 16, 17][..], 2));
        assert_eq!((plan.tables.as_slice(), plan.wanted.as_slice()), (&[0, 1][..], &[17][..]));
        advance(&mut spans);
        let mut b = pool.fork(&a).unwrap();
        assert_eq!(pool.store_mut().take_copies(), [[(1, 2)]]);
        assert!(pool.reserve(&mut b, 15));
        let mut spans = [feed(&mut a, &[7], true), feed(&mut b, &tokens[..15], false)];
        plan.fill(&mut spans, &config, 4).unwrap();
        assert_eq!(plan.tables, [0, 1, 0, 0, 0, 2, 3, 0]);
        assert_eq!((plan.positions[0], plan.slots[0], plan.len_of(0)), (18, 18, 19));
        assert_eq!((plan.slots[14], plan.slots[15], plan.owners[15]), (2 * 16 + 15, 3 * 16, 1));
        assert_eq!((plan.logits_of.as_slice(), plan.wanted.as_slice()), (&[Some(0), None][..], &[0][..]));
        assert_eq!(plan.slots_of(1, 18).collect::<Vec<_>>()[15..], [15, 32, 33]);
    }

    #[test]
    fn a_shared_block_and_a_strange_token_are_refused() {
        let config = config();
        let mut pool =
            Pool::new(Blocks::new(&config, candle_core::DType::F32, &candle_core::Device::Cpu, 2).unwrap(), 2);
        let mut a = Sequence::default();
        assert!(pool.reserve(&mut a, 16));
        let _held = a.blocks()[0].clone();
        let mut plan = Plan::default();
        let message = plan.fill(&mut [feed(&mut a, &[1], true)], &config, 0).unwrap_err().to_string();
        assert!(message.contains("others share"), "{message}");
        let message = plan.fill(&mut [feed(&mut a, &[100], true)], &config, 0).unwrap_err().to_string();
        assert!(message.contains("token 100"), "{message}");
    }
}
