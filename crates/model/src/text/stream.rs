//! Tokens as text while they come: a character that several tokens spell is held back until it is whole.

use crate::error::{Error, Result};
use std::sync::Arc;
use tokenizers::Tokenizer;

/// What a decoder writes for bytes that are no character (yet).
pub(super) const INCOMPLETE: char = '\u{fffd}';

/// A response that is being sampled.
///
/// A tokenizer may write a token differently after another one (a leading space, say), so that each piece is decoded
/// behind the one before it. The pieces together are the text of all the tokens.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// Tokens from the piece before on.
    window: Vec<u32>,
    /// How many of them are out.
    said: usize,
}

impl TextStream {
    /// The stream of a response, special tokens left out.
    pub(super) fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, window: Vec::new(), said: 0 }
    }

    /// What a token adds; empty while a character is incomplete.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<String> {
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
    pub fn rest(&mut self) -> Result<String> {
        let rest = self.pending()?;
        self.said = self.window.len();
        Ok(rest)
    }

    /// What is not out yet, incomplete characters as [`INCOMPLETE`].
    pub(super) fn pending(&self) -> Result<String> {
        let decode =
            |ids: &[u32]| self.tokenizer.decode(ids, true).map_err(|e| Error::Unsupported(format!("tokenizer: {e}")));
        let said = decode(self.window.get(..self.said).unwrap_or_default())?;
        let all = decode(&self.window)?;
        Ok(all.strip_prefix(said.as_str()).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use crate::text::tests::bytes;

    #[test]
    fn a_character_of_several_tokens_comes_whole() {
        let text = bytes();
        let ids = text.encode("aé 中b").unwrap();
        assert_eq!(ids, [0, 2, 3, 7, 4, 5, 6, 1]);
        let mut stream = text.stream();
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, ["a", "", "é", " ", "", "", "中", "b"]);
        assert_eq!(stream.push(8).unwrap() + &stream.rest().unwrap(), "");
    }

    #[test]
    fn what_is_cut_off_comes_out_at_the_end() {
        let text = bytes();
        let mut stream = text.stream();
        let pieces: String = [0, 4, 5].iter().map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(pieces, "a");
        assert_eq!(format!("a{}", stream.rest().unwrap()), text.decode(&[0, 4, 5]).unwrap());
        assert_eq!(stream.rest().unwrap(), "");
    }
}
