//! The commands, functions and short words that the lexer knows.

use super::lex::Token;
use super::tree::Relation;

/// Words of two or three letters that are no product of variables.
const SHORT_WORDS: [&str; 34] = [
    "cm", "mm", "km", "kg", "mg", "ft", "mph", "lbs", "lb", "oz", "ml", "hr", "hrs", "min", "sec", "mi", "yd", "deg",
    "yes", "no", "odd", "all", "red", "day", "one", "two", "six", "ten", "per", "am", "pm", "sq", "rad", "not",
];

/// Whether letters are a word rather than a product of variables.
pub(super) fn is_short_word(lower: &str) -> bool {
    SHORT_WORDS.contains(&lower)
}

/// The token of a LaTeX command without arguments of its own syntax.
pub(super) fn command_token(name: &str) -> Option<Token> {
    Some(match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" => Token::Fraction,
        "binom" | "dbinom" | "tbinom" => Token::Binomial,
        "sqrt" => Token::Root,
        "pi" => Token::Pi,
        "infty" => Token::Infinity,
        "times" | "cdot" | "ast" | "cdotp" => Token::Times,
        "div" => Token::Divide,
        "pm" => Token::PlusMinus,
        "mp" => Token::MinusPlus,
        "circ" | "degree" | "degrees" => Token::Degree,
        "cup" => Token::Union,
        "in" => Token::Relation(Relation::In),
        "le" | "leq" | "leqslant" => Token::Relation(Relation::LessEqual),
        "ge" | "geq" | "geqslant" => Token::Relation(Relation::GreaterEqual),
        "lt" => Token::Relation(Relation::Less),
        "gt" => Token::Relation(Relation::Greater),
        "ne" | "neq" => Token::Relation(Relation::NotEqual),
        "approx" => Token::Relation(Relation::Approximately),
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
        "lvert" => Token::Open('|'),
        "rvert" => Token::Close('|'),
        "vert" | "mid" => Token::Bar,
        "emptyset" | "varnothing" => Token::Empty,
        "euro" => Token::Currency("€"),
        "pounds" => Token::Currency("£"),
        "yen" => Token::Currency("¥"),
        "alpha" | "beta" | "gamma" | "delta" | "epsilon" | "varepsilon" | "theta" | "lambda" | "mu" | "nu" | "rho"
        | "sigma" | "tau" | "phi" | "varphi" | "psi" | "omega" | "Gamma" | "Delta" | "Theta" | "Omega" | "ell" => {
            Token::Name(format!("\\{name}"))
        }
        _ => return None,
    })
}

/// The function of a name, in its one spelling.
pub(super) fn function(name: &str) -> Option<&'static str> {
    Some(match name {
        "sin" => "sin",
        "cos" => "cos",
        "tan" => "tan",
        "cot" => "cot",
        "sec" => "sec",
        "csc" => "csc",
        "arcsin" | "asin" => "arcsin",
        "arccos" | "acos" => "arccos",
        "arctan" | "atan" => "arctan",
        "sinh" => "sinh",
        "cosh" => "cosh",
        "tanh" => "tanh",
        "ln" => "ln",
        "log" => "log",
        "exp" => "exp",
        "abs" => "abs",
        "floor" => "floor",
        "ceil" => "ceil",
        "gcd" => "gcd",
        "lcm" => "lcm",
        "max" => "max",
        "min" => "min",
        _ => return None,
    })
}
