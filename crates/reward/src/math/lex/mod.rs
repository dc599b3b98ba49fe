//! Cuts an answer into tokens: symbols and plain words here, commands and numbers in their own files.

mod command;
mod number;

pub(super) use number::{number, repeating};

use super::parse::ParseError;
use super::tree::Relation;
use super::words::{function, is_short_word};

/// Most tokens of an answer.
const MAX_TOKENS: usize = 2000;
/// Deepest `\text{\text{…}}`.
const MAX_TEXT_DEPTH: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// The digits as written, without separators; `decimals` of them stand after the point.
    Number {
        digits: String,
        decimals: Option<usize>,
        exponent: i32,
    },
    /// A decimal whose last digits repeat without end.
    Repeating {
        digits: String,
        decimals: usize,
        repeat: String,
    },
    Name(String),
    Function(&'static str),
    /// `\sum`, `\prod`, `\int` and `\lim`, which take a range.
    Large(&'static str),
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
    /// `\over` and `\choose`, which split the group that they stand in.
    Over,
    Choose,
    Caret,
    Underscore,
    Bang,
    Percent,
    Degree,
    Currency(&'static str),
    Fraction,
    Binomial,
    Root,
    CubeRoot,
    Pi,
    Infinity,
    Bar,
    /// `,`, "and" and "or".
    Separator,
    /// `;`, which also separates groups of what commas separate.
    Semicolon,
    Colon,
    Union,
    Intersection,
    SetMinus,
    Modulo,
    /// `\pmod{n}` after a value.
    Modulus,
    Relation(Relation),
    Matrix(&'static str),
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

/// Tokens of `text`, which [`super::prepare`] has prepared. `grouped_thousands` reads `1,234` outside of
/// brackets as one number.
pub(super) fn tokens(text: &str, grouped_thousands: bool) -> Result<Vec<Lexed>, ParseError> {
    let mut tokens = tokens_within(text, grouped_thousands, 0)?;
    outward_brackets(&mut tokens);
    Ok(tokens)
}

fn tokens_within(text: &str, grouped_thousands: bool, depth: usize) -> Result<Vec<Lexed>, ParseError> {
    if depth > MAX_TEXT_DEPTH {
        return Err(ParseError::Budget("text commands nested more than 8 deep"));
    }
    let mut lexer = Lexer { rest: text, out: Vec::new(), spaced: false, brackets: 0, grouped_thousands, depth };
    while !lexer.rest.is_empty() {
        lexer.step()?;
        if lexer.out.len() > MAX_TOKENS {
            return Err(ParseError::Budget("more than 2000 tokens"));
        }
    }
    Ok(lexer.out)
}

/// `]1, 2[` is the open interval `(1, 2)`: a closing bracket where a value has to begin opens.
fn outward_brackets(tokens: &mut [Lexed]) {
    let edge = |token: Option<&Lexed>| {
        token.is_none_or(|lexed| matches!(lexed.token, Token::Union | Token::Relation(_) | Token::Separator))
    };
    let mut open = false;
    for at in 0..tokens.len() {
        match tokens[at].token {
            Token::Close(']') if edge(at.checked_sub(1).and_then(|before| tokens.get(before))) => {
                tokens[at].token = Token::Open('(');
                open = true;
            }
            Token::Open('[') if at > 0 && edge(tokens.get(at + 1)) && !edge(tokens.get(at - 1)) => {
                tokens[at].token = Token::Close(')');
                open = false;
            }
            Token::Close(_) if open => open = false,
            _ => {}
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    out: Vec<Lexed>,
    spaced: bool,
    brackets: usize,
    grouped_thousands: bool,
    depth: usize,
}

fn syntax<T>(what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError::Syntax(what.into()))
}

impl Lexer<'_> {
    fn push(&mut self, token: Token) {
        match token {
            Token::Open(_) => self.brackets += 1,
            Token::Close(_) => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.out.push(Lexed { token, spaced: self.spaced });
        self.spaced = false;
    }

    fn last(&self) -> Option<&Token> {
        self.out.last().map(|lexed| &lexed.token)
    }

    fn step(&mut self) -> Result<(), ParseError> {
        let Some(symbol) = self.rest.chars().next() else { return Ok(()) };
        let point = symbol == '.' && self.rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if symbol.is_ascii_digit() || point || (symbol == '.' && self.rest[1..].starts_with("\\overline")) {
            return self.number();
        }
        if symbol == '\\' {
            return self.command();
        }
        if symbol.is_alphabetic() {
            self.word();
            return Ok(());
        }
        self.rest = &self.rest[symbol.len_utf8()..];
        match self.symbol(symbol)? {
            Some(token) => self.push(token),
            None => self.spaced |= symbol.is_whitespace(),
        }
        Ok(())
    }

    /// The token of a symbol that was just taken; `None` where it says nothing.
    fn symbol(&mut self, symbol: char) -> Result<Option<Token>, ParseError> {
        let only_ends = |rest: &str| rest.trim_matches(|c: char| c.is_whitespace() || c == '$').is_empty();
        Ok(Some(match symbol {
            c if c.is_whitespace() => return Ok(None),
            '$' if self.rest.starts_with(|c: char| c.is_ascii_digit()) && self.dollar_is_currency() => {
                Token::Currency("$")
            }
            '$' | '~' => return Ok(None),
            '.' if only_ends(self.rest) => return Ok(None),
            '\'' => return self.prime(),
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
            '!' if self.rest.starts_with('=') => {
                self.rest = &self.rest[1..];
                Token::Relation(Relation::NotEqual)
            }
            '!' => Token::Bang,
            '%' => Token::Percent,
            '(' | '[' => Token::Open(symbol),
            ')' | ']' => Token::Close(symbol),
            '{' => Token::Group,
            '}' => Token::EndGroup,
            '|' => Token::Bar,
            ',' => Token::Separator,
            ';' => Token::Semicolon,
            ':' => Token::Colon,
            '&' => Token::Column,
            '=' => {
                let skip = ["=", "<", ">"].into_iter().find(|s| self.rest.starts_with(s));
                self.rest = &self.rest[skip.map_or(0, str::len)..];
                Token::Relation(match skip {
                    Some("<") => Relation::LessEqual,
                    Some(">") => Relation::GreaterEqual,
                    _ => Relation::Equal,
                })
            }
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
        }))
    }

    /// `f'` is a name of its own.
    fn prime(&mut self) -> Result<Option<Token>, ParseError> {
        match self.out.last_mut().map(|lexed| &mut lexed.token) {
            Some(Token::Name(name)) => {
                name.push('\'');
                Ok(None)
            }
            _ => syntax("unexpected `'`"),
        }
    }

    /// `$5` without a closing dollar sign is money; `$5$` is a formula.
    fn dollar_is_currency(&self) -> bool {
        self.out.is_empty() && !self.rest.contains('$')
    }

    fn word(&mut self) {
        let length: usize = self.rest.chars().take_while(|c| c.is_alphabetic()).map(char::len_utf8).sum();
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        let half_day =
            matches!(word, "a" | "p" | "A" | "P") && rest.get(..2).is_some_and(|m| m.eq_ignore_ascii_case(".m"));
        if half_day && matches!(self.last(), Some(Token::Number { .. })) {
            let rest = &rest[2..];
            self.rest = rest.strip_prefix('.').unwrap_or(rest);
            return self.push(Token::Text(format!("{}m", word.to_lowercase())));
        }
        if word.chars().nth(1).is_none() {
            return self.push(Token::Name(word.to_owned()));
        }
        let lower = word.to_lowercase();
        match lower.as_str() {
            "and" | "or" => self.push(Token::Separator),
            "is" if self.spaced && rest.starts_with(' ') => self.push(Token::Relation(Relation::Equal)),
            "mod" => self.push(Token::Modulo),
            "pi" => self.push(Token::Pi),
            "sqrt" => self.push(Token::Root),
            "cbrt" => self.push(Token::CubeRoot),
            "inf" | "infty" | "infinity" | "oo" => self.push(Token::Infinity),
            _ => match function(word) {
                Some(name) => self.push(Token::Function(name)),
                // `NO` and `CD` are segments; `10 AM` is a time.
                None if word.len() <= 3 && word == word.to_uppercase() && !self.is_half_day(word) => self.letters(word),
                None if word.chars().nth(3).is_some() || is_short_word(&lower) => self.push(Token::Text(lower)),
                // `xpi` and `2asin` are no words of ours: letters side by side are a product.
                None => self.letters(word),
            },
        }
    }

    fn letters(&mut self, word: &str) {
        word.chars().for_each(|letter| self.push(Token::Name(letter.to_string())));
    }

    fn is_half_day(&self, word: &str) -> bool {
        matches!(word, "AM" | "PM") && matches!(self.last(), Some(Token::Number { .. }))
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
        for text in ["1,234", "1{,}234", r"1\,234", r"1\!234", r"1,\!234", "1 234", "1~234", r"1\ 234"] {
            assert_eq!(digits(text, true), ["1234"], "{text}");
        }
        assert_eq!(digits("12 345 678", true), ["12345678"]);
        assert_eq!(digits("1,234", false), ["1", "234"]);
        assert_eq!(digits("(1,234)", true), ["1", "234"]);
        assert_eq!(digits("1, 234", true), ["1", "234"]);
        assert_eq!(digits("1,2345", true), ["1", "2345"]);
        assert_eq!(digits("0,123", true), ["0", "123"]);
        assert_eq!(digits("1 234/567", true), ["1", "234", "567"]);
    }

    #[test]
    fn outward_brackets_are_open_ends() {
        let shape = |text: &str| -> String {
            let brackets = tokens(text, true).unwrap_or_default().into_iter().filter_map(|l| match l.token {
                Token::Open(c) | Token::Close(c) => Some(c),
                _ => None,
            });
            brackets.collect()
        };
        assert_eq!(shape("]1,2["), "()");
        assert_eq!(shape("[1,2["), "[)");
        assert_eq!(shape("]1,2]"), "(]");
        assert_eq!(shape("]1,2[ \\cup [3,4["), "()[)");
        assert_eq!(shape("[1,2]"), "[]");
        assert_eq!(shape("[[1,2],[3,4]]"), "[[][]]");
    }
}
