//! The report as one HTML page that needs nothing beside itself.

use std::fmt::Write;

use super::{
    Run,
    axis::number,
    curves, data_names,
    pareto::pareto_svg,
    responses::responses,
    svg::{colour, escape},
    table::{HEADS, cells},
};
use crate::metrics::EvalRow;

/// The settings shown at the top, where a run has them.
const SETTINGS: [&str; 20] = [
    "model.path",
    "data.train",
    "data.eval",
    "schedule.kind",
    "schedule.cycles",
    "schedule.cycle_steps",
    "schedule.l_max",
    "schedule.l_min",
    "schedule.stages",
    "sampler.prompts_per_step",
    "sampler.group_size",
    "sampler.temperature",
    "loss.advantage",
    "loss.aggregation",
    "reference.kl_beta",
    "optimizer.learning_rate",
    "optimizer.updates_per_step",
    "run.seed",
    "run.device",
    "run.version",
];

/// The report of `runs` as an HTML document.
pub fn html(runs: &[Run]) -> String {
    let data = data_names(runs);
    let title = match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} · Bellows report</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p class=\"brand\">Bellows report</p><h1>{title}</h1>\n{}{}</header>\n",
        headlines(runs),
        origins(runs),
        title = escape(&title),
    );
    for name in &data {
        let table = (heading("Results", name, &data), results(runs, name));
        let plot = (String::new(), scrolled(figure(&pareto_svg(runs, name)), Figures::Plot));
        // The rows of several runs fill a screen: the picture goes first then.
        let order = if runs.len() > 1 { [plot, table] } else { [table, plot] };
        order.iter().for_each(|(heading, body)| section(&mut page, heading, body));
    }
    let (wide, narrow) = curves::panels(runs, data.first().map(String::as_str));
    let mut body = legend(runs);
    wide.iter().for_each(|svg| body.push_str(&scrolled(figure(svg), Figures::Plot)));
    let grid: String = narrow.iter().map(|svg| figure(svg)).collect();
    let _ = writeln!(body, "<div class=\"grid\">{grid}</div>");
    let faint = if curves::window(runs) > 1 { " Faint lines are single steps." } else { "" };
    let _ = writeln!(body, "<p class=\"note\">Shaded steps are compress phases.{faint}</p>");
    section(&mut page, "Training", &body);
    section(&mut page, "Responses, early and late", &responses(runs));
    section(&mut page, "Settings", &settings(runs));
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Appends a section with a heading, or without where it is empty.
fn section(page: &mut String, heading: &str, body: &str) {
    let heading = if heading.is_empty() { String::new() } else { format!("<h2>{}</h2>\n", escape(heading)) };
    let _ = writeln!(page, "<section>{heading}{body}</section>");
}

fn heading(title: &str, name: &str, all: &[String]) -> String {
    if all.len() > 1 { format!("{title} on {name}") } else { title.to_string() }
}

fn figure(svg: &str) -> String {
    format!("<figure>{svg}</figure>\n")
}

/// What a narrow screen shows a part of.
#[derive(Clone, Copy)]
enum Figures {
    Plot,
    Table,
}

/// `body` in a frame that scrolls where the screen is too narrow for it, and says so there: a figure keeps a width at
/// which its text can be read.
fn scrolled(body: String, what: Figures) -> String {
    let class = match what {
        Figures::Plot => "plot",
        Figures::Table => "sheet",
    };
    format!(
        "<p class=\"hint\">scroll sideways for the rest →</p><div class=\"scroll {class}\" tabindex=\"0\">{body}</div>\n"
    )
}

/// A patch of the colour of run `index`.
pub(super) fn patch(index: usize) -> String {
    format!("<span class=\"patch\" style=\"background:{}\"></span>", colour(index))
}

/// One sentence a run: from the start to the last evaluation.
fn headlines(runs: &[Run]) -> String {
    let mut out = String::new();
    for (index, run) in runs.iter().enumerate() {
        let name =
            if runs.len() > 1 { format!("{}<b>{}</b>: ", patch(index), escape(&run.name)) } else { String::new() };
        let steps = run.steps.last().map_or(0, |row| row.step);
        let _ = writeln!(out, "<p class=\"lead\">{name}{}</p>", headline(&run.evals, steps));
    }
    out
}

/// One line a run: when it began and what made it, as far as that is known.
fn origins(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        let line = run.origin.line();
        let name = if runs.len() > 1 && !line.is_empty() { format!("{}: ", run.name) } else { String::new() };
        if !line.is_empty() {
            let _ = writeln!(out, "<p class=\"note origin\">{}</p>", escape(&(name + &line)));
        }
    }
    out
}

fn headline(evals: &[EvalRow], steps: usize) -> String {
    let steps = number(steps as f64, 0);
    let Some(start) = evals.first() else { return format!("{steps} steps, no evaluation yet.") };
    let last = evals.iter().rev().find(|row| row.data == start.data).unwrap_or(start);
    let figures = |row: &EvalRow| {
        let [_, accuracy, _, tokens, ..] = cells(row, row);
        format!("{accuracy}&thinsp;% in {tokens} tokens")
    };
    if std::ptr::eq(start, last) {
        return format!("{steps} steps; at the start {}.", figures(start));
    }
    let [name, _, points, _, shorter, _] = cells(last, start);
    let shorter = if shorter.is_empty() { String::new() } else { format!(", {shorter} in length") };
    format!(
        "{} at the start, <b>{}</b> at {}, {steps} steps later ({}{shorter}).",
        figures(start),
        figures(last),
        escape(&name),
        points.replace("pt", "points"),
    )
}

/// The table of all evaluations on `data`.
fn results(runs: &[Run], data: &str) -> String {
    let several = runs.len() > 1;
    // Of one response a problem, pass@k is the accuracy again.
    let with_pass = runs.iter().flat_map(|run| run.evals_on(data)).any(|row| row.samples > 1);
    let mut out = String::from("<table class=\"figures\"><thead><tr>");
    let more = with_pass.then_some("pass@k").into_iter().chain(["waits", "step", "rollout tokens"]);
    let heads = HEADS.into_iter().chain(more);
    for head in several.then_some("run").into_iter().chain(heads) {
        let class = if ["run", HEADS[0]].contains(&head) { " class=\"name\"" } else { "" };
        let _ = write!(out, "<th{class}>{head}</th>");
    }
    out.push_str("</tr></thead>\n");
    for (index, run) in runs.iter().enumerate() {
        let rows = run.evals_on(data);
        out.push_str("<tbody>");
        for (position, row) in rows.iter().enumerate() {
            out.push_str("<tr>");
            if several && position == 0 {
                let (patch, name) = (patch(index), escape(&run.name));
                let _ = write!(out, "<td class=\"name run\" rowspan=\"{}\">{patch}{name}</td>", rows.len());
            }
            let [name, figures @ ..] = cells(row, rows[0]);
            let _ = write!(out, "<td class=\"name\">{}</td>", escape(&name));
            let waits = row.markers_per_response.map_or("–".into(), |count| number(count, 1));
            let pass = format!("{} (k={})", number(100.0 * row.pass_at_k, 1), row.samples);
            let tail = [waits, number(row.step as f64, 0), number(row.tokens_total as f64, 0)];
            for cell in figures.iter().chain(with_pass.then_some(&pass)).chain(&tail) {
                let _ = write!(out, "<td>{}</td>", escape(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>");
    }
    out.push_str("</table>");
    let mut out = scrolled(out, Figures::Table);
    let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(&reading(runs, data)));
    out
}

fn times(count: usize) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

/// How to read the table.
fn reading(runs: &[Run], data: &str) -> String {
    let mut sizes: Vec<String> = runs
        .iter()
        .flat_map(|run| run.evals_on(data))
        .map(|row| format!("{} problems, each answered {}", number(row.problems as f64, 0), times(row.samples)))
        .collect();
    sizes.sort();
    sizes.dedup();
    format!(
        "{data}: {}. ± is one standard error. Changes are against the first row of the run, in points and in \
         percent. Waits: mean count of the word in a response. Rollout tokens: spent on training so far.",
        sizes.join("; ")
    )
}

/// The names of the runs in their colours; nothing for a single run.
fn legend(runs: &[Run]) -> String {
    if runs.len() < 2 {
        return String::new();
    }
    let names: String = runs
        .iter()
        .enumerate()
        .map(|(index, run)| format!("<span>{}{}</span>", patch(index), escape(&run.name)))
        .collect();
    format!("<p class=\"legend\">{names}</p>\n")
}

/// The settings side by side, those that differ marked, and the files behind them.
fn settings(runs: &[Run]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table class=\"settings\">");
    if runs.len() > 1 {
        out.push_str("<thead><tr><th></th>");
        for (index, run) in runs.iter().enumerate() {
            let _ = write!(out, "<th>{}{}</th>", patch(index), escape(&run.name));
        }
        out.push_str("</tr></thead>");
    }
    for key in SETTINGS {
        let values: Vec<Option<String>> = runs.iter().map(|run| run.setting(key)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let differs = values.iter().any(|value| *value != values[0]);
        let _ = write!(out, "<tr{}><th>{key}</th>", if differs { " class=\"differs\"" } else { "" });
        for value in values {
            let _ = write!(out, "<td>{}</td>", escape(value.as_deref().unwrap_or("–")));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    for run in runs {
        let (name, config) = (escape(&run.name), escape(&run.config));
        let _ = writeln!(out, "<details><summary>{name}/config.toml</summary><pre>{config}</pre></details>");
    }
    out
}

/// The look of the page.
const STYLE: &str = include_str!("style.css");
