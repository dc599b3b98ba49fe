//! Factors: literals, names, powers, roots and what follows a value.

use super::{Parsed, Parser, syntax};
use crate::math::lex::{Lexed, Token, number, repeating};
use crate::math::tree::Node;
use crate::math::units::{negate, number_word, with_unit};

impl Parser {
    pub(super) fn factor(&mut self) -> Parsed<Node> {
        let mut base = self.primary()?;
        loop {
            match self.peek() {
                Some(Token::Caret) => {
                    self.at += 1;
                    if self.degree_power() {
                        base = with_unit(base, "°")?;
                    } else if !self.ordinal_power() {
                        let exponent = self.exponent()?;
                        base = Node::Power(Box::new(base), Box::new(exponent));
                    }
                }
                Some(Token::Bang) => {
                    if matches!(base, Node::Call("factorial", _)) {
                        return syntax("a double factorial");
                    }
                    self.at += 1;
                    base = Node::Call("factorial", vec![base]);
                }
                Some(Token::Percent) => {
                    self.at += 1;
                    base = with_unit(base, "%")?;
                }
                Some(Token::Degree) => {
                    self.at += 1;
                    base = with_unit(base, "°")?;
                }
                // `(101)_2`.
                Some(Token::Underscore) if matches!(base, Node::Number { decimals: None, .. }) => {
                    self.at += 1;
                    let Node::Number { value, .. } = &base else { return syntax("a subscript of no number") };
                    let digits = value.to_string();
                    base = Node::Based { digits, base: self.subscript()? };
                }
                _ => return Ok(base),
            }
        }
    }

    /// `^\circ` and `^{\circ}`.
    fn degree_power(&mut self) -> bool {
        let length = match (self.peek(), self.peek_at(1), self.peek_at(2)) {
            (Some(Token::Degree), _, _) => 1,
            (Some(Token::Group), Some(Token::Degree), Some(Token::EndGroup)) => 3,
            _ => return false,
        };
        self.at += length;
        true
    }

    /// The raised letters of `4^{\text{th}}`.
    fn ordinal_power(&mut self) -> bool {
        let suffix = |token: Option<&Token>| matches!(token, Some(Token::Text(word)) if matches!(word.as_str(), "st" | "nd" | "rd" | "th"));
        let length = match (self.peek(), self.peek_at(2)) {
            (token, _) if suffix(token) => 1,
            (Some(Token::Group), Some(Token::EndGroup)) if suffix(self.peek_at(1)) => 3,
            _ => return false,
        };
        self.at += length;
        true
    }

    pub(super) fn exponent(&mut self) -> Parsed<Node> {
        let negative = self.sign().unwrap_or(false);
        let mut exponent = self.primary()?;
        if self.peek() == Some(&Token::Caret) && !matches!(self.peek_at(1), Some(Token::Degree)) {
            self.at += 1;
            // Counted like nesting, since a tower recurses.
            self.descend()?;
            let power = self.exponent()?;
            self.depth -= 1;
            exponent = Node::Power(Box::new(exponent), Box::new(power));
        }
        Ok(if negative { negate(exponent) } else { exponent })
    }

    pub(super) fn primary(&mut self) -> Parsed<Node> {
        self.descend()?;
        let node = self.primary_inner();
        self.depth -= 1;
        node
    }

    fn primary_inner(&mut self) -> Parsed<Node> {
        let Some(lexed) = self.tokens.get(self.at) else { return syntax("a value is missing") };
        let token = lexed.token.clone();
        self.at += 1;
        match token {
            Token::Number { digits, decimals, exponent } => self.number(&digits, decimals, exponent),
            Token::Repeating { digits, decimals, repeat } => {
                Ok(Node::Number { value: repeating(&digits, decimals, &repeat), decimals: None })
            }
            Token::Name(name) => self.name(name),
            Token::Text(word) => Ok(match number_word(&word) {
                Some(value) => Node::integer(value),
                None => Node::Text(word),
            }),
            Token::Pi => Ok(Node::Pi),
            Token::Infinity => Ok(Node::Infinity),
            Token::Empty => Ok(Node::Set(Vec::new())),
            Token::Fraction => {
                let numerator = self.argument()?;
                // `\sfrac` and hasty writers put a slash between.
                self.take(&Token::Divide);
                let denominator = self.argument()?;
                Ok(quotient(numerator, denominator))
            }
            Token::Binomial => {
                let n = self.argument()?;
                let k = self.argument()?;
                Ok(Node::Call("binomial", vec![n, k]))
            }
            Token::Root => self.root(2),
            Token::CubeRoot => self.root(3),
            Token::Function(name) => self.function(name),
            Token::Large(name) => self.large(name),
            Token::Group => self.group(),
            Token::Open(open) => self.bracket(open),
            Token::Bar => {
                self.bars += 1;
                let inner = self.sum()?;
                self.bars -= 1;
                self.expect(&Token::Bar, "an open `|`")?;
                Ok(Node::Call("abs", vec![inner]))
            }
            Token::Matrix(kind) => self.matrix(kind),
            _ => syntax("a value is missing"),
        }
    }

    fn number(&mut self, digits: &str, decimals: Option<usize>, exponent: i32) -> Parsed<Node> {
        if self.peek() == Some(&Token::Underscore) {
            self.at += 1;
            let base = self.subscript()?;
            return Ok(Node::Based { digits: digits.to_owned(), base });
        }
        let value = number(digits, decimals.unwrap_or(0), exponent);
        // The places of `1.5e10` say nothing about its precision after the point.
        Ok(Node::Number { value, decimals: decimals.filter(|_| exponent == 0) })
    }

    fn name(&mut self, name: String) -> Parsed<Node> {
        if self.take(&Token::Underscore) {
            let subscript = self.subscript()?;
            return Ok(Node::Name(format!("{name}_{subscript}")));
        }
        Ok(match name.as_str() {
            "e" => Node::E,
            "i" => Node::I,
            _ => Node::Name(name),
        })
    }

    /// The text of a subscript: one token or a group of plain tokens.
    fn subscript(&mut self) -> Parsed<String> {
        let mut groups = 0;
        let mut text = String::new();
        loop {
            match self.peek() {
                Some(Token::Group) => groups += 1,
                Some(Token::EndGroup) if groups > 0 => groups -= 1,
                Some(Token::Number { digits, decimals: None, exponent: 0 }) => text.push_str(digits),
                Some(Token::Name(name)) => text.push_str(name),
                Some(Token::Text(word)) => match number_word(word) {
                    Some(value) => text.push_str(&value.to_string()),
                    None => text.push_str(word),
                },
                // `101_{(2)}`.
                Some(Token::Open('(') | Token::Close(')')) if groups > 0 => {}
                Some(Token::Plus) if groups > 0 => text.push('+'),
                Some(Token::Minus) if groups > 0 => text.push('-'),
                Some(Token::Separator) if groups > 0 => text.push(','),
                _ => return syntax("a subscript is missing"),
            }
            self.at += 1;
            if groups == 0 {
                return if text.is_empty() { syntax("a subscript is missing") } else { Ok(text) };
            }
        }
    }

    /// The argument of a LaTeX command: a group, one digit, or one symbol.
    pub(super) fn argument(&mut self) -> Parsed<Node> {
        if let Some(Lexed { token: Token::Number { digits, decimals: None, exponent: 0 }, .. }) =
            self.tokens.get_mut(self.at)
        {
            if digits.len() == 1 {
                // Not by way of `number`: in `\sum^3_{k=1}` the subscript is the sum's.
                let value = number(digits, 0, 0);
                self.descend()?;
                self.depth -= 1;
                self.at += 1;
                return Ok(Node::Number { value, decimals: None });
            }
            let rest = digits.split_off(1);
            let first = std::mem::replace(digits, rest);
            self.descend()?;
            self.depth -= 1;
            return Ok(Node::Number { value: number(&first, 0, 0), decimals: None });
        }
        if self.take(&Token::Minus) {
            return Ok(negate(self.argument_of_minus()?));
        }
        self.primary()
    }

    /// What stands after the sign of `\frac-12`.
    fn argument_of_minus(&mut self) -> Parsed<Node> {
        if self.peek() == Some(&Token::Minus) { syntax("two signs") } else { self.argument() }
    }

    fn root(&mut self, degree: u32) -> Parsed<Node> {
        let mut degree = degree;
        let mut symbolic = None;
        if self.take(&Token::Open('[')) {
            let written = self.sum()?;
            self.expect(&Token::Close(']'), "an open bracket")?;
            match &written {
                Node::Number { value, decimals: None } if value.is_integer() => {
                    degree = match u32::try_from(value.to_integer()) {
                        Ok(degree @ 2..=32) => degree,
                        Ok(0 | 1) => return syntax("a root of degree below 2"),
                        _ => {
                            symbolic = Some(written.clone());
                            2
                        }
                    };
                }
                _ => symbolic = Some(written),
            }
        }
        let radicand = Box::new(self.primary()?);
        Ok(match symbolic {
            Some(degree) => Node::Power(radicand, Box::new(Node::Inverse(Box::new(degree)))),
            None => Node::Root { degree, radicand },
        })
    }
}

pub(super) fn quotient(numerator: Node, denominator: Node) -> Node {
    Node::Product(vec![numerator, Node::Inverse(Box::new(denominator))])
}
