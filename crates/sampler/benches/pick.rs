//! Drawing a token from logits: `cargo bench -p sampler`. Items are logits.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use sampler::{Sampling, pick};

fn main() {
    divan::main();
}

/// Temperature, top-p and top-k.
type Drawn = (f64, f64, usize);

/// The embedded policy's vocabulary, and that of Qwen2.5.
#[divan::bench(consts = [112, 151_936], args = [(1.0, 1.0, 0), (0.6, 0.95, 0), (1.0, 1.0, 50), (0.0, 1.0, 0)])]
fn token<const VOCAB: usize>(bencher: Bencher, (temperature, top_p, top_k): Drawn) {
    let sampling = Sampling { top_p, top_k, ..Sampling::at(temperature, &[]) };
    let logits: Vec<f32> = (0..VOCAB).map(|i| 8.0 * ((i as f32) * 0.37).sin()).collect();
    let mut t = 0;
    bencher.counter(ItemsCount::new(VOCAB)).with_inputs(|| logits.clone()).bench_local_refs(|logits| {
        t += 1;
        pick::pick(black_box(logits), &sampling, pick::uniform(1, t))
    });
}
