//! What differs from step to step, as one list of numbers, and where in it each thing is.

use crate::cache::LANES;
use crate::decode_device::plan::Plan;
use crate::ops::cuda::sample;
use std::ops::Range;

/// Where the numbers of a step are in the list that goes to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// Rows of the forward pass.
    pub tokens: usize,
    /// Rows of the tables.
    pub(super) spans: usize,
    /// Rows of logits.
    pub(super) wanted: usize,
    pub(super) draws: usize,
    /// Blocks of a row of the tables.
    pub(super) width: usize,
}

impl Layout {
    /// The layout of a plan whose rows draw so many tokens; `rows`, where it is padded to so many that feed one token each.
    pub fn new(plan: &Plan, draws: usize, rows: Option<usize>) -> Self {
        match rows {
            Some(rows) => Self { tokens: rows, spans: rows, wanted: rows, draws: rows, width: plan.width },
            None => Self {
                tokens: plan.tokens.len(),
                spans: plan.spans.len(),
                wanted: plan.wanted.len(),
                draws,
                width: plan.width,
            },
        }
    }

    /// Blocks of a row of the tables.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens, positions, slots and owners.
    pub(super) fn by_token(&self, which: usize) -> Range<usize> {
        which * self.tokens..(which + 1) * self.tokens
    }

    pub(super) fn wanted(&self) -> Range<usize> {
        let start = 4 * self.tokens;
        start..start + self.wanted
    }

    pub(super) fn draws(&self) -> Range<usize> {
        let start = self.wanted().end;
        start..start + 3 * self.draws
    }

    pub(super) fn tables(&self) -> Range<usize> {
        let start = self.draws().end;
        start..start + self.spans * self.width
    }

    /// The numbers of a step. Rows that pad it feed token 0 to the block `spare`, which no sequence has.
    pub(super) fn words(&self, plan: &Plan, draws: &[(u32, f64)], spare: u32) -> Vec<u32> {
        let padded = |values: &[u32], len: usize, pad: &dyn Fn(usize) -> u32| -> Vec<u32> {
            values.iter().copied().chain((values.len()..len).map(pad)).collect()
        };
        let mut draws = draws.to_vec();
        draws.extend((draws.len()..self.draws).map(|i| (i as u32, 0.0)));
        [
            padded(&plan.tokens, self.tokens, &|_| 0),
            padded(&plan.positions, self.tokens, &|_| 0),
            padded(&plan.slots, self.tokens, &|_| spare * LANES as u32),
            padded(&plan.owners, self.tokens, &|i| i as u32),
            padded(&plan.wanted, self.wanted, &|i| i as u32),
            sample::words(&draws),
            padded(&plan.tables, self.spans * self.width, &|_| spare),
        ]
        .concat()
    }
}
