//! The command line: every subcommand and flag, with its help.

mod bench;
mod responses;
mod usage;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::bench::{BenchArgs, BenchKind};
pub use self::responses::{EvalArgs, GenerateArgs, SamplingArgs};
pub use self::usage::one_line;
use self::values::{path, whole};
use crate::config::{DeviceChoice, Dtype, Overrides};

/// What `--model` takes, for every command.
const MODEL_HELP: &str = "`embedded`, a folder in Hugging Face layout, or a Hub id org/name[@revision]";
/// What `--data` takes where problems are meant.
const DATA_HELP: &str = if cfg!(feature = "parquet") {
    "`countdown`, or a .jsonl or .parquet file; a data set on the Hub has to be downloaded first"
} else {
    "`countdown`, or a .jsonl file (.parquet in a build with `--features parquet`); a data set on the Hub has to be downloaded first"
};

/// Trains reasoning language models by GRPO while their response budget breathes in and out (SIRI).
///
/// Without a subcommand: a training run of the embedded policy on Countdown, as `trainer train`.
/// Results go to stdout, progress to stderr.
/// Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted after a checkpoint.
#[derive(Debug, Parser)]
#[command(
    name = "trainer",
    bin_name = "trainer",
    version,
    args_conflicts_with_subcommands = true,
    verbatim_doc_comment
)]
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
    /// Stream a response to a prompt as text, or print one to each problem of a data set as JSONL
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
    #[arg(long, value_name = "DIR", value_parser = path)]
    pub out: Option<PathBuf>,
    /// The seed of everything random (run.seed)
    #[arg(long, value_name = "N", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Where tensors live (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Continue a run from its folder, or from one of its checkpoints, with its own settings; `auto` continues the run of
    /// --out where there is one, and begins it where there is none
    #[arg(long, value_name = "DIR", value_parser = path)]
    pub resume: Option<PathBuf>,
}

impl TrainArgs {
    /// The flags that stand for a key.
    pub fn overrides(&self) -> Overrides {
        Overrides { cycles: self.cycles, seed: self.seed, out: self.out.clone(), device: self.device }
    }
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
    /// JSONL rows {"gold":"..","response":".."}, optionally with "verifier", and with "prompt_opens_thought":true where the
    /// prompt ended with `<think>`; rows {"correct":bool,"answer":string|null} come out in the same order
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
    #[arg(long, value_name = "DIR", value_parser = path)]
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
