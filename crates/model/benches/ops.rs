//! The differentiable operations, forward alone and with their backward: `cargo bench -p model --bench ops`.
//!
//! At the widths of the embedded policy (2,048 tokens) and of a 0.5B model (256 tokens, a head of 16,384 tokens). Items are
//! tokens. The operations spread over the threads of rayon's pool (`RAYON_NUM_THREADS`).

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use model::kernels::packed::Compute;
use model::ops::attention::Form;
use model::ops::log_prob::Scored;
use model::ops::{self, Heads, RopeTable};

fn main() {
    divan::main();
}

/// What an operation sees of a model.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    tokens: usize,
    hidden: usize,
    inner: usize,
    heads: Heads,
    vocab: usize,
}

const EMBEDDED: Shape = Shape {
    name: "embedded",
    tokens: 2048,
    hidden: 128,
    inner: 384,
    heads: Heads { query: 4, key_value: 2, dim: 32 },
    vocab: 112,
};

const HALF_B: Shape = Shape {
    name: "0.5B",
    tokens: 256,
    hidden: 896,
    inner: 4864,
    heads: Heads { query: 14, key_value: 2, dim: 64 },
    vocab: 16384,
};

const SHAPES: [Shape; 2] = [EMBEDDED, HALF_B];
const SEQUENCES: usize = 4;

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// What of an operation is measured.
trait Pass {
    const BACKWARD: bool;
}

/// The operation over constants.
struct Forward;

/// The operation over variables, and the gradients of its sum.
struct WithBackward;

impl Pass for Forward {
    const BACKWARD: bool = false;
}

impl Pass for WithBackward {
    const BACKWARD: bool = true;
}

/// A variable with values between -0.5 and 0.5.
fn variable(shape: &[usize], seed: f32) -> Var {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| 0.5 * ((i as f32 + seed) * 0.37).sin()).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn measure<P: Pass>(bencher: Bencher, shape: Shape, inputs: &[Var], run: impl Fn(&[Tensor]) -> Tensor) {
    let inputs: Vec<Tensor> =
        inputs.iter().map(|var| if P::BACKWARD { var.as_tensor().clone() } else { var.as_detached_tensor() }).collect();
    bencher.counter(ItemsCount::new(shape.tokens)).bench_local(|| {
        let out = run(&inputs);
        if P::BACKWARD {
            drop(black_box(out.sum_all().unwrap().backward().unwrap()));
        } else {
            drop(black_box(out));
        }
    });
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 20, sample_size = 1)]
fn rms_norm<P: Pass>(bencher: Bencher, shape: Shape) {
    let inputs = [variable(&[shape.tokens, shape.hidden], 1.0), variable(&[shape.hidden], 2.0)];
    measure::<P>(bencher, shape, &inputs, |x| ops::rms_norm(&x[0], &x[1], 1e-6).unwrap());
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 20, sample_size = 1)]
fn rope<P: Pass>(bencher: Bencher, shape: Shape) {
    let Heads { query, dim, .. } = shape.heads;
    let table = RopeTable::new(dim, 1e4, shape.tokens);
    let positions: Arc<[u32]> = (0..shape.tokens as u32).collect();
    let inputs = [variable(&[shape.tokens, query * dim], 1.0)];
    measure::<P>(bencher, shape, &inputs, |x| ops::rope(&x[0], &table, &positions).unwrap());
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 20, sample_size = 1)]
fn swiglu<P: Pass>(bencher: Bencher, shape: Shape) {
    let inputs = [1.0, 2.0].map(|seed| variable(&[shape.tokens, shape.inner], seed));
    measure::<P>(bencher, shape, &inputs, |x| ops::swiglu(&x[0], &x[1]).unwrap());
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 10, sample_size = 1)]
fn attention<P: Pass>(bencher: Bencher, shape: Shape) {
    let Heads { query, key_value, dim } = shape.heads;
    let offsets: Arc<[usize]> = (0..=SEQUENCES).map(|i| i * shape.tokens / SEQUENCES).collect();
    let rows = |heads: usize, seed| variable(&[shape.tokens, heads * dim], seed);
    let inputs = [rows(query, 1.0), rows(key_value, 2.0), rows(key_value, 3.0)];
    let form = Form { heads: shape.heads, compute: Compute::F32 };
    let run = |x: &[Tensor]| ops::attention(&x[0], &x[1], &x[2], form, &offsets).unwrap();
    measure::<P>(bencher, shape, &inputs, run);
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 10, sample_size = 1)]
fn linear<P: Pass>(bencher: Bencher, shape: Shape) {
    let inputs = [
        variable(&[shape.tokens, shape.hidden], 1.0),
        variable(&[shape.inner, shape.hidden], 2.0),
        variable(&[shape.inner], 3.0),
    ];
    measure::<P>(bencher, shape, &inputs, |x| ops::linear(&x[0], &x[1], Some(&x[2]), Compute::F32).unwrap());
}

#[divan::bench(args = SHAPES, types = [Forward, WithBackward], sample_count = 5, sample_size = 1)]
fn head<P: Pass>(bencher: Bencher, shape: Shape) {
    let inputs = [variable(&[shape.tokens, shape.hidden], 1.0), variable(&[shape.vocab, shape.hidden], 2.0)];
    let scored = Scored {
        rows: (0..shape.tokens as u32).collect(),
        targets: (0..shape.tokens).map(|t| (t * 7 % shape.vocab) as u32).collect(),
        temperature: 1.0,
        compute: Compute::F32,
    };
    let run = |x: &[Tensor]| ops::log_prob(&x[0], &x[1], &scored).unwrap().log_probs;
    measure::<P>(bencher, shape, &inputs, run);
}
