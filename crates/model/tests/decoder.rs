//! The fast decoder against the differentiable forward: the same log-probabilities, whatever the batch looks like.

use candle_core::{DType, Device, Tensor, Var};
use model::backward::{self, Pass, Sink};
use model::cache::{Host, Pool, Sequence};
use model::config::Config;
use model::decode::{Compute, Decoder, Span, Workspace};
use model::kernels::sums::HostSum;
use model::ops::HeadScores;
use model::qwen2::{PackedBatch, Qwen2};
use model::{Result, lora};
use std::path::Path;

fn tiny(heads: usize, key_value: usize, tied: bool) -> Qwen2 {
    with_options(heads, key_value, tied, r#""model_type": "qwen2""#)
}

fn with_options(heads: usize, key_value: usize, tied: bool, options: &str) -> Qwen2 {
    of_type(heads, key_value, tied, options, DType::F32)
}

fn of_type(heads: usize, key_value: usize, tied: bool, options: &str, dtype: DType) -> Qwen2 {
    let text = format!(
        r#"{{"vocab_size": 50, "hidden_size": {}, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": {heads}, "num_key_value_heads": {key_value},
        "max_position_embeddings": 128, "tie_word_embeddings": {tied}, {options}}}"#,
        heads * 16
    );
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    model::init::random(config, 0.2, 7, dtype, &Device::Cpu).unwrap()
}

/// Adapters of every projection that change something: `B` does not stay zero.
fn with_adapters(model: Qwen2) -> Qwen2 {
    let targets = lora::TARGETS.map(String::from).to_vec();
    let model = model.with_adapters(lora::Settings { rank: 3, alpha: 6.0, targets }, 11).unwrap();
    for (i, (name, var)) in model.variables().iter().enumerate() {
        if name.ends_with("lora_B.weight") {
            let values: Vec<f32> = (0..var.elem_count()).map(|j| ((i + 3 * j) as f32).sin() * 0.2).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
    model
}

/// Every kind of block and of rotation: Qwen2 and Qwen3, heads wider and narrower than the residual stream, biases,
/// shared and own heads, tied and untied, with adapters, over weights in bf16.
fn every_kind() -> Vec<Qwen2> {
    let yarn = r#""model_type": "qwen3", "head_dim": 24, "attention_bias": true, "rope_scaling":
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#;
    let llama3 = r#""model_type": "qwen2", "rope_parameters": {"rope_type": "llama3", "rope_theta": 1000000.0, "factor": 8,
        "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 32}"#;
    vec![
        tiny(4, 2, true),
        tiny(7, 1, false),
        tiny(2, 2, true),
        with_options(4, 2, true, r#""model_type": "qwen3", "head_dim": 32"#),
        with_options(3, 3, false, r#""model_type": "qwen3", "head_dim": 8"#),
        with_options(6, 1, false, yarn),
        with_options(4, 1, true, llama3),
        with_options(4, 4, true, r#""model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 2.0}"#),
        with_adapters(tiny(4, 2, true)),
        with_adapters(of_type(4, 2, false, r#""model_type": "qwen3", "head_dim": 32"#, DType::BF16)),
        of_type(4, 2, false, r#""model_type": "qwen2""#, DType::BF16),
    ]
}

/// An empty sequence with room for so many tokens.
fn room(pool: &mut Pool, tokens: usize) -> Sequence {
    let mut sequence = Sequence::default();
    assert!(pool.reserve(&mut sequence, tokens));
    sequence
}

fn log_prob(logits: &[f32], token: u32) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| ((z - top) as f64).exp()).sum();
    logits[token as usize] - top - sum.ln() as f32
}

#[test]
fn decoder_and_training_forward_agree() {
    for model in every_kind() {
        let decoder = Decoder::pack(&model, Compute::F32).unwrap();
        let sequences: Vec<Vec<u32>> =
            (1..5usize).map(|s| (0..20 * s as u32).map(|i| (i * 13 + s as u32 * 5) % 50).collect()).collect();
        let prompt = 4;
        let batch = PackedBatch::new(sequences.iter().map(|s| (s.as_slice(), prompt)));
        let want = model.scores(&batch, 1.0).unwrap().log_probs.to_vec1::<f32>().unwrap();

        let mut got: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let mut pool = Pool::new(Host::new(decoder.config()), 32);
        let mut caches: Vec<Sequence> = sequences.iter().map(|s| room(&mut pool, s.len())).collect();
        let mut workspace = Workspace::default();
        for t in prompt..80 {
            let live: Vec<usize> = (0..sequences.len()).filter(|&s| t < sequences[s].len()).collect();
            let spans = caches.iter_mut().zip(&sequences).filter(|(_, s)| t < s.len()).map(|(sequence, s)| {
                let tokens = if t == prompt { &s[..prompt] } else { &s[t - 1..t] }.into();
                Span { tokens, sequence, logits: true }
            });
            let pick = |row: usize, logits: &mut [f32]| log_prob(logits, sequences[live[row]][t]);
            let next = decoder.step(&mut workspace, spans.collect(), pick).unwrap();
            for (&s, value) in live.iter().zip(next) {
                got[s].push(value.unwrap());
            }
        }
        let got = got.concat();
        assert_eq!(got.len(), want.len());
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn every_variable_gets_a_gradient() {
    for model in every_kind() {
        let tokens: Vec<u32> = (0..40).collect();
        let scores = model.scores(&PackedBatch::new([(tokens.as_slice(), 1)]), 1.0).unwrap();
        let grads = scores.log_probs.sum_all().unwrap().backward().unwrap();
        for (name, var) in model.variables() {
            let grad = grads.get(var.as_tensor()).unwrap_or_else(|| panic!("{name} got no gradient"));
            let size = grad.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0.0, "{name} has a zero gradient");
        }
    }
}

#[test]
fn logits_are_the_same_bits_however_a_sequence_was_fed() {
    let model = tiny(4, 2, true);
    let decoder = Decoder::pack(&model, Compute::F32).unwrap();
    let mut pool = Pool::new(Host::new(decoder.config()), 32);
    let tokens: Vec<u32> = (0..50).map(|i| (i * 13 + 5) % 50).collect();
    let feed = |sequence: &mut Sequence, upto: &[usize]| {
        let mut logits = None;
        for &end in upto {
            let spans = vec![Span { tokens: tokens[sequence.len()..end].into(), sequence, logits: end == 50 }];
            logits = decoder.step(&mut Workspace::default(), spans, |_, z| z.to_vec()).unwrap().remove(0);
        }
        logits.unwrap()
    };
    let want = feed(&mut room(&mut pool, 50), &[50]);
    let mut by_parts = room(&mut pool, 50);
    assert_eq!(feed(&mut by_parts, &[3, 20, 49, 50]), want);
    let mut beginning = room(&mut pool, 50);
    feed(&mut beginning, &[37, 50]);
    let mut shared = Sequence::beginning(beginning.blocks()[..2].to_vec());
    assert!(pool.reserve(&mut shared, 18));
    assert_eq!(feed(&mut shared, &[50]), want);
    let mut first = room(&mut pool, 37);
    let spans = vec![Span { tokens: tokens[..37].into(), sequence: &mut first, logits: false }];
    assert_eq!(decoder.step(&mut Workspace::default(), spans, |_, _| ()).unwrap(), [None]);
    let mut fork = pool.fork(&first).unwrap();
    assert!(pool.reserve(&mut fork, 13));
    assert_eq!(feed(&mut fork, &[50]), want);
}

#[test]
fn products_in_bf16_and_in_eight_bits_are_near_those_in_f32() {
    let model = of_type(4, 2, false, r#""model_type": "qwen2""#, DType::BF16);
    let logits = |compute| {
        let decoder = Decoder::pack(&model, compute).unwrap();
        let mut sequence = room(&mut Pool::new(Host::new(decoder.config()), 1), 16);
        let spans = vec![Span { tokens: (&[1u32, 2, 3][..]).into(), sequence: &mut sequence, logits: true }];
        decoder.step(&mut Workspace::default(), spans, |_, z| z.to_vec()).unwrap().remove(0).unwrap()
    };
    let want = logits(Compute::F32);
    let size = want.iter().fold(0.0f32, |m, z| m.max(z.abs()));
    for (compute, limit) in [(Compute::Bf16, 0.02), (Compute::Int8, 0.15)] {
        let gap = want.iter().zip(&logits(compute)).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap > 0.0 && gap < limit * size, "{compute:?}: {gap} of {size}");
    }
}

#[test]
fn limits_are_errors_that_say_so() {
    let decoder = Decoder::pack(&tiny(2, 1, true), Compute::F32).unwrap();
    let mut sequence = room(&mut Pool::new(Host::new(decoder.config()), 1), 16);
    let mut step = |tokens: &[u32]| {
        let spans = vec![Span { tokens: tokens.into(), sequence: &mut sequence, logits: true }];
        decoder.step(&mut Workspace::default(), spans, |_, _| ()).map_err(|e| e.to_string())
    };
    assert!(step(&[50]).unwrap_err().contains("token 50"));
    assert!(step(&[1; 17]).unwrap_err().contains("17 tokens"));
    assert!(step(&[]).unwrap_err().contains("at least one"));
    assert!(step(&[1; 16]).is_ok());
}

/// Sums of gradients, in host memory for the variables that are `in_place`.
struct Sums {
    variables: Vec<(String, Var)>,
    values: Vec<Vec<f32>>,
    received: Vec<bool>,
    in_place: bool,
}

impl Sums {
    fn new(model: &Qwen2, in_place: bool) -> Self {
        let variables = model.variables().to_vec();
        let values = variables.iter().map(|(_, v)| vec![0.0; v.elem_count()]).collect();
        Self { received: vec![false; variables.len()], variables, values, in_place }
    }
}

impl Sink<model::Error> for Sums {
    fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<()> {
        let i = self.variables.iter().position(|(_, v)| v.as_tensor().id() == variable.id()).unwrap();
        self.received[i] = true;
        let g = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        self.values[i].iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
        Ok(())
    }

    fn host(&mut self, variable: &Tensor) -> Option<HostSum<'_>> {
        let i = self.variables.iter().position(|(_, v)| v.as_tensor().id() == variable.id())?;
        self.received[i] |= self.in_place;
        self.in_place.then(|| HostSum::F32(&mut self.values[i]))
    }
}

/// The twin is candle's own pass over the graph of the whole model.
#[test]
fn going_back_by_hand_gives_the_gradients_of_candles_graph() {
    let loss = |scores: &HeadScores| -> Result<(Tensor, ())> {
        Ok(((&scores.log_probs + (&scores.entropy * 0.1)?)?.sum_all()?, ()))
    };
    for model in every_kind() {
        let tokens: Vec<u32> = (0..40).collect();
        let batch = PackedBatch::new([(tokens.as_slice(), 1), (&tokens[..9], 3)]);
        let whole = loss(&model.scores(&batch, 0.8).unwrap()).unwrap().0.backward().unwrap();
        for (in_place, recompute) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut sums = Sums::new(&model, in_place);
            let pass = Pass { temperature: 0.8, recompute: Some(recompute) };
            backward::gradients(&model, &batch, pass, loss, &mut sums).unwrap();
            for (i, (name, var)) in model.variables().iter().enumerate() {
                assert!(sums.received[i], "{name} got no gradient");
                let want = whole.get(var.as_tensor()).unwrap().to_dtype(DType::F32).unwrap();
                let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
                // A gradient in bf16 is rounded to 8 bits.
                let tolerance = if var.dtype() == DType::BF16 { 8e-3 } else { 1e-5 };
                let gap = sums.values[i].iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(gap <= tolerance * scale, "{name}: {gap} of {scale}");
            }
        }
    }
}

#[test]
fn adapters_begin_as_nothing_merge_to_the_same_model_and_come_back_from_disk() {
    let tokens: Vec<u32> = (0..40).collect();
    let batch = PackedBatch::new([(tokens.as_slice(), 1)]);
    let log_probs = |model: &Qwen2| model.scores(&batch, 1.0).unwrap().log_probs.to_vec1::<f32>().unwrap();
    let gap = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));

    let base = tiny(4, 2, false);
    let plain = log_probs(&base);
    let settings = lora::Settings { rank: 3, alpha: 6.0, targets: vec!["q_proj".into(), "down_proj".into()] };
    assert_eq!(settings.parameters(base.config()), 3 * 3 * (64 + 64 + 96 + 64));
    let fresh = base.with_adapters(settings, 5).unwrap();
    assert_eq!(log_probs(&fresh), plain);
    assert_eq!(fresh.variables().len(), 3 * 2 * 2);

    let adapted = with_adapters(tiny(4, 2, false));
    let changed = log_probs(&adapted);
    assert!(gap(&changed, &plain) > 0.01);
    assert_eq!(log_probs(&adapted.base()), plain);
    assert_eq!(log_probs(&adapted.frozen_copy(DType::F32).unwrap()), plain);
    let merged = adapted.merged().map(|t| t.map(|(name, tensor)| (name.to_string(), tensor))).collect::<Result<_>>();
    let merged = Qwen2::new(adapted.config().clone(), merged.unwrap(), DType::F32, &Device::Cpu).unwrap();
    assert!(gap(&log_probs(&merged), &changed) < 1e-4);

    let folder = tempfile::tempdir().unwrap();
    lora::save(&adapted, "org/base", folder.path()).unwrap();
    assert!(lora::is_adapter(folder.path()));
    let saved = lora::Saved::open(folder.path()).unwrap();
    assert_eq!(saved.base, "org/base");
    let loaded = tiny(4, 2, false).with_saved_adapters(saved).unwrap();
    assert_eq!(log_probs(&loaded), changed);
    let other = tiny(2, 2, true).with_saved_adapters(lora::Saved::open(folder.path()).unwrap());
    assert!(other.err().unwrap().to_string().contains("lora_A"));
}

#[test]
fn a_decoder_takes_new_adapters_without_packing_its_weights_again() {
    let model = with_adapters(tiny(4, 2, true));
    let mut decoder = Decoder::pack(&model, Compute::F32).unwrap();
    let logits = |decoder: &Decoder| {
        let mut sequence = room(&mut Pool::new(Host::new(decoder.config()), 1), 16);
        let spans = vec![Span { tokens: (&[1u32, 2, 3][..]).into(), sequence: &mut sequence, logits: true }];
        decoder.step(&mut Workspace::default(), spans, |_, logits| logits.to_vec()).unwrap().remove(0)
    };
    let before = logits(&decoder);
    let (_, var) = &model.variables()[1];
    var.set(&var.affine(3.0, 0.0).unwrap()).unwrap();
    assert!(decoder.refresh(&model.detached()).unwrap());
    assert_ne!(logits(&decoder), before);
    assert_eq!(logits(&decoder), logits(&Decoder::pack(&model, Compute::F32).unwrap()));
    assert!(!decoder.refresh(&with_adapters(tiny(4, 2, true))).unwrap());
    assert!(!decoder.refresh(&tiny(4, 2, true)).unwrap());
}
