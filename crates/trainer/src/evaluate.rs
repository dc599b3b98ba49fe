//! Measuring a policy: samples, verdicts, and figures with their standard errors.

use anyhow::Result;
use reward::estimate::{self, Estimate};
use reward::extract::Policy as Extraction;
use reward::{Problem, Verdict};
use sampler::{Control, Engine, Request, Rollout, Sampled, Sampling, pick};

use crate::grading::{self, grade_all};
use crate::metrics::EvalRow;
use model::Text;

/// The stream of evaluation samples, apart from those of training.
const EVALUATION: u64 = 0x6576_616c;

/// How problems are sampled.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Responses a problem.
    pub samples: usize,
    /// Tokens a response may have.
    pub max_tokens: usize,
    /// Temperature, truncation and stop tokens.
    pub sampling: Sampling,
    /// Of the samples; the same seed samples the same way whatever the weights.
    pub seed: u64,
    /// How answers are taken from responses.
    pub extraction: Extraction,
}

/// One response and what became of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Index of the problem.
    pub problem: usize,
    /// The text, special tokens left out.
    pub response: String,
    /// What was sampled.
    pub rollout: Rollout,
    /// The judgement.
    pub verdict: Verdict,
}

/// Samples and grades every problem; samples come problem by problem.
///
/// # Errors
/// When sampling fails or is stopped.
pub fn sample(
    engine: &mut dyn Engine,
    text: &Text,
    problems: &[Problem],
    settings: &Settings,
    watch: &mut dyn FnMut(Sampled) -> Control,
) -> Result<Vec<Sample>> {
    let prompts = problems.iter().map(|p| Ok(text.prompt(&p.prompt)?)).collect::<Result<Vec<_>>>()?;
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .flat_map(|(problem, prompt)| {
            (0..settings.samples).map(move |sample| Request {
                prompt,
                stream: pick::stream(&[settings.seed, EVALUATION, problem as u64, sample as u64]),
                max_new_tokens: settings.max_tokens,
            })
        })
        .collect();
    let rollouts = engine.generate(&requests, &settings.sampling, watch)?;
    let of = |i: usize| &problems[i / settings.samples];
    grade(text, rollouts, of, settings)
}

fn grade<'a>(
    text: &Text,
    rollouts: Vec<Rollout>,
    of: impl Fn(usize) -> &'a Problem,
    settings: &Settings,
) -> Result<Vec<Sample>> {
    let responses = rollouts.iter().map(|r| Ok(text.decode(&r.tokens)?)).collect::<Result<Vec<_>>>()?;
    let rows: Vec<_> = responses
        .iter()
        .enumerate()
        .map(|(i, response)| (of(i).verifier, of(i).answer.as_str(), response.as_str()))
        .collect();
    let verdicts = grade_all(&rows, &settings.extraction);
    let all = rollouts.into_iter().zip(responses).zip(verdicts).enumerate();
    Ok(all
        .map(|(i, ((rollout, response), verdict))| Sample { problem: i / settings.samples, response, rollout, verdict })
        .collect())
}

/// Which evaluation a row is.
#[derive(Clone, Copy, Debug)]
pub struct Label<'a> {
    /// Steps done.
    pub step: usize,
    /// `start`, `cycle-1-low`, ...
    pub name: &'a str,
    /// The data set.
    pub data: &'a str,
    /// Rollout tokens spent on training so far.
    pub tokens_total: u64,
}

/// The figures of a set of samples; errors are over problems.
pub fn summarise(samples: &[Sample], settings: &Settings, label: Label) -> EvalRow {
    let by_problem: Vec<&[Sample]> = samples.chunks(settings.samples).collect();
    let correct: Vec<Vec<bool>> = by_problem.iter().map(|s| s.iter().map(|s| s.verdict.correct).collect()).collect();
    let tokens: Vec<Vec<usize>> =
        by_problem.iter().map(|s| s.iter().map(|s| s.rollout.tokens.len()).collect()).collect();
    let accuracy = estimate::avg_at_k(&correct);
    let length = estimate::mean_tokens(&tokens);
    let share = |of: &dyn Fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / samples.len() as f64;
    EvalRow {
        step: label.step,
        name: label.name.into(),
        data: label.data.into(),
        problems: by_problem.len(),
        samples: settings.samples,
        pass_at_1: accuracy.mean,
        pass_at_1_se: known(accuracy),
        pass_at_k: estimate::pass_at_k(&correct, settings.samples).map_or(accuracy.mean, |e| e.mean),
        response_tokens: length.mean,
        response_tokens_se: known(length),
        truncated: share(&|s| f64::from(u8::from(s.rollout.truncated()))),
        tokens_total: label.tokens_total,
        graders_failed: grading::failures(samples.iter().map(|sample| &sample.verdict)),
        markers_per_response: Some(share(&|s| s.response.matches("wait").count() as f64)),
    }
}

/// The standard error of an estimate; one problem has no spread to take it from.
pub fn known(estimate: Estimate) -> Option<f64> {
    estimate.se.is_finite().then_some(estimate.se)
}
