//! What brackets, braces and environments hold.

use super::value::quotient;
use super::{Parsed, Parser, syntax};
use crate::math::lex::Token;
use crate::math::tree::Node;

impl Parser {
    /// `{…}`: one value, or several whose braces do not show.
    pub(super) fn group(&mut self) -> Parsed<Node> {
        let mut items = self.list()?;
        let infix = self.peek().cloned();
        if let (Some(Token::Over | Token::Choose), [_]) = (&infix, items.as_slice()) {
            self.at += 1;
            let (left, right) = (items.remove(0), self.sum()?);
            self.expect(&Token::EndGroup, "an open brace")?;
            return Ok(match infix {
                Some(Token::Over) => quotient(left, right),
                _ => Node::Call("binomial", vec![left, right]),
            });
        }
        self.expect(&Token::EndGroup, "an open brace")?;
        Ok(if items.len() == 1 { items.remove(0) } else { Node::List(items) })
    }

    pub(super) fn bracket(&mut self, open: char) -> Parsed<Node> {
        if open == '{' && self.take(&Token::Close('}')) {
            return Ok(Node::Set(Vec::new()));
        }
        // Inside of braces a bar divides a set from its condition.
        let bars = std::mem::replace(&mut self.bars, usize::from(open == '{'));
        let mut items = self.list()?;
        if open == '{'
            && let [name @ Node::Name(_)] = items.as_slice()
            && self.take(&Token::Bar)
        {
            let name = name.clone();
            items = self.list()?;
            if let [condition @ Node::Relation(..)] = items.as_slice() {
                let parts = vec![name, condition.clone()];
                items = vec![Node::Relation(Box::new(Node::Ratio { parts, clock: false }), Vec::new())];
            } else {
                return syntax("a set without its condition");
            }
        }
        self.bars = bars;
        let Some(&Token::Close(close)) = self.peek() else { return syntax("an open bracket") };
        self.at += 1;
        let single = items.len() == 1;
        match (open, close) {
            ('{', '}') => Ok(condition(&items).unwrap_or(Node::Set(items))),
            ('⌊', '⌋') if single => Ok(Node::Call("floor", items)),
            ('⌈', '⌉') if single => Ok(Node::Call("ceil", items)),
            ('|', '|') if single => Ok(Node::Call("abs", items)),
            ('(', ')') | ('[', ']') if single => Ok(items.remove(0)),
            ('(' | '[', ')' | ']') | ('<', '>') if !single => Ok(Node::Tuple { open, close, items }),
            _ => syntax("brackets that do not match"),
        }
    }

    /// The rows up to the end of the environment.
    pub(super) fn matrix(&mut self, kind: &str) -> Parsed<Node> {
        if kind == "rows" {
            self.drop_alignment();
        }
        let mut rows = vec![Vec::new()];
        loop {
            if self.take(&Token::EndMatrix) {
                break;
            }
            let cell = self.relation()?;
            if let Some(row) = rows.last_mut() {
                row.push(cell);
            }
            if kind == "rows" {
                // The comma before a line break or a condition.
                self.take(&Token::Separator);
            }
            match self.peek() {
                Some(Token::Column) => self.at += 1,
                Some(Token::Row) => {
                    while self.take(&Token::Row) {}
                    if self.peek() != Some(&Token::EndMatrix) {
                        rows.push(Vec::new());
                    }
                }
                Some(Token::EndMatrix) => {}
                _ => return syntax("a matrix without end"),
            }
        }
        Ok(match kind {
            "rows" => {
                let mut items: Vec<Node> = rows.into_iter().map(row_of_cells).collect();
                if items.len() == 1 { items.remove(0) } else { Node::List(items) }
            }
            "determinant" => Node::Call("det", vec![Node::Matrix(rows)]),
            _ => Node::Matrix(rows),
        })
    }

    /// `x &= 1` is `x = 1`.
    fn drop_alignment(&mut self) {
        let end = self.tokens[self.at..].iter().position(|lexed| lexed.token == Token::EndMatrix);
        let Some(end) = end.map(|end| self.at + end) else { return };
        for at in (self.at..end).rev() {
            let before_relation = matches!(self.tokens[at + 1].token, Token::Relation(_));
            if before_relation && self.tokens[at].token == Token::Column {
                self.tokens.remove(at);
            }
        }
    }
}

fn row_of_cells(mut cells: Vec<Node>) -> Node {
    if cells.len() == 1 { cells.remove(0) } else { Node::Tuple { open: '(', close: ')', items: cells } }
}

/// The condition of `{x : x > 3}`, which stands for the set.
fn condition(items: &[Node]) -> Option<Node> {
    let [Node::Relation(first, rest)] = items else { return None };
    let Node::Ratio { parts, .. } = &**first else { return None };
    match parts.as_slice() {
        [Node::Name(_), condition] if rest.is_empty() => Some(condition.clone()),
        [Node::Name(_), side] => Some(Node::Relation(Box::new(side.clone()), rest.clone())),
        _ => None,
    }
}
