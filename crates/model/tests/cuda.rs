//! A whole model on a GPU: its scores and gradients are the CPU's, and no operation ran as its composed twin.
//!
//! Where there is no GPU the tests say so and pass; `trainer selftest --device cuda` is the check of a machine.
#![cfg(feature = "cuda")]

use candle_core::{DType, Device, Tensor, Var};
use model::backward::{self, Pass, Sink};
use model::config::Config;
use model::ops::{HeadScores, fallbacks};
use model::qwen2::{PackedBatch, Qwen2};
use model::{Result, init};
use std::path::Path;

fn gpu() -> Option<Device> {
    Device::new_cuda_with_stream(0).map_err(|error| eprintln!("not tested, there is no GPU: {error}")).ok()
}

fn model(options: &str, dtype: DType, device: &Device) -> Qwen2 {
    let text = format!(
        r#"{{"vocab_size": 1200, "hidden_size": 256, "intermediate_size": 608, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, {options}}}"#
    );
    let config = Config::parse(&text, Path::new("config.json")).unwrap();
    init::random(config, 0.06, 7, dtype, device).unwrap()
}

fn batch() -> PackedBatch {
    let tokens: Vec<u32> = (0..300u32).map(|i| i * 7 % 1200).collect();
    PackedBatch::new([(&tokens[..200], 30), (&tokens[200..], 1), (&tokens[..65], 64)])
}

fn loss(scores: &HeadScores) -> Result<(Tensor, ())> {
    Ok(((&scores.log_probs + (&scores.entropy * 0.1)?)?.sum_all()?, ()))
}

/// f32 sums on the device, in which kernels add the gradients of head and embedding in place.
struct Sums {
    variables: Vec<(String, Var)>,
    sums: Vec<Tensor>,
}

impl Sums {
    fn of(model: &Qwen2) -> Self {
        let variables = model.variables().to_vec();
        let zeros = |(_, v): &(String, Var)| Tensor::zeros(v.shape(), DType::F32, v.device()).unwrap();
        Self { sums: variables.iter().map(zeros).collect(), variables }
    }
}

impl Sink<model::Error> for Sums {
    fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<()> {
        let i = self.variables.iter().position(|(_, v)| v.as_tensor().id() == variable.id()).unwrap();
        self.sums[i] = model::ops::norm::added(&self.sums[i], gradient)?;
        Ok(())
    }

    fn device(&mut self, variable: &Tensor) -> Option<Tensor> {
        let i = self.variables.iter().position(|(_, v)| v.as_tensor().id() == variable.id())?;
        (!variable.device().is_cpu()).then(|| self.sums[i].clone())
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The root mean square of the difference over that of the expected values.
fn gap(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&b| square(b)).sum::<f64>().max(1e-20)).sqrt()
}

#[test]
fn scores_and_gradients_are_the_cpus() {
    let Some(gpu) = gpu() else { return };
    for options in [
        r#""model_type": "qwen2", "tie_word_embeddings": true"#,
        r#""model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": false"#,
    ] {
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::BF16, 5e-2)] {
            // The CPU computes in f32 over the same rounded weights.
            let (here, there) = (model(options, dtype, &Device::Cpu), model(options, dtype, &gpu));
            let batch = batch();
            let expected = here.scores(&batch, 0.8).unwrap();
            fallbacks::take();
            let found = there.scores(&batch, 0.8).unwrap();
            assert!(gap(&values(&found.log_probs), &values(&expected.log_probs)) < tolerance);
            assert!(gap(&values(&found.entropy), &values(&expected.entropy)) < tolerance);
            let whole = loss(&found).unwrap().0.backward().unwrap();
            let by_hand = [false, true].map(|recompute| {
                let mut sums = Sums::of(&there);
                let pass = Pass { temperature: 0.8, recompute: Some(recompute) };
                backward::gradients(&there, &batch, pass, loss, &mut sums).unwrap();
                sums.sums
            });
            assert!(fallbacks::take().is_empty(), "an operation had no kernel");
            let cpu = loss(&expected).unwrap().0.backward().unwrap();
            for ((name, v), (i, (_, there))) in here.variables().iter().zip(there.variables().iter().enumerate()) {
                let expected = values(cpu.get(v.as_tensor()).unwrap());
                let found = [whole.get(there.as_tensor()).unwrap(), &by_hand[0][i], &by_hand[1][i]];
                let gaps = found.map(|x| gap(&values(x), &expected));
                assert!(gaps.iter().all(|&gap| gap < tolerance), "{name} in {dtype:?}: {gaps:?}");
            }
        }
    }
}
