//! Labelled cases made from gold answers: rewrites that keep the value, and near misses that do not.

/// An answer made from a gold.
pub struct Made {
    /// How it was made.
    pub rule: &'static str,
    /// The answer.
    pub answer: String,
    /// Whether it is right.
    pub right: bool,
}

/// The cases of one gold, by the kind of its text.
pub fn rewrites(gold: &str) -> Vec<Made> {
    let gold = gold.trim().trim_matches('$');
    let mut out = Cases(Vec::new());
    out.same("identity", gold.to_owned());
    out.same("final stop", format!("{gold}."));
    out.same("displaystyle", format!("\\displaystyle {gold}"));
    if let Ok(n) = gold.parse::<i64>() {
        integer(n, &mut out);
    } else if let Some((sign, p, q)) = fraction(gold) {
        quotient(sign, p, q, &mut out);
    } else if let Some((open, items, close)) = tuple(gold) {
        point(open, &items, close, &mut out);
    } else if is_value(gold) {
        value(gold, &mut out);
    } else if gold.chars().all(|c| c.is_alphabetic() || c == ' ') && gold.chars().count() > 3 {
        out.same("text", format!("\\text{{{gold}}}"));
        out.same("textbf", format!("\\textbf{{{}}}", gold.to_uppercase()));
        out.other("not", format!("\\text{{not {gold}}}"));
        out.other("longer word", format!("{gold}y"));
    }
    out.0
}

struct Cases(Vec<Made>);

impl Cases {
    fn same(&mut self, rule: &'static str, answer: String) -> &mut Self {
        self.0.push(Made { rule, answer, right: true });
        self
    }

    fn other(&mut self, rule: &'static str, answer: String) -> &mut Self {
        self.0.push(Made { rule, answer, right: false });
        self
    }

    /// Keeps the case just made only where it `holds`.
    fn when(&mut self, holds: bool) {
        if !holds {
            self.0.pop();
        }
    }
}

fn grouped(n: i64, separator: &str) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push_str(separator);
        }
        out.push(digit);
    }
    if n < 0 { format!("-{out}") } else { out }
}

fn integer(n: i64, out: &mut Cases) {
    out.same("over one", format!("\\frac{{{n}}}{{1}}"));
    out.same("decimal zero", format!("{n}.0"));
    out.same("named", format!("x = {n}"));
    out.same("sum", format!("{} + 1", n - 1));
    out.same("doubled and halved", format!("\\frac{{{}}}{{2}}", 2 * n));
    out.same("unit", format!("{n}\\text{{ cm}}"));
    out.same("square", format!("\\sqrt{{{}}}", i128::from(n).pow(2))).when((0..1 << 60).contains(&n));
    out.same("scientific", format!("{n} \\times 10^0"));
    out.same("chain", format!("{} \\cdot 2 - {n} = {n}", n));
    out.same("approximate comment", format!("{n} \\approx {n}.01"));
    if n.unsigned_abs() >= 1000 {
        for (rule, separator) in
            [("comma", ","), ("braced comma", "{,}"), ("thin space", "\\,"), ("negative space", ",\\!"), ("space", " ")]
        {
            out.same(rule, grouped(n, separator));
        }
        out.other("point as comma", grouped(n, ".")).when(n.unsigned_abs() < 1_000_000);
    }
    out.other("next", (n + 1).to_string());
    out.other("previous", (n - 1).to_string());
    out.other("tenth more", format!("{n}.1"));
    out.other("thousandth more", format!("{n}.001"));
    out.other("half more", format!("\\frac{{{}}}{{2}}", 2 * n + 1));
    out.other("hedge", format!("{n} \\text{{ or }} {}", n + 1));
    out.other("list", format!("{n}, {}", n + 2));
    out.other("interval", format!("[{}, {}]", n - 1, n + 1));
    out.other("inequality", format!("x > {n}"));
    out.other("with pi", format!("{n} + \\pi"));
    out.other("both ends", format!("[{n}, {n}.5)"));
    out.other("false chain", format!("{} = {n}", n + 1));
    out.other("next of a billionth", format!("{n}.000000001"));
    if n != 0 {
        out.other("variable", format!("{n} x"));
        out.other("negated", format!("-({n})"));
        out.other("both signs", format!("\\pm {}", n.unsigned_abs()));
        out.other("ten times", format!("{n}0"));
        out.other("imaginary", format!("{n} i"));
        out.other("percent more", format!("{n} \\cdot 1.01"));
    }
    if n.unsigned_abs() > 1 {
        out.other("inverted", format!("\\frac{{1}}{{{n}}}"));
        out.other("squared", format!("({n})^2"));
        out.other("root", format!("\\sqrt{{{}}}", n.unsigned_abs()));
        out.other("base", format!("{}_{{7}}", n.unsigned_abs() + 1));
    }
}

/// Sign, numerator and denominator of `-\frac{1}{2}` or `1/2`.
fn fraction(gold: &str) -> Option<(&str, i64, i64)> {
    let (sign, body) = match gold.strip_prefix('-') {
        Some(body) => ("-", body),
        None => ("", gold),
    };
    let (p, q) = match ["\\frac{", "\\dfrac{"].into_iter().find_map(|name| body.strip_prefix(name)) {
        Some(inner) => inner.strip_suffix('}')?.split_once("}{")?,
        None => body.split_once('/')?,
    };
    let (p, q) = (p.parse::<i64>().ok()?, q.parse::<i64>().ok()?);
    (p > 0 && q > 1 && p < 1 << 40 && q < 1 << 40 && p != q).then_some((sign, p, q))
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn quotient(sign: &str, p: i64, q: i64, out: &mut Cases) {
    out.same("slash", format!("{sign}{p}/{q}"));
    out.same("dfrac", format!("{sign}\\dfrac{{{p}}}{{{q}}}"));
    out.same("tfrac spaced", format!("{sign}\\tfrac {{{p}}} {{{q}}}"));
    out.same("sign inside", format!("\\frac{{{sign}{p}}}{{{q}}}"));
    out.same("sign below", format!("\\frac{{{p}}}{{{sign}{q}}}"));
    out.same("unreduced", format!("{sign}\\frac{{{}}}{{{}}}", 3 * p, 3 * q));
    out.same("product", format!("{sign}{p} \\cdot \\frac{{1}}{{{q}}}"));
    out.same("power", format!("{sign}{p} \\cdot {q}^{{-1}}"));
    out.same("division", format!("{sign}{p} \\div {q}"));
    out.same("bracketed", format!("\\left({sign}\\frac{{{p}}}{{{q}}}\\right)"));
    out.same("over", format!("{sign}{{{p} \\over {q}}}"));
    out.same("nested", format!("{sign}\\frac{{1}}{{\\frac{{{q}}}{{{p}}}}}"));
    out.same("named", format!("P = {sign}\\frac{{{p}}}{{{q}}}"));
    out.same("ratio", format!("{p}:{q}")).when(sign.is_empty());
    out.same("mixed", format!("{sign}{}\\frac{{{}}}{{{q}}}", p / q, p % q)).when(p > q && p % q > 0);
    out.same("mixed in words", format!("{sign}{} {}/{q}", p / q, p % q)).when(p > q && p % q > 0);
    let shared = gcd(p, q);
    if (p - q).abs() != 0 {
        out.other("inverted", format!("{sign}\\frac{{{q}}}{{{p}}}"));
    }
    out.other("numerator more", format!("{sign}\\frac{{{}}}{{{q}}}", p + 1));
    out.other("denominator more", format!("{sign}\\frac{{{p}}}{{{}}}", q + 1));
    out.other("negated", format!("-({sign}\\frac{{{p}}}{{{q}}})"));
    out.other("numerator alone", format!("{sign}{p}"));
    out.other("misread mixed", format!("{sign}{p}\\frac{{1}}{{{q}}}"));
    out.other("two places", format!("{sign}{:.2}", p as f64 / q as f64)).when(!ends_in(p / shared, q / shared, 2));
    out.other("four places", format!("{sign}{:.4}", p as f64 / q as f64)).when(!ends_in(p / shared, q / shared, 4));
    out.other("root below", format!("{sign}\\frac{{{p}}}{{\\sqrt{{{q}}}}}"));
}

/// Whether a reduced fraction is a decimal of so many places.
fn ends_in(p: i64, q: i64, places: u32) -> bool {
    i128::from(p) * i128::from(10i64.pow(places)) % i128::from(q) == 0
}

fn tuple(gold: &str) -> Option<(&str, Vec<&str>, &str)> {
    let inner =
        gold.strip_prefix('(').map(|rest| ("(", rest)).or_else(|| gold.strip_prefix('[').map(|rest| ("[", rest)));
    let (open, inner) = inner?;
    let (inner, close) =
        inner.strip_suffix(')').map(|i| (i, ")")).or_else(|| inner.strip_suffix(']').map(|i| (i, "]")))?;
    if inner.contains(['(', ')']) {
        return None;
    }
    let items: Vec<&str> = inner.split(',').map(str::trim).collect();
    let plain = items.len() > 1 && items.iter().all(|item| is_value(item) || item.parse::<f64>().is_ok());
    plain.then_some((open, items, close))
}

fn point(open: &str, items: &[&str], close: &str, out: &mut Cases) {
    let joined = items.join(", ");
    out.same("left and right", format!("\\left{open}{joined}\\right{close}"));
    out.same("big", format!("\\bigl{open} {} \\bigr{close}", items.join(",")));
    out.same("spaces", format!("{open} {} {close}", items.join(" , ")));
    let zeros: Vec<String> = items.iter().map(|item| format!("{item} + 0")).collect();
    out.same("zeros", format!("{open}{}{close}", zeros.join(",")));
    out.other("extra", format!("{open}{joined}, 1{close}"));
    out.other("dropped", format!("{open}{}{close}", items[1..].join(", ")));
    let mut changed: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
    changed[0] = format!("{} + 1", changed[0]);
    out.other("first more", format!("{open}{}{close}", changed.join(", "))).when(!items[0].contains("infty"));
    let reversed: Vec<&str> = items.iter().rev().copied().collect();
    let number = |item: &str| item.parse::<i64>().ok();
    let told = items.iter().all(|item| number(item).is_some()) && reversed != items;
    out.other("reversed", format!("{open}{}{close}", reversed.join(", "))).when(told);
    out.other("other end", format!("{open}{joined}{}", if close == ")" { "]" } else { ")" })).when(items.len() == 2);
}

/// A single algebraic value, by its symbols.
fn is_value(gold: &str) -> bool {
    let blocked = [
        "text", "=", "<", ">", "infty", "le", "ge", "in", "pm", "begin", "cup", "cap", "%", "circ", "\\$", "_", "math",
        "|", "!", "dots", ":", ";", "'", "mbox", "&", "sum", "equiv", "or", "^{th", "box", "\\\\", "cdots", "~", "and",
    ];
    let lettered = |text: &str| text.chars().any(|c| c.is_alphanumeric());
    let functions =
        gold.replace("\\sin", "").replace("\\tan", "").replace("\\pi", "").replace("\\frac", "").replace("\\sqrt", "");
    let functions = functions.replace("\\left", "").replace("\\right", "").replace("\\cdot", "").replace("\\times", "");
    let letters = functions.split(|c: char| !c.is_ascii_alphabetic()).all(|word| word.len() <= 3);
    let lone = gold.len() == 1 && gold.chars().all(|c| c.is_ascii_uppercase());
    lettered(gold)
        && !lone
        && gold.matches('.').count() < 2
        && letters
        && !blocked.iter().any(|symbol| functions.contains(symbol))
        && !gold.contains(',')
        && gold.is_ascii()
        && !functions.contains('\\')
        && !gold.ends_with('.')
}

fn value(gold: &str, out: &mut Cases) {
    out.same("plus zero", format!("{gold} + 0"));
    out.same("bracketed", format!("\\left({gold}\\right)"));
    out.same("times one", format!("1 \\cdot ({gold})"));
    out.same("there and back", format!("({gold}) + \\sqrt{{2}} - \\sqrt{{2}}"));
    out.same("doubled and halved", format!("\\frac{{2({gold})}}{{2}}"));
    out.same("tripled and thirded", format!("({gold}) \\cdot 3 \\div 3"));
    out.same("negated twice", format!("-(-({gold}))"));
    out.same("spaces", format!("  {gold}\\,"));
    out.other("hundredth more", format!("{gold} + \\frac{{1}}{{100}}"));
    out.other("millionth more", format!("({gold}) + 10^{{-6}}"));
    out.other("one less", format!("({gold}) - 1"));
    out.other("pi more", format!("({gold}) + \\pi"));
    out.other("variable more", format!("({gold}) + q"));
    out.other("hedge", format!("{gold} \\text{{ or }} ({gold}) + 1"));
    out.other("list", format!("{gold}, 1 + ({gold})"));
    let zero = gold.trim() == "0";
    out.other("doubled", format!("2({gold})")).when(!zero);
    out.other("negated", format!("-({gold})")).when(!zero);
    out.other("imaginary", format!("({gold}) i")).when(!zero);
    out.other("a billionth larger", format!("({gold}) \\cdot (1 + 10^{{-9}})")).when(!zero);
}
