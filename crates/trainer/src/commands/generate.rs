//! `trainer generate`: one response as text while it is sampled, or one JSON row a problem of a data set.

use anyhow::Result;
use model::Text;
use reward::Problem;
use sampler::{Control, Engine, Finish, Request, Sampled, pick};
use serde::Serialize;

use super::progress::Progress;
use super::ready;
use crate::cli::GenerateArgs;
use crate::commands::{UsageError, note, print};
use crate::policy::Policy;

/// The stream of these samples, apart from those of training and evaluation.
const GENERATE: u64 = 0x6765_6e65;

/// A row of the output; `trainer grade` reads it as it is.
#[derive(Serialize)]
struct Row<'a> {
    prompt: &'a str,
    response: &'a str,
    finish: &'static str,
    tokens: usize,
    gold: &'a str,
    verifier: &'static str,
    /// The prompt ended with `<think>`: a response without `</think>` is a thought that has not ended.
    prompt_opens_thought: bool,
}

/// Streams responses.
pub(super) fn run(args: &GenerateArgs) -> Result<()> {
    if let Some(prompt) = &args.prompt {
        return one(args, prompt);
    }
    // clap asks for one of the two.
    let name = args.data.as_deref().unwrap_or_default();
    let problems = ready::problems(name, args.problems)?;
    let policy = ready::load(&args.model, args.dtype, args.device)?;
    all(args, &policy, &problems)
}

fn one(args: &GenerateArgs, message: &str) -> Result<()> {
    let policy = ready::load(&args.model, args.dtype, args.device)?;
    let prompt = policy.text.prompt(message)?;
    if prompt.is_empty() {
        return Err(UsageError::new("--prompt: it is empty; the model needs something to go on").into());
    }
    let mut text = policy.text.stream();
    let finish = sample(args, &policy, &[prompt], &mut |sampled| {
        print(&text.push(sampled.token)?)?;
        if sampled.finish.is_some() {
            print(&format!("{}\n", text.rest()?))?;
        }
        Ok(())
    })?;
    if finish.contains(&Finish::Length) {
        note("cut off; a larger --max-tokens lets it go on");
    }
    Ok(())
}

fn all(args: &GenerateArgs, policy: &Policy, problems: &[Problem]) -> Result<()> {
    let prompts = problems.iter().map(|problem| Ok(policy.text.prompt(&problem.prompt)?));
    let prompts = prompts.collect::<Result<Vec<_>>>()?;
    let mut rows = Rows::new(&policy.text, problems)?;
    let mut progress = Progress::new(problems.len())?;
    sample(args, policy, &prompts, &mut |sampled| {
        progress.saw(sampled);
        rows.push(sampled)
    })?;
    progress.finish();
    Ok(())
}

/// Samples a response to each prompt and shows every token to `see`, whose first error ends it.
fn sample(
    args: &GenerateArgs,
    policy: &Policy,
    prompts: &[Vec<u32>],
    see: &mut dyn FnMut(Sampled) -> Result<()>,
) -> Result<Vec<Finish>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let max_new_tokens = ready::max_tokens(&args.sampling, policy, longest)?;
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let stream = pick::stream(&[args.sampling.seed, GENERATE, i as u64]);
            Request { prompt, stream, max_new_tokens }
        })
        .collect();
    let mut failure = None;
    let mut watch = |sampled| match see(sampled) {
        Ok(()) => Control::Continue,
        Err(error) => {
            failure.get_or_insert(error);
            Control::Stop
        }
    };
    let mut engine = ready::engine(policy, longest + max_new_tokens, args.compute.unwrap_or(args.dtype.into()))?;
    let rollouts = engine.generate(&requests, &ready::sampling(&args.sampling, &policy.text)?, &mut watch);
    match failure {
        Some(error) => Err(error),
        None => Ok(rollouts?.iter().map(|rollout| rollout.finish).collect()),
    }
}

/// Responses to a list of problems, printed in its order, each as soon as those before it are done.
struct Rows<'a> {
    text: &'a Text,
    problems: &'a [Problem],
    responses: Vec<(Vec<u32>, Option<Finish>)>,
    /// Rows that are out.
    printed: usize,
    prompt_opens_thought: bool,
}

impl<'a> Rows<'a> {
    fn new(text: &'a Text, problems: &'a [Problem]) -> Result<Self> {
        let responses = vec![(Vec::new(), None); problems.len()];
        Ok(Self { text, problems, responses, printed: 0, prompt_opens_thought: text.opens_thought()? })
    }

    fn push(&mut self, sampled: Sampled) -> Result<()> {
        let response = &mut self.responses[sampled.request];
        response.0.push(sampled.token);
        response.1 = sampled.finish;
        while let Some((tokens, Some(finish))) = self.responses.get(self.printed) {
            let problem = &self.problems[self.printed];
            let row = Row {
                prompt: &problem.prompt,
                response: &self.text.decode(tokens)?,
                finish: finish.name(),
                tokens: tokens.len(),
                gold: &problem.answer,
                verifier: problem.verifier.name(),
                prompt_opens_thought: self.prompt_opens_thought,
            };
            print(&format!("{}\n", serde_json::to_string(&row)?))?;
            self.printed += 1;
        }
        Ok(())
    }
}
