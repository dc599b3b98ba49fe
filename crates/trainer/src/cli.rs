//! The command line: every subcommand and flag, with its help.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use sampler::Compute;

use crate::config::{DeviceChoice, Dtype, Overrides};

/// What `--model` takes, for every command.
const MODEL_HELP: &str = "`embedded`, a folder in Hugging Face layout, or a Hub id org/name[@revision]";
/// What `--data` takes where problems are meant.
const DATA_HELP: &str = "`countdown`, a .jsonl or .parquet file, or a Hub data set org/name[:split]";

/// Trains reasoning language models by GRPO while their response budget breathes in and out (SIRI).
///
/// Without a subcommand: a training run of the embedded policy on Countdown, as `trainer train`.
/// Results go to stdout, progress to stderr.
/// Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted after a checkpoint.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, args_conflicts_with_subcommands = true, verbatim_doc_comment)]
pub struct Cli {
    /// What to do; training when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `train`, so that the subcommand may be left out.
    #[command(flatten)]
    pub train: TrainArgs,
}

impl Cli {
    /// The command that was asked for.
    pub fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Train(self.train))
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a policy (the default)
    Train(TrainArgs),
    /// Measure a policy: avg@k, pass@k and tokens with their standard errors, as JSON
    Eval(EvalArgs),
    /// Stream responses as text
    Generate(GenerateArgs),
    /// Log-probs of given responses: JSONL in, JSONL out
    Score(ScoreArgs),
    /// Judge given responses against gold answers: JSONL in, JSONL out
    Grade(GradeArgs),
    /// Print the response budget of every step as CSV
    Schedule(ScheduleArgs),
    /// Measure tokens a second and peak memory, as JSON
    Bench(BenchArgs),
    /// Draw one or more runs into one self-contained HTML file
    Report(ReportArgs),
    /// Supervised warm start: makes the embedded policy
    Sft(SftArgs),
    /// Write a checkpoint as a folder that transformers and vLLM load
    Export(ExportArgs),
    /// Say what a run needs and what would fail, before anything is downloaded
    Doctor(DoctorArgs),
    /// Compare everything that a device computes with its twin and with the CPU: the first thing to run on a machine
    Selftest(SelftestArgs),
}

/// Where settings come from: a file and changes to it.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingsArgs {
    /// Settings in TOML; what it leaves out comes from the built-in configs/countdown.toml, or from
    /// configs/siri-1.5b.toml when it names another model than `embedded`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, as in `--set sampler.group_size=16`; may be repeated, the last wins
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
}

/// `trainer train`.
#[derive(Clone, Debug, Default, Args)]
pub struct TrainArgs {
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Compressions with their expansions (schedule.cycles)
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub cycles: Option<usize>,
    /// The run folder (run.out); runs/ and the time when absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The seed of everything random (run.seed)
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Where tensors live (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Continue a run from its folder, or from one of its checkpoints, with its own settings; `auto` continues the run of
    /// --out where there is one, and begins it where there is none
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
}

impl TrainArgs {
    /// The flags that stand for a key.
    pub fn overrides(&self) -> Overrides {
        Overrides { cycles: self.cycles, seed: self.seed, out: self.out.clone(), device: self.device }
    }
}

/// How responses are sampled, for commands that take no settings file.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// Tokens a response may have; when absent, what the model's generation_config.json says (448 for the embedded
    /// policy), else 16384, as far as the model's positions go
    #[arg(long, value_name = "L", value_parser = count, allow_negative_numbers = true)]
    pub max_tokens: Option<usize>,
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value = "1", value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from the fewest tokens that hold this share of the probability
    #[arg(long, value_name = "P", default_value = "1", value_parser = nucleus, allow_negative_numbers = true)]
    pub top_p: f64,
    /// End a response with this text, beside the model's stop tokens; it stays in the response; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// The seed of the samples
    #[arg(long, value_name = "N", default_value = "1", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: u64,
}

/// `trainer eval`.
#[derive(Clone, Debug, Args)]
pub struct EvalArgs {
    #[arg(long, value_name = "MODEL", help = MODEL_HELP)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the help, which is shared")]
    pub model: String,
    #[arg(long, value_name = "DATA", help = DATA_HELP)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the help, which is shared")]
    pub data: String,
    /// Responses a problem: the k of avg@k
    #[arg(long, value_name = "K", default_value = "1", value_parser = count, allow_negative_numbers = true)]
    pub samples: usize,
    /// The first so many problems; all when absent
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub problems: Option<usize>,
    /// What the policy's matrices are kept in, and, on the CPU, responses are computed in
    #[arg(long, value_enum, value_name = "D", default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What the products of responses are computed in on the CPU (f32, bf16, int8); as --dtype when absent
    #[arg(long, value_name = "C", value_parser = compute)]
    pub compute: Option<Compute>,
    /// How responses are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Write every response with its verdict to this JSONL file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Where tensors live
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// `trainer generate`.
#[derive(Clone, Debug, Args)]
#[command(group = clap::ArgGroup::new("input").required(true).args(["prompt", "data"]))]
pub struct GenerateArgs {
    #[arg(long, value_name = "MODEL", help = MODEL_HELP)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the help, which is shared")]
    pub model: String,
    /// What the user says, such as `Make 19 from 3, 7, 12.`
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    #[arg(long, value_name = "DATA", help = DATA_HELP)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the help, which is shared")]
    pub data: Option<String>,
    /// With --data: the first so many problems; all when absent
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, conflicts_with = "prompt")]
    pub problems: Option<usize>,
    /// What the policy's matrices are kept in, and, on the CPU, responses are computed in
    #[arg(long, value_enum, value_name = "D", default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What the products of responses are computed in on the CPU (f32, bf16, int8); as --dtype when absent
    #[arg(long, value_name = "C", value_parser = compute)]
    pub compute: Option<Compute>,
    /// How responses are sampled.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Where tensors live
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// `trainer score`.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    #[arg(long, value_name = "MODEL", help = MODEL_HELP)]
    #[allow(missing_docs, reason = "clap would take a doc comment for the help, which is shared")]
    pub model: String,
    /// JSONL rows {"prompt_ids":[..],"response_ids":[..]}; the same rows come out with "logprobs":[..] (temperature 1)
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Make one training step instead, on rows that also have "group", "reward" and the sampler's "logprobs"; its weights
    /// go to this folder, its figures to stdout
    #[arg(long, value_name = "DIR")]
    pub update: Option<PathBuf>,
    /// With --update: the reference model of the KL; the model as it is when absent
    #[arg(long, value_name = "MODEL", requires = "update")]
    pub reference: Option<String>,
    /// The settings of the step.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Where tensors live
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// `trainer grade`.
#[derive(Clone, Debug, Args)]
pub struct GradeArgs {
    /// JSONL rows {"gold":"..","response":".."}, optionally with "verifier"; rows {"correct":bool,"answer":string|null}
    /// come out in the same order
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Who judges rows that name no verifier
    #[arg(long, value_enum, default_value_t = VerifierChoice::Math)]
    pub verifier: VerifierChoice,
    /// Where no answer is boxed, look for one after `####`, after "answer is", in the last formula, the last number
    #[arg(long)]
    pub fallback: bool,
}

/// The verifiers on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerifierChoice {
    /// Mathematical equality of LaTeX or plain answers
    Math,
    /// An expression that uses each given number once and has the target's value
    Countdown,
    /// The same text, up to white space
    Exact,
}

/// `trainer schedule`.
#[derive(Clone, Debug, Args)]
pub struct ScheduleArgs {
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Draw the budget over the steps into this SVG file as well
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `trainer bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, value_name = "rollout|train", hide_possible_values = true)]
    pub kind: BenchKind,
    /// `embedded`, a folder in Hugging Face layout, a Hub id org/name or org/name@revision, or random:FILE for random weights in the
    /// shape that a config.json describes
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Responses, all at once unless --rows says otherwise
    #[arg(long, value_name = "B", default_value = "32", value_parser = count, allow_negative_numbers = true)]
    pub batch: usize,
    /// Tokens of each prompt
    #[arg(long, value_name = "P", default_value = "32", value_parser = count, allow_negative_numbers = true)]
    pub prompt_tokens: usize,
    /// Tokens of each response; with --lengths, of the longest
    #[arg(long, value_name = "N", default_value = "256", value_parser = count, allow_negative_numbers = true)]
    pub new_tokens: usize,
    /// Tokens of each response one by one: `lognormal:MEDIAN:SIGMA`, which has a long tail, or a file with a number a line
    #[arg(long, value_name = "SHAPE|FILE")]
    pub lengths: Option<String>,
    /// Of rollouts: rows decoded at once; as many as responses when absent
    #[arg(long, value_name = "R", value_parser = count, allow_negative_numbers = true)]
    pub rows: Option<usize>,
    /// Of rollouts: so many responses behind each other have the same prompt
    #[arg(long, value_name = "G", default_value = "1", value_parser = count, allow_negative_numbers = true)]
    pub group: usize,
    /// Of rollouts: compute each prompt anew for each response, to see what sharing gains
    #[arg(long)]
    pub no_sharing: bool,
    /// Of rollouts: replace rows when all have finished, to see what replacing them at once gains
    #[arg(long)]
    pub static_batch: bool,
    /// Of updates: pad sequences to the longest of their micro-batch, to see what packing gains
    #[arg(long)]
    pub padded: bool,
    /// What the policy's matrices are kept in, and, on the CPU, rollouts are computed in
    #[arg(long, value_enum, value_name = "D", default_value_t = Dtype::F32)]
    pub dtype: Dtype,
    /// What products are computed in on the CPU (f32, bf16, and for rollouts int8); as --dtype when absent
    #[arg(long, value_name = "C", value_parser = compute)]
    pub compute: Option<Compute>,
    /// What gradient sums and the moments of AdamW are kept in
    #[arg(long, value_enum, value_name = "D", default_value_t = Dtype::F32)]
    pub state: Dtype,
    /// Train adapters of this rank for every projection, the weights frozen
    #[arg(long, value_name = "R", value_parser = count, allow_negative_numbers = true)]
    pub lora_rank: Option<usize>,
    /// Tokens of one forward and backward pass; a longer row has one of its own
    #[arg(long, value_name = "T", default_value = "2048", value_parser = count, allow_negative_numbers = true)]
    pub micro_batch_tokens: usize,
    /// The learning rate of the updates; the default leaves the weights where they are
    #[arg(long, value_name = "LR", default_value = "1e-7", value_parser = temperature, allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// Of rollouts: tokens of each response of the first repeat, which is not timed; --new-tokens when absent
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub warm_up_tokens: Option<usize>,
    /// Timed repeats after the first; 0 times the first; as many as five seconds hold, and three at least, when absent
    #[arg(long, value_name = "N")]
    pub repeats: Option<usize>,
    /// Where tensors live
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// What `trainer bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Sampling with the key-value cache
    Rollout,
    /// Forward, backward and one update
    Train,
}

/// `trainer report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Run folders; several are drawn against each other
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// The HTML file; report.html in the first run folder when absent
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `trainer sft`.
#[derive(Clone, Debug, Args)]
pub struct SftArgs {
    /// Settings in TOML; what it leaves out comes from the built-in configs/countdown-sft.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Change one setting, as in `--set train.learning_rate=1e-3`; may be repeated, the last wins
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// The folder that the policy is written to (run.out); runs/ and the time when absent
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The seed of everything random (run.seed)
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Where tensors live (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
}

/// `trainer export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// A checkpoint folder, such as runs/NAME/checkpoints/cycle-3-high
    pub checkpoint: PathBuf,
    /// The folder to write; new or empty
    pub out: PathBuf,
    /// The type that the weights are written in
    #[arg(long, value_enum, value_name = "D", default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,
    /// Bytes of one file of weights at most; above it there are several, and an index
    #[arg(long, value_name = "BYTES", default_value_t = model::split::FILE_BYTES)]
    pub file_bytes: usize,
}

/// `trainer doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Where tensors would live (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
}

/// `trainer selftest`.
#[derive(Clone, Debug, Args)]
pub struct SelftestArgs {
    /// The device that is tested
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// One JSON object in place of the table
    #[arg(long)]
    pub json: bool,
}

fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, 0 or more, of at most 64 bits".into())
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= 1 => Ok(number),
        _ => Err("must be a whole number, at least 1".into()),
    }
}

fn compute(text: &str) -> Result<Compute, String> {
    [("f32", Compute::F32), ("bf16", Compute::Bf16), ("int8", Compute::Int8)]
        .into_iter()
        .find_map(|(name, compute)| (name == text).then_some(compute))
        .ok_or_else(|| "must be f32, bf16 or int8".into())
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(number),
        _ => Err("must be a finite number, 0 or more".into()),
    }
}

fn nucleus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1.0 => Ok(number),
        _ => Err("must be above 0 and at most 1".into()),
    }
}

/// What clap has against a command line, on one line.
///
/// Its own report is a paragraph of usage with the message in it; the message, its tips and where to read on are
/// enough.
pub fn one_line(error: &clap::Error) -> String {
    let report = error.render().to_string();
    let mut message = String::new();
    let mut command = String::from("trainer");
    for line in report.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(usage) = line.strip_prefix("Usage: trainer ") {
            let name = usage.split(' ').next().unwrap_or_default();
            if Cli::command().find_subcommand(name).is_some() {
                command = format!("trainer {name}");
            }
            break;
        }
        let (joint, text) = match line.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None => (" ", line.strip_prefix("error: ").unwrap_or(line)),
        };
        if line.starts_with("For more information") {
            break;
        }
        message.push_str(if message.is_empty() { "" } else { joint });
        message.push_str(text);
    }
    format!("{message} (see `{command} --help`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Command, String> {
        let arguments = std::iter::once("trainer").chain(arguments.iter().copied());
        Cli::try_parse_from(arguments).map(Cli::into_command).map_err(|error| one_line(&error))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_is_train() {
        for line in [&["--cycles", "3"][..], &["train", "--cycles", "3"]] {
            let Command::Train(train) = parse(line).unwrap() else { panic!("{line:?} is not train") };
            assert_eq!(train.cycles, Some(3));
        }
        assert!(matches!(parse(&[]), Ok(Command::Train(_))));
    }

    #[test]
    fn refusals_are_one_line_with_the_nearest_name() {
        for (line, expected) in [
            (&["--cylces", "3"][..], "'--cycles'"),
            (&["shedule"], "'schedule'"),
            (&["--device", "gpu"], "[possible values: auto, cpu, cuda, metal]"),
            (&["eval", "--model", "embedded"], "--data <DATA>"),
            (&["generate", "--model", "embedded"], "--prompt <TEXT>"),
            (&["--cycles", "-1"], "invalid value '-1' for '--cycles <N>': must be a whole number"),
            (
                &["trian"],
                "unrecognized subcommand 'trian'; a similar subcommand exists: 'train' (see `trainer --help`)",
            ),
            (&["eval", "--model", "m"], "(see `trainer eval --help`)"),
            (&["eval", "--model", "m", "--data", "d", "--top-p", "-1"], "must be above 0 and at most 1"),
        ] {
            let message = parse(line).unwrap_err();
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(message.contains(expected), "{line:?}: {message}");
        }
    }
}
