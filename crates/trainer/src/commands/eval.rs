//! `trainer eval`: a policy's accuracy and length on a data set, with their standard errors, as JSON.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use reward::estimate::{self, Estimate};
use reward::{Fallback, Problem, Reason, VerifierKind};
use sampler::{Compute, Control};
use serde::Serialize;

use super::progress::Progress;
use super::ready;
use crate::cli::EvalArgs;
use crate::commands::{UsageError, print};
use crate::config::Dtype;
use crate::evaluate::{self, Sample, Settings, known};
use crate::policy::extraction;

/// What is printed. Every standard error is over problems, and null where there is only one.
#[derive(Serialize)]
struct Figures<'a> {
    model: String,
    data: &'a str,
    problems: usize,
    /// Responses a problem: the k below.
    samples: usize,
    dtype: Dtype,
    compute: Compute,
    temperature: f64,
    top_p: f64,
    max_tokens: usize,
    seed: u64,
    /// Where answers are looked for when none is boxed: more places than in training, where a loose rule is learned.
    fallback: &'static str,
    /// avg@k under the name of the run folder's `eval.jsonl`: the mean over problems of the share of right responses.
    pass_at_1: f64,
    pass_at_1_se: Option<f64>,
    avg_at_k: f64,
    avg_at_k_se: Option<f64>,
    pass_at_k: f64,
    pass_at_k_se: Option<f64>,
    /// Null for tasks with many right answers: there is nothing to vote on.
    maj_at_k: Option<f64>,
    maj_at_k_se: Option<f64>,
    response_tokens: f64,
    response_tokens_se: Option<f64>,
    /// Share of responses that `max_tokens` cut off.
    truncated: f64,
    seconds: f64,
    tokens_per_second: f64,
}

/// A row of `--out`.
#[derive(Serialize)]
struct Row<'a> {
    problem: usize,
    sample: usize,
    prompt: &'a str,
    gold: &'a str,
    verifier: &'static str,
    /// As in the rows of `trainer generate`, for `trainer grade`.
    prompt_opens_thought: bool,
    response: &'a str,
    tokens: usize,
    finish: &'static str,
    correct: bool,
    answer: Option<&'a str>,
    reason: String,
}

/// Measures a policy.
pub(super) fn run(args: &EvalArgs) -> Result<()> {
    let problems = ready::problems(&args.data, args.problems)?;
    if let Some(out) = &args.out
        && out.canonicalize().is_ok_and(|out| Path::new(&args.data).canonicalize().is_ok_and(|data| data == out))
    {
        return Err(UsageError::new(format!("--out {}: the file that --data reads", out.display())).into());
    }
    let policy = ready::load(&args.model, args.dtype, args.device)?;
    let longest = longest_prompt(&policy.text, &problems)?;
    let max_tokens = ready::max_tokens(&args.sampling, &policy, longest)?;
    let out = args.out.as_deref().map(ready::create).transpose()?;
    let settings = Settings {
        samples: args.samples,
        max_tokens,
        sampling: ready::sampling(&args.sampling, &policy.text)?,
        seed: args.sampling.seed,
        extraction: reward::Policy { fallback: Fallback::Standard, ..extraction(&policy.text)? },
    };
    let compute = args.compute.unwrap_or(args.dtype.into());
    let mut engine = ready::engine(&policy, longest + max_tokens, compute)?;
    let mut progress = Progress::new(problems.len() * args.samples)?;
    let started = Instant::now();
    let watch = &mut |sampled| {
        progress.saw(sampled);
        Control::Continue
    };
    let samples = evaluate::sample(&mut engine, &policy.text, &problems, &settings, watch)?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        samples.iter().all(|sample| sample.rollout.log_probs.iter().all(|log_prob| log_prob.is_finite())),
        "{}: a log-prob is not a finite number; the model's weights are broken",
        policy.source
    );
    if let (Some(mut out), Some(path)) = (out, &args.out) {
        write_rows(&mut out, &problems, &samples, &settings)
            .with_context(|| format!("--out {}: cannot write", path.display()))?;
    }
    let figures = figures(args, policy.source.to_string(), &problems, &samples, Spent { max_tokens, seconds });
    print(&format!("{}\n", serde_json::to_string_pretty(&figures)?))
}

fn longest_prompt(text: &model::Text, problems: &[Problem]) -> Result<usize> {
    let lengths = problems.iter().map(|problem| Ok(text.prompt(&problem.prompt)?.len()));
    Ok(lengths.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0))
}

struct Spent {
    max_tokens: usize,
    seconds: f64,
}

fn figures<'a>(
    args: &'a EvalArgs,
    model: String,
    problems: &[Problem],
    samples: &[Sample],
    spent: Spent,
) -> Figures<'a> {
    let by_problem: Vec<&[Sample]> = samples.chunks(args.samples).collect();
    let correct: Vec<Vec<bool>> = by_problem.iter().map(|s| s.iter().map(|s| s.verdict.correct).collect()).collect();
    let lengths: Vec<Vec<usize>> =
        by_problem.iter().map(|s| s.iter().map(|s| s.rollout.tokens.len()).collect()).collect();
    let accuracy = estimate::avg_at_k(&correct);
    // There are k samples of every problem, so that pass@k exists.
    let pass = estimate::pass_at_k(&correct, args.samples).unwrap_or(accuracy);
    let majority = majority(problems, &by_problem);
    let length = estimate::mean_tokens(&lengths);
    let tokens: usize = lengths.iter().flatten().sum();
    let truncated = samples.iter().filter(|sample| sample.rollout.truncated()).count();
    Figures {
        model,
        data: &args.data,
        problems: problems.len(),
        samples: args.samples,
        dtype: args.dtype,
        compute: args.compute.unwrap_or(args.dtype.into()),
        temperature: args.sampling.temperature,
        top_p: args.sampling.top_p,
        max_tokens: spent.max_tokens,
        seed: args.sampling.seed,
        fallback: "standard",
        pass_at_1: accuracy.mean,
        pass_at_1_se: known(accuracy),
        avg_at_k: accuracy.mean,
        avg_at_k_se: known(accuracy),
        pass_at_k: pass.mean,
        pass_at_k_se: known(pass),
        maj_at_k: majority.map(|estimate| estimate.mean),
        maj_at_k_se: majority.and_then(known),
        response_tokens: length.mean,
        response_tokens_se: known(length),
        truncated: truncated as f64 / samples.len() as f64,
        seconds: spent.seconds,
        tokens_per_second: tokens as f64 / spent.seconds,
    }
}

/// maj@k, votes being equal where the verifier says so; `None` if a problem has many right answers.
fn majority(problems: &[Problem], by_problem: &[&[Sample]]) -> Option<Estimate> {
    let votable = |kind| matches!(kind, VerifierKind::Math | VerifierKind::Exact);
    if !problems.iter().all(|problem| votable(problem.verifier)) {
        return None;
    }
    let groups: Vec<Vec<(Option<&str>, bool)>> =
        problems.iter().zip(by_problem).map(|(problem, samples)| votes(problem.verifier, samples)).collect();
    Some(estimate::maj_at_k(&groups))
}

/// What each sample votes for: the first answer among those before it that equals its own.
fn votes(kind: VerifierKind, samples: &[Sample]) -> Vec<(Option<&str>, bool)> {
    let mut kinds: Vec<(&str, bool)> = Vec::new();
    let same = |a: &str, b: &str| a == b || kind.verifier().compare(a, b) == Reason::Correct;
    samples
        .iter()
        .map(|sample| {
            let Some(answer) = sample.verdict.answer.as_deref() else { return (None, false) };
            let correct = sample.verdict.correct;
            let known = kinds.iter().find(|(first, right)| *right == correct && same(first, answer)).copied();
            let (first, correct) = known.unwrap_or((answer, correct));
            if known.is_none() {
                kinds.push((first, correct));
            }
            (Some(first), correct)
        })
        .collect()
}

fn write_rows(out: &mut impl Write, problems: &[Problem], samples: &[Sample], settings: &Settings) -> Result<()> {
    for (i, sample) in samples.iter().enumerate() {
        let problem = &problems[sample.problem];
        let row = Row {
            problem: sample.problem,
            sample: i % settings.samples,
            prompt: &problem.prompt,
            gold: &problem.answer,
            verifier: problem.verifier.name(),
            prompt_opens_thought: settings.extraction.prompt_opens_thought,
            response: &sample.response,
            tokens: sample.rollout.tokens.len(),
            finish: sample.rollout.finish.name(),
            correct: sample.verdict.correct,
            answer: sample.verdict.answer.as_deref(),
            reason: sample.verdict.reason.to_string(),
        };
        serde_json::to_writer(&mut *out, &row)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampler::{Finish, Rollout, Times};

    fn sample(response: &str) -> Sample {
        let policy = reward::Policy::default();
        Sample {
            problem: 0,
            response: response.into(),
            rollout: Rollout {
                tokens: vec![1],
                log_probs: vec![0.0],
                finish: Finish::Stop,
                weight_version: 1,
                times: Times::default(),
            },
            verdict: reward::grade(VerifierKind::Math, "1/2", response, &policy),
        }
    }

    #[test]
    fn equal_answers_vote_together_however_they_are_written() {
        let samples: Vec<Sample> =
            [r"\boxed{3}", r"\boxed{\frac12}", r"\boxed{0.5}", r"none", r"\boxed{3.0}", r"\boxed{2/4}"]
                .map(sample)
                .into();
        let votes = votes(VerifierKind::Math, &samples);
        let half = r"\frac12";
        let expected = [(Some("3"), false), (Some(half), true), (Some(half), true), (None, false), (Some("3"), false)];
        assert_eq!(votes[..5], expected);
        assert_eq!(votes[5], (Some(half), true));
        let problem = Problem::new("?", "1/2", VerifierKind::Math).unwrap();
        // Three votes for a half, two for 3.
        assert_eq!(majority(&[problem], &[&samples]).unwrap().mean, 1.0);
    }

    #[test]
    fn there_is_no_vote_on_expressions() {
        let problem = Problem::new("?", "3 from 1, 1, 1", VerifierKind::Countdown).unwrap();
        assert!(majority(&[problem], &[&[]]).is_none());
    }
}
