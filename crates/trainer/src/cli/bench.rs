//! The flags of `trainer bench`.

use clap::{Args, ValueEnum};
use sampler::Compute;

use super::values::{compute, count, temperature};
use crate::config::{DeviceChoice, Dtype};

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
    /// Responses; how many at once is said at --rows
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
    /// Of rollouts: rows decoded at once; as many as responses when absent. On the CPU a small model has 16 a thread at most;
    /// `rows` of the figures are those that were used
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
