//! Where an answer stands in a response without a box.

/// The first rule that finds something.
pub(super) fn fallback(text: &str) -> Option<String> {
    after_hashes(text)
        .or_else(|| after_phrase(text))
        .or_else(|| whole_formula(text))
        .or_else(|| last_formula(text))
        .or_else(|| last_number(text))
}

/// GSM8K's form: `#### 42`.
fn after_hashes(text: &str) -> Option<String> {
    let start = text.rfind("####")? + 4;
    let line = text[start..].trim_start().lines().next()?.trim();
    (!line.is_empty()).then(|| strip_delimiters(line).to_owned())
}

/// What leads to an answer, lower case.
const PHRASES: [&str; 13] = [
    "answer is",
    "answer:",
    "answer**:",
    "answer:**",
    "answer\u{ff1a}",
    "answers are",
    "答案是",
    "答案为",
    "答案\u{ff1a}",
    "答案:",
    "réponse:",
    "respuesta:",
    "antwort:",
];

/// "The answer is 42." and "Answer: 42".
fn after_phrase(text: &str) -> Option<String> {
    // ASCII folding keeps every byte where it is.
    let lower = text.to_ascii_lowercase();
    let start = PHRASES.into_iter().filter_map(|phrase| lower.rfind(phrase).map(|at| at + phrase.len())).max()?;
    let rest = text[start..].trim_start_matches([':', '*', ' ', '\n', '\t', '\r', '\u{ff1a}']);
    if let Some(formula) = leading_formula(rest) {
        return Some(formula.to_owned());
    }
    let line = rest.lines().next()?;
    let end = [". ", "。", "<|"].into_iter().filter_map(|stop| line.find(stop)).min();
    let sentence = line[..end.unwrap_or(line.len())].trim().trim_end_matches(['.', '*', ' ']);
    if sentence.is_empty() {
        return None;
    }
    if !is_prose(sentence) {
        return Some(sentence.to_owned());
    }
    // "the volume of $ABC$ is 120": the words are about the value that ends them.
    let tail = ["is", "are", "equals"].into_iter().filter_map(|verb| {
        let verb = format!(" {verb} ");
        sentence.rfind(&verb).map(|at| sentence[at + verb.len()..].trim())
    });
    match tail.min_by_key(|tail| tail.len()) {
        Some(tail) => match leading_formula(tail) {
            Some(formula) => Some(formula.to_owned()),
            None if !is_prose(tail) => Some(tail.to_owned()),
            None => last_formula(tail).or_else(|| last_number(tail)).or_else(|| Some(tail.to_owned())),
        },
        None => last_formula(sentence).or_else(|| last_number(sentence)).or_else(|| Some(sentence.to_owned())),
    }
}

/// Whether a text has at least four words, commands and formulas aside.
fn is_prose(text: &str) -> bool {
    let word = |word: &&str| {
        let letters = word.trim_matches(|c: char| !c.is_alphabetic() && c != '\\');
        letters.chars().nth(1).is_some() && letters.chars().all(char::is_alphabetic)
    };
    text.split_whitespace().filter(word).take(4).count() == 4
}

/// A response of one line without words.
fn whole_formula(text: &str) -> Option<String> {
    let line = text.trim();
    let words = || {
        line.split(|c: char| !c.is_alphabetic() && c != '\\')
            .any(|word| word.chars().nth(1).is_some() && !word.starts_with('\\'))
    };
    let formula =
        line.len() <= 200 && !line.contains(['\n', '$']) && !line.contains("\\(") && !line.contains("\\[") && !words();
    (formula && line.contains(|c: char| c.is_ascii_digit())).then(|| line.trim_end_matches('.').to_owned())
}

const DELIMITERS: [(&str, &str); 4] = [("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")];

fn leading_formula(text: &str) -> Option<&str> {
    DELIMITERS.into_iter().find_map(|(open, close)| {
        let inner = text.strip_prefix(open)?;
        let formula = inner[..inner.find(close)?].trim();
        (!formula.is_empty()).then_some(formula)
    })
}

fn strip_delimiters(text: &str) -> &str {
    leading_formula(text).unwrap_or(text)
}

/// The last `$…$`, `\(…\)` or `\[…\]`. An odd dollar sign pairs with the one before it.
fn last_formula(text: &str) -> Option<String> {
    let ends = DELIMITERS.into_iter().filter_map(|(open, close)| {
        let end = text.rfind(close)?;
        let start = text[..end].rfind(open)? + open.len();
        let formula = text[start..end].trim();
        (!formula.is_empty()).then_some((end, formula))
    });
    ends.max_by_key(|&(end, _)| end).map(|(_, formula)| formula.to_owned())
}

fn last_number(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end;
    while start > 0 && (bytes[start - 1].is_ascii_digit() || matches!(bytes[start - 1], b'.' | b',' | b'/')) {
        start -= 1;
    }
    let number = text[start..end].trim_start_matches([',', '/']);
    let before = text[..start].trim_end_matches('\u{2212}');
    let negative = before.len() < start || text[..start].ends_with('-');
    // `x-5` and `10-5` end in 5, ` -5` in -5.
    let signed = negative
        && !text[..start].trim_end_matches(['-', '\u{2212}']).ends_with(|c: char| c.is_alphanumeric() || c == ')');
    Some(if signed { format!("-{number}") } else { number.to_owned() })
}
