//! Over-thinking on demand: reasoning traces for the supervised warm start, longer than they need to be.
//!
//! A trace tries attempts until one reaches the target and then answers with it. Nothing in it is false, but the
//! style makes it re-check what it has just calculated, return to what it has already tried and doubt its success:
//! the redundancy that a policy learns here is what compression takes away later.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::countdown::{Attempt, Problem, attempts};
use super::rng::Rng;

/// At most this many re-checks follow one failed attempt.
pub const MAX_RECHECKS: usize = 3;

/// How redundant a trace is; every knob at 0 gives the shortest search in random order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceStyle {
    /// Probability that a failed attempt is repeated behind `wait `, and again after that, up to [`MAX_RECHECKS`] times.
    pub recheck: f64,
    /// Probability that the next attempt is one already made rather than a new one.
    pub revisit: f64,
    /// Fewest and most re-checks after the solution was found; each number in between is equally likely.
    pub after_success: [usize; 2],
    /// Probability, after each failed attempt and its re-checks, of answering with that attempt though it is wrong.
    pub give_up: f64,
    /// A new attempt is drawn with probability proportional to `exp(-closeness * |value - target| / target)`; 0 is
    /// uniform. Other values go through the platform's `exp`, whose last bit may differ between platforms.
    pub closeness: f64,
}

impl Default for TraceStyle {
    fn default() -> Self {
        Self { recheck: 0.6, revisit: 0.05, after_success: [0, 9], give_up: 0.015, closeness: 0.9 }
    }
}

/// A knob that is out of range.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum StyleError {
    /// A probability that is not one, or that would never let a trace end.
    #[error("{key} = {value}: must be a probability, at least 0 and {bound}")]
    Probability {
        /// The knob.
        key: &'static str,
        /// What it was set to.
        value: f64,
        /// The upper limit in words.
        bound: &'static str,
    },
    /// The least is above the most.
    #[error("after_success = [{0}, {1}]: the first number must not be above the second")]
    AfterSuccess(usize, usize),
    /// Negative, infinite or not a number.
    #[error("closeness = {0}: must be a finite number of at least 0")]
    Closeness(f64),
}

impl TraceStyle {
    /// No redundancy: each attempt once and the answer as soon as it is found.
    pub fn direct() -> Self {
        Self { recheck: 0.0, revisit: 0.0, after_success: [0, 0], give_up: 0.0, closeness: 0.0 }
    }

    /// Checks every knob's range.
    ///
    /// # Errors
    /// Names the first knob out of range. `revisit` must stay below 1, or no new attempt would ever be made.
    pub fn validate(&self) -> Result<(), StyleError> {
        for (key, value) in [("recheck", self.recheck), ("give_up", self.give_up)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(StyleError::Probability { key, value, bound: "at most 1" });
            }
        }
        if !(0.0..1.0).contains(&self.revisit) {
            return Err(StyleError::Probability { key: "revisit", value: self.revisit, bound: "below 1" });
        }
        let [least, most] = self.after_success;
        if least > most {
            return Err(StyleError::AfterSuccess(least, most));
        }
        if !(self.closeness >= 0.0 && self.closeness.is_finite()) {
            return Err(StyleError::Closeness(self.closeness));
        }
        Ok(())
    }
}

/// A response to `problem` after the opening `<think>\n` of the prompt and without the end token.
///
/// A line an attempt (`12-7=5, 5*3=15 vs 19 no`), then `</think>` and the answer in `\boxed{}`. Every `yes` and `no`
/// is true; the answer is right unless the style gave up. `style` must have passed [`TraceStyle::validate`].
///
/// # Panics
/// If the target cannot be reached from the numbers, which no [`Problem`] of the generator is.
pub fn trace(problem: &Problem, style: &TraceStyle, rng: &mut Rng) -> String {
    let mut untried = attempts(problem.numbers);
    let mut tried: Vec<Attempt> = Vec::new();
    let mut text = String::new();
    loop {
        let revisits = rng.chance(style.revisit) && !tried.is_empty();
        let attempt = if revisits {
            tried[rng.below(tried.len())]
        } else {
            let attempt = untried.remove(pick(&untried, problem.target, style.closeness, rng));
            tried.push(attempt);
            attempt
        };
        let line = line(&attempt, problem.target);
        text.push_str(&line);
        let solved = attempt.value() == problem.target;
        let rechecks = if solved { rechecks_after_success(style, rng) } else { rechecks_after_failure(style, rng) };
        for _ in 0..rechecks {
            text.push_str("wait ");
            text.push_str(&line);
        }
        if solved || rng.chance(style.give_up) {
            text.push_str(&format!("</think>\n\\boxed{{{}}}", attempt.expression()));
            return text;
        }
    }
}

fn line(attempt: &Attempt, target: u32) -> String {
    let verdict = if attempt.value() == target { "yes" } else { "no" };
    format!("{attempt} vs {target} {verdict}\n")
}

fn rechecks_after_success(style: &TraceStyle, rng: &mut Rng) -> usize {
    let [least, most] = style.after_success;
    least + rng.below(most - least + 1)
}

fn rechecks_after_failure(style: &TraceStyle, rng: &mut Rng) -> usize {
    (0..MAX_RECHECKS).take_while(|_| rng.chance(style.recheck)).count()
}

/// The index of a new attempt; uniform at a closeness of 0.
fn pick(untried: &[Attempt], target: u32, closeness: f64, rng: &mut Rng) -> usize {
    assert!(!untried.is_empty(), "no attempt reaches {target}");
    if closeness == 0.0 {
        return rng.below(untried.len());
    }
    let distances: Vec<f64> =
        untried.iter().map(|attempt| f64::from(attempt.value().abs_diff(target)) / f64::from(target)).collect();
    // Measured from the nearest, so that a large closeness cannot make all weights underflow to 0.
    let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = distances.iter().map(|distance| (-closeness * (distance - nearest)).exp()).collect();
    let mut left = rng.unit() * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    // Rounding may leave a remainder behind the last weight.
    untried.len() - 1
}

#[cfg(test)]
mod tests {
    use super::super::countdown::{Split, problem};
    use super::*;

    /// Checks all that a line claims from its text alone; returns whether it says yes.
    fn check_line(line: &str, problem: &Problem) -> bool {
        let line = line.strip_prefix("wait ").unwrap_or(line);
        let (steps, verdict) = line.split_once(" vs ").expect("a comparison");
        let (first, second) = steps.split_once(", ").expect("two steps");
        let (target, says) = verdict.split_once(' ').expect("a verdict");
        let (a, b, r) = check_step(first);
        let (c, d, value) = check_step(second);
        let third = if c == r { d } else { c };
        assert!(c == r || d == r, "{line}: the second step does not use the first");
        let mut used = [a, b, third];
        used.sort_unstable();
        assert_eq!(used, problem.numbers, "{line}");
        assert_eq!(target, problem.target.to_string(), "{line}");
        assert_eq!(says == "yes", value == problem.target, "{line}");
        assert!(says == "yes" || says == "no", "{line}");
        says == "yes"
    }

    fn check_step(step: &str) -> (u32, u32, u32) {
        let at = step.find(['+', '-', '*', '/']).expect("an operation");
        let (right, value) = step[at + 1..].split_once('=').expect("a result");
        let [left, right, value] = [&step[..at], right, value].map(|number| number.parse::<u32>().expect("a number"));
        let holds = match &step[at..=at] {
            "+" => left + right == value,
            "-" => left - right == value,
            "*" => left * right == value,
            _ => right * value == left,
        };
        assert!(holds, "{step} is false");
        (left, right, value)
    }

    /// The value of `(a op b) op c` or `c op (a op b)` as written.
    fn evaluate(expression: &str) -> u32 {
        let (open, close) = (expression.find('(').expect("("), expression.find(')').expect(")"));
        let inner = binary(&expression[open + 1..close]);
        binary(&format!("{}{inner}{}", &expression[..open], &expression[close + 1..]))
    }

    fn binary(text: &str) -> u32 {
        let at = text.find(['+', '-', '*', '/']).expect("an operation");
        let (left, right) = (text[..at].parse::<u32>().unwrap(), text[at + 1..].parse::<u32>().unwrap());
        match &text[at..=at] {
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            _ => left / right,
        }
    }

    /// Checks every line and the box of one trace; returns whether its answer is right.
    fn check_trace(text: &str, problem: &Problem) -> bool {
        let (thought, answer) = text.split_once("</think>\n").expect("an end of thought");
        let verdicts: Vec<bool> = thought.lines().map(|line| check_line(line, problem)).collect();
        let expression = answer.strip_prefix("\\boxed{").and_then(|rest| rest.strip_suffix('}')).expect("a box");
        let right = evaluate(expression) == problem.target;
        assert_eq!(Some(&right), verdicts.last(), "{text}");
        right
    }

    #[test]
    fn a_trace_without_giving_up_is_true_and_right() {
        for closeness in [0.0, 3.0, 1e9] {
            let style = TraceStyle { give_up: 0.0, closeness, ..TraceStyle::default() };
            for index in 0..1_000 {
                let problem = problem(1, index, Split::Train);
                let text = trace(&problem, &style, &mut Rng::keyed(&[2, index]));
                assert!(check_trace(&text, &problem), "{text}");
                // The line that found it, then its re-checks.
                let successes = text.lines().filter(|line| line.ends_with(" yes")).count();
                let [least, most] = style.after_success;
                assert!((1 + least..=1 + most).contains(&successes), "{text}");
            }
        }
    }

    #[test]
    fn giving_up_answers_wrongly_and_nothing_else_does() {
        let style = TraceStyle { give_up: 1.0, ..TraceStyle::default() };
        let mut wrong = 0;
        for index in 0..500 {
            let problem = problem(1, index, Split::Train);
            let text = trace(&problem, &style, &mut Rng::keyed(&[3, index]));
            wrong += usize::from(!check_trace(&text, &problem));
        }
        assert!(wrong > 300, "only {wrong} of 500 first attempts are wrong");
    }

    #[test]
    fn a_direct_trace_has_each_attempt_at_most_once_and_no_wait() {
        for index in 0..500 {
            let problem = problem(1, index, Split::Train);
            let text = trace(&problem, &TraceStyle::direct(), &mut Rng::keyed(&[4, index]));
            assert!(!text.contains("wait"));
            let mut lines: Vec<&str> = text.lines().collect();
            let written = lines.len();
            lines.sort_unstable();
            lines.dedup();
            assert_eq!(lines.len(), written, "{text}");
            assert!(check_trace(&text, &problem));
        }
    }

    #[test]
    fn closeness_shortens_the_search() {
        let lines = |closeness: f64| -> usize {
            let style = TraceStyle { closeness, ..TraceStyle::direct() };
            let problems = (0..500).map(|index| (index, problem(1, index, Split::Train)));
            problems.map(|(index, problem)| trace(&problem, &style, &mut Rng::keyed(&[5, index])).lines().count()).sum()
        };
        let (uniform, close) = (lines(0.0), lines(5.0));
        assert!(close * 2 < uniform, "{close} lines against {uniform}");
    }

    #[test]
    fn the_same_stream_gives_the_same_trace() {
        let problem = problem(1, 0, Split::Train);
        let write = |seed| trace(&problem, &TraceStyle::default(), &mut Rng::new(seed));
        assert_eq!(write(1), write(1));
        assert!((2..20).any(|seed| write(seed) != write(1)));
    }

    #[test]
    fn knobs_out_of_range_are_named() {
        let style = TraceStyle { revisit: 1.0, ..TraceStyle::default() };
        assert_eq!(
            style.validate().unwrap_err().to_string(),
            "revisit = 1: must be a probability, at least 0 and below 1"
        );
        let style = TraceStyle { after_success: [3, 2], ..TraceStyle::default() };
        assert!(style.validate().unwrap_err().to_string().starts_with("after_success = [3, 2]"));
        assert!(TraceStyle { closeness: f64::NAN, ..TraceStyle::default() }.validate().is_err());
        assert!(TraceStyle { recheck: -0.1, ..TraceStyle::default() }.validate().is_err());
        assert!(TraceStyle::default().validate().is_ok());
    }

    #[test]
    fn unknown_knobs_are_refused_and_missing_ones_are_defaults() {
        let style: TraceStyle = serde_json::from_str(r#"{"recheck": 0.1}"#).unwrap();
        assert_eq!(style, TraceStyle { recheck: 0.1, ..TraceStyle::default() });
        let error = serde_json::from_str::<TraceStyle>(r#"{"rechek": 0.1}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `rechek`"), "{error}");
    }
}
