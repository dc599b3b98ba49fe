//! The device decoder's forms against the CPU's decoder: the same tokens and log-probs from prompts in parts, forks, rows of
//! different lengths, and padding. The kernels run on the CPU (`ops/cuda/shim.rs`).

use super::kernels::{Ends, Kernels, Layout, draws as in_order};
use super::plan::{Plan, advance};
use super::*;
use crate::cache::{Host, LANES, Pool, Sequence, Store};
use crate::decode::{Compute, Decoder, Workspace};
use crate::lora;
use crate::ops::cuda::decode::Cached;
use crate::ops::cuda::shim::{Shim, shim};
use crate::ops::cuda::{Machine, View};
use crate::ops::sample::sample;
use candle_core::{CpuStorage, Device, Layout as Place, Storage, StorageRef, Tensor};
use std::path::Path;

/// A model with the given options, whose norms and biases are no ones and zeros.
fn model(heads: usize, key_value: usize, options: &str) -> Qwen2 {
    let text = format!(
        r#"{{"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": {heads}, "num_key_value_heads": {key_value}, "max_position_embeddings": 128, {options}}}"#
    );
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    let model = crate::init::random(config, 0.2, 7, DType::F32, &Device::Cpu).unwrap();
    for (i, (name, var)) in model.weights().iter().enumerate().filter(|(_, (_, var))| var.rank() == 1) {
        let around = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values = (0..var.elem_count()).map(|j| around + ((i + 3 * j) as f32).sin() * 0.3).collect::<Vec<_>>();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    model
}

fn adapted(model: Qwen2) -> Qwen2 {
    let targets = lora::TARGETS.map(String::from).to_vec();
    let model = model.with_adapters(lora::Settings { rank: 3, alpha: 6.0, targets }, 11).unwrap();
    for (i, (_, var)) in model.variables().iter().enumerate() {
        let values: Vec<f32> = (0..var.elem_count()).map(|j| ((i + 3 * j) as f32).sin() * 0.2).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    model
}

fn every_kind() -> Vec<Qwen2> {
    vec![
        model(4, 2, r#""model_type": "qwen2", "tie_word_embeddings": true"#),
        model(3, 1, r#""model_type": "qwen3", "head_dim": 12, "attention_bias": true"#),
        adapted(model(4, 4, r#""model_type": "qwen2""#)),
    ]
}

/// What feeds spans and draws: the decoder of the CPU, or a form of that of a device.
trait Draw {
    type Store: Store;
    fn pool(&mut self) -> Pool<Self::Store>;
    fn draw(
        &mut self,
        pool: &mut Pool<Self::Store>,
        spans: Vec<Span<<Self::Store as Store>::Payload>>,
        draws: &Draws,
    ) -> Drawn;
}

impl Draw for Decoder {
    type Store = Host;

    fn pool(&mut self) -> Pool<Host> {
        Pool::new(Host::new(self.config()), 40)
    }

    fn draw(&mut self, _: &mut Pool<Host>, spans: Vec<Span>, draws: &Draws) -> Drawn {
        let pick = |i: usize, logits: &mut [f32]| {
            draws.at[i].iter().map(|&u| sample(&mut logits.to_vec(), &draws.from, u)).collect::<Vec<_>>()
        };
        self.step(&mut Workspace::default(), spans, pick).unwrap()
    }
}

impl Draw for DeviceDecoder {
    type Store = Blocks;

    fn pool(&mut self) -> Pool<Blocks> {
        Pool::new(self.blocks(40).unwrap(), 40)
    }

    fn draw(&mut self, pool: &mut Pool<Blocks>, spans: Vec<Span<u32>>, draws: &Draws) -> Drawn {
        self.step(pool.store_mut(), spans, draws).unwrap()
    }
}

/// The kernels on this CPU.
struct OnShim {
    model: Qwen2,
    kernels: Kernels<Shim>,
    cache: Vec<Cached<CpuStorage>>,
    padded: bool,
}

impl OnShim {
    fn new(model: &Qwen2, shim: Shim, padded: bool) -> Self {
        let len = 41 * LANES * model.config().widths().1;
        let layer = || Cached { keys: CpuStorage::F32(vec![0.0; len]), values: CpuStorage::F32(vec![0.0; len]) };
        let cache = (0..model.config().num_layers).map(|_| layer()).collect();
        Self { model: model.detached(), kernels: Kernels::new(shim, model).unwrap(), cache, padded }
    }
}

impl Draw for OnShim {
    type Store = Blocks;

    fn pool(&mut self) -> Pool<Blocks> {
        // The numbers alone: keys and values are in `cache`.
        Pool::new(Blocks::new(self.model.config(), DType::F32, &Device::Cpu, 40).unwrap(), 40)
    }

    fn draw(&mut self, pool: &mut Pool<Blocks>, mut spans: Vec<Span<u32>>, draws: &Draws) -> Drawn {
        let Self { model, kernels, cache, padded } = self;
        kernels.copy(model, cache, &pool.store_mut().take_copies()).unwrap();
        let mut plan = Plan::default();
        plan.fill(&mut spans, model.config(), 8).unwrap();
        let at = in_order(&plan, draws);
        let repeats = *padded && plan.only_decodes() && at.len() == plan.tokens.len();
        let layout = Layout::new(&plan, at.len(), repeats.then(|| plan.tokens.len() + 3));
        kernels.send(model, &plan, &layout, &at, 40).unwrap();
        kernels.launch(model, cache, &layout, &draws.from).unwrap();
        let drawn = kernels.receive(&layout, at.len()).unwrap();
        advance(&mut spans);
        split(&plan, draws, drawn)
    }
}

impl Ends for Shim {
    type Held<'a> = (StorageRef<'a>, &'a Place);

    fn hold<'a>(&self, tensor: &'a Tensor) -> Result<Self::Held<'a>> {
        Ok(tensor.storage_and_layout())
    }

    fn view<'a>(&self, held: &'a Self::Held<'_>) -> Result<View<'a, CpuStorage>> {
        let (start, end) = held.1.contiguous_offsets().expect("a contiguous tensor");
        let Storage::Cpu(memory) = &*held.0 else { panic!("a tensor that is not on the CPU") };
        Ok(View { memory, offset: start, len: end - start, dtype: DType::F32 })
    }

    fn upload(&self, values: &[u32], to: &mut CpuStorage) -> Result<()> {
        let CpuStorage::U32(to) = to else { panic!("numbers of another type") };
        to[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn download(&self, from: &CpuStorage, len: usize) -> Result<Vec<u32>> {
        let CpuStorage::U32(from) = from else { panic!("numbers of another type") };
        Ok(from[..len].to_vec())
    }
}

/// Two prompts, one of them in two parts beside the other's first tokens; two forks of it, of which one's source goes on;
/// then steps of all rows. Everything that was drawn, in order.
fn play<D: Draw>(decoder: &mut D, from: Distribution) -> Vec<(u32, f32)> {
    let mut pool = decoder.pool();
    let prompts: [Vec<u32>; 2] = [21, 37].map(|n| (0..n).map(|i| (i * 13 + n) % 50).collect());
    let mut rows: Vec<Sequence<_>> = (0..2).map(|_| Sequence::default()).collect();
    let mut all = Vec::new();
    let u = |i: usize| (i as f64 * 0.618_034).fract();
    let mut feed = |decoder: &mut D, pool: &mut Pool<D::Store>, rows: &mut [Sequence<_>], fed: &[(&[u32], usize)]| {
        for (row, (tokens, _)) in rows.iter_mut().zip(fed) {
            assert!(pool.reserve(row, tokens.len()));
        }
        let at: Vec<Vec<f64>> =
            fed.iter().enumerate().map(|(i, (_, n))| (0..*n).map(|j| u(all.len() + 3 * i + j)).collect()).collect();
        let spans = rows.iter_mut().zip(fed);
        let spans = spans.map(|(sequence, &(tokens, n))| Span { tokens: tokens.into(), sequence, logits: n > 0 });
        let drawn = decoder.draw(pool, spans.collect(), &Draws { from, at: &at });
        all.extend(drawn.iter().flatten().flatten().copied());
        drawn.into_iter().map(|drawn| drawn.map_or(0, |drawn| drawn.last().unwrap().0)).collect::<Vec<u32>>()
    };
    feed(decoder, &mut pool, &mut rows, &[(&prompts[0][..], 3), (&prompts[1][..20], 0)]);
    let next = feed(decoder, &mut pool, &mut rows, &[(&[7][..], 1), (&prompts[1][20..], 2)]);
    let forks = [pool.fork(&rows[0]).unwrap(), pool.fork(&rows[1]).unwrap()];
    rows.extend(forks);
    let mut next = vec![next[0], next[1], 11, 12];
    for _ in 0..6 {
        let fed: Vec<(&[u32], usize)> = next.iter().map(|token| (std::slice::from_ref(token), 1)).collect();
        next = feed(decoder, &mut pool, &mut rows, &fed);
    }
    all
}

fn assert_same(got: &[(u32, f32)], want: &[(u32, f32)], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.0, want.0, "{what}: token {i}");
        assert!((got.1 - want.1).abs() < 2e-5, "{what}: {} is not {} at {i}", got.1, want.1);
    }
}

const WHOLE: Distribution = Distribution { temperature: 0.8, top_p: 1.0, top_k: 0 };
const CUT: Distribution = Distribution { temperature: 1.2, top_p: 0.9, top_k: 20 };

#[test]
fn the_composed_form_samples_what_the_cpu_samples() {
    for model in every_kind() {
        let mut cpu = Decoder::pack(&model, Compute::F32).unwrap();
        let mut device = DeviceDecoder::new(&model, Form::Composed).unwrap();
        for from in [WHOLE, CUT] {
            assert_same(&play(&mut device, from), &play(&mut cpu, from), "composed");
        }
    }
}

#[test]
fn the_kernels_sample_what_the_cpu_samples() {
    for (i, model) in every_kind().into_iter().enumerate() {
        let mut cpu = Decoder::pack(&model, Compute::F32).unwrap();
        let Some(shim) = shim() else { return };
        let mut kernels = OnShim::new(&model, shim, i % 2 == 0);
        for from in [WHOLE, CUT] {
            assert_same(&play(&mut kernels, from), &play(&mut cpu, from), "kernels");
        }
    }
}

#[test]
fn weights_that_are_trained_are_seen_and_others_are_not_taken() {
    let model = every_kind().remove(0);
    let mut device = DeviceDecoder::new(&model, Form::Composed).unwrap();
    let before = play(&mut device, WHOLE);
    let (_, var) = &model.variables()[1];
    var.set(&var.affine(3.0, 0.1).unwrap()).unwrap();
    assert!(device.refresh(&model).unwrap());
    let after = play(&mut device, WHOLE);
    assert_ne!(before, after);
    assert_same(&after, &play(&mut Decoder::pack(&model, Compute::F32).unwrap(), WHOLE), "trained");
    assert!(!device.refresh(&every_kind().remove(0)).unwrap());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_form_that_is_not_there_is_an_error() {
    let error = DeviceDecoder::new(&every_kind().remove(0), Form::Graphs).err().unwrap().to_string();
    assert!(error.contains("without CUDA"), "{error}");
}
