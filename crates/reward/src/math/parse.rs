//! Parses tokens into a tree, by recursive descent to a fixed depth.

use super::lex::{Lexed, Token, number};
use super::tree::{Node, Relation};
use super::units::{hoist_unit, is_no_unit, negate, number_word, scale, unit_name, with_unit};

/// Deepest nesting; every level of recursion passes through [`Parser::primary`], which counts it.
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

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &Token, what: &str) -> Parsed<()> {
        if self.take(token) { Ok(()) } else { syntax(what) }
    }

    /// Items up to whatever ends them; runs of separators (`, and`) count once.
    fn list(&mut self) -> Parsed<Vec<Node>> {
        let mut items = Vec::new();
        loop {
            self.item(&mut items)?;
            let mut separated = false;
            while self.take(&Token::Separator) {
                separated = true;
            }
            if !separated || self.peek().is_none() {
                return Ok(items);
            }
        }
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
        let first = self.union()?;
        let mut rest = Vec::new();
        while let Some(&Token::Relation(relation)) = self.peek() {
            self.at += 1;
            let side = self.union()?;
            if relation == Relation::Approximately {
                // The exact side is the answer, the rest a comment on its size.
                continue;
            }
            rest.push((relation, side));
        }
        Ok(if rest.is_empty() { first } else { Node::Relation(Box::new(first), rest) })
    }

    fn union(&mut self) -> Parsed<Node> {
        let mut parts = vec![self.sum()?];
        while self.take(&Token::Union) {
            parts.push(self.sum()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Node::Union(parts) })
    }

    /// Consumes signs; whether they make a minus. `None` without a sign.
    fn sign(&mut self) -> Option<bool> {
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

    fn sum(&mut self) -> Parsed<Node> {
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

    fn term(&mut self) -> Parsed<Node> {
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

    fn signed_factor(&mut self) -> Parsed<Node> {
        let negative = self.sign().unwrap_or(false);
        let factor = self.factor()?;
        Ok(if negative { negate(factor) } else { factor })
    }

    /// Whether a fraction here would be the second part of a mixed number: only a whole number, just read.
    fn mixes(&self, factors: &[Node]) -> bool {
        let literal = matches!(self.at.checked_sub(1).map(|at| &self.tokens[at].token), Some(Token::Number { .. }));
        literal && matches!(factors, [Node::Number { decimals: None, .. }])
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
        while let Some(Token::Text(word)) = self.peek() {
            if scale(word).is_some() && parts.is_empty() {
                return Ok(None);
            }
            let words: Vec<&str> = word.split([' ', '-']).collect();
            if words.len() > 4 || words.iter().any(|word| is_no_unit(word)) {
                return syntax("a phrase that is no unit");
            }
            let mut unit = unit_name(word);
            self.at += 1;
            if self.take(&Token::Caret) {
                let grouped = self.take(&Token::Group);
                let Some(Token::Number { digits, decimals: None, exponent: 0 }) = self.peek() else {
                    return syntax("a unit with an odd power");
                };
                unit = format!("{unit}^{digits}");
                self.at += 1;
                if grouped {
                    self.expect(&Token::EndGroup, "an open brace")?;
                }
            }
            parts.push(unit);
            if self.peek() == Some(&Token::Divide) && matches!(self.peek_at(1), Some(Token::Text(_))) {
                self.at += 1;
                parts.push("/".to_owned());
            }
        }
        Ok(Some(parts.concat()))
    }

    fn factor(&mut self) -> Parsed<Node> {
        let mut base = self.primary()?;
        loop {
            match self.peek() {
                Some(Token::Caret) => {
                    self.at += 1;
                    if self.degree_power() {
                        base = with_unit(base, "°")?;
                    } else {
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

    fn exponent(&mut self) -> Parsed<Node> {
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

    fn primary(&mut self) -> Parsed<Node> {
        self.descend()?;
        let node = self.primary_inner();
        self.depth -= 1;
        node
    }

    fn primary_inner(&mut self) -> Parsed<Node> {
        let Some(token) = self.peek().cloned() else { return syntax("a value is missing") };
        self.at += 1;
        match token {
            Token::Number { digits, decimals, exponent } => self.number(&digits, decimals, exponent),
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
                let denominator = self.argument()?;
                Ok(Node::Product(vec![numerator, Node::Inverse(Box::new(denominator))]))
            }
            Token::Binomial => {
                let n = self.argument()?;
                let k = self.argument()?;
                Ok(Node::Call("binomial", vec![n, k]))
            }
            Token::Root => self.root(),
            Token::Function(name) => self.function(name),
            Token::Group => self.group(),
            Token::Open(open) => self.bracket(open),
            Token::Bar => {
                self.bars += 1;
                let inner = self.sum()?;
                self.bars -= 1;
                self.expect(&Token::Bar, "an open `|`")?;
                Ok(Node::Call("abs", vec![inner]))
            }
            Token::Matrix => self.matrix(),
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
                Some(Token::Text(word)) => text.push_str(word),
                _ => return syntax("a subscript is missing"),
            }
            self.at += 1;
            if groups == 0 {
                return if text.is_empty() { syntax("a subscript is missing") } else { Ok(text) };
            }
        }
    }

    /// The argument of a LaTeX command: a group, one digit, or one symbol.
    fn argument(&mut self) -> Parsed<Node> {
        if let Some(Lexed { token: Token::Number { digits, decimals: None, exponent: 0 }, .. }) =
            self.tokens.get_mut(self.at)
            && digits.len() > 1
        {
            let rest = digits.split_off(1);
            let first = std::mem::replace(digits, rest);
            self.descend()?;
            self.depth -= 1;
            return Ok(Node::Number { value: number(&first, 0, 0), decimals: None });
        }
        self.primary()
    }

    fn root(&mut self) -> Parsed<Node> {
        let mut degree = 2;
        if self.peek() == Some(&Token::Open('[')) {
            let (Some(Token::Number { digits, decimals: None, exponent: 0 }), Some(Token::Close(']'))) =
                (self.peek_at(1), self.peek_at(2))
            else {
                return syntax("a root of an odd degree");
            };
            degree = match digits.parse::<u32>() {
                Ok(degree @ 2..=32) => degree,
                _ => return Err(ParseError::Budget("a root of degree over 32")),
            };
            self.at += 3;
        }
        let radicand = Box::new(self.primary()?);
        Ok(Node::Root { degree, radicand })
    }

    fn function(&mut self, name: &'static str) -> Parsed<Node> {
        let mut arguments = Vec::new();
        if self.take(&Token::Underscore) {
            if name != "log" {
                return syntax("a subscript of a function");
            }
            arguments.push(self.argument()?);
        }
        let power = if self.take(&Token::Caret) { Some(self.exponent()?) } else { None };
        if matches!(self.peek(), Some(Token::Open('('))) && matches!(name, "gcd" | "lcm" | "max" | "min") {
            self.at += 1;
            arguments.extend(self.list()?);
            self.expect(&Token::Close(')'), "an open bracket")?;
        } else if matches!(self.peek(), Some(Token::Open(_) | Token::Group)) {
            arguments.push(self.primary()?);
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
        Ok(match (name, power) {
            ("sin", Some(_)) if inverse => Node::Call("arcsin", arguments),
            ("cos", Some(_)) if inverse => Node::Call("arccos", arguments),
            ("tan", Some(_)) if inverse => Node::Call("arctan", arguments),
            (name, Some(power)) => Node::Power(Box::new(Node::Call(name, arguments)), Box::new(power)),
            (name, None) => Node::Call(name, arguments),
        })
    }

    fn group(&mut self) -> Parsed<Node> {
        let mut items = self.list()?;
        self.expect(&Token::EndGroup, "an open brace")?;
        Ok(if items.len() == 1 { items.remove(0) } else { Node::Set(items) })
    }

    fn bracket(&mut self, open: char) -> Parsed<Node> {
        if open == '{' && self.take(&Token::Close('}')) {
            return Ok(Node::Set(Vec::new()));
        }
        let bars = std::mem::take(&mut self.bars);
        let mut items = self.list()?;
        self.bars = bars;
        let Some(&Token::Close(close)) = self.peek() else { return syntax("an open bracket") };
        self.at += 1;
        let single = items.len() == 1;
        match (open, close) {
            ('{', '}') => Ok(Node::Set(items)),
            ('⌊', '⌋') if single => Ok(Node::Call("floor", items)),
            ('⌈', '⌉') if single => Ok(Node::Call("ceil", items)),
            ('|', '|') if single => Ok(Node::Call("abs", items)),
            ('(', ')') | ('[', ']') if single => Ok(items.remove(0)),
            ('(' | '[', ')' | ']') | ('<', '>') if !single => Ok(Node::Tuple { open, close, items }),
            _ => syntax("brackets that do not match"),
        }
    }

    fn matrix(&mut self) -> Parsed<Node> {
        let mut rows = vec![Vec::new()];
        loop {
            if self.take(&Token::EndMatrix) {
                break;
            }
            let cell = self.relation()?;
            if let Some(row) = rows.last_mut() {
                row.push(cell);
            }
            match self.peek() {
                Some(Token::Column) => self.at += 1,
                Some(Token::Row) => {
                    self.at += 1;
                    if self.peek() != Some(&Token::EndMatrix) {
                        rows.push(Vec::new());
                    }
                }
                Some(Token::EndMatrix) => {}
                _ => return syntax("a matrix without end"),
            }
        }
        Ok(Node::Matrix(rows))
    }
}

fn product(mut factors: Vec<Node>) -> Node {
    // `2 x°` is `(2 x)°`.
    if factors.len() > 1 {
        if let Some(Node::Unit(value, unit)) = factors.last().cloned() {
            factors.pop();
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

fn starts_factor(token: &Token, bars: usize) -> bool {
    match token {
        Token::Bar => bars == 0,
        Token::Name(_)
        | Token::Pi
        | Token::Infinity
        | Token::Function(_)
        | Token::Fraction
        | Token::Binomial
        | Token::Root
        | Token::Open(_)
        | Token::Group
        | Token::Matrix => true,
        _ => false,
    }
}
