//! Generation on a device beside the CPU: the likeliest tokens, and the log-probs of sampled ones.

use anyhow::{Result, bail};
use candle_core::{DType, Device};
use model::decode::Compute;
use model::selftest::Finding;
use model::{PackedBatch, Qwen2};
use sampler::{Control, Engine, Limits, Local, Request, Rollout, Sampling};

use super::models::{Subject, rows};

/// Prompts that end before, on and behind the end of a block of the cache.
const PROMPTS: [usize; 6] = [1, 15, 16, 17, 33, 80];
/// Tokens of each response: blocks are filled while it grows.
const NEW_TOKENS: usize = 40;
/// Rows at once, less than there are requests: one has to wait for another's place.
const ROWS: usize = 5;

/// Greedy and sampled responses of a model in `dtype`.
pub(super) fn check(subject: &Subject, dtype: DType, device: &Device) -> Vec<Finding> {
    let shape = format!("{}, {} rows of {NEW_TOKENS} tokens", subject.name, PROMPTS.len());
    let errors = Trial::new(subject, dtype, device).and_then(|trial| trial.errors());
    vec![match errors {
        Ok(errors) => Finding::worst("generation", shape, dtype, errors),
        Err(error) => Finding::failed("generation", shape, dtype, format!("{error:#}")),
    }]
}

/// A model on a device, the same on the CPU, and what both are asked.
struct Trial {
    here: Qwen2,
    cpu: Qwen2,
    dtype: DType,
    prompts: Vec<Vec<u32>>,
}

impl Trial {
    fn new(subject: &Subject, dtype: DType, device: &Device) -> Result<Self> {
        let (here, cpu) = (subject.load(dtype, device)?, subject.load(dtype, &Device::Cpu)?);
        let prompts = rows(&PROMPTS, cpu.config().vocab_size);
        Ok(Self { here, cpu, dtype, prompts })
    }

    /// In bf16 a rounding of the logits moves any log-prob, and near ties fall to either side: see the training step for what
    /// is usual.
    fn errors(&self) -> Result<Vec<(String, f64, f64)>> {
        let narrow = self.dtype != DType::F32;
        let compute = if narrow { Compute::Bf16 } else { Compute::F32 };
        let greedy = self.generate(&self.here, 0.0, compute)?;
        let expected = self.generate(&self.cpu, 0.0, Compute::F32)?;
        let mut errors = Vec::new();
        for (row, (found, expected)) in greedy.iter().zip(&expected).enumerate() {
            let tie = self.distance_from_likeliest(row, &found.tokens, &expected.tokens)?;
            errors.push((format!("greedy, row {row}"), tie, if narrow { 0.3 } else { 1e-4 }));
        }
        let sampled = self.generate(&self.here, 1.0, compute)?;
        let (mean, largest) = self.gap(&sampled)?;
        if narrow {
            errors.push(("log-probs, mean".into(), mean, 0.08));
        } else {
            errors.push(("log-probs".into(), largest, 1e-4));
        }
        Ok(errors)
    }

    fn generate(&self, model: &Qwen2, temperature: f64, compute: Compute) -> Result<Vec<Rollout>> {
        let mut engine = Local::new(Limits { max_rows: ROWS, cache_bytes: None }, compute);
        engine.load_weights(model)?;
        let requests: Vec<Request> = self
            .prompts
            .iter()
            .zip(1..)
            .map(|(prompt, stream)| Request { prompt, stream, max_new_tokens: NEW_TOKENS })
            .collect();
        let rollouts = engine.generate(&requests, &Sampling::at(temperature, &[]), &mut |_| Control::Continue)?;
        if let Some(row) = rollouts.iter().position(|rollout| rollout.tokens.len() != NEW_TOKENS) {
            bail!("row {row} has {} tokens of {NEW_TOKENS}", rollouts[row].tokens.len());
        }
        Ok(rollouts)
    }

    /// Where two greedy responses part, by how many nats the CPU prefers its own token; 0 where they do not. What comes
    /// behind has another past and says nothing.
    fn distance_from_likeliest(&self, row: usize, found: &[u32], expected: &[u32]) -> Result<f64> {
        let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) else { return Ok(0.0) };
        let with = |token: u32| [&self.prompts[row], &expected[..at], &[token]].concat();
        let (theirs, ours) = (with(found[at]), with(expected[at]));
        let last = theirs.len() - 1;
        let batch = PackedBatch::new([(theirs.as_slice(), last), (ours.as_slice(), last)]);
        let scores = self.cpu.detached().scores(&batch, 1.0)?.log_probs.to_vec1::<f32>()?;
        Ok(f64::from(scores[1]) - f64::from(scores[0]))
    }

    /// Mean and largest difference of the sampled tokens' log-probs from those of the CPU's training forward.
    fn gap(&self, rollouts: &[Rollout]) -> Result<(f64, f64)> {
        let sequences: Vec<Vec<u32>> =
            self.prompts.iter().zip(rollouts).map(|(prompt, r)| [prompt.as_slice(), &r.tokens].concat()).collect();
        let prompts = self.prompts.iter().map(Vec::len);
        let batch = PackedBatch::new(sequences.iter().map(Vec::as_slice).zip(prompts));
        let trained = self.cpu.detached().scores(&batch, 1.0)?.log_probs.to_vec1::<f32>()?;
        let sampled: Vec<f32> = rollouts.iter().flat_map(|r| r.log_probs.iter().copied()).collect();
        if sampled.len() != trained.len() {
            bail!("{} log-probs for {} tokens", sampled.len(), trained.len());
        }
        let differences = trained.iter().zip(&sampled).map(|(a, b)| f64::from((a - b).abs()));
        let (mut sum, mut largest) = (0.0, 0.0);
        for difference in differences {
            sum += difference;
            largest = if difference > largest || difference.is_nan() { difference } else { largest };
        }
        Ok((sum / trained.len() as f64, largest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::models::subjects;
    use super::*;

    #[test]
    fn a_device_with_other_weights_is_found() {
        let subject = &subjects()[1];
        let trial = Trial::new(subject, DType::F32, &Device::Cpu).unwrap();
        let within = |errors: Vec<(String, f64, f64)>| Finding::worst("generation", "", DType::F32, errors).passed();
        assert!(within(trial.errors().unwrap()));
        // One number of the embedding, which is the head too, is another.
        let (_, embedding) = &trial.here.weights()[0];
        let mut values = embedding.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values[70 * 112] += 0.05;
        let changed = candle_core::Tensor::from_vec(values, embedding.shape(), &Device::Cpu).unwrap();
        embedding.set(&changed).unwrap();
        assert!(!within(trial.errors().unwrap()));
    }

    #[test]
    fn the_distance_of_a_token_that_is_not_the_likeliest_is_what_the_cpu_prefers_its_own_by() {
        let trial = Trial::new(&subjects()[1], DType::F32, &Device::Cpu).unwrap();
        let greedy = trial.generate(&trial.cpu, 0.0, Compute::F32).unwrap();
        let expected = &greedy[2].tokens;
        assert_eq!(trial.distance_from_likeliest(2, expected, expected).unwrap(), 0.0);
        let mut found = expected.clone();
        found[9] = (found[9] + 1) % 503;
        assert!(trial.distance_from_likeliest(2, &found, expected).unwrap() > 1e-3);
    }
}
