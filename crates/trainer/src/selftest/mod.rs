//! What a user runs first on a new machine: every operation, the optimiser, a training step and generation on a device,
//! each beside its twin there and beside the CPU.

mod generation;
mod models;
mod optimizer;
mod step;

use std::time::Instant;

use candle_core::{DType, Device};
use model::selftest::{Finding, cases, check, types};

/// What was found, in order.
#[derive(Clone, Debug)]
pub struct Report {
    /// Every comparison.
    pub findings: Vec<Finding>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// The comparisons that missed.
    pub fn missed(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| !finding.passed())
    }
}

/// Runs every comparison on a device, and calls `tell` with each finding as it comes.
pub fn run(device: &Device, mut tell: impl FnMut(&Finding)) -> Report {
    let started = Instant::now();
    let mut findings = Vec::new();
    let mut add = |found: Vec<Finding>| {
        found.iter().for_each(&mut tell);
        findings.extend(found);
    };
    for case in cases() {
        for dtype in types(&case, device) {
            add(vec![check(&case, dtype, device)]);
        }
    }
    for dtype in [DType::F32, DType::BF16] {
        add(optimizer::check(dtype, device));
        for subject in models::subjects() {
            add(step::check(&subject, dtype, device));
            add(generation::check(&subject, dtype, device));
        }
    }
    Report { findings, seconds: started.elapsed().as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes_and_everything_is_looked_at() {
        let mut told = 0;
        let report = run(&Device::Cpu, |_| told += 1);
        assert_eq!(report.missed().collect::<Vec<_>>(), Vec::<&Finding>::new());
        assert_eq!(told, report.findings.len());
        for op in ["attention", "adamw", "gradient norm", "training step", "generation"] {
            for dtype in ["f32", "bf16"] {
                let known = |finding: &&Finding| finding.op == op && finding.dtype == dtype;
                // The CPU computes attention in f32 alone.
                assert_eq!(
                    report.findings.iter().any(|f| known(&f)),
                    (op, dtype) != ("attention", "bf16"),
                    "{op} {dtype}"
                );
            }
        }
    }
}
