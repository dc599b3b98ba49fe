//! Spellings that only the other side of a comparison tells how to read: choice letters before their text,
//! and the decimal comma.

/// The letter of `(B) 12`, `\textbf{(B)}\ 12` or `B. 12`, and the text after it.
pub(super) fn choice(text: &str) -> Option<(char, &str)> {
    let text = text.trim();
    let fonts = ["\\textbf{", "\\text{", "\\mathrm{", "\\mathbf{", "\\textrm{"];
    let inner = fonts.into_iter().find_map(|font| text.strip_prefix(font));
    let (label, grouped) = (inner.unwrap_or(text).trim_start(), inner.is_some());
    let bracketed = label.strip_prefix('(');
    let mut symbols = bracketed.unwrap_or(label).chars();
    let letter = symbols.next().filter(|c| c.is_ascii_uppercase() && *c <= 'H')?;
    let end = symbols.next().filter(|c| *c == ')' || (bracketed.is_none() && matches!(c, '.' | ':')))?;
    let mut rest = symbols.as_str();
    let spaced = rest.starts_with([' ', '\\', '~', '}']) || end == ')';
    if grouped {
        rest = match rest.trim_start().strip_prefix('}') {
            Some(after) => after,
            None => rest.strip_suffix('}')?,
        };
    }
    let rest = rest.trim_start_matches(['~', ' ']).trim_start_matches("\\ ").trim_start_matches("\\quad").trim();
    // `(B) + 1` is a sum.
    let sum = ["+", "- ", "^", "/", "=", "*", "!", ",", "\\cdot", "\\times", "<", ">"]
        .iter()
        .any(|sign| rest.starts_with(sign));
    (spaced && !sum && !rest.is_empty()).then_some((letter, rest))
}

/// The letter of a gold that is nothing but a choice.
pub(super) fn lone_letter(text: &str) -> Option<char> {
    let mut letters = text.trim().to_owned();
    for noise in ["\\textbf", "\\text", "\\mathrm", "\\mathbf", "{", "}", "(", ")", ".", "$", " "] {
        letters = letters.replace(noise, "");
    }
    let mut symbols = letters.chars();
    let letter = symbols.next().filter(|c| c.is_ascii_uppercase() && *c <= 'H')?;
    symbols.next().is_none().then_some(letter)
}

/// Whether one side is the other's decimal with a comma for the point: `1000,99` and `1000.99`.
pub(super) fn is_comma_decimal(a: &str, b: &str) -> bool {
    let decimal = |text: &str, mark: char| {
        let (whole, places) = text.split_once(mark)?;
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = whole.strip_prefix('-').unwrap_or(whole);
        (digits(unsigned) && digits(places)).then(|| (whole.to_owned(), places.trim_end_matches('0').to_owned()))
    };
    let same = |comma: &str, point: &str| decimal(comma, ',').is_some_and(|value| decimal(point, '.') == Some(value));
    same(a, b) || same(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        for text in
            ["(B) 12", "\\textbf{(B)}\\ 12", "\\textbf{(B) }12", "\\text{(B) 12}", "B. 12", "B) 12", "\\textbf{(B)} 12"]
        {
            assert_eq!(choice(text), Some(('B', "12")), "{text}");
        }
        for text in ["(B)", "B", "(B, C)", "(B) + 1", "B:C", "\\text{B or D}", "12", "(x) 12", ""] {
            assert_eq!(choice(text), None, "{text}");
        }
        assert_eq!(lone_letter("\\text{(B)}"), Some('B'));
        assert_eq!(lone_letter("AB"), None);
    }

    #[test]
    fn comma_decimals() {
        assert!(is_comma_decimal("1000,99", "1000.99"));
        assert!(is_comma_decimal("0.111", "0,111"));
        assert!(!is_comma_decimal("5,6", "5.7"));
        assert!(!is_comma_decimal("5, 6", "5.6"));
        assert!(!is_comma_decimal("56", "5.6"));
    }
}
