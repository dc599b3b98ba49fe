//! Sums, products and units: what operators and their absence make of values.

use super::{Parsed, Parser, syntax};
use crate::math::lex::Token;
use crate::math::tree::Node;
use crate::math::units::{hoist_unit, is_no_unit, negate, scale, unit_name, with_unit};
use crate::math::words::is_unit_letter;

impl Parser {
    /// Consumes signs; whether they make a minus. `None` without a sign.
    pub(super) fn sign(&mut self) -> Option<bool> {
        let mut negative = None;
        loop {
            let flip = match self.peek() {
                Some(Token::Plus) => false,
                Some(Token::Minus) => true,
                Some(Token::PlusMinus) => {
                    self.signs += 1;
                    self.minus
                }
                Some(Token::MinusPlus) => {
                    self.signs += 1;
                    !self.minus
                }
                _ => return negative,
            };
            self.at += 1;
            negative = Some(negative.unwrap_or(false) ^ flip);
        }
    }

    pub(super) fn sum(&mut self) -> Parsed<Node> {
        let mut terms = Vec::new();
        let mut negative = self.sign().unwrap_or(false);
        loop {
            let term = self.term()?;
            terms.push(if negative { negate(term) } else { term });
            match self.sign() {
                Some(sign) => negative = sign,
                None => break,
            }
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { hoist_unit(terms) })
    }

    pub(super) fn term(&mut self) -> Parsed<Node> {
        let currency = match self.peek() {
            Some(&Token::Currency(symbol)) => {
                self.at += 1;
                Some(symbol)
            }
            _ => None,
        };
        let negative = currency.is_some() && self.sign().unwrap_or(false);
        let mut factors = vec![self.factor()?];
        loop {
            match self.peek() {
                Some(Token::Times) => {
                    self.at += 1;
                    factors.push(self.signed_factor()?);
                }
                Some(Token::Divide) => {
                    self.at += 1;
                    let factor = self.signed_factor()?;
                    factors.push(Node::Inverse(Box::new(factor)));
                }
                Some(Token::Text(_)) if !matches!(factors.as_slice(), [Node::Text(_)]) => {
                    let Some(unit) = self.unit()? else {
                        factors.push(self.scale()?);
                        continue;
                    };
                    let value = if negative { negate(product(factors)) } else { product(factors) };
                    return with_unit(value, &unit);
                }
                // `20^\circ C`.
                Some(Token::Name(letter))
                    if matches!(letter.as_str(), "C" | "F")
                        && matches!(factors.last(), Some(Node::Unit(_, unit)) if unit == "°") =>
                {
                    let unit = letter.to_lowercase();
                    self.at += 1;
                    return with_unit(product(factors), &unit);
                }
                Some(Token::Currency(symbol)) => {
                    let symbol = *symbol;
                    self.at += 1;
                    return with_unit(product(factors), symbol);
                }
                Some(Token::Number { .. }) => match self.mixed(&factors)? {
                    Some(fraction) => {
                        let whole = factors.pop().unwrap_or_else(|| Node::integer(0));
                        factors.push(Node::Sum(vec![whole, fraction]));
                    }
                    None if self.may_multiply() => factors.push(self.factor()?),
                    None => return syntax("two numbers without an operator"),
                },
                Some(Token::Fraction) if self.mixes(&factors) => {
                    let fraction = self.factor()?;
                    let whole = factors.pop().unwrap_or_else(|| Node::integer(0));
                    let integers = matches!(&fraction, Node::Product(parts) if is_fraction(parts));
                    factors.push(if integers {
                        Node::Sum(vec![whole, fraction])
                    } else {
                        Node::Product(vec![whole, fraction])
                    });
                }
                Some(Token::Open('(')) if self.peek_at(1) == Some(&Token::Modulo) => break,
                Some(token) if starts_factor(token, self.bars) => factors.push(self.factor()?),
                _ => break,
            }
        }
        let value = if negative { negate(product(factors)) } else { product(factors) };
        match currency {
            Some(symbol) => with_unit(value, symbol),
            None => Ok(value),
        }
    }

    pub(super) fn signed_factor(&mut self) -> Parsed<Node> {
        let negative = self.sign().unwrap_or(false);
        let factor = self.factor()?;
        Ok(if negative { negate(factor) } else { factor })
    }

    /// Whether a fraction here would be the second part of a mixed number: only a whole number, just read.
    fn mixes(&self, factors: &[Node]) -> bool {
        let literal = matches!(self.previous(), Some(Token::Number { .. }));
        literal && matches!(factors, [Node::Number { decimals: None, .. }])
    }

    /// Whether a number here is a factor, as in `n 2^{n-2}` and `9! 8!`: not after another number.
    fn may_multiply(&self) -> bool {
        match self.previous() {
            Some(Token::Pi | Token::Bang | Token::Close(_)) => true,
            Some(Token::Name(_) | Token::EndGroup) => self.tokens[self.at].spaced,
            _ => false,
        }
    }

    /// The fraction of `1 3/4`, if that is what follows.
    fn mixed(&mut self, factors: &[Node]) -> Parsed<Option<Node>> {
        let spaced = self.tokens[self.at].spaced;
        let shape = (self.peek(), self.peek_at(1), self.peek_at(2));
        let (Some(Token::Number { .. }), Some(Token::Divide), Some(Token::Number { .. })) = shape else {
            return Ok(None);
        };
        if !spaced || !self.mixes(factors) {
            return Ok(None);
        }
        let numerator = self.factor()?;
        self.at += 1;
        let denominator = self.factor()?;
        Ok(Some(product(vec![numerator, Node::Inverse(Box::new(denominator))])))
    }

    /// A power of ten in words: `3 million`.
    fn scale(&mut self) -> Parsed<Node> {
        let Some(Token::Text(word)) = self.peek() else { return syntax("a word is missing") };
        let Some(value) = scale(word) else { return syntax("a word that is no unit") };
        self.at += 1;
        Ok(Node::integer(value))
    }

    /// The unit that starts here, in one normal spelling; `None` for a power of ten in words.
    fn unit(&mut self) -> Parsed<Option<String>> {
        let mut parts: Vec<String> = Vec::new();
        loop {
            let name = match self.peek() {
                Some(Token::Text(word)) => {
                    if scale(word).is_some() && parts.is_empty() {
                        return Ok(None);
                    }
                    let words: Vec<&str> = word.split([' ', '-']).collect();
                    if words.len() > 4 || words.iter().any(|word| is_no_unit(word)) {
                        return syntax("a phrase that is no unit");
                    }
                    unit_name(word)
                }
                // The letter after `km/`.
                Some(Token::Name(letter)) if parts.last().is_some_and(|part| part == "/") && is_unit_letter(letter) => {
                    letter.to_lowercase()
                }
                _ => break,
            };
            self.at += 1;
            parts.push(self.unit_power(name)?);
            let another = match self.peek_at(1) {
                Some(Token::Text(_)) => true,
                Some(Token::Name(letter)) => is_unit_letter(letter),
                _ => false,
            };
            if self.peek() == Some(&Token::Divide) && another {
                self.at += 1;
                parts.push("/".to_owned());
            }
        }
        // `square units` are no more than units.
        Ok(Some(unit_name(&parts.concat())))
    }

    /// `cm^2`.
    fn unit_power(&mut self, unit: String) -> Parsed<String> {
        if !self.take(&Token::Caret) {
            return Ok(unit);
        }
        let grouped = self.take(&Token::Group);
        let Some(Token::Number { digits, decimals: None, exponent: 0 }) = self.peek() else {
            return syntax("a unit with an odd power");
        };
        let unit = if unit.is_empty() { unit } else { format!("{unit}^{digits}") };
        self.at += 1;
        if grouped {
            self.expect(&Token::EndGroup, "an open brace")?;
        }
        Ok(unit)
    }
}

/// The product of factors; a unit of the last is a unit of all, as in `2 x°`.
pub(super) fn product(mut factors: Vec<Node>) -> Node {
    if factors.len() > 1 {
        if matches!(factors.last(), Some(Node::Unit(..)))
            && let Some(Node::Unit(value, unit)) = factors.pop()
        {
            factors.push(*value);
            return Node::Unit(Box::new(Node::Product(factors)), unit);
        }
        return Node::Product(factors);
    }
    factors.pop().unwrap_or_else(|| Node::integer(1))
}

fn is_fraction(parts: &[Node]) -> bool {
    let whole = |node: &Node| matches!(node, Node::Number { decimals: None, .. });
    matches!(parts, [numerator, Node::Inverse(denominator)] if whole(numerator) && whole(denominator))
}

/// Whether a token can begin a factor that no operator precedes.
pub(super) fn starts_factor(token: &Token, bars: usize) -> bool {
    match token {
        Token::Bar => bars == 0,
        Token::Name(_)
        | Token::Pi
        | Token::Infinity
        | Token::Function(_)
        | Token::Large(_)
        | Token::Fraction
        | Token::Binomial
        | Token::Root
        | Token::CubeRoot
        | Token::Open(_)
        | Token::Group
        | Token::Matrix(_) => true,
        _ => false,
    }
}
