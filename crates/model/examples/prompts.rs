//! Text to tokens and chat prompts, as training sees them: rows `{"text": ".."}` in, rows with `ids`, `decoded`, `prompt`
//! and `prompt_ids` out; the first row out has `stop_ids` and `opens_thought`.
//!
//! ```text
//! cargo run -p model --example prompts -- FOLDER < rows.jsonl
//! ```
//!
//! `FOLDER` needs no weights: `tokenizer.json`, and what there is of the other small files.

use model::files::Weights;
use model::{Files, Text};
use serde_json::{Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: prompts FOLDER < rows.jsonl")?;
    let text = Text::new(&small_files(Path::new(&folder))?)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(out, "{}", json!({"stop_ids": text.stop_tokens(), "opens_thought": text.opens_thought()?}))?;
    for line in std::io::stdin().lock().lines() {
        let row: Value = serde_json::from_str(&line?)?;
        let message = row["text"].as_str().ok_or("a row needs a \"text\"")?;
        let ids = text.encode(message)?;
        let answer = json!({
            "decoded": text.decode(&ids)?,
            "ids": ids,
            "prompt": text.render(message)?,
            "prompt_ids": text.prompt(message)?,
        });
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn small_files(folder: &Path) -> std::io::Result<Files> {
    let read = |name: &str| match std::fs::read_to_string(folder.join(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    Ok(Files {
        origin: folder.into(),
        config: read("config.json")?.unwrap_or_else(|| "{}".into()),
        tokenizer: std::fs::read_to_string(folder.join("tokenizer.json"))?,
        tokenizer_config: read("tokenizer_config.json")?,
        chat_template: read("chat_template.jinja")?,
        generation_config: read("generation_config.json")?,
        weights: Weights::Bytes(&[]),
    })
}
