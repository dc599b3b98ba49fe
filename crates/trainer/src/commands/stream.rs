//! Tokens as text while they come: a character that several tokens spell is held back until it is whole.

use model::{Result, Text};

/// What a decoder writes for bytes that are no character (yet).
const INCOMPLETE: char = '\u{fffd}';

/// A response that is being sampled.
///
/// A tokenizer may write a token differently after another one (a leading space, say), so that each piece is decoded
/// behind the one before it. The pieces together are the text of all the tokens.
pub(super) struct TextStream<'a> {
    text: &'a Text,
    /// Tokens from the piece before on.
    window: Vec<u32>,
    /// How many of them are out.
    said: usize,
}

impl<'a> TextStream<'a> {
    /// The stream of a response, special tokens left out.
    pub(super) fn new(text: &'a Text) -> Self {
        Self { text, window: Vec::new(), said: 0 }
    }

    /// What a token adds; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub(super) fn push(&mut self, token: u32) -> Result<String> {
        self.window.push(token);
        let new = self.pending()?;
        if new.is_empty() || new.ends_with(INCOMPLETE) {
            return Ok(String::new());
        }
        self.window.drain(..self.said);
        self.said = self.window.len();
        Ok(new)
    }

    /// What was held back, as it is, at the end of the response.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub(super) fn rest(&mut self) -> Result<String> {
        let rest = self.pending()?;
        self.said = self.window.len();
        Ok(rest)
    }

    fn pending(&self) -> Result<String> {
        let said = self.text.decode(&self.window[..self.said])?;
        let all = self.text.decode(&self.window)?;
        Ok(all.strip_prefix(said.as_str()).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::embedded;

    /// A tokenizer of single bytes, as byte-level BPE has them: é is two tokens, 中 is three.
    fn bytes() -> Text {
        let mut files = embedded::files();
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
    fn a_character_of_several_tokens_comes_whole() {
        let text = bytes();
        let ids = text.encode("aé 中b").unwrap();
        assert_eq!(ids, [0, 2, 3, 7, 4, 5, 6, 1]);
        let mut stream = TextStream::new(&text);
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "é", " ", "", "", "中", "b"]);
        assert_eq!(stream.push(8).unwrap() + &stream.rest().unwrap(), "");
    }

    #[test]
    fn what_is_cut_off_comes_out_at_the_end() {
        let text = bytes();
        let mut stream = TextStream::new(&text);
        let pieces: String = [0, 4, 5].iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, "a");
        assert_eq!(format!("a{}", stream.rest().unwrap()), text.decode(&[0, 4, 5]).unwrap());
        assert_eq!(stream.rest().unwrap(), "");
    }
}
