//! `trainer score`: log-probs of given responses under a policy at temperature 1, one row out for each row in.

mod update;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Result, ensure};
use model::Qwen2;
use serde_json::{Map, Value};

use super::ready;
use crate::cli::ScoreArgs;
use crate::commands::{UsageError, print};
use crate::config::Dtype;
use crate::data::next_line;
use crate::update::{Sequence, each, micro_batches, pack};

/// Tokens read before they are scored and printed: enough for every thread, few enough to keep in memory.
const CHUNK_TOKENS: usize = 1 << 16;
/// Tokens of one forward pass; a longer row has a pass of its own.
const PASS_TOKENS: usize = 2048;

/// A row of the file.
struct Row {
    line: usize,
    fields: Map<String, Value>,
    sequence: Sequence,
}

/// Scores a file to stdout, or makes a training step on it.
pub(super) fn run(args: &ScoreArgs) -> Result<()> {
    if let Some(out) = &args.update {
        return update::run(args, out);
    }
    if args.settings.config.is_some() || !args.settings.set.is_empty() {
        return Err(UsageError::new("--config and --set are for a training step: give --update DIR too").into());
    }
    let policy = ready::load(&args.model, Dtype::F32, args.device)?;
    let model = policy.model.detached();
    let path = args.data.display();
    let (mut chunk, mut tokens) = (Vec::new(), 0);
    for row in rows(&args.data, model.config())? {
        let row = row?;
        tokens += row.sequence.tokens.len();
        chunk.push(row);
        if tokens >= CHUNK_TOKENS {
            print(&scored(&model, std::mem::take(&mut chunk), &path)?)?;
            tokens = 0;
        }
    }
    print(&scored(&model, chunk, &path)?)
}

/// The rows of a file, read one by one; blank lines are passed over.
fn rows<'a>(path: &'a Path, config: &'a model::Config) -> Result<impl Iterator<Item = Result<Row>> + 'a> {
    let shown = path.display();
    let file =
        File::open(path).map_err(|error| UsageError::new(format!("{shown}: cannot read these rows: {error}")))?;
    let (mut reader, mut text, mut line) = (BufReader::new(file), Vec::new(), 0);
    let mut next = move || loop {
        line += 1;
        let parsed = match next_line(&mut reader, &mut text) {
            Ok(false) => return None,
            Ok(true) if text.trim_ascii().is_empty() => continue,
            Ok(true) => parse(&text, config),
            Err(error) => Err(error.to_string()),
        };
        return Some((line, parsed));
    };
    Ok(std::iter::from_fn(move || {
        let (line, parsed) = next()?;
        let row = parsed.map(|(fields, sequence)| Row { line, fields, sequence });
        Some(row.map_err(|problem| UsageError::new(format!("{shown}:{line}: {problem}")).into()))
    }))
}

fn parse(text: &[u8], config: &model::Config) -> Result<(Map<String, Value>, Sequence), String> {
    let fields: Map<String, Value> = serde_json::from_slice(text).map_err(|error| {
        // Its line is that within the row: the caller knows the file's.
        let what = error.to_string().split(" at line ").next().unwrap_or_default().to_owned();
        format!("a row must be {{\"prompt_ids\":[..],\"response_ids\":[..]}}: {what} at column {}", error.column())
    })?;
    let mut tokens = ids(&fields, "prompt_ids", config.vocab_size)?;
    let prompt = tokens.len();
    if prompt == 0 {
        return Err("prompt_ids is empty: the first token of a response needs one before it".into());
    }
    tokens.extend(ids(&fields, "response_ids", config.vocab_size)?);
    let (length, limit) = (tokens.len(), config.max_positions);
    if length > limit {
        return Err(format!("prompt_ids and response_ids have {length} tokens, the model's limit is {limit}"));
    }
    Ok((fields, Sequence { tokens, prompt }))
}

fn ids(fields: &Map<String, Value>, key: &str, vocab: usize) -> Result<Vec<u32>, String> {
    let list = fields.get(key).ok_or_else(|| format!("there is no `{key}`, a list of token ids"))?;
    let list = list.as_array().ok_or_else(|| format!("`{key}` must be a list of token ids"))?;
    let id = |(i, value): (usize, &Value)| match value.as_u64().map(u32::try_from) {
        Some(Ok(id)) if (id as usize) < vocab => Ok(id),
        Some(_) => Err(format!("{key}[{i}] = {value}: beyond the model's vocabulary of {vocab} tokens")),
        None => Err(format!("{key}[{i}] = {value}: a token id must be a whole number, 0 to {}", vocab - 1)),
    };
    list.iter().enumerate().map(id).collect()
}

/// The rows with their log-probs, one a line, in their order.
fn scored(model: &Qwen2, rows: Vec<Row>, path: &dyn std::fmt::Display) -> Result<String> {
    // A row without a response has nothing to score.
    let sequences: Vec<Sequence> =
        rows.iter().map(|row| &row.sequence).filter(|sequence| sequence.response_len() > 0).cloned().collect();
    let mut log_probs = log_probs(model, &sequences)?.into_iter();
    let mut out = String::new();
    for mut row in rows {
        let scored = if row.sequence.response_len() > 0 { log_probs.next() } else { None };
        let (line, values) = (row.line, scored.unwrap_or_default());
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "{path}:{line}: a log-prob is not a finite number; the model's weights are broken"
        );
        row.fields.insert("logprobs".into(), values.into());
        out.push_str(&serde_json::to_string(&row.fields)?);
        out.push('\n');
    }
    Ok(out)
}

/// Log-probs of each sequence's response tokens, nats.
fn log_probs(model: &Qwen2, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens.len()).collect();
    let passes = micro_batches(&lengths, PASS_TOKENS);
    let parts =
        each(model, &passes, |range| Ok(model.scores(&pack(&sequences[range]), 1.0)?.log_probs.to_vec1::<f32>()?))?;
    let mut all = parts.into_iter().flatten();
    Ok(sequences.iter().map(|sequence| all.by_ref().take(sequence.response_len()).collect()).collect())
}
