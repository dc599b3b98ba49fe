//! Which operations ran as their composed twins: how a test tells that the fused kernels were taken.

use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static TAKEN: RefCell<BTreeMap<&'static str, usize>> = const { RefCell::new(BTreeMap::new()) };
}

/// Notes that the composed twin of an operation runs, because there is no kernel for the device, type or shape.
pub(crate) fn note(op: &'static str) {
    TAKEN.with_borrow_mut(|taken| *taken.entry(op).or_default() += 1);
}

/// The operations that this thread has run as composed twins since the last call, and how often.
pub fn take() -> BTreeMap<&'static str, usize> {
    TAKEN.take()
}
