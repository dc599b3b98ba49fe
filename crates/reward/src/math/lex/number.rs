//! Number literals: digits, thousands separators, decimals, repeating decimals, powers of ten.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Pow;

use super::{Lexer, Token};
use crate::math::parse::ParseError;

/// Most digits of a number literal.
const MAX_DIGITS: usize = 1000;
/// Largest power of ten of a literal such as `1.5e10`.
const MAX_EXPONENT: u32 = 300;
/// Separators of thousands that stand for nothing else between two digits.
const SEPARATORS: [&str; 9] = ["{,}", ",\\!", ",\\! ", "\\,", "\\!", "{,\\!}", "\\ ", "~", "\\;"];

fn pow10(power: u32) -> BigInt {
    Pow::pow(BigInt::from(10), power)
}

/// The value of `digits`, of which `decimals` stand after the point, times ten to the `exponent`.
pub(in crate::math) fn number(digits: &str, decimals: usize, exponent: i32) -> BigRational {
    // Nearly every number of an answer is a small whole one.
    let integer = match digits.parse::<u64>() {
        Ok(small) => BigInt::from(small),
        Err(_) => digits.parse().unwrap_or_default(),
    };
    if decimals == 0 && exponent == 0 {
        return BigRational::from_integer(integer);
    }
    let value = BigRational::new(integer, pow10(decimals as u32));
    if exponent >= 0 { value * pow10(exponent.unsigned_abs()) } else { value / pow10(exponent.unsigned_abs()) }
}

/// `0.58(3)`: `digits` with `decimals` after the point, then `repeat` without end.
pub(in crate::math) fn repeating(digits: &str, decimals: usize, repeat: &str) -> BigRational {
    let period = BigRational::new(repeat.parse().unwrap_or_default(), pow10(repeat.len() as u32) - 1);
    number(digits, decimals, 0) + period / pow10(decimals as u32)
}

/// How many ASCII digits `text` begins with.
fn run(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

impl Lexer<'_> {
    /// The number that the text begins with.
    pub(super) fn number(&mut self) -> Result<(), ParseError> {
        let mut length = run(self.rest);
        let mut digits = self.rest[..length].to_owned();
        if (1..=3).contains(&length) && !digits.starts_with('0') {
            length += self.thousands(length, &mut digits);
        }
        let mut decimals = None;
        let mut repeat = None;
        if let Some(tail) = self.rest[length..].strip_prefix('.') {
            let count = run(tail);
            let period = repetition(&tail[count..]);
            if count > 0 || period.is_some() {
                digits.push_str(&tail[..count]);
                decimals = Some(count);
                length += 1 + count;
            }
            if let Some((period, skip)) = period {
                repeat = Some(period.to_owned());
                length += skip;
            }
        }
        if digits.len() > MAX_DIGITS || repeat.as_ref().is_some_and(|r| r.len() > MAX_DIGITS) {
            return Err(ParseError::Budget("a number of more than 1000 digits"));
        }
        if let Some(repeat) = repeat {
            self.rest = &self.rest[length..];
            self.push(Token::Repeating { digits, decimals: decimals.unwrap_or(0), repeat });
            return Ok(());
        }
        let exponent = self.literal_exponent(&mut length)?;
        self.rest = &self.rest[length..];
        self.push(Token::Number { digits, decimals, exponent });
        self.skip_ordinal(decimals);
        Ok(())
    }

    /// Appends the groups of three digits after the first `length` bytes; how many bytes they take.
    fn thousands(&self, length: usize, digits: &mut String) -> usize {
        let mut taken = 0;
        let bare = self.grouped_thousands && self.brackets == 0;
        loop {
            let after = &self.rest[length + taken..];
            let found = SEPARATORS
                .into_iter()
                .chain(bare.then_some(","))
                .filter_map(|s| after.strip_prefix(s).map(|tail| (s.len(), tail)))
                .find(|(_, tail)| run(tail) == 3);
            // A space separates thousands too, but `1 234/567` is a mixed number.
            let spaced = || {
                let tail = after.strip_prefix(' ')?;
                (bare && run(tail) == 3 && !tail[3..].trim_start().starts_with('/')).then_some((1, tail))
            };
            let Some((skip, tail)) = found.or_else(spaced) else { return taken };
            digits.push_str(&tail[..3]);
            taken += skip + 3;
        }
    }

    fn literal_exponent(&self, length: &mut usize) -> Result<i32, ParseError> {
        let Some(tail) = self.rest[*length..].strip_prefix(['e', 'E']) else { return Ok(0) };
        let sign = usize::from(tail.starts_with(['+', '-']));
        let count = run(&tail[sign..]);
        if count == 0 {
            return Ok(0);
        }
        match tail[sign..sign + count].parse::<u32>() {
            Ok(power) if power <= MAX_EXPONENT => {
                *length += 1 + sign + count;
                Ok(if tail.starts_with('-') { -(power as i32) } else { power as i32 })
            }
            _ => Err(ParseError::Budget("a literal exponent of more than 300")),
        }
    }

    /// `21st` is 21.
    fn skip_ordinal(&mut self, decimals: Option<usize>) {
        let ordinal = ["st", "nd", "rd", "th"].into_iter().find_map(|suffix| self.rest.strip_prefix(suffix));
        if let (None, Some(rest)) = (decimals, ordinal)
            && !rest.starts_with(|c: char| c.is_alphanumeric())
        {
            self.rest = rest;
        }
    }
}

/// The digits of `\overline{36}` or `\dot{3}`, and how many bytes it takes.
fn repetition(text: &str) -> Option<(&str, usize)> {
    let command = ["\\overline", "\\bar", "\\dot"].into_iter().find(|name| text.starts_with(name))?;
    let tail = &text[command.len()..];
    let (open, inner) = match tail.strip_prefix('{') {
        Some(inner) => (1, inner),
        None => (0, tail),
    };
    let count = if open == 1 { run(inner) } else { run(inner).min(1) };
    let closed = open == 0 || inner[count..].starts_with('}');
    (count > 0 && closed).then(|| (&inner[..count], command.len() + open * 2 + count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let ratio = |p: i64, q: i64| BigRational::new(p.into(), q.into());
        assert_eq!(number("125", 2, 1), ratio(25, 2));
        assert_eq!(number("5", 0, -1), ratio(1, 2));
        assert_eq!(repeating("0", 0, "3"), ratio(1, 3));
        assert_eq!(repeating("058", 2, "3"), ratio(7, 12));
    }

    #[test]
    fn repetitions() {
        assert_eq!(repetition("\\overline{36}x"), Some(("36", 13)));
        assert_eq!(repetition("\\dot3"), Some(("3", 5)));
        assert_eq!(repetition("\\overline{AB}"), None);
        assert_eq!(repetition("\\overline{3"), None);
    }
}
