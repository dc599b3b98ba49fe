//! Against transformers in f32: log-probs, entropies, the loss and the gradient of every parameter, element by element, of
//! small random models. `scripts/parity_fixtures.py` made the files in `data/parity` and says what is in them.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use model::Result;
use model::backward::{self, Pass};
use model::cache::{Host, Pool, Sequence};
use model::config::Config;
use model::decode::{Compute, Decoder, Span, Workspace};
use model::ops::HeadScores;
use model::qwen2::{PackedBatch, Qwen2};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest difference of a log-prob or an entropy, nats.
const LOG_PROB_TOLERANCE: f32 = 1e-4;
/// Largest difference of a gradient, over the largest magnitude in its tensor.
const GRADIENT_TOLERANCE: f32 = 1e-4;
const ENTROPY_BONUS: f64 = 0.01;

/// The generator that the script describes.
struct Stream(u64);

impl Stream {
    fn word(&mut self) -> u64 {
        self.0 += 1;
        let z = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn unit(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Tensor {
        let scale = match name {
            _ if name.ends_with("norm.weight") || name.ends_with("bias") => 0.3,
            _ if name.ends_with("embed_tokens.weight") => 0.7,
            _ => 1.5 / (shape[1] as f32).sqrt(),
        };
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| centre + self.unit() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

/// One file: a model, its sequences, and what transformers makes of them.
struct Case {
    model: Qwen2,
    /// Tokens, and how many of them are the prompt.
    sequences: Vec<(Vec<u32>, usize)>,
    temperature: f64,
    /// Of each scored token's log-prob in the loss.
    weights: Tensor,
    wanted: BTreeMap<String, Tensor>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let metadata = safetensors::SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
        let value = |key: &str| serde_json::from_str::<Value>(&metadata[key]).unwrap();
        let numbers = |key: &str| serde_json::from_value::<Vec<usize>>(value(key)).unwrap();
        let wanted: BTreeMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap().into_iter().collect();
        let config = Config::parse(&value("config").to_string(), Path::new("config.json")).unwrap();
        let vocab = config.vocab_size as u64;
        let mut stream = Stream(value("seed").as_u64().unwrap() << 32);
        let parameters = wanted.iter().filter_map(|(name, grad)| {
            let name = name.strip_prefix("grad.")?;
            Some((name.to_string(), stream.weight(name, grad.dims())))
        });
        let parameters = parameters.collect();
        let model = Qwen2::new(config, parameters, DType::F32, &Device::Cpu).unwrap();
        let sequences: Vec<(Vec<u32>, usize)> = numbers("lengths")
            .into_iter()
            .zip(numbers("prompts"))
            .map(|(length, prompt)| ((0..length).map(|_| (stream.word() % vocab) as u32).collect(), prompt))
            .collect();
        let weights: Vec<f32> = (0..wanted["log_probs"].elem_count()).map(|_| stream.unit()).collect();
        let weights = Tensor::new(weights, &Device::Cpu).unwrap();
        Self { model, sequences, temperature: value("temperature").as_f64().unwrap(), weights, wanted }
    }

    fn batch(&self) -> PackedBatch {
        PackedBatch::new(self.sequences.iter().map(|(tokens, prompt)| (tokens.as_slice(), *prompt)))
    }

    /// The loss of scores that belong to the scored tokens from `first` on; divided by all of them.
    fn loss(&self, scores: &HeadScores, first: usize) -> Result<Tensor> {
        let count = scores.log_probs.elem_count();
        let weighted = (&scores.log_probs * self.weights.narrow(0, first, count)?)?;
        let total = (weighted.sum_all()? + (scores.entropy.sum_all()? * ENTROPY_BONUS)?)?;
        Ok((total / -(self.weights.elem_count() as f64))?)
    }

    fn close(&self, name: &str, found: &Tensor, tolerance: f32) {
        let gap = largest(&(found - &self.wanted[name]).unwrap());
        assert!(gap <= tolerance, "{name} differs by {gap:e}");
    }

    /// Compares the gradients that several stores hold the parts of.
    fn gradients_close(&self, stores: &[GradStore]) {
        assert_eq!(self.model.variables().len(), self.wanted.keys().filter(|k| k.starts_with("grad.")).count());
        for (name, var) in self.model.variables() {
            let mut parts = stores.iter().filter_map(|store| store.get(var.as_tensor()));
            let first = parts.next().unwrap_or_else(|| panic!("{name} got no gradient")).clone();
            let found = parts.fold(first, |sum, part| (sum + part).unwrap());
            let wanted = &self.wanted[&format!("grad.{name}")];
            let (gap, scale) = (largest(&(&found - wanted).unwrap()), largest(wanted));
            assert!(scale > 0.0 && gap <= GRADIENT_TOLERANCE * scale, "{name}: {gap:e} of {scale:e}");
        }
    }
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// Runs a check over every file, and says which one failed.
fn for_each_case(check: impl Fn(&Case)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity");
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 12, "{} fixtures in {}", paths.len(), folder.display());
    for path in paths {
        let case = Case::read(&path);
        println!("{}", path.display());
        check(&case);
    }
}

#[test]
fn packed_log_probs_and_gradients_are_those_of_transformers() {
    for_each_case(|case| {
        let scores = case.model.scores(&case.batch(), case.temperature).unwrap();
        case.close("log_probs", &scores.log_probs, LOG_PROB_TOLERANCE);
        case.close("entropy", &scores.entropy, LOG_PROB_TOLERANCE);
        let loss = case.loss(&scores, 0).unwrap();
        case.close("loss", &loss.unsqueeze(0).unwrap(), LOG_PROB_TOLERANCE);
        case.gradients_close(&[loss.backward().unwrap()]);
    });
}

#[test]
fn gradients_by_hand_are_those_of_transformers() {
    for_each_case(|case| {
        for recompute in [false, true] {
            let mut stores = Vec::new();
            let mut sink = |variable: &Tensor, gradient: &Tensor| -> Result<()> {
                let mut store = GradStore::default();
                store.insert(variable, gradient.clone());
                stores.push(store);
                Ok(())
            };
            let loss = |scores: &HeadScores| -> Result<(Tensor, ())> { Ok((case.loss(scores, 0)?, ())) };
            let pass = Pass { temperature: case.temperature, recompute: Some(recompute) };
            backward::gradients(&case.model, &case.batch(), pass, loss, &mut sink).unwrap();
            case.gradients_close(&stores);
        }
    });
}

#[test]
fn one_sequence_at_a_time_gives_the_same() {
    for_each_case(|case| {
        let (mut first, mut log_probs, mut stores) = (0, Vec::new(), Vec::new());
        for (tokens, prompt) in case.sequences.iter().filter(|(tokens, prompt)| tokens.len() > *prompt) {
            let batch = PackedBatch::new([(tokens.as_slice(), *prompt)]);
            let scores = case.model.scores(&batch, case.temperature).unwrap();
            stores.push(case.loss(&scores, first).unwrap().backward().unwrap());
            first += tokens.len() - prompt;
            log_probs.push(scores.log_probs);
        }
        case.close("log_probs", &Tensor::cat(&log_probs, 0).unwrap(), LOG_PROB_TOLERANCE);
        case.gradients_close(&stores);
    });
}

#[test]
fn generated_log_probs_are_those_of_transformers() {
    for_each_case(|case| {
        let decoder = Decoder::pack(&case.model, Compute::F32).unwrap();
        let mut found = Vec::new();
        for (tokens, prompt) in &case.sequences {
            let mut sequence = Sequence::default();
            assert!(Pool::new(Host::new(decoder.config()), 64).reserve(&mut sequence, tokens.len()));
            for t in *prompt..tokens.len() {
                let fed = if t == *prompt { &tokens[..t] } else { &tokens[t - 1..t] };
                let span = Span { tokens: fed.into(), sequence: &mut sequence, logits: true };
                let pick = |_, z: &mut [f32]| log_prob(z, tokens[t], case.temperature);
                found.extend(decoder.step(&mut Workspace::default(), vec![span], pick).unwrap().into_iter().flatten());
            }
        }
        case.close("log_probs", &Tensor::new(found, &Device::Cpu).unwrap(), LOG_PROB_TOLERANCE);
    });
}

fn log_prob(logits: &[f32], token: u32, temperature: f64) -> f32 {
    let scaled = |z: f32| f64::from(z) / temperature;
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| (scaled(z) - scaled(top)).exp()).sum();
    (scaled(logits[token as usize]) - scaled(top) - sum.ln()) as f32
}
