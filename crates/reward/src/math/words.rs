//! The commands, functions and short words that the lexer knows.

use super::lex::Token;
use super::tree::Relation;

/// Words of two or three letters that are no product of variables.
const SHORT_WORDS: [&str; 41] = [
    "cm", "mm", "km", "kg", "mg", "ft", "mph", "lbs", "lb", "oz", "ml", "hr", "hrs", "min", "sec", "mi", "yd", "deg",
    "yes", "no", "odd", "gal", "rpm", "usd", "sun", "mon", "tue", "dne", "all", "red", "day", "one", "two", "six",
    "ten", "per", "am", "pm", "sq", "rad", "not",
];

/// Whether letters are a word rather than a product of variables.
pub(super) fn is_short_word(lower: &str) -> bool {
    SHORT_WORDS.contains(&lower)
}

/// Whether one letter after a value can be a unit in upright type.
pub(super) fn is_unit_letter(letter: &str) -> bool {
    matches!(letter, "m" | "g" | "s" | "l" | "L" | "h" | "N" | "J" | "V" | "W" | "K" | "C" | "F")
}

/// The token of a LaTeX command without arguments of its own syntax.
pub(super) fn command_token(name: &str) -> Option<Token> {
    Some(match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" | "flatfrac" => Token::Fraction,
        "over" => Token::Over,
        "choose" => Token::Choose,
        "sum" => Token::Large("sum"),
        "prod" => Token::Large("prod"),
        "int" => Token::Large("int"),
        "lim" => Token::Large("lim"),
        "binom" | "dbinom" | "tbinom" => Token::Binomial,
        "sqrt" => Token::Root,
        "pi" => Token::Pi,
        "infty" => Token::Infinity,
        "times" | "cdot" | "ast" | "cdotp" | "bullet" => Token::Times,
        "div" | "slash" => Token::Divide,
        "pm" => Token::PlusMinus,
        "mp" => Token::MinusPlus,
        "circ" | "degree" | "degrees" => Token::Degree,
        "cup" | "bigcup" => Token::Union,
        "cap" | "bigcap" => Token::Intersection,
        "setminus" | "backslash" | "smallsetminus" => Token::SetMinus,
        "bmod" | "mod" => Token::Modulo,
        "pmod" => Token::Modulus,
        "colon" => Token::Colon,
        "exponentialE" => Token::Name("e".to_owned()),
        "imaginaryI" | "imath" => Token::Name("i".to_owned()),
        "percent" => Token::Percent,
        "land" | "lor" | "wedge" | "vee" => Token::Separator,
        "in" => Token::Relation(Relation::In),
        "to" | "rightarrow" | "longrightarrow" => Token::Relation(Relation::To),
        "equiv" => Token::Relation(Relation::Congruent),
        "le" | "leq" | "leqslant" => Token::Relation(Relation::LessEqual),
        "ge" | "geq" | "geqslant" => Token::Relation(Relation::GreaterEqual),
        "lt" => Token::Relation(Relation::Less),
        "gt" => Token::Relation(Relation::Greater),
        "ne" | "neq" => Token::Relation(Relation::NotEqual),
        "approx" | "simeq" | "thickapprox" => Token::Relation(Relation::Approximately),
        "lbrace" => Token::Open('{'),
        "rbrace" => Token::Close('}'),
        "lbrack" => Token::Open('['),
        "rbrack" => Token::Close(']'),
        "langle" => Token::Open('<'),
        "rangle" => Token::Close('>'),
        "lfloor" => Token::Open('⌊'),
        "rfloor" => Token::Close('⌋'),
        "lceil" => Token::Open('⌈'),
        "rceil" => Token::Close('⌉'),
        "lgroup" | "lparen" => Token::Open('('),
        "rgroup" | "rparen" => Token::Close(')'),
        "ulcorner" => Token::Open('⌈'),
        "urcorner" => Token::Close('⌉'),
        "llcorner" => Token::Open('⌊'),
        "lrcorner" => Token::Close('⌋'),
        "lvert" => Token::Open('|'),
        "rvert" => Token::Close('|'),
        "vert" | "mid" => Token::Bar,
        "R" | "Reals" | "reals" => Token::Name("\\mathbb{R}".to_owned()),
        "Z" => Token::Name("\\mathbb{Z}".to_owned()),
        "N" => Token::Name("\\mathbb{N}".to_owned()),
        "angle" | "measuredangle" | "triangle" | "partial" | "nabla" | "square" | "Box" | "cdots" | "ldots"
        | "dots" => Token::Name(format!("\\{name}")),
        "emptyset" | "varnothing" => Token::Empty,
        "euro" => Token::Currency("€"),
        "pounds" => Token::Currency("£"),
        "yen" => Token::Currency("¥"),
        "varepsilon" => Token::Name("\\epsilon".to_owned()),
        "varphi" => Token::Name("\\phi".to_owned()),
        "vartheta" => Token::Name("\\theta".to_owned()),
        "varrho" => Token::Name("\\rho".to_owned()),
        "alpha" | "beta" | "gamma" | "delta" | "epsilon" | "zeta" | "eta" | "theta" | "iota" | "kappa" | "lambda"
        | "mu" | "nu" | "xi" | "rho" | "sigma" | "tau" | "upsilon" | "phi" | "chi" | "psi" | "omega" | "Gamma"
        | "Delta" | "Theta" | "Lambda" | "Xi" | "Pi" | "Sigma" | "Upsilon" | "Phi" | "Psi" | "Omega" | "ell"
        | "aleph" | "hbar" => Token::Name(format!("\\{name}")),
        _ => return None,
    })
}

/// The function of a name, in its one spelling.
pub(super) fn function(name: &str) -> Option<&'static str> {
    Some(match name {
        "sin" => "sin",
        "cos" => "cos",
        "tan" | "tg" => "tan",
        "cot" | "ctg" => "cot",
        "sec" => "sec",
        "csc" | "cosec" => "csc",
        "arcsin" | "asin" => "arcsin",
        "arccos" | "acos" => "arccos",
        "arctan" | "atan" | "arctg" => "arctan",
        "coth" => "coth",
        "arccot" | "acot" => "arccot",
        "arcsec" | "asec" => "arcsec",
        "arccsc" | "acsc" => "arccsc",
        "arcsinh" | "arsinh" | "asinh" => "arcsinh",
        "arccosh" | "arcosh" | "acosh" => "arccosh",
        "arctanh" | "artanh" | "atanh" => "arctanh",
        "sinh" => "sinh",
        "cosh" => "cosh",
        "tanh" => "tanh",
        "ln" => "ln",
        "lg" => "lg",
        "log" => "log",
        "exp" => "exp",
        "abs" => "abs",
        "floor" => "floor",
        "ceil" | "ceiling" => "ceil",
        "gcd" => "gcd",
        "lcm" => "lcm",
        "max" => "max",
        "min" => "min",
        _ => return None,
    })
}

/// The inverse of a function, where `f^{-1}` means it.
pub(super) fn inverse_function(name: &str) -> Option<&'static str> {
    Some(match name {
        "sin" => "arcsin",
        "cos" => "arccos",
        "tan" => "arctan",
        "cot" => "arccot",
        "sec" => "arcsec",
        "csc" => "arccsc",
        "sinh" => "arcsinh",
        "cosh" => "arccosh",
        "tanh" => "arctanh",
        _ => return None,
    })
}
