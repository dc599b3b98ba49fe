//! From the text of an answer to its tree, or to the plain words that it is compared by.

use std::borrow::Cow;

use super::lex;
use super::parse::{self, ParseError};
use super::tree::Node;
use super::unicode;

/// Longest answer read, in bytes.
pub const MAX_ANSWER_BYTES: usize = 4096;

pub(super) enum Reading {
    Tree(Node),
    /// No formula; why.
    Text(String),
    TooLarge(String),
}

/// The text that is read: Unicode folded, and backslashes halved where all of them were escaped.
pub(super) fn prepare(text: &str) -> Cow<'_, str> {
    let text = text.trim();
    let text = if is_escaped(text) { Cow::Owned(text.replace("\\\\", "\\")) } else { Cow::Borrowed(text) };
    if text.is_ascii() { text } else { Cow::Owned(unicode::fold(&text)) }
}

/// Whether every backslash is doubled and one stands before a letter: `\\frac` as a string literal spells it.
fn is_escaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut command = false;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        let length = bytes[at..].iter().take_while(|byte| **byte == b'\\').count();
        if length % 2 == 1 {
            return false;
        }
        at += length;
        command |= length == 2 && bytes.get(at).is_some_and(u8::is_ascii_alphabetic);
    }
    command
}

/// Reads a prepared text. `grouped_thousands` takes `1,234` outside of brackets for one number.
pub(super) fn read(text: &str, grouped_thousands: bool) -> Reading {
    if text.len() > MAX_ANSWER_BYTES {
        return Reading::TooLarge(format!("more than {MAX_ANSWER_BYTES} bytes"));
    }
    match lex::tokens(text, grouped_thousands).and_then(parse::parse) {
        Ok(node) => Reading::Tree(node),
        Err(ParseError::Syntax(what)) => Reading::Text(what),
        Err(ParseError::Budget(limit)) => Reading::TooLarge(limit.to_owned()),
    }
}

/// What remains of a phrase without white space, delimiters, text commands and a final full stop. Space between
/// digits stays: `1 23` is not `12 3`.
pub(super) fn plain(text: &str) -> String {
    const NOISE: [&str; 15] = [
        "\\left",
        "\\right",
        "\\textbf",
        "\\textit",
        "\\textrm",
        "\\text",
        "\\mathrm",
        "\\mbox",
        "\\displaystyle",
        "\\,",
        "\\ ",
        "\\!",
        "$",
        "{",
        "}",
    ];
    let mut folded = text.to_owned();
    for noise in NOISE {
        if folded.contains(noise) {
            folded = folded.replace(noise, " ");
        }
    }
    let mut out = String::with_capacity(folded.len());
    for word in folded.split_whitespace() {
        if out.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit()) {
            out.push(' ');
        }
        out.push_str(word);
    }
    let out = out.trim_end_matches('.');
    // Case tells commands and variables apart, words not.
    if out.contains('\\') { out.to_owned() } else { out.to_lowercase() }
}

/// How many braces are still open at the end, escaped ones left out; `None` where one closes that was never opened.
pub(super) fn open_braces(text: &str) -> Option<usize> {
    let mut open = 0usize;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => open += 1,
            b'}' => open = open.checked_sub(1)?,
            _ => {}
        }
    }
    Some(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_backslashes_are_halved() {
        assert_eq!(prepare("\\\\frac{1}{2}"), "\\frac{1}{2}");
        assert_eq!(prepare("\\begin{matrix} a \\\\b \\end{matrix}"), "\\begin{matrix} a \\\\b \\end{matrix}");
        assert_eq!(prepare("\\\\begin{matrix} a \\\\\\\\ b \\\\end{matrix}"), "\\begin{matrix} a \\\\ b \\end{matrix}");
        assert_eq!(prepare("1 \\\\ 2"), "1 \\\\ 2");
    }

    #[test]
    fn phrases_lose_their_dress() {
        assert_eq!(plain("\\text{No  solution.}"), "nosolution");
        assert_eq!(plain("1 23"), "1 23");
    }
}
