//! The table of a run's evaluations, with what changed against the first.

use super::{axis::number, short_name};
use crate::metrics::{EvalRow, plus_minus};

/// The heads of the columns of [`cells`].
pub(super) const HEADS: [&str; 6] = ["checkpoint", "accuracy %", "change", "tokens", "change", "cut off"];

/// One row of the table as text: name, accuracy ± error, its change in points, tokens ± error, their change in percent,
/// share cut off. `start` is the row that changes are measured against.
pub(super) fn cells(row: &EvalRow, start: &EvalRow) -> [String; 6] {
    let is_start = std::ptr::eq(row, start);
    let points = 100.0 * (row.pass_at_1 - start.pass_at_1);
    let shorter = (start.response_tokens > 0.0).then(|| 100.0 * (row.response_tokens / start.response_tokens - 1.0));
    [
        short_name(&row.name),
        number(100.0 * row.pass_at_1, 1) + &plus_minus(row.pass_at_1_se.map(|error| 100.0 * error), 1),
        if is_start { String::new() } else { signed(points, 1) + " pt" },
        number(row.response_tokens, 0) + &plus_minus(row.response_tokens_se, 0),
        shorter.filter(|_| !is_start).map(|percent| signed(percent, 0) + "%").unwrap_or_default(),
        format!("{}%", number(100.0 * row.truncated, 0)),
    ]
}

/// A number with its sign, also when positive.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    let is_zero = !text.chars().any(|digit| ('1'..='9').contains(&digit));
    if is_zero || value < 0.0 { text } else { format!("+{text}") }
}

/// The evaluations of one run as a plain-text table for the terminal, one row each, in order. Accuracy is in percent and
/// its change in points; each error is one standard error; changes are against the first row of the same data set.
pub fn summary_table(evals: &[EvalRow]) -> String {
    let mut names: Vec<&str> = evals.iter().map(|row| row.data.as_str()).collect();
    names.dedup();
    let several = names.len() > 1;
    let mut lines: Vec<Vec<String>> = vec![HEADS.map(str::to_string).to_vec()];
    for row in evals {
        let start = evals.iter().find(|first| first.data == row.data).unwrap_or(row);
        lines.push(cells(row, start).to_vec());
    }
    if several {
        lines[0].insert(1, "data".into());
        lines[1..].iter_mut().zip(evals).for_each(|(line, row)| line.insert(1, row.data.clone()));
    }
    align(&lines)
}

/// Pads the columns to equal widths: the first to the left, the rest to the right; a rule below the heads.
fn align(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(column, (cell, &width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        out.push_str(padded.join("  ").trim_end());
        out.push('\n');
        if index == 0 {
            out.push_str(&"─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1)));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::eval_row;

    #[test]
    fn changes_are_against_the_start() {
        let evals = [eval_row(0, "start", 0.5, 300.0), eval_row(12, "cycle-1-low", 0.612, 180.0)];
        let expected = "\
checkpoint  accuracy %   change   tokens  change  cut off
─────────────────────────────────────────────────────────
start       50.0 ± 2.0           300 ± 5              25%
low 1       61.2 ± 2.0  +11.2 pt  180 ± 5    −40%      25%
";
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('─', "");
        let table = summary_table(&evals);
        assert_eq!(squeeze(&table), squeeze(expected));
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{table}");
    }

    #[test]
    fn an_unknown_error_is_left_out() {
        let row = EvalRow { pass_at_1_se: None, response_tokens_se: None, ..eval_row(0, "start", 1.0, 300.0) };
        assert_eq!(cells(&row, &row)[1..4], ["100.0", "", "300"]);
    }

    #[test]
    fn no_evaluation_leaves_the_heads() {
        assert_eq!(summary_table(&[]).lines().count(), 2);
    }

    #[test]
    fn several_data_sets_have_a_start_each() {
        let other = |row: EvalRow| EvalRow { data: "other".into(), ..row };
        let evals = [
            eval_row(0, "start", 0.5, 300.0),
            other(eval_row(0, "start", 0.2, 100.0)),
            eval_row(12, "cycle-1-low", 0.6, 150.0),
            other(eval_row(12, "cycle-1-low", 0.1, 150.0)),
        ];
        let table = summary_table(&evals);
        let last = table.lines().last().unwrap();
        assert!(last.contains("other") && last.contains("−10.0 pt") && last.contains("+50%"), "{table}");
    }
}
