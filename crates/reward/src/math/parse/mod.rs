//! Parses tokens into a tree, by recursive descent to a fixed depth: enumerations, relations and sets here,
//! sums and products in `term`, what they are made of in `value`, `call` and `bracket`.

mod bracket;
mod call;
mod term;
mod value;

use super::lex::{Lexed, Token};
use super::tree::{Node, Relation};

/// Deepest nesting; every level of recursion passes through [`Parser::descend`], which counts it.
const MAX_DEPTH: usize = 48;
/// Most parts of an answer, counted while parsing (a `±` parses its part twice).
const MAX_PARTS: usize = 4000;

/// Why there is no tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ParseError {
    Syntax(String),
    Budget(&'static str),
}

pub(super) type Parsed<T> = Result<T, ParseError>;

pub(super) fn syntax<T>(what: &str) -> Parsed<T> {
    Err(ParseError::Syntax(what.to_owned()))
}

/// The tree of a whole answer.
pub(super) fn parse(tokens: Vec<Lexed>) -> Parsed<Node> {
    let mut parser = Parser { tokens, at: 0, parts: 0, depth: 0, bars: 0, minus: false, signs: 0 };
    let mut items = parser.list()?;
    if parser.at < parser.tokens.len() {
        return syntax("text that is no formula");
    }
    match items.len() {
        0 => syntax("nothing to read"),
        1 => Ok(items.remove(0)),
        _ => Ok(Node::List(items)),
    }
}

struct Parser {
    tokens: Vec<Lexed>,
    at: usize,
    parts: usize,
    depth: usize,
    /// Open `|`.
    bars: usize,
    /// Whether `±` reads as minus in this pass.
    minus: bool,
    /// How many `±` and `∓` were read.
    signs: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|lexed| &lexed.token)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|lexed| &lexed.token)
    }

    fn previous(&self) -> Option<&Token> {
        self.tokens.get(self.at.checked_sub(1)?).map(|lexed| &lexed.token)
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token, what: &str) -> Parsed<()> {
        if self.take(token) { Ok(()) } else { syntax(what) }
    }

    /// Counts one level of nesting; the caller takes it back from `depth`.
    fn descend(&mut self) -> Parsed<()> {
        self.depth += 1;
        self.parts += 1;
        if self.depth > MAX_DEPTH {
            return Err(ParseError::Budget("nested more than 48 deep"));
        }
        if self.parts > MAX_PARTS {
            return Err(ParseError::Budget("more than 4000 parts"));
        }
        Ok(())
    }

    /// Items up to whatever ends them; runs of separators (`, and`) count once. In `1, 2; 3, 4` the semicolon
    /// separates tuples.
    fn list(&mut self) -> Parsed<Vec<Node>> {
        let mut groups = Vec::new();
        let mut items = Vec::new();
        loop {
            self.item(&mut items)?;
            let (start, mut semicolon) = (self.at, false);
            while let Some(Token::Separator | Token::Semicolon) = self.peek() {
                semicolon |= self.peek() == Some(&Token::Semicolon);
                self.at += 1;
            }
            let ended = self.at == start || self.peek().is_none();
            if semicolon || (ended && !groups.is_empty()) {
                groups.push(std::mem::take(&mut items));
            }
            if ended {
                break;
            }
        }
        if groups.is_empty() {
            return Ok(items);
        }
        if groups.iter().all(|group| group.len() == 1) {
            return Ok(groups.into_iter().flatten().collect());
        }
        let tuple = |mut group: Vec<Node>| match group.len() {
            1 => group.remove(0),
            _ => Node::Tuple { open: '(', close: ')', items: group },
        };
        Ok(groups.into_iter().filter(|group| !group.is_empty()).map(tuple).collect())
    }

    /// One item, or the two that a `±` stands for.
    fn item(&mut self, items: &mut Vec<Node>) -> Parsed<()> {
        let (start, signs, minus) = (self.at, self.signs, self.minus);
        self.minus = false;
        let plus = self.relation()?;
        items.push(plus);
        if self.signs > signs {
            self.at = start;
            self.minus = true;
            let minus = self.relation()?;
            items.push(minus);
            self.signs = signs;
        }
        self.minus = minus;
        Ok(())
    }

    fn relation(&mut self) -> Parsed<Node> {
        let first = self.ratio()?;
        let mut rest = Vec::new();
        // `Area: 5` says what the value is.
        if matches!(first, Node::Text(_)) && self.take(&Token::Colon) {
            rest.push((Relation::Equal, self.ratio()?));
        }
        while let Some(&Token::Relation(relation)) = self.peek() {
            self.at += 1;
            let side = self.ratio()?;
            if relation == Relation::Approximately {
                // The exact side is the answer, the rest a comment on its size.
                continue;
            }
            rest.push((relation, side));
        }
        Ok(if rest.is_empty() { first } else { Node::Relation(Box::new(first), rest) })
    }

    /// `a : b : c`, and `3:05`.
    fn ratio(&mut self) -> Parsed<Node> {
        let first = self.sets()?;
        if self.peek() != Some(&Token::Colon) || matches!(first, Node::Text(_)) {
            return Ok(first);
        }
        let mut parts = vec![first];
        let mut clock = false;
        while self.take(&Token::Colon) {
            clock |= matches!(self.peek(), Some(Token::Number { digits, .. }) if digits.len() == 2 && digits.starts_with('0'));
            parts.push(self.sets()?);
        }
        clock |= matches!(parts.last(), Some(Node::Unit(..)));
        Ok(Node::Ratio { parts, clock })
    }

    fn sets(&mut self) -> Parsed<Node> {
        let mut left = self.intersection()?;
        loop {
            if self.take(&Token::Union) {
                let right = as_set(self.intersection()?);
                left = match as_set(left) {
                    Node::Union(mut parts) => {
                        parts.push(right);
                        Node::Union(parts)
                    }
                    left => Node::Union(vec![left, right]),
                };
            } else if self.take(&Token::SetMinus) {
                let right = self.intersection()?;
                // A chain of these is as deep as it is long.
                self.parts += MAX_PARTS / MAX_DEPTH;
                if self.parts > MAX_PARTS {
                    return Err(ParseError::Budget("more than 4000 parts"));
                }
                left = Node::Without(Box::new(as_set(left)), Box::new(as_set(right)));
            } else {
                return Ok(left);
            }
        }
    }

    fn intersection(&mut self) -> Parsed<Node> {
        let mut parts = vec![self.modulo()?];
        while self.take(&Token::Intersection) {
            parts.push(self.modulo()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Node::Intersection(parts.into_iter().map(as_set).collect()) })
    }

    /// A sum, maybe with `\bmod n`, `\pmod{n}` or `(mod n)` after it.
    fn modulo(&mut self) -> Parsed<Node> {
        let value = self.sum()?;
        let modulus = if self.take(&Token::Modulo) {
            self.sum()?
        } else if self.take(&Token::Modulus) {
            self.argument()?
        } else if self.peek() == Some(&Token::Open('(')) && self.peek_at(1) == Some(&Token::Modulo) {
            self.at += 2;
            let modulus = self.sum()?;
            self.expect(&Token::Close(')'), "an open bracket")?;
            modulus
        } else {
            return Ok(value);
        };
        Ok(Node::Call("mod", vec![value, modulus]))
    }
}

/// `{1, 2}` without backslashes beside a set operator is a set.
fn as_set(node: Node) -> Node {
    match node {
        Node::List(items) => Node::Set(items),
        other => other,
    }
}
