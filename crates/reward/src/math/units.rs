//! Units and the words of numbers: their spellings, and where a unit binds.

use super::parse::{Parsed, syntax};
use super::tree::Node;

/// The negative, inside of a unit.
pub(super) fn negate(node: Node) -> Node {
    match node {
        Node::Unit(value, unit) => Node::Unit(Box::new(negate(*value)), unit),
        Node::Negative(inner) => *inner,
        Node::Number { value, decimals } => Node::Negative(Box::new(Node::Number { value, decimals })),
        other => Node::Negative(Box::new(other)),
    }
}

/// A value with a unit, in one spelling.
pub(super) fn with_unit(node: Node, unit: &str) -> Parsed<Node> {
    match node {
        // `5° C`, and `$5 dollars`.
        Node::Unit(value, first) if first == "°" || unit == unit_name(&first) => {
            let unit = if first == unit { first } else { format!("{first}{unit}") };
            Ok(Node::Unit(value, unit))
        }
        Node::Unit(..) | Node::Text(_) => syntax("two units"),
        Node::Relation(..) | Node::Set(_) | Node::Tuple { .. } => syntax("a unit of no value"),
        value => Ok(Node::Unit(Box::new(value), unit_name(unit))),
    }
}

/// `3 + 5 cm` is `(3 + 5) cm`, and `30° + 60°` is `(30 + 60)°`.
pub(super) fn hoist_unit(terms: Vec<Node>) -> Node {
    let units: Vec<Option<&String>> =
        terms.iter().map(|term| if let Node::Unit(_, unit) = term { Some(unit) } else { None }).collect();
    let last = units.last().copied().flatten().cloned();
    let earlier = &units[..units.len() - 1];
    let shared = last.as_ref().is_some_and(|unit| {
        earlier.iter().all(|other| *other == Some(unit)) || (unit != "%" && earlier.iter().all(Option::is_none))
    });
    match last {
        Some(unit) if shared => {
            let values = terms.into_iter().map(|term| if let Node::Unit(value, _) = term { *value } else { term });
            Node::Unit(Box::new(Node::Sum(values.collect())), unit)
        }
        _ => Node::Sum(terms),
    }
}

/// A power of ten in words, and the dozen.
pub(super) fn scale(word: &str) -> Option<i64> {
    Some(match word {
        "hundred" => 100,
        "thousand" => 1000,
        "million" => 1_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        "dozen" => 12,
        _ => return None,
    })
}

/// Whole numbers below a hundred in words, where one stands alone.
pub(super) fn number_word(word: &str) -> Option<i64> {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let place = |words: &[&str], word: &str| words.iter().position(|name| *name == word).map(|value| value as i64);
    let tens = |word: &str| place(&TENS, word).map(|value| 10 * value + 20);
    if let Some((first, second)) = word.split_once(['-', ' ']) {
        let ones = place(&SMALL, second).filter(|ones| (1..10).contains(ones))?;
        return Some(tens(first)? + ones);
    }
    place(&SMALL, word).or_else(|| tens(word))
}

/// Words that change what is said about the value before them.
const NOT_UNITS: [&str; 26] = [
    "not", "or", "and", "more", "less", "least", "most", "between", "than", "over", "under", "plus", "minus", "times",
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "base", "if", "for", "to", "about", "when",
];

/// Whether a word says that what it stands in is no unit.
pub(super) fn is_no_unit(word: &str) -> bool {
    NOT_UNITS.contains(&word)
}

/// One spelling for each common unit; other words lose a plural s.
pub(super) fn unit_name(text: &str) -> String {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '.');
    for (prefix, power) in [("square ", 2), ("sq ", 2), ("cubic ", 3)] {
        if let Some(unit) = text.strip_prefix(prefix) {
            let unit = unit_name(unit);
            return if unit.is_empty() { unit } else { format!("{unit}^{power}") };
        }
    }
    if let Some((over, under)) = text.split_once('/').or_else(|| text.split_once(" per "))
        && !over.is_empty()
        && !under.is_empty()
    {
        let unit = format!("{}/{}", unit_name(over), unit_name(under));
        return if matches!(unit.as_str(), "mi/h") { "mph".to_owned() } else { unit };
    }
    let name = match text {
        "units" | "unit" | "square unit" | "square units" | "cubic unit" | "cubic units" => "",
        "dollars" | "dollar" | "usd" | "\\$" => "$",
        "percent" | "per cent" => "%",
        "degrees" | "degree" | "deg" => "°",
        "meters" | "meter" | "metres" | "metre" | "m" => "m",
        "centimeters" | "centimeter" | "centimetres" | "centimetre" => "cm",
        "millimeters" | "millimeter" => "mm",
        "kilometers" | "kilometer" => "km",
        "inches" | "inch" | "in" => "in",
        "feet" | "foot" | "ft" => "ft",
        "yards" | "yard" | "yd" => "yd",
        "mile" | "miles" | "mi" => "mi",
        "hours" | "hour" | "hr" | "hrs" => "h",
        "minutes" | "minute" | "min" | "mins" => "min",
        "seconds" | "second" | "sec" | "secs" => "s",
        "pounds" | "pound" | "lbs" | "lb" => "lb",
        "ounces" | "ounce" | "oz" => "oz",
        "kilograms" | "kilogram" | "kgs" => "kg",
        "grams" | "gram" => "g",
        "a.m" | "am" => "am",
        "p.m" | "pm" => "pm",
        "radians" | "radian" | "rad" => "rad",
        "liters" | "liter" | "litres" | "litre" | "l" => "l",
        "milliliters" | "milliliter" | "ml" => "ml",
        "cents" | "cent" | "¢" => "¢",
        "euros" | "euro" | "eur" => "€",
        other => other.strip_suffix('s').filter(|stem| stem.len() >= 3).unwrap_or(other),
    };
    name.to_owned()
}
