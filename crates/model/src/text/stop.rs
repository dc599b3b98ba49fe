//! Stop strings: whether the text of a response has come to one, told its tokens one at a time.

use super::stream::{INCOMPLETE, TextStream};
use crate::error::{Error, Result};
use std::sync::Arc;
use tokenizers::Tokenizer;

/// Texts that end a response wherever they appear in it, across the borders of tokens and of characters.
///
/// A response ends with the token that completes the first of them, and that token stays: what it says behind the stop
/// string stays with it. A special token, which has no part in the text, ends a response where it is a stop string itself.
#[derive(Clone)]
pub struct StopStrings {
    tokenizer: Arc<Tokenizer>,
    strings: Arc<[String]>,
    /// Those that are a token.
    tokens: Arc<[u32]>,
    /// Bytes that a match can take from the text before the newest piece.
    overlap: usize,
}

/// [`StopStrings`] over one response.
pub struct StopMatcher {
    stop: StopStrings,
    stream: TextStream,
    /// The end of the text so far, as long as `overlap` at most.
    tail: String,
}

impl StopStrings {
    pub(super) fn new(tokenizer: Arc<Tokenizer>, strings: &[String]) -> Result<Self> {
        if let Some(bad) = strings.iter().find(|string| string.is_empty() || string.contains(INCOMPLETE)) {
            let why = if bad.is_empty() { "it is empty" } else { "no whole text has its replacement character" };
            return Err(Error::Unsupported(format!("stop string {bad:?}: {why}")));
        }
        let tokens = strings.iter().filter_map(|string| tokenizer.token_to_id(string)).collect();
        let overlap = strings.iter().map(String::len).max().unwrap_or(1) - 1;
        Ok(Self { tokenizer, strings: strings.into(), tokens, overlap })
    }

    /// A matcher at the beginning of a response.
    pub fn matcher(&self) -> StopMatcher {
        StopMatcher { stop: self.clone(), stream: TextStream::new(self.tokenizer.clone()), tail: String::new() }
    }
}

impl StopMatcher {
    /// Whether the response ends with this token, the next one.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<bool> {
        if self.stop.tokens.contains(&token) {
            return Ok(true);
        }
        let whole = self.stream.push(token)?;
        let end = self.tail.len();
        if whole.is_empty() {
            // The token may complete a stop string and begin a character that is not complete.
            self.tail.push_str(&self.stream.pending()?);
            let found = self.found();
            self.tail.truncate(end);
            return Ok(found);
        }
        self.tail.push_str(&whole);
        let found = self.found();
        let mut cut = self.tail.len().saturating_sub(self.stop.overlap);
        while !self.tail.is_char_boundary(cut) {
            cut += 1;
        }
        self.tail.drain(..cut);
        Ok(found)
    }

    fn found(&self) -> bool {
        self.stop.strings.iter().any(|string| self.tail.contains(string.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use crate::text::Text;
    use crate::text::tests::bytes;

    /// How many tokens of `ids` a response has; `None` where no stop string ends it.
    fn end(text: &Text, stop: &[&str], ids: &[u32]) -> Option<usize> {
        let strings: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut matcher = text.stop_strings(&strings).unwrap().matcher();
        ids.iter().position(|&id| matcher.push(id).unwrap()).map(|last| last + 1)
    }

    #[test]
    fn a_string_is_found_across_tokens_and_characters() {
        let text = bytes();
        // a é(2, 3) space(7) 中(4, 5, 6) b
        let ids = [0, 2, 3, 7, 4, 5, 6, 1];
        for (stop, want) in [
            (&["é"][..], Some(3)),
            (&["aé "], Some(4)),
            (&["é 中"], Some(7)),
            (&["中b"], Some(8)),
            (&["b", "a"], Some(1)),
            (&["aa", "é b", "中 "], None),
            (&["aé 中b and more"], None),
            (&[], None),
        ] {
            assert_eq!(end(&text, stop, &ids), want, "{stop:?}");
        }
        // What went before counts as far back as a stop string is long, and no further.
        assert_eq!(end(&text, &["abab"], &[0, 1, 0, 0, 1, 0, 1, 0]), Some(7));
        assert_eq!(end(&text, &["中中"], &[4, 5, 6, 0, 4, 5, 6, 4, 5, 6]), Some(10));
    }

    #[test]
    fn a_token_that_begins_a_character_may_complete_a_string() {
        // `b` and the first byte of 中 in one token.
        let mut files = crate::embedded::files();
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true}, "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "ä": 2, "¸": 3, "Ń": 4, "bä": 5}, "merges": [["b", "ä"]]}}"#;
        files.tokenizer = tokenizer.into();
        let text = Text::new(&files).unwrap();
        assert_eq!(text.encode("ab中").unwrap(), [0, 5, 3, 4]);
        assert_eq!(end(&text, &["ab"], &[0, 5, 3, 4]), Some(2));
        assert_eq!(end(&text, &["b中"], &[0, 5, 3, 4]), Some(4));
        assert_eq!(end(&text, &["a中"], &[0, 5, 3, 4]), None);
    }

    #[test]
    fn a_special_token_ends_by_its_name_and_bad_strings_are_refused() {
        let text = bytes();
        assert_eq!(end(&text, &["<|end|>"], &[0, 1, 8, 0]), Some(3));
        assert_eq!(end(&text, &["ba"], &[0, 1, 8, 0]), Some(4), "a special token is no text");
        for bad in ["", "a\u{fffd}"] {
            let refused = text.stop_strings(&["a".into(), bad.into()]).err().unwrap().to_string();
            assert!(refused.starts_with("stop string"), "{refused}");
        }
    }

    #[test]
    fn what_is_found_is_what_the_text_so_far_has() {
        let text = Text::new(&crate::embedded::files()).unwrap();
        let said = "3*4=12, 12-7=5 vs 19 no\nwait, 12+7=19 vs 19 yes\n</think>\n\\boxed{3*4+7}";
        let ids = text.encode(said).unwrap();
        for stop in ["no\nwait", "</think>", "9 yes", "\\boxed{", "}", "7=1", "never"] {
            let want = (1..=ids.len()).find(|&n| text.decode(ids.get(..n).unwrap()).unwrap().contains(stop));
            assert_eq!(end(&text, &[stop], &ids), want, "{stop}");
        }
    }
}
