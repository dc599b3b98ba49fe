//! LaTeX commands: fonts and text, environments, escaped symbols, and those that stand for one token.

use super::{Lexer, Token, syntax, tokens_within};
use crate::math::parse::ParseError;
use crate::math::tree::Relation;
use crate::math::words::{command_token, function, is_unit_letter};

impl<'a> Lexer<'a> {
    /// The command that the text begins with.
    pub(super) fn command(&mut self) -> Result<(), ParseError> {
        let tail = &self.rest[1..];
        let length = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        if length == 0 {
            return self.escaped(tail);
        }
        let (name, rest) = tail.split_at(length);
        self.rest = rest;
        match name {
            "text" | "textbf" | "textit" | "textrm" | "textsf" | "texttt" | "textsc" | "mbox" | "mathrm" | "mathbf"
            | "mathit" | "mathsf" | "rm" | "operatorname" | "boldsymbol" | "bf" | "hbox" | "textnormal" | "emph"
            | "bm" | "pmb" | "it" | "textup" | "mathop" => return self.text(),
            "mathbb" | "mathcal" | "mathscr" | "mathfrak" | "Bbb" => return self.lettering("mathbb"),
            "overline" | "bar" | "overrightarrow" | "vec" | "hat" | "widehat" | "tilde" | "widetilde"
            | "overleftrightarrow" | "overarc" | "dot" | "ddot" | "underline" | "wideparen" => {
                return self.lettering(accent(name));
            }
            "begin" => return self.begin(),
            "end" => {
                self.braced()?;
                self.push(Token::EndMatrix);
                return Ok(());
            }
            "left" | "right" | "mleft" | "mright" => {
                self.rest = self.rest.strip_prefix('.').unwrap_or(self.rest);
                return Ok(());
            }
            // The space that `\hspace{1cm}` makes says nothing, and neither does its width.
            "hspace" | "vspace" | "kern" | "phantom" | "label" | "tag" | "color" => {
                if self.rest.trim_start().starts_with('{') {
                    self.braced()?;
                }
                self.spaced = true;
                return Ok(());
            }
            _ if is_blank(name) => {
                self.spaced = true;
                return Ok(());
            }
            _ => {}
        }
        let token = command_token(name).or_else(|| function(name).map(Token::Function));
        match token {
            Some(token) => self.push(token),
            // `\quadx` is a space and `x`, to those who write it.
            None => match name.strip_prefix("qquad").or_else(|| name.strip_prefix("quad")) {
                Some(letters) => {
                    self.rest = &tail[length - letters.len()..];
                    self.spaced = true;
                }
                None => return syntax(format!("unknown command `\\{name}`")),
            },
        }
        Ok(())
    }

    /// A backslash before a symbol.
    fn escaped(&mut self, tail: &'a str) -> Result<(), ParseError> {
        let Some(symbol) = tail.chars().next() else { return syntax("a backslash at the end") };
        self.rest = &tail[symbol.len_utf8()..];
        match symbol {
            '{' => self.push(Token::Open('{')),
            '}' => self.push(Token::Close('}')),
            '%' => self.push(Token::Percent),
            '$' => self.push(Token::Currency("$")),
            '&' => self.push(Token::Separator),
            '|' => self.push(Token::Bar),
            '\\' => self.push(Token::Row),
            ',' | ';' | ':' | '!' | '>' | ' ' | '(' | ')' | '[' | ']' | '\n' | '/' => self.spaced = true,
            '_' => self.push(Token::Underscore),
            '#' | '*' => {}
            _ => return syntax(format!("unexpected `\\{}`", symbol.escape_debug())),
        }
        Ok(())
    }

    /// The raw content of the braces that follow.
    fn braced(&mut self) -> Result<&'a str, ParseError> {
        let inner = self.rest.trim_start();
        let Some(inner) = inner.strip_prefix('{') else { return syntax("a brace is missing") };
        let mut depth = 1usize;
        let mut escaped = false;
        for (at, byte) in inner.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                self.rest = &inner[at + 1..];
                return Ok(&inner[..at]);
            }
        }
        syntax("an open brace")
    }

    /// A letter or letters in a style that makes another name of them: `\mathbb{R}`, `\overline{AB}`.
    fn lettering(&mut self, style: &str) -> Result<(), ParseError> {
        let inner = self.rest.trim_start();
        let content = if inner.starts_with('{') {
            self.braced()?
        } else {
            let length = match inner.strip_prefix('\\') {
                Some(tail) => 1 + tail.bytes().take_while(u8::is_ascii_alphabetic).count(),
                None => inner.chars().next().map_or(0, char::len_utf8),
            };
            self.rest = &inner[length..];
            &inner[..length]
        };
        let letters: String = content.chars().filter(|c| !c.is_whitespace() && !matches!(c, '{' | '}')).collect();
        if letters.is_empty() || letters.contains(|c: char| !c.is_alphanumeric() && !matches!(c, '\\' | '_' | '\'')) {
            return syntax("a letter is missing");
        }
        self.push(Token::Name(format!("\\{style}{{{letters}}}")));
        Ok(())
    }

    /// `\text{…}` and its like: a word, a unit, a connective, or mathematics in another font.
    fn text(&mut self) -> Result<(), ParseError> {
        if !self.rest.trim_start().starts_with('{') {
            // `\rm cm` and `\bf 5` change the font of what follows.
            self.rest = self.rest.strip_prefix('*').unwrap_or(self.rest);
            self.spaced = true;
            return Ok(());
        }
        let content = self.braced()?.trim();
        let words = content.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | ',' | '~'));
        let lower = words.to_lowercase();
        let after_value = matches!(
            self.last(),
            Some(Token::Number { .. } | Token::EndGroup | Token::Close(_) | Token::Pi | Token::Repeating { .. })
        );
        match lower.as_str() {
            "" => self.spaced = true,
            "and" | "or" => self.push(Token::Separator),
            ":" => self.push(Token::Colon),
            "mod" => self.push(Token::Modulo),
            _ if words.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '-' | '/' | '(' | ')')) => {
                match function(words) {
                    Some(name) => self.push(Token::Function(name)),
                    None if words.chars().nth(1).is_none() && !(after_value && is_unit_letter(words)) => {
                        self.push(Token::Name(words.to_owned()));
                    }
                    None => self.phrase(&lower),
                }
            }
            _ => {
                // Mathematics in another font: one pass over it as a group, with the space it may use.
                let inner = tokens_within(content, self.grouped_thousands, self.depth + 1)?;
                self.push(Token::Group);
                self.out.extend(inner);
                self.push(Token::EndGroup);
            }
        }
        Ok(())
    }

    /// Words without symbols; "The area is" leads to the value that follows it.
    fn phrase(&mut self, words: &str) {
        let label = [" is", " are", " equals"].into_iter().find_map(|verb| words.strip_suffix(verb));
        match label {
            Some(label) if !self.rest.trim().is_empty() => {
                self.push(Token::Text(label.to_owned()));
                self.push(Token::Relation(Relation::Equal));
            }
            _ => self.push(Token::Text(words.to_owned())),
        }
    }

    fn begin(&mut self) -> Result<(), ParseError> {
        let name = self.braced()?;
        let kind = match name.trim_end_matches('*') {
            "pmatrix" | "bmatrix" | "matrix" | "smallmatrix" | "Bmatrix" | "psmallmatrix" | "bsmallmatrix" => "matrix",
            "vmatrix" => "determinant",
            "array" => {
                self.braced()?;
                "matrix"
            }
            "cases" | "aligned" | "align" | "gathered" | "split" | "equation" | "dcases" | "rcases" => "rows",
            _ => return syntax(format!("unknown environment `{name}`")),
        };
        self.push(Token::Matrix(kind));
        Ok(())
    }
}

/// Commands that only move or size what follows.
fn is_blank(name: &str) -> bool {
    matches!(
        name,
        "bigl"
            | "bigr"
            | "Bigl"
            | "Bigr"
            | "big"
            | "Big"
            | "bigg"
            | "Bigg"
            | "biggl"
            | "biggr"
            | "Biggl"
            | "Biggr"
            | "bigm"
            | "displaystyle"
            | "textstyle"
            | "scriptstyle"
            | "scriptscriptstyle"
            | "limits"
            | "nolimits"
            | "quad"
            | "qquad"
            | "nonumber"
            | "notag"
            | "boxed"
            | "fbox"
            | "middle"
            | "enspace"
            | "thinspace"
            | "enskip"
            | "space"
            | "hfill"
            | "newline"
            | "par"
            | "smallskip"
            | "centering"
            | "large"
            | "Large"
            | "small"
            | "normalsize"
            | "strut"
            | "mathstrut"
            | "ensuremath"
            | "mathord"
            | "mathrel"
            | "mathbin"
            | "negthinspace"
            | "medspace"
            | "thickspace"
            | "noindent"
            | "allowbreak"
            | "hline"
    )
}

/// One name for accents that look the same.
fn accent(name: &str) -> &str {
    match name {
        "overline" => "bar",
        "overrightarrow" => "vec",
        "widehat" => "hat",
        "widetilde" => "tilde",
        "wideparen" => "overarc",
        other => other,
    }
}
