//! Text in and out of token ids: the tokenizer, the model's own chat template, and the tokens that end a response.

#![deny(clippy::indexing_slicing)]

mod stop;
mod stream;

pub use stop::{StopMatcher, StopStrings};
pub use stream::TextStream;

use crate::error::{Error, Result};
use crate::files::Files;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::Value;
use std::sync::Arc;
use tokenizers::Tokenizer;

/// Lines of a template, and bytes of each: minijinja counts both in 16 bits, and panics at the end of them.
const TEMPLATE_SIDE: usize = 60_000;
/// Steps that rendering one prompt may take: a template is a program of whoever made the model. Those of known models
/// take a few hundred for one message.
const TEMPLATE_STEPS: u64 = 1_000_000;

/// A model's text side.
pub struct Text {
    /// Shared with the streams and stop strings that go their own way.
    tokenizer: Arc<Tokenizer>,
    template: Option<String>,
    /// Special tokens that templates name, such as `bos_token`.
    special: Vec<(String, String)>,
    stop: Vec<u32>,
}

impl Text {
    /// Reads tokenizer, template and stop tokens.
    ///
    /// # Errors
    /// When a file does not parse.
    pub fn new(files: &Files) -> Result<Self> {
        let mut tokenizer: Tokenizer =
            files.tokenizer.parse().map_err(|e| Error::invalid(files.path("tokenizer.json"), e))?;
        // Lengths are ours to manage: a tokenizer.json may carry its own cut.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| Error::invalid(files.path("tokenizer.json"), e))?;
        let settings = json(files, "tokenizer_config.json", files.tokenizer_config.as_deref())?;
        let generation = json(files, "generation_config.json", files.generation_config.as_deref())?;
        let config = json(files, "config.json", Some(&files.config))?;
        let special = ["bos_token", "eos_token", "pad_token", "unk_token"]
            .into_iter()
            .filter_map(|key| Some((key.to_string(), token_text(settings.get(key)?)?)))
            .collect::<Vec<_>>();
        let template = match &files.chat_template {
            Some(template) => Some(template.clone()),
            None => template(&settings).map_err(|e| Error::invalid(files.path("tokenizer_config.json"), e))?,
        };
        let template = template.map(|template| without_generation_tags(&template));
        let mut stop = ids(generation.get("eos_token_id"));
        if stop.is_empty() {
            stop = ids(config.get("eos_token_id"));
        }
        let eos = special.iter().find(|(key, _)| key == "eos_token").and_then(|(_, t)| tokenizer.token_to_id(t));
        if let Some(eos) = eos.filter(|id| !stop.contains(id)) {
            stop.push(eos);
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), template, special, stop })
    }

    /// Token ids of plain text; special tokens written out in it are recognised, none is added.
    ///
    /// # Errors
    /// When the tokenizer cannot encode the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, add_special);
        Ok(encoding.map_err(|e| Error::Unsupported(format!("tokenizer: {e}")))?.get_ids().to_vec())
    }

    /// Text of token ids, special tokens left out.
    ///
    /// # Errors
    /// When the tokenizer cannot decode the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|e| Error::Unsupported(format!("tokenizer: {e}")))
    }

    /// The text of a response whose tokens come one at a time, special tokens left out.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.tokenizer.clone())
    }

    /// Texts that end a response, beside [`Self::stop_tokens`].
    ///
    /// # Errors
    /// When one is empty or has the character that stands for incomplete ones.
    pub fn stop_strings(&self, strings: &[String]) -> Result<StopStrings> {
        StopStrings::new(self.tokenizer.clone(), strings)
    }

    /// The prompt of one user message, ready for the model to answer (`add_generation_prompt`). A model without a chat
    /// template gets the message as it is.
    ///
    /// # Errors
    /// When the template fails.
    pub fn render(&self, message: &str) -> Result<String> {
        let Some(template) = &self.template else {
            return Ok(message.into());
        };
        if template.lines().any(|line| line.len() > TEMPLATE_SIDE) || template.lines().count() > TEMPLATE_SIDE {
            return Err(Error::Template(format!("it has more than {TEMPLATE_SIDE} lines, or a line of more bytes")));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(TEMPLATE_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        // As transformers renders.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::Template(e.to_string()))?);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<String, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        let mut values: std::collections::BTreeMap<&str, minijinja::Value> =
            self.special.iter().map(|(k, v)| (k.as_str(), v.into())).collect();
        values.insert("messages", vec![context! { role => "user", content => message }].into());
        values.insert("add_generation_prompt", true.into());
        environment
            .render_str(template, values)
            .map_err(|e| Error::Template(e.detail().map_or_else(|| e.to_string(), String::from)))
    }

    /// Token ids of the rendered prompt of one user message. A template writes the special tokens out; without one, those
    /// that the tokenizer puts around a text are added.
    ///
    /// # Errors
    /// See [`Self::render`] and [`Self::encode`].
    pub fn prompt(&self, message: &str) -> Result<Vec<u32>> {
        self.ids(&self.render(message)?, self.template.is_none())
    }

    /// Whether the rendered prompt leaves a `<think>` open, so that the response begins inside it.
    ///
    /// # Errors
    /// See [`Self::render`].
    pub fn opens_thought(&self) -> Result<bool> {
        let prompt = self.render("")?;
        Ok(prompt.rfind("<think>").is_some_and(|open| prompt.rfind("</think>").is_none_or(|close| close < open)))
    }

    /// Tokens that end a response.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }
}

fn json(files: &Files, name: &str, text: Option<&str>) -> Result<Value> {
    text.map_or(Ok(Value::Null), |text| serde_json::from_str(text).map_err(|e| Error::invalid(files.path(name), e)))
}

/// The chat template among a tokenizer's settings: text, or a list of named ones, of which `default` counts.
fn template(settings: &Value) -> std::result::Result<Option<String>, String> {
    match settings.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
            let text = default.and_then(|entry| entry.get("template")?.as_str());
            text.map(|text| Some(text.into())).ok_or_else(|| "chat_template is a list without a `default`".into())
        }
        Some(_) => Err("chat_template is neither text nor a list of templates".into()),
    }
}

/// A template whose `generation` blocks, a tag of transformers' own around what the assistant says, are plain ones.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        // `{%}` opens a tag and does not close it.
        let Some((inner, _)) = tag.strip_prefix("{%").and_then(|rest| rest.split_once("%}")) else { break };
        let (tag, after) = tag.split_at(inner.len() + 4);
        out.push_str(before);
        match inner.trim_start_matches(['-', '+']).trim_end_matches('-').trim() {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// A token given as text or as `{"content": ..}`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(String::from)
}

/// One id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let as_id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(as_id).collect(),
        Some(value) => as_id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of single bytes, as byte-level BPE has them: é is two tokens, 中 is three.
    pub(super) fn bytes() -> Text {
        let mut files = crate::embedded::files();
        files.tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
            {"id": 8, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false}], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true}, "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "Ã": 2, "©": 3, "ä": 4, "¸": 5, "Ń": 6, "Ġ": 7}, "merges": []}}"#
            .into();
        Text::new(&files).unwrap()
    }

    #[test]
    fn a_template_beyond_what_its_reader_can_count_is_refused() {
        for template in [format!("{{{{ '{}", "a".repeat(70_000)), "\n".repeat(70_000) + "{{"] {
            let text = Text::new(&Files { chat_template: Some(template), ..crate::embedded::files() }).unwrap();
            assert!(matches!(text.render("hello"), Err(Error::Template(_))));
        }
    }

    #[test]
    fn the_embedded_prompt_opens_a_thought() {
        let text = Text::new(&crate::embedded::files()).unwrap();
        let prompt = text.render("Make 19 from 3, 7, 12.").unwrap();
        assert_eq!(prompt, "<|user|>Make 19 from 3, 7, 12.<|assistant|><think>\n");
        assert!(text.opens_thought().unwrap());
        assert_eq!(text.stop_tokens(), &[1]);
        let ids = text.encode("12-7=5, 5*3=15 vs 19 no\n").unwrap();
        assert_eq!(ids.len(), 17);
        assert_eq!(text.decode(&ids).unwrap(), "12-7=5, 5*3=15 vs 19 no\n");
    }
}
