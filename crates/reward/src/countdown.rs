//! The Countdown verifier: an arithmetic expression that uses each given number exactly once and equals the
//! target exactly.

use num_integer::Integer;

use crate::verify::{GoldError, Reason, Verifier, excerpt};

/// Longest answer read, in bytes; a Countdown expression is far shorter.
const MAX_ANSWER_BYTES: usize = 1024;
/// Most numbers in a gold answer.
const MAX_NUMBERS: usize = 32;
/// Most digits in a number, of the gold or of the answer.
const MAX_DIGITS: usize = 9;

/// Grades expressions over `+ - * / ( )`, their Unicode and LaTeX forms and `\frac{a}{b}`.
///
/// The gold reads `19 from 3, 7, 12`. Arithmetic is exact and rational, so that intermediate values may be
/// negative or fractions. A tail `= 19` is accepted when it is true. Signs before a number and products
/// without an operator (`3(4+5)`) are not part of the game.
#[derive(Debug, Clone, Copy, Default)]
pub struct Countdown;

/// A target and the numbers to reach it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gold {
    /// The value to reach.
    pub target: i128,
    /// The numbers to use, each exactly once; in ascending order.
    pub numbers: Vec<i128>,
}

impl Gold {
    /// Reads `19 from 3, 7, 12`.
    ///
    /// # Errors
    /// [`GoldError`] says which part is not in that form.
    pub fn parse(gold: &str) -> Result<Self, GoldError> {
        if gold.trim().is_empty() {
            return Err(GoldError::Empty);
        }
        let form = "expected `TARGET from A, B, C`";
        let (target, numbers) = gold.split_once(" from ").ok_or_else(|| GoldError::malformed(gold, form))?;
        let number = |text: &str| {
            let text = text.trim();
            let digits = !text.is_empty() && text.len() <= MAX_DIGITS && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<i128>().ok()).flatten().ok_or_else(|| {
                GoldError::malformed(
                    gold,
                    format!("`{}` is not a whole number of at most {MAX_DIGITS} digits", excerpt(text)),
                )
            })
        };
        let target = number(target)?;
        let mut numbers = numbers.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
        if numbers.len() > MAX_NUMBERS {
            return Err(GoldError::too_large(gold, format!("more than {MAX_NUMBERS} numbers")));
        }
        numbers.sort_unstable();
        Ok(Self { target, numbers })
    }
}

impl Verifier for Countdown {
    fn check_gold(&self, gold: &str) -> Result<(), GoldError> {
        Gold::parse(gold).map(drop)
    }

    fn compare(&self, gold: &str, answer: &str) -> Reason {
        let gold = match Gold::parse(gold) {
            Ok(gold) => gold,
            Err(error) => return Reason::BadGold(error),
        };
        match judge(&gold, answer) {
            Ok(true) => Reason::Correct,
            Ok(false) => Reason::Wrong,
            Err(reason) => reason,
        }
    }
}

fn judge(gold: &Gold, answer: &str) -> Result<bool, Reason> {
    if answer.len() > MAX_ANSWER_BYTES {
        return Err(Reason::BudgetExceeded(format!("more than {MAX_ANSWER_BYTES} bytes")));
    }
    let tokens = tokens(answer)?;
    let mut sides = tokens.split(|token| *token == Token::Equals);
    let expression = sides.next().unwrap_or(&[]);
    let (value, mut used) = evaluate(expression)?;
    let claimed = match (sides.next(), sides.next()) {
        (None, _) => value,
        (Some([Token::Number(claim)]), None) => Rational { num: *claim, den: 1 },
        _ => return Err(Reason::Malformed("only a number may follow `=`, once".into())),
    };
    used.sort_unstable();
    let target = Rational { num: gold.target, den: 1 };
    Ok(used == gold.numbers && value == target && claimed == value)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Number(i128),
    Operator(u8),
    Open(Bracket),
    Close(Bracket),
    Equals,
}

/// The shape of a bracket: one closes only what one of its shape has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Round,
    Square,
    /// LaTeX's, those of `\frac` included.
    Curly,
}

/// What a LaTeX brace closes.
enum Brace {
    Group,
    Numerator,
    Denominator,
}

fn tokens(answer: &str) -> Result<Vec<Token>, Reason> {
    const COMMANDS: [(&str, Option<Token>); 15] = [
        ("\\times", Some(Token::Operator(b'*'))),
        ("\\cdot", Some(Token::Operator(b'*'))),
        ("\\ast", Some(Token::Operator(b'*'))),
        ("\\div", Some(Token::Operator(b'/'))),
        ("\\left", None),
        ("\\right", None),
        ("\\bigl", None),
        ("\\bigr", None),
        ("\\big", None),
        ("\\(", None),
        ("\\)", None),
        ("\\,", None),
        ("\\;", None),
        ("\\!", None),
        ("\\ ", None),
    ];
    let mut out = Vec::new();
    let mut braces: Vec<Brace> = Vec::new();
    let mut expects: Option<Brace> = None;
    let mut rest = answer;
    while let Some(symbol) = rest.chars().next() {
        if symbol.is_whitespace() || symbol == '$' {
            rest = &rest[symbol.len_utf8()..];
            continue;
        }
        if expects.is_some() && symbol != '{' {
            return Err(Reason::Malformed("`\\frac` without its two braces".into()));
        }
        if symbol == '\\' {
            let fraction = ["\\frac", "\\dfrac", "\\tfrac"].into_iter().find_map(|name| rest.strip_prefix(name));
            if let Some(after) = fraction {
                out.push(Token::Open(Bracket::Curly));
                expects = Some(Brace::Numerator);
                rest = after;
                continue;
            }
            let Some((name, token)) = COMMANDS.into_iter().find(|(name, _)| rest.starts_with(name)) else {
                return Err(unexpected(symbol));
            };
            out.extend(token);
            rest = &rest[name.len()..];
            continue;
        }
        let mut length = symbol.len_utf8();
        match symbol {
            '0'..='9' => {
                length = rest.bytes().take_while(u8::is_ascii_digit).count();
                if length > MAX_DIGITS {
                    return Err(Reason::BudgetExceeded(format!("a number of more than {MAX_DIGITS} digits")));
                }
                let value = rest[..length].parse().map_err(|_| unexpected(symbol))?;
                out.push(Token::Number(value));
            }
            '+' => out.push(Token::Operator(b'+')),
            '-' | '−' | '–' => out.push(Token::Operator(b'-')),
            '*' | '×' | '·' | '⋅' | '∗' => out.push(Token::Operator(b'*')),
            '/' | '÷' | '∕' => out.push(Token::Operator(b'/')),
            '(' => out.push(Token::Open(Bracket::Round)),
            ')' => out.push(Token::Close(Bracket::Round)),
            '[' => out.push(Token::Open(Bracket::Square)),
            ']' => out.push(Token::Close(Bracket::Square)),
            '=' => out.push(Token::Equals),
            '{' => {
                out.push(Token::Open(Bracket::Curly));
                braces.push(expects.take().unwrap_or(Brace::Group));
            }
            '}' => match braces.pop() {
                None => return Err(Reason::Malformed("unbalanced braces".into())),
                Some(Brace::Group) => out.push(Token::Close(Bracket::Curly)),
                Some(Brace::Numerator) => {
                    out.extend([Token::Close(Bracket::Curly), Token::Operator(b'/')]);
                    expects = Some(Brace::Denominator);
                }
                Some(Brace::Denominator) => out.extend([Token::Close(Bracket::Curly); 2]),
            },
            _ => return Err(unexpected(symbol)),
        }
        rest = &rest[length..];
    }
    if !braces.is_empty() || expects.is_some() {
        return Err(Reason::Malformed("unbalanced braces".into()));
    }
    Ok(out)
}

fn unexpected(symbol: char) -> Reason {
    Reason::Malformed(format!("unexpected `{}`", symbol.escape_debug()))
}

/// Evaluates with two explicit stacks (the shunting-yard algorithm), so that no input drives recursion.
/// Returns the value and the numbers used.
fn evaluate(tokens: &[Token]) -> Result<(Rational, Vec<i128>), Reason> {
    let malformed = |what: &str| Reason::Malformed(what.to_owned());
    let mut values: Vec<Rational> = Vec::new();
    let mut pending: Vec<Token> = Vec::new();
    let mut used = Vec::new();
    let mut wants_operand = true;
    for &token in tokens {
        match token {
            Token::Number(value) if wants_operand => {
                used.push(value);
                values.push(Rational { num: value, den: 1 });
                wants_operand = false;
            }
            Token::Open(_) if wants_operand => pending.push(token),
            Token::Operator(operator) if !wants_operand => {
                while let Some(&Token::Operator(top)) = pending.last() {
                    if precedence(top) < precedence(operator) {
                        break;
                    }
                    pending.pop();
                    apply(top, &mut values)?;
                }
                pending.push(token);
                wants_operand = true;
            }
            Token::Close(bracket) if !wants_operand => loop {
                match pending.pop() {
                    Some(Token::Operator(top)) => apply(top, &mut values)?,
                    Some(Token::Open(opened)) if opened == bracket => break,
                    Some(_) => return Err(malformed("a bracket closes one of another shape")),
                    None => return Err(malformed("unbalanced parentheses")),
                }
            },
            _ if wants_operand => return Err(malformed("a number is missing")),
            _ => return Err(malformed("an operator is missing")),
        }
    }
    if wants_operand {
        return Err(malformed("a number is missing"));
    }
    while let Some(token) = pending.pop() {
        match token {
            Token::Operator(operator) => apply(operator, &mut values)?,
            _ => return Err(malformed("unbalanced parentheses")),
        }
    }
    let value = values.pop().ok_or_else(|| malformed("a number is missing"))?;
    Ok((value, used))
}

fn precedence(operator: u8) -> u8 {
    if matches!(operator, b'*' | b'/') { 2 } else { 1 }
}

fn apply(operator: u8, values: &mut Vec<Rational>) -> Result<(), Reason> {
    let (Some(right), Some(left)) = (values.pop(), values.pop()) else {
        return Err(Reason::Malformed("a number is missing".into()));
    };
    if operator == b'/' && right.num == 0 {
        return Err(Reason::Malformed("division by zero".into()));
    }
    let value = left
        .combine(operator, right)
        .ok_or_else(|| Reason::BudgetExceeded("an intermediate value of more than 127 bits".into()))?;
    values.push(value);
    Ok(())
}

/// An exact fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rational {
    num: i128,
    den: i128,
}

impl Rational {
    /// `None` on overflow; the caller has excluded division by zero.
    fn combine(self, operator: u8, other: Self) -> Option<Self> {
        let (num, den) = match operator {
            b'*' => (self.num.checked_mul(other.num)?, self.den.checked_mul(other.den)?),
            b'/' => (self.num.checked_mul(other.den)?, self.den.checked_mul(other.num)?),
            _ => {
                let (left, right) = (self.num.checked_mul(other.den)?, other.num.checked_mul(self.den)?);
                let num = if operator == b'+' { left.checked_add(right)? } else { left.checked_sub(right)? };
                (num, self.den.checked_mul(other.den)?)
            }
        };
        // `i128::MIN` has no absolute value.
        let divisor = num.checked_abs()?.gcd(&den.checked_abs()?);
        let sign = den.signum();
        Some(Self { num: num / divisor * sign, den: den / divisor * sign })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(answer: &str) -> Reason {
        Countdown.compare("19 from 3, 7, 12", answer)
    }

    #[test]
    fn each_number_once_and_the_exact_value() {
        assert_eq!(Countdown.compare("19 from 3, 9, 10", "(12-3)+10"), Reason::Wrong);
        assert_eq!(Countdown.compare("19 from 3, 10, 12", "(12-3)+10"), Reason::Correct);
        assert_eq!(reason("12+7"), Reason::Wrong);
        assert_eq!(reason("12+7+3-3"), Reason::Wrong);
        assert_eq!(reason("19"), Reason::Wrong);
        assert_eq!(Countdown.compare("6 from 2, 2, 2", "2+2+2"), Reason::Correct);
        assert_eq!(Countdown.compare("6 from 2, 2, 2", "2+2*2-2+2"), Reason::Wrong);
    }

    #[test]
    fn rational_values_and_precedence() {
        assert_eq!(Countdown.compare("24 from 3, 3, 8, 8", "8/(3-8/3)"), Reason::Correct);
        assert_eq!(Countdown.compare("2 from 2, 3, 4", "4-2*3"), Reason::Wrong);
        assert_eq!(Countdown.compare("1 from 2, 3, 6", "6/2/3"), Reason::Correct);
        assert_eq!(Countdown.compare("5 from 2, 3, 10", "2-(3-10)+3"), Reason::Wrong);
        assert_eq!(Countdown.compare("5 from 2, 4, 7", "7-4+2"), Reason::Correct);
    }

    #[test]
    fn latex_and_unicode() {
        for answer in [
            r"\frac{12}{3} \times 7",
            r"\left(12 \div 3\right) \cdot 7",
            "12÷3×7",
            "$12/3*7$",
            r"{12}/{3}*7",
            "12/3*7 = 28",
            "[12/3]*7=28",
            "([12/3])*{7}",
        ] {
            assert_eq!(Countdown.compare("28 from 3, 7, 12", answer), Reason::Correct, "{answer}");
        }
        assert_eq!(Countdown.compare("2 from 3, 7, 12", "12−7−3"), Reason::Correct);
    }

    #[test]
    fn tails_and_nonsense() {
        assert_eq!(Countdown.compare("28 from 3, 7, 12", "12/3*7 = 29"), Reason::Wrong);
        for answer in [
            "12/3*7 = 28 = 28",
            "12/3*7 = 4*7",
            "12/3*7 yes",
            "12/3*7.",
            "28 = 12/3*7",
            "",
            "(12/3*7",
            "12/3)*7",
            "12//3*7",
            "-3+12*7",
            "3(7+12)",
            "12/(3-3)*7",
            r"\frac{12}3*7",
            r"\frac{12}{3",
            "[12/3)*7",
            "(12/3]*7",
            "[(12/3])*7",
            "{(12/3}*7)",
            r"\left[12/3\right)*7",
            r"\frac{(12}{3)}*7",
            "()",
            "1_2",
            "=28",
        ] {
            let reason = Countdown.compare("28 from 3, 7, 12", answer);
            assert!(matches!(reason, Reason::Malformed(_)), "{answer}: {reason:?}");
        }
    }

    #[test]
    fn overflow_and_length_are_out_of_budget() {
        let product = vec!["999999999"; 20].join("*");
        let gold = format!("1 from {}", vec!["999999999"; 20].join(", "));
        assert!(matches!(Countdown.compare(&gold, &product), Reason::BudgetExceeded(_)));
        assert!(matches!(reason(&"(".repeat(100_000)), Reason::BudgetExceeded(_)));
        assert!(matches!(reason("12345678901"), Reason::BudgetExceeded(_)));
        assert!(matches!(reason(&"(".repeat(1000)), Reason::Malformed(_)));
    }

    #[test]
    fn golds() {
        assert_eq!(Gold::parse("19 from 12, 3, 7"), Ok(Gold { target: 19, numbers: vec![3, 7, 12] }));
        for gold in ["", "19", "from 3, 7", "19 from", "x from 3", "19 from 3,,7", "-1 from 3", "19 from 3; 7"] {
            assert!(Countdown.check_gold(gold).is_err(), "{gold}");
        }
    }
}
