//! Folds Unicode mathematics into the LaTeX and ASCII that the lexer knows.

/// Rewrites symbols with a LaTeX name (`½`, `√`, `≤`, `²`, full-width forms); other characters stay.
pub(super) fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() * 2);
    let mut raised = false;
    for symbol in text.chars() {
        if let Some(digit) = superscript(symbol) {
            out.push_str(if raised { "" } else { "^{" });
            out.push(digit);
            raised = true;
            continue;
        }
        if raised {
            out.push('}');
            raised = false;
        }
        match symbol {
            '\u{ff01}'..='\u{ff5e}' => out.extend(char::from_u32(symbol as u32 - 0xfee0)),
            '\u{a0}' | '\u{2009}' | '\u{202f}' | '\u{3000}' => out.push(' '),
            '\u{200b}' | '\u{feff}' => {}
            _ => match replacement(symbol) {
                Some(latex) => out.push_str(latex),
                None => out.push(symbol),
            },
        }
    }
    if raised {
        out.push('}');
    }
    out
}

fn superscript(symbol: char) -> Option<char> {
    const RAISED: [(char, char); 11] = [
        ('⁰', '0'),
        ('¹', '1'),
        ('²', '2'),
        ('³', '3'),
        ('⁴', '4'),
        ('⁵', '5'),
        ('⁶', '6'),
        ('⁷', '7'),
        ('⁸', '8'),
        ('⁹', '9'),
        ('⁻', '-'),
    ];
    RAISED.iter().find(|(raised, _)| *raised == symbol).map(|&(_, digit)| digit)
}

fn replacement(symbol: char) -> Option<&'static str> {
    Some(match symbol {
        '−' | '–' | '—' | '‐' | '‑' => "-",
        '×' | '·' | '⋅' | '∙' => "\\times ",
        '÷' => "\\div ",
        '∕' | '⁄' => "/",
        '√' => "\\sqrt ",
        'π' => "\\pi ",
        '∞' => "\\infty ",
        '°' | 'º' => "\\degree ",
        '±' => "\\pm ",
        '∓' => "\\mp ",
        '≤' | '⩽' => "\\le ",
        '≥' | '⩾' => "\\ge ",
        '≠' => "\\ne ",
        '≈' | '≃' => "\\approx ",
        '∪' => "\\cup ",
        '∈' => "\\in ",
        '∅' => "\\emptyset ",
        '⌊' => "\\lfloor ",
        '⌋' => "\\rfloor ",
        '⌈' => "\\lceil ",
        '⌉' => "\\rceil ",
        '½' => "\\frac{1}{2}",
        '⅓' => "\\frac{1}{3}",
        '⅔' => "\\frac{2}{3}",
        '¼' => "\\frac{1}{4}",
        '¾' => "\\frac{3}{4}",
        '⅕' => "\\frac{1}{5}",
        '⅖' => "\\frac{2}{5}",
        '⅗' => "\\frac{3}{5}",
        '⅘' => "\\frac{4}{5}",
        '⅙' => "\\frac{1}{6}",
        '⅚' => "\\frac{5}{6}",
        '⅛' => "\\frac{1}{8}",
        '⅜' => "\\frac{3}{8}",
        '⅝' => "\\frac{5}{8}",
        '⅞' => "\\frac{7}{8}",
        'α' => "\\alpha ",
        'β' => "\\beta ",
        'γ' => "\\gamma ",
        'δ' => "\\delta ",
        'θ' => "\\theta ",
        'λ' => "\\lambda ",
        'μ' => "\\mu ",
        'φ' => "\\phi ",
        'ω' => "\\omega ",
        '€' => "\\euro ",
        '£' => "\\pounds ",
        '¥' | '￥' => "\\yen ",
        '，' => ",",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn folds() {
        assert_eq!(fold("3½"), "3\\frac{1}{2}");
        assert_eq!(fold("x²"), "x^{2}");
        assert_eq!(fold("10⁻¹²m"), "10^{-12}m");
        assert_eq!(fold("１２"), "12");
        assert_eq!(fold("−5π"), "-5\\pi ");
    }
}
