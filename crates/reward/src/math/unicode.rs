//! Folds Unicode mathematics into the LaTeX and ASCII that the lexer knows.

/// Rewrites symbols with a LaTeX name (`½`, `√`, `≤`, `²`, full-width forms); other characters stay.
pub(super) fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() * 2);
    // The script that is open: raised, lowered or none.
    let mut script = None;
    for symbol in text.chars() {
        let next = superscript(symbol).map(|c| ("^{", c)).or_else(|| subscript(symbol).map(|c| ("_{", c)));
        let kind = next.map(|(opening, _)| opening);
        if script.is_some() && script != kind {
            out.push('}');
        }
        if let Some((opening, digit)) = next {
            out.push_str(if script == kind { "" } else { opening });
            out.push(digit);
            script = kind;
            continue;
        }
        script = None;
        match symbol {
            '\u{ff01}'..='\u{ff5e}' => out.extend(char::from_u32(symbol as u32 - 0xfee0)),
            '\u{a0}' | '\u{2002}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => out.push(' '),
            '\u{200b}'..='\u{200e}' | '\u{2060}'..='\u{2064}' | '\u{feff}' => {}
            _ => match replacement(symbol) {
                Some(latex) => out.push_str(latex),
                None => out.push(symbol),
            },
        }
    }
    if script.is_some() {
        out.push('}');
    }
    out
}

fn superscript(symbol: char) -> Option<char> {
    const RAISED: [(char, char); 14] = [
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
        ('⁺', '+'),
        ('ⁿ', 'n'),
        ('ˣ', 'x'),
    ];
    RAISED.iter().find(|(raised, _)| *raised == symbol).map(|&(_, digit)| digit)
}

fn subscript(symbol: char) -> Option<char> {
    match symbol {
        '₀'..='₉' => char::from_digit(symbol as u32 - '₀' as u32, 10),
        _ => None,
    }
}

fn replacement(symbol: char) -> Option<&'static str> {
    Some(match symbol {
        '−' | '–' | '—' | '‐' | '‑' | '﹣' => "-",
        '×' | '·' | '⋅' | '∙' => "\\times ",
        '÷' => "\\div ",
        '∕' | '⁄' => "/",
        '√' => "\\sqrt ",
        '∛' => "\\sqrt[3]",
        '∜' => "\\sqrt[4]",
        '∩' => "\\cap ",
        '∖' => "\\setminus ",
        '≡' => "\\equiv ",
        '∠' => "\\angle ",
        '△' | '∆' => "\\triangle ",
        'ℝ' => "\\mathbb{R}",
        'ℤ' => "\\mathbb{Z}",
        'ℕ' => "\\mathbb{N}",
        'ℚ' => "\\mathbb{Q}",
        'ℂ' => "\\mathbb{C}",
        '∑' => "\\sum ",
        '∏' => "\\prod ",
        '∫' => "\\int ",
        '→' => "\\to ",
        '…' | '⋯' => "\\dots ",
        '′' | '’' => "'",
        '⟨' | '〈' => "\\langle ",
        '⟩' | '〉' => "\\rangle ",
        '∣' | '│' => "|",
        '⅐' => "\\frac{1}{7}",
        '⅑' => "\\frac{1}{9}",
        '⅒' => "\\frac{1}{10}",
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
        'φ' | 'ϕ' => "\\phi ",
        'ε' => "\\epsilon ",
        'η' => "\\eta ",
        'κ' => "\\kappa ",
        'ν' => "\\nu ",
        'ξ' => "\\xi ",
        'ρ' => "\\rho ",
        'σ' => "\\sigma ",
        'τ' => "\\tau ",
        'χ' => "\\chi ",
        'ψ' => "\\psi ",
        'Δ' => "\\Delta ",
        'Σ' => "\\Sigma ",
        'Ω' => "\\Omega ",
        'Γ' => "\\Gamma ",
        'Θ' => "\\Theta ",
        'Λ' => "\\Lambda ",
        'Φ' => "\\Phi ",
        'Ψ' => "\\Psi ",
        'ω' => "\\omega ",
        '€' => "\\euro ",
        '£' => "\\pounds ",
        '¥' | '￥' => "\\yen ",
        '、' => ",",
        '。' => ".",
        '【' => "[",
        '】' => "]",
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
        assert_eq!(fold("x₁²"), "x_{1}^{2}");
        assert_eq!(fold("10⁻¹²m"), "10^{-12}m");
        assert_eq!(fold("１２"), "12");
        assert_eq!(fold("−5π"), "-5\\pi ");
    }
}
