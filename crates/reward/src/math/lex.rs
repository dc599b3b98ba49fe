//! Cuts an answer into tokens.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Pow;

use super::parse::ParseError;
use super::tree::Relation;
use super::words::{command_token, function, is_short_word};

/// Most digits of a number literal.
const MAX_DIGITS: usize = 1000;
/// Most tokens of an answer.
const MAX_TOKENS: usize = 2000;
/// Largest power of ten of a literal such as `1.5e10`.
const MAX_EXPONENT: u32 = 300;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// The digits as written, without separators; `decimals` of them stand after the point.
    Number {
        digits: String,
        decimals: Option<usize>,
        exponent: i32,
    },
    Name(String),
    Function(&'static str),
    Text(String),
    Open(char),
    Close(char),
    Group,
    EndGroup,
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
    Times,
    Divide,
    Caret,
    Underscore,
    Bang,
    Percent,
    Degree,
    Currency(&'static str),
    Fraction,
    Binomial,
    Root,
    Pi,
    Infinity,
    Bar,
    Separator,
    Union,
    Relation(Relation),
    Matrix,
    EndMatrix,
    Column,
    Row,
    Empty,
}

/// A token, and whether white space precedes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Lexed {
    pub(super) token: Token,
    pub(super) spaced: bool,
}

/// The value of a number token.
pub(super) fn number(digits: &str, decimals: usize, exponent: i32) -> BigRational {
    let integer: BigInt = digits.parse().unwrap_or_default();
    let scale = |power: u32| Pow::pow(BigInt::from(10), power);
    let value = BigRational::new(integer, scale(decimals as u32));
    if exponent >= 0 { value * scale(exponent.unsigned_abs()) } else { value / scale(exponent.unsigned_abs()) }
}

/// Tokens of `text`, which [`super::unicode::fold`] has prepared. `grouped_thousands` reads `1,234` outside
/// of brackets as one number.
pub(super) fn tokens(text: &str, grouped_thousands: bool) -> Result<Vec<Lexed>, ParseError> {
    let mut lexer = Lexer { rest: text, out: Vec::new(), spaced: false, brackets: 0, grouped_thousands };
    while !lexer.rest.is_empty() {
        lexer.step()?;
        if lexer.out.len() > MAX_TOKENS {
            return Err(ParseError::Budget("more than 2000 tokens"));
        }
    }
    Ok(lexer.out)
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Lexed>,
    spaced: bool,
    brackets: usize,
    grouped_thousands: bool,
}

fn syntax<T>(what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::Syntax(what.into()))
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        match token {
            Token::Open(_) => self.brackets += 1,
            Token::Close(_) => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.out.push(Lexed { token, spaced: self.spaced });
        self.spaced = false;
    }

    fn step(&mut self) -> Result<(), ParseError> {
        let Some(symbol) = self.rest.chars().next() else { return Ok(()) };
        let point_digit = symbol == '.' && self.rest.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if symbol.is_ascii_digit() || point_digit {
            return self.number();
        }
        if symbol == '\\' {
            return self.command();
        }
        if symbol.is_alphabetic() {
            return self.word();
        }
        self.rest = &self.rest[symbol.len_utf8()..];
        let token = match symbol {
            c if c.is_whitespace() => {
                self.spaced = true;
                return Ok(());
            }
            '$' if self.rest.starts_with(|c: char| c.is_ascii_digit()) && self.dollar_is_currency() => {
                Token::Currency("$")
            }
            '$' | '~' => return Ok(()),
            '.' if self.rest.trim_matches(|c: char| c.is_whitespace() || c == '$').is_empty() => return Ok(()),
            '+' => Token::Plus,
            '-' => Token::Minus,
            '*' if self.rest.starts_with('*') => {
                self.rest = &self.rest[1..];
                Token::Caret
            }
            '*' => Token::Times,
            '/' => Token::Divide,
            '^' => Token::Caret,
            '_' => Token::Underscore,
            '!' => Token::Bang,
            '%' => Token::Percent,
            '(' | '[' => Token::Open(symbol),
            ')' | ']' => Token::Close(symbol),
            '{' => Token::Group,
            '}' => Token::EndGroup,
            '|' => Token::Bar,
            ',' | ';' => Token::Separator,
            '&' => Token::Column,
            '=' => Token::Relation(Relation::Equal),
            '<' | '>' => {
                let or_equal = self.rest.starts_with('=');
                self.rest = &self.rest[usize::from(or_equal)..];
                Token::Relation(match (symbol, or_equal) {
                    ('<', false) => Relation::Less,
                    ('<', true) => Relation::LessEqual,
                    (_, false) => Relation::Greater,
                    (_, true) => Relation::GreaterEqual,
                })
            }
            _ => return syntax(format!("unexpected `{}`", symbol.escape_debug())),
        };
        self.push(token);
        Ok(())
    }

    /// `$5` without a closing dollar sign is money; `$5$` is a formula.
    fn dollar_is_currency(&self) -> bool {
        self.out.is_empty() && !self.rest.contains('$')
    }

    fn number(&mut self) -> Result<(), ParseError> {
        let run = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let mut length = run(self.rest);
        let mut digits = self.rest[..length].to_owned();
        let groups = (1..=3).contains(&length) && !digits.starts_with('0');
        while groups && length < self.rest.len() {
            let after = &self.rest[length..];
            let bare = (self.grouped_thousands && self.brackets == 0).then_some(",");
            let separators = ["{,}", ",\\!", ",\\! ", "\\,", "\\!", "{,\\!}"].into_iter().chain(bare);
            let group = separators.filter_map(|s| after.strip_prefix(s).map(|tail| (s.len(), tail)));
            let Some((skip, tail)) = group.into_iter().find(|(_, tail)| run(tail) == 3) else { break };
            digits.push_str(&tail[..3]);
            length += skip + 3;
        }
        let after = &self.rest[length..];
        let mut decimals = None;
        if let Some(tail) = after.strip_prefix('.') {
            let count = run(tail);
            if count > 0 {
                digits.push_str(&tail[..count]);
                decimals = Some(count);
                length += 1 + count;
            }
        }
        if digits.len() > MAX_DIGITS {
            return Err(ParseError::Budget("a number of more than 1000 digits"));
        }
        let mut exponent = 0;
        if let Some(tail) = self.rest[length..].strip_prefix(['e', 'E']) {
            let sign = usize::from(tail.starts_with(['+', '-']));
            let count = run(&tail[sign..]);
            if count > 0 {
                let Ok(power) = tail[sign..sign + count].parse::<u32>() else {
                    return Err(ParseError::Budget("a literal exponent of more than 300"));
                };
                if power > MAX_EXPONENT {
                    return Err(ParseError::Budget("a literal exponent of more than 300"));
                }
                exponent = if tail.starts_with('-') { -(power as i32) } else { power as i32 };
                length += 1 + sign + count;
            }
        }
        self.rest = &self.rest[length..];
        self.push(Token::Number { digits, decimals, exponent });
        Ok(())
    }

    fn word(&mut self) -> Result<(), ParseError> {
        let length: usize = self.rest.chars().take_while(|c| c.is_alphabetic()).map(char::len_utf8).sum();
        let (word, rest) = self.rest.split_at(length);
        let lower = word.to_lowercase();
        if word.chars().nth(1).is_none() {
            self.rest = rest;
            self.push(Token::Name(word.to_owned()));
            return Ok(());
        }
        self.rest = rest;
        match lower.as_str() {
            "and" | "or" => self.push(Token::Separator),
            "pi" => self.push(Token::Pi),
            "sqrt" => self.push(Token::Root),
            "inf" | "infty" | "infinity" | "oo" => self.push(Token::Infinity),
            _ => match function(word) {
                Some(name) => self.push(Token::Function(name)),
                None if word.chars().count() >= 4 || is_short_word(&lower) => {
                    self.push(Token::Text(lower));
                }
                None => {
                    for letter in word.chars() {
                        self.push(Token::Name(letter.to_string()));
                    }
                }
            },
        }
        Ok(())
    }

    fn command(&mut self) -> Result<(), ParseError> {
        let tail = &self.rest[1..];
        let length = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        if length == 0 {
            return self.escaped(tail);
        }
        let (name, rest) = tail.split_at(length);
        self.rest = rest;
        match name {
            "text" | "textbf" | "textit" | "textrm" | "mbox" | "mathrm" | "mathbf" | "mathit" | "mathsf" | "rm"
            | "operatorname" | "boldsymbol" | "bf" | "hbox" | "textnormal" => return self.text(),
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
            "bigl" | "bigr" | "Bigl" | "Bigr" | "big" | "Big" | "bigg" | "Bigg" | "biggl" | "biggr" | "Biggl"
            | "Biggr" | "displaystyle" | "textstyle" | "limits" | "quad" | "qquad" | "hspace" | "nonumber"
            | "boxed" | "fbox" | "middle" => {
                self.spaced = true;
                return Ok(());
            }
            _ => {}
        }
        match command_token(name) {
            Some(token) => {
                self.push(token);
                Ok(())
            }
            None => match function(name) {
                Some(function) => {
                    self.push(Token::Function(function));
                    Ok(())
                }
                None => syntax(format!("unknown command `\\{name}`")),
            },
        }
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
            ',' | ';' | ':' | '!' | ' ' | '(' | ')' | '[' | ']' | '\n' | '/' => self.spaced = true,
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

    /// `\text{…}` and its like: a word, a unit, a connective, or mathematics in another font.
    fn text(&mut self) -> Result<(), ParseError> {
        if !self.rest.trim_start().starts_with('{') {
            // `\rm cm` and `\bf 5` change the font of what follows.
            self.spaced = true;
            return Ok(());
        }
        let content = self.braced()?.trim();
        let words = content.trim_matches(|c: char| c.is_whitespace() || matches!(c, '.' | ',' | '~'));
        let lower = words.to_lowercase();
        match lower.as_str() {
            "" => self.spaced = true,
            "and" | "or" => self.push(Token::Separator),
            _ if words.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '.' | '-' | '/' | '(' | ')')) => {
                match function(words) {
                    Some(name) => self.push(Token::Function(name)),
                    None if words.chars().nth(1).is_none() => self.push(Token::Name(words.to_owned())),
                    None => self.push(Token::Text(lower)),
                }
            }
            _ => {
                // Mathematics in another font: one pass over it as a group, with the space it may use.
                let inner = tokens(content, self.grouped_thousands)?;
                self.push(Token::Group);
                self.out.extend(inner);
                self.push(Token::EndGroup);
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), ParseError> {
        let name = self.braced()?;
        match name {
            "pmatrix" | "bmatrix" | "matrix" | "smallmatrix" => {}
            "array" => {
                self.braced()?;
            }
            _ => return syntax(format!("unknown environment `{name}`")),
        }
        self.push(Token::Matrix);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits(text: &str, grouped: bool) -> Vec<String> {
        let numbers = tokens(text, grouped).unwrap_or_default().into_iter().filter_map(|l| match l.token {
            Token::Number { digits, .. } => Some(digits),
            _ => None,
        });
        numbers.collect()
    }

    #[test]
    fn thousands() {
        for text in ["1,234", "1{,}234", r"1\,234", r"1\!234", r"1,\!234"] {
            assert_eq!(digits(text, true), ["1234"], "{text}");
        }
        assert_eq!(digits("1,234", false), ["1", "234"]);
        assert_eq!(digits("(1,234)", true), ["1", "234"]);
        assert_eq!(digits("1, 234", true), ["1", "234"]);
        assert_eq!(digits("1,2345", true), ["1", "2345"]);
        assert_eq!(digits("0,123", true), ["0", "123"]);
    }

    #[test]
    fn values() {
        assert_eq!(number("125", 2, 1), BigRational::new(25.into(), 2.into()));
        assert_eq!(number("5", 0, -1), BigRational::new(1.into(), 2.into()));
    }
}
