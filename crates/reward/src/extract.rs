//! The final answer in a whole response: the last boxed text after the thought, or what a fallback finds.

mod fallback;

use fallback::fallback;

/// Where else to look for an answer when nothing is boxed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fallback {
    /// Nowhere: only a boxed answer counts. The choice for training, where a looser rule would be learned.
    #[default]
    None,
    /// In this order: after the last `####`, after the last "answer is" or "answer:", all of a response that is
    /// one formula, the last formula between math delimiters, the last number.
    Standard,
}

impl Fallback {
    /// The name that results carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
        }
    }
}

/// How an answer is taken from a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// What to do without a box.
    pub fallback: Fallback,
    /// The prompt ended with `<think>`, so that the response begins inside a thought.
    pub prompt_opens_thought: bool,
}

/// What [`extract`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extracted {
    /// The text of the answer, trimmed and not empty.
    Answer(String),
    /// The response ended inside a thought.
    UnfinishedThought,
    /// There is no answer.
    None,
}

/// Finds the final answer of `response`. Time is linear in its length.
///
/// Only text outside of thoughts counts: after the last `</think>`, and before a `<think>` that follows it.
/// Boxes joined by commas, semicolons, "and" or "or" make one answer: `\boxed{1}, \boxed{2}` is `1, 2`.
pub fn extract(response: &str, policy: &Policy) -> Extracted {
    let Spoken { text, thinking } = spoken(response, policy.prompt_opens_thought);
    let none = if thinking { Extracted::UnfinishedThought } else { Extracted::None };
    let found = match boxed(text) {
        Some(answer) => Some(answer),
        // A thought cut short has not come to its answer, whatever numbers were said before it.
        None if thinking => None,
        None => match policy.fallback {
            Fallback::None => None,
            Fallback::Standard => fallback(text),
        },
    };
    match found.as_deref().map(str::trim) {
        Some(answer) if !answer.is_empty() => Extracted::Answer(answer.to_owned()),
        _ => none,
    }
}

/// The part of a response that is not thought.
struct Spoken<'a> {
    text: &'a str,
    /// The response ends inside a thought.
    thinking: bool,
}

fn spoken(response: &str, prompt_opens_thought: bool) -> Spoken<'_> {
    let text = match response.rfind("</think>") {
        Some(end) => &response[end + "</think>".len()..],
        None if prompt_opens_thought => return Spoken { text: "", thinking: true },
        None => response,
    };
    match text.find("<think>") {
        Some(start) => Spoken { text: &text[..start], thinking: true },
        None => Spoken { text, thinking: false },
    }
}

/// The content of the last box, or of the last boxes when they are enumerated together.
pub(crate) fn boxed(text: &str) -> Option<String> {
    let boxes = boxes(text);
    let last = boxes.last()?;
    let mut first = boxes.len() - 1;
    while first > 0 && joins(&text[boxes[first - 1].end..boxes[first].start]) {
        first -= 1;
    }
    let enumerated = &boxes[first..];
    if enumerated.len() == 1 {
        return Some(unwrapped(&text[last.inner..last.end - 1]).to_owned());
    }
    let parts: Vec<&str> = enumerated.iter().map(|b| unwrapped(&text[b.inner..b.end - 1])).collect();
    Some(parts.join(", "))
}

/// `\boxed{\boxed{5}}` is 5. A nest deeper than eight is a trick, and stays as it is.
fn unwrapped(content: &str) -> &str {
    let mut content = content.trim();
    for _ in 0..8 {
        match boxes(content).as_slice() {
            [only] if only.start == 0 && only.end == content.len() => {
                content = content[only.inner..only.end - 1].trim();
            }
            _ => break,
        }
    }
    content
}

/// A closed box: `text[start..end]` is the whole command, `text[inner..end - 1]` its content.
struct Span {
    start: usize,
    inner: usize,
    end: usize,
}

/// The outermost closed boxes, in order. One pass, with the open braces on a stack.
fn boxes(text: &str) -> Vec<Span> {
    let bytes = text.as_bytes();
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut found: Vec<Span> = Vec::new();
    let mut inners: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let command = ["\\boxed", "\\fbox"].into_iter().find(|name| text[at..].starts_with(name));
                let brace = command.and_then(|name| {
                    let after = at + name.len();
                    let space = text[after..].len() - text[after..].trim_start_matches([' ', '\n', '\t']).len();
                    (bytes.get(after + space) == Some(&b'{')).then_some(after + space)
                });
                if let Some(brace) = brace {
                    open.push(Some(at));
                    inners.push(brace + 1);
                    at = brace + 1;
                } else {
                    // `\{`, `\}` and `\\` are one symbol each; a command's letters hold no brace.
                    at += 1 + usize::from(bytes.get(at + 1).is_some_and(u8::is_ascii));
                }
                continue;
            }
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some(start)) = open.pop() {
                    let inner = inners.pop().unwrap_or(at);
                    let outside = found.partition_point(|b| b.start < start);
                    found.truncate(outside);
                    found.push(Span { start, inner, end: at + 1 });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Whether the text between two boxes only enumerates them.
fn joins(between: &str) -> bool {
    if between.len() > 80 {
        return false;
    }
    let mut rest = between.to_owned();
    for noise in ["\\quad", "\\qquad", "\\text", "\\\\", "\\,", "\\;", "\\ ", "\\(", "\\)", "$", "{", "}", "&"] {
        rest = rest.replace(noise, " ");
    }
    let mut marks = 0;
    for word in rest.replace(',', " , ").replace(';', " ; ").split_whitespace() {
        if !matches!(word, "," | ";" | "and" | "or") {
            return false;
        }
        marks += 1;
    }
    marks > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(response: &str) -> Option<String> {
        match extract(response, &Policy::default()) {
            Extracted::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    fn loose(response: &str) -> Option<String> {
        match extract(response, &Policy { fallback: Fallback::Standard, ..Policy::default() }) {
            Extracted::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    #[test]
    fn last_box_with_nested_and_escaped_braces() {
        assert_eq!(strict(r"\boxed{1} then \boxed{\frac{1}{2}}").as_deref(), Some(r"\frac{1}{2}"));
        assert_eq!(strict(r"\boxed{\{1, 2\}}").as_deref(), Some(r"\{1, 2\}"));
        assert_eq!(strict(r"\fbox {7}").as_deref(), Some("7"));
        assert_eq!(strict(r"\boxed{\boxed{5}}").as_deref(), Some("5"));
        assert_eq!(strict(r"\boxed{3} and \boxed{4").as_deref(), Some("3"));
        assert_eq!(strict(r"\boxed{}"), None);
        assert_eq!(strict("42"), None);
    }

    #[test]
    fn enumerated_boxes_are_one_answer() {
        assert_eq!(strict(r"$\boxed{1}$, $\boxed{2}$").as_deref(), Some("1, 2"));
        assert_eq!(strict(r"\boxed{-2} \quad \text{and} \quad \boxed{1}").as_deref(), Some("-2, 1"));
        assert_eq!(strict(r"\boxed{5} \boxed{6}").as_deref(), Some("6"));
        assert_eq!(strict(r"\boxed{5}, no, \boxed{6}").as_deref(), Some("6"));
    }

    #[test]
    fn thoughts_hold_no_answers() {
        assert_eq!(strict(r"<think>\boxed{1}</think> \boxed{2}").as_deref(), Some("2"));
        assert_eq!(strict(r"<think>\boxed{1}</think> done"), None);
        assert_eq!(extract(r"<think>so \boxed{1}", &Policy::default()), Extracted::UnfinishedThought);
        let inside = Policy { prompt_opens_thought: true, ..Policy::default() };
        assert_eq!(extract(r"so \boxed{1}", &inside), Extracted::UnfinishedThought);
        assert_eq!(extract(r"so</think>\boxed{1}", &inside), Extracted::Answer("1".into()));
        let loose_inside = Policy { fallback: Fallback::Standard, ..inside };
        assert_eq!(extract("the answer is 5", &loose_inside), Extracted::UnfinishedThought);
    }

    #[test]
    fn fallbacks_in_order() {
        assert_eq!(loose("12 + 3\n#### 15").as_deref(), Some("15"));
        assert_eq!(loose("The answer is 42. I hope.").as_deref(), Some("42"));
        assert_eq!(loose("**Answer:** $x+1$ or so").as_deref(), Some("x+1"));
        assert_eq!(loose(r"we find \(y = 3\) at last").as_deref(), Some("y = 3"));
        assert_eq!(loose("it costs 3 or -4.50 in all").as_deref(), Some("-4.50"));
        assert_eq!(loose("no idea"), None);
        assert_eq!(loose(r"\boxed{1} but the answer is 2").as_deref(), Some("1"));
    }

    /// The least processor time of three runs, which another process's load changes least.
    fn least_time(run: impl Fn()) -> f64 {
        let time = |_| {
            let start = cpu_time::ThreadTime::now();
            run();
            start.elapsed().as_secs_f64()
        };
        (0..3).map(time).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn linear_on_hostile_input() {
        let policy = Policy { fallback: Fallback::Standard, ..Policy::default() };
        let enumerated = Extracted::Answer(vec!["1"; 20_000].join(", "));
        for (unit, found) in [
            (r"\boxed{", Extracted::None),
            ("{", Extracted::None),
            ("}", Extracted::None),
            (r"\", Extracted::None),
            ("<think>", Extracted::UnfinishedThought),
            ("$", Extracted::None),
            (r"\boxed{1},", enumerated),
        ] {
            assert_eq!(extract(&unit.repeat(20_000), &policy), found, "{unit}");
            let time_of = |count: usize| {
                let text = unit.repeat(count);
                least_time(|| drop(extract(&text, &policy)))
            };
            let (short, long) = (time_of(20_000), time_of(160_000));
            // Eight times the text: 8 times the time when linear, 64 times when quadratic.
            assert!(long < 24.0 * short + 2e-3, "{unit}: {short} s, and {long} s for eight times as much");
        }
    }
}
