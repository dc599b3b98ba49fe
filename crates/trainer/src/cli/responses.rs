//! The flags of the commands that sample responses: `eval` and `generate`.

use std::path::PathBuf;

use clap::Args;
use sampler::Compute;

use super::values::{compute, count, nucleus, temperature, whole};
use super::{DATA_HELP, MODEL_HELP};
use crate::config::{DeviceChoice, Dtype};

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
    /// Stream the response as text: what the user says, such as `Make 19 from 3, 7, 12.`
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    #[arg(long, value_name = "DATA", help = format!("Print a JSONL row a problem, which `grade` reads: {DATA_HELP}"))]
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
