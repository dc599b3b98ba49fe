//! Functions with their arguments, and the large operators with their ranges.

use super::term::{product, starts_factor};
use super::{Parsed, Parser, syntax};
use crate::math::lex::Token;
use crate::math::tree::{Node, Relation};
use crate::math::words::inverse_function;

impl Parser {
    pub(super) fn function(&mut self, name: &'static str) -> Parsed<Node> {
        let mut arguments = Vec::new();
        let mut power = None;
        // `\log_2^3 x` and `\log^3_2 x`.
        for _ in 0..2 {
            if self.peek() == Some(&Token::Underscore) && arguments.is_empty() {
                if name != "log" {
                    return syntax("a subscript of a function");
                }
                self.at += 1;
                arguments.push(self.argument()?);
            } else if power.is_none() && self.take(&Token::Caret) {
                power = Some(self.exponent()?);
            }
        }
        let many = matches!(name, "gcd" | "lcm" | "max" | "min");
        if matches!(self.peek(), Some(Token::Open('(' | '{'))) && many {
            self.at += 1;
            arguments.extend(self.list()?);
            if !matches!(self.peek(), Some(Token::Close(')' | '}'))) {
                return syntax("an open bracket");
            }
            self.at += 1;
        } else if matches!(self.peek(), Some(Token::Open(_) | Token::Group)) {
            arguments.push(match self.primary()? {
                // `\sin\{x\}`.
                Node::Set(mut items) if items.len() == 1 => items.remove(0),
                Node::Set(items) | Node::List(items) if many => return Ok(Node::Call(name, items)),
                argument => argument,
            });
        } else {
            let mut factors = vec![self.signed_factor()?];
            while let Some(token) = self.peek() {
                if matches!(token, Token::Function(_)) || !starts_factor(token, self.bars) {
                    break;
                }
                factors.push(self.factor()?);
            }
            arguments.push(product(factors));
        }
        let inverse = matches!(&power, Some(Node::Negative(one)) if **one == Node::integer(1));
        if name == "exp" && power.is_none() {
            return Ok(Node::Power(Box::new(Node::E), Box::new(product(arguments))));
        }
        Ok(match (inverse.then(|| inverse_function(name)).flatten(), power) {
            (Some(inverse), _) => Node::Call(inverse, arguments),
            (None, Some(power)) => Node::Power(Box::new(Node::Call(name, arguments)), Box::new(power)),
            (None, None) => Node::Call(name, arguments),
        })
    }

    /// `\sum_{k=1}^{n} k`: the body, the index, its first and its last value. An integral and a limit keep
    /// what stands under them as it is.
    pub(super) fn large(&mut self, name: &'static str) -> Parsed<Node> {
        let (mut low, mut high) = (None, None);
        for _ in 0..2 {
            if low.is_none() && self.take(&Token::Underscore) {
                low = Some(self.argument()?);
            } else if high.is_none() && self.take(&Token::Caret) {
                high = Some(self.argument()?);
            }
        }
        let body = if name == "int" { self.sum()? } else { self.term()? };
        let mut arguments = vec![body];
        match low {
            Some(Node::Relation(index, first)) if matches!(name, "sum" | "prod") => match first.as_slice() {
                [(Relation::Equal, first)] => arguments.extend([*index, first.clone()]),
                _ => return syntax("a range without its first value"),
            },
            Some(low) => arguments.push(low),
            None => {}
        }
        arguments.extend(high);
        Ok(Node::Call(name, arguments))
    }
}
