//! What a step of generation is made of, and the step: `cargo bench -p model --bench decode`.
//!
//! Items are multiply-adds of a product and of attention, and rows of a step. Products of many rows and the step spread over
//! the threads of rayon's pool (`RAYON_NUM_THREADS`), attention runs on one.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use half::bf16;
use model::cache::{Host, LANES, Pool, Sequence, blocks_for};
use model::decode::{Compute, Decoder, Span, Workspace};
use model::kernels::decode_attention::Seen;
use model::kernels::int8::Int8;
use model::kernels::packed::Packed;
use model::{Config, Qwen2, embedded, init};

fn main() {
    divan::main();
}

fn values(n: usize, seed: f32) -> Vec<f32> {
    (0..n).map(|i| 0.5 * ((i as f32 + seed) * 0.37).sin()).collect()
}

/// How the weights of a product are kept and multiplied.
#[derive(Clone, Copy, Debug)]
enum Kept {
    /// f32.
    F32,
    /// bf16, widened.
    Widened,
    /// bf16, and so are inputs.
    Bf16,
    /// Eight bits, and so are inputs.
    Int8,
}

/// Rows of the gate and up projections of a 0.5B model's block, and of the embedded policy's.
#[divan::bench(
    args = [1, 8, 64],
    consts = [128, 896],
    types = [KeptF32, KeptWidened, KeptBf16, KeptInt8],
    sample_count = 20,
)]
fn product<T: Keep, const K: usize>(bencher: Bencher, rows: usize) {
    let out = if K == 128 { 768 } else { 9728 };
    let w = values(out * K, 1.0);
    let narrow: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
    let (x, mut y) = (values(rows * K, 2.0), vec![0.0; rows * out]);
    let bencher = bencher.counter(ItemsCount::new(rows * K * out));
    let packed = match T::KEPT {
        Kept::F32 => Packed::stack(&[&w[..]], K),
        Kept::Widened => Packed::stack_narrow(&[&narrow[..]], K),
        Kept::Bf16 => Packed::stack_pairs(&[&narrow[..]], K),
        Kept::Int8 => {
            let packed = Int8::stack(&[&narrow[..]], K);
            return bencher.bench_local(|| packed.matmul(black_box(&x), &mut y));
        }
    };
    bencher.bench_local(|| packed.matmul(black_box(&x), &mut y));
}

trait Keep {
    const KEPT: Kept;
}
struct KeptF32;
struct KeptWidened;
struct KeptBf16;
struct KeptInt8;
impl Keep for KeptF32 {
    const KEPT: Kept = Kept::F32;
}
impl Keep for KeptWidened {
    const KEPT: Kept = Kept::Widened;
}
impl Keep for KeptBf16 {
    const KEPT: Kept = Kept::Bf16;
}
impl Keep for KeptInt8 {
    const KEPT: Kept = Kept::Int8;
}

/// One head of keys and values, with as many queries as the embedded policy has for it, and a 0.5B model.
#[divan::bench(args = [(32, 2, 200), (64, 7, 200), (64, 7, 2000)], sample_count = 50)]
fn attention(bencher: Bencher, (dim, group, len): (usize, usize, usize)) {
    let blocks: Vec<Arc<[f32]>> =
        (0..blocks_for(len)).map(|block| values(2 * LANES * dim, block as f32).into()).collect();
    let seen = Seen { dim, len, blocks: &blocks, at: 0 };
    let (queries, mut out) = (values(group * dim, 7.0), vec![0.0; group * dim]);
    let mut scores = vec![0.0; 2 * len.next_multiple_of(LANES)];
    bencher
        .counter(ItemsCount::new(2 * group * dim * len))
        .bench_local(|| seen.attend(black_box(&queries), &mut out, &mut scores));
}

/// Steps that are measured.
const STEPS: u32 = 40;

/// One token for each of so many rows, which hold 100 others and those of the steps before, on all threads.
#[divan::bench(
    args = [(Model::Embedded, 1), (Model::Embedded, 64), (Model::HalfB, 1), (Model::HalfB, 32)],
    sample_count = STEPS,
    sample_size = 1,
)]
fn step(bencher: Bencher, (model, rows): (Model, usize)) {
    const HELD: usize = 100;
    let decoder = Decoder::pack(&model.random(), Compute::F32).unwrap();
    // One more, by which a bench is tried out.
    let longest = HELD + STEPS as usize + 1;
    let mut pool = Pool::new(Host::new(decoder.config()), rows * blocks_for(longest));
    let mut sequences: Vec<Sequence> = (0..rows).map(|_| Sequence::default()).collect();
    sequences.iter_mut().for_each(|sequence| assert!(pool.reserve(sequence, longest)));
    let mut workspace = Workspace::default();
    feed(&decoder, &mut workspace, &mut sequences, HELD);
    bencher.counter(ItemsCount::new(rows)).bench_local(|| feed(&decoder, &mut workspace, &mut sequences, 1));
}

fn feed(decoder: &Decoder, workspace: &mut Workspace, rows: &mut [Sequence], tokens: usize) {
    let spans =
        rows.iter_mut().map(|sequence| Span { tokens: (0..tokens as u32).collect(), sequence, logits: true }).collect();
    black_box(decoder.step(workspace, spans, |_, logits| logits[0]).unwrap());
}

#[derive(Clone, Copy, Debug)]
enum Model {
    /// The embedded policy's shape.
    Embedded,
    /// Four blocks of a 0.5B model's width, with a vocabulary of 16,384.
    HalfB,
}

impl Model {
    fn random(self) -> Qwen2 {
        let text = match self {
            Self::Embedded => embedded::files().config,
            Self::HalfB => r#"{"model_type": "qwen2", "vocab_size": 16384, "hidden_size": 896,
                "intermediate_size": 4864, "num_hidden_layers": 4, "num_attention_heads": 14,
                "num_key_value_heads": 2, "max_position_embeddings": 1024, "tie_word_embeddings": true}"#
                .into(),
        };
        let config = Config::parse(&text, Path::new("config.json")).unwrap();
        init::random(config, 0.02, 1, DType::F32, &Device::Cpu).unwrap()
    }
}
