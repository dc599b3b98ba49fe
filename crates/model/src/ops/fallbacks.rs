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

#[cfg(test)]
mod tests {
    use super::super::testing::variable;
    use super::super::{rms_norm, swiglu};
    use super::*;
    use candle_core::DType;

    #[test]
    fn a_twin_that_ran_is_noted() {
        let (x, w) = (variable(&[2, 8], 1), variable(&[8], 2));
        take();
        rms_norm(&x, &w, 1e-6).unwrap();
        swiglu(&x, &x).unwrap();
        assert!(take().is_empty());
        // The CPU has no kernel for activations in bf16.
        let narrow = x.to_dtype(DType::BF16).unwrap();
        rms_norm(&narrow, &w, 1e-6).unwrap();
        swiglu(&narrow, &narrow).unwrap();
        swiglu(&narrow, &narrow).unwrap();
        assert_eq!(take(), BTreeMap::from([("rms_norm", 1), ("swiglu", 2)]));
        assert!(take().is_empty());
    }
}
