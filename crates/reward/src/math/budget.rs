//! The work that one verdict may do, whatever its input.

/// Steps of one verdict: an idle core makes them in some ten milliseconds.
const STEPS: usize = 20_000;

/// What is left of a verdict's work. A step is a product or sum of small numbers, or something as quick.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: STEPS }
    }
}

impl Budget {
    /// Takes `steps`; false when they are not there any more.
    pub(super) fn spend(&mut self, steps: usize) -> bool {
        let enough = steps <= self.left;
        self.left = self.left.saturating_sub(steps);
        enough
    }
}
