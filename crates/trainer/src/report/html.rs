//! The report as one HTML page that needs nothing beside itself.

use std::fmt::Write;

use super::{
    Run,
    axis::number,
    curves, data_names,
    pareto::pareto_svg,
    samples::Sample,
    svg::{colour, escape},
    table::{HEADS, cells, signed},
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
         <title>{title} · Bellows report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p class=\"brand\">Bellows report</p><h1>{title}</h1>\n{}</header>\n",
        headlines(runs),
        title = escape(&title),
    );
    for name in &data {
        let table = (heading("Results", name, &data), results(runs, name));
        let plot = (String::new(), figure(&pareto_svg(runs, name)));
        // The rows of several runs fill a screen: the picture goes first then.
        let order = if runs.len() > 1 { [plot, table] } else { [table, plot] };
        order.iter().for_each(|(heading, body)| section(&mut page, heading, body));
    }
    let (wide, narrow) = curves::panels(runs, data.first().map(String::as_str));
    let mut body = legend(runs);
    wide.iter().for_each(|svg| body.push_str(&figure(svg)));
    let grid: String = narrow.iter().map(|svg| figure(svg)).collect();
    let _ = writeln!(body, "<div class=\"grid\">{grid}</div>");
    body.push_str("<p class=\"note\">Shaded steps are compress phases. Faint lines are single steps.</p>\n");
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

/// A patch of the colour of run `index`.
fn patch(index: usize) -> String {
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

fn headline(evals: &[EvalRow], steps: usize) -> String {
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
    let mut out = String::from("<div class=\"scroll\"><table class=\"figures\"><thead><tr>");
    let more = ["pass@k", "waits", "step", "rollout tokens"];
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
            let tail = [pass, waits, row.step.to_string(), number(row.tokens_total as f64, 0)];
            for cell in figures.iter().chain(&tail) {
                let _ = write!(out, "<td>{}</td>", escape(cell));
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody>");
    }
    out.push_str("</table></div>\n");
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
        .map(|row| format!("{} problems, each answered {}", row.problems, times(row.samples)))
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

/// The pairs of responses of every run; those of further runs are folded away.
fn responses(runs: &[Run]) -> String {
    let mut out = String::new();
    for (index, run) in runs.iter().enumerate() {
        let mut body = String::new();
        for pair in &run.samples {
            let same = pair.before.prompt == pair.after.prompt;
            body.push_str("<div class=\"pair\">");
            for sample in [&pair.before, &pair.after] {
                body.push_str(&response(sample));
            }
            body.push_str("</div>\n");
            if !same {
                body.push_str("<p class=\"note\">These two answer different problems.</p>");
            }
        }
        if body.is_empty() {
            body.push_str("<p class=\"note\">No responses from two different steps were kept.</p>\n");
        }
        if runs.len() > 1 {
            let open = if index == 0 { " open" } else { "" };
            let (patch, name) = (patch(index), escape(&run.name));
            let _ = writeln!(out, "<details{open}><summary>{patch}{name}</summary>{body}</details>");
        } else {
            out.push_str(&body);
        }
    }
    out.push_str(
        "<p class=\"note\">The first and the last response to a problem that the run kept, not picked by how they turned out.</p>",
    );
    out
}

fn response(sample: &Sample) -> String {
    format!(
        "<article><h3>step {} <span class=\"note\">reward {}, {}, {} characters</span></h3>\
         <pre class=\"prompt\">{}</pre><pre>{}</pre></article>",
        sample.step,
        signed(sample.reward, 1),
        escape(&sample.finish),
        number(sample.response.chars().count() as f64, 0),
        escape(&sample.prompt),
        escape(&sample.response),
    )
}

/// The look of the page.
const STYLE: &str = "
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f2f4f7; color: #1c2330; font: 15px/1.5 Inter, system-ui, -apple-system, 'Segoe UI',
  Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 64px; }
header { padding: 0 4px 12px; }
.brand { margin: 0; color: #5c6675; font-size: 13px; letter-spacing: .04em; }
h1 { margin: 0 0 8px; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 12px; font-size: 18px; }
h3 { margin: 0 0 8px; font-size: 14px; }
.lead { margin: 2px 0; }
section { background: #fff; border: 1px solid #e1e5eb; border-radius: 10px; padding: 20px; margin: 0 0 16px; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; max-width: 960px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
table.figures { width: 100%; }
th { font-weight: 600; color: #5c6675; font-size: 12.5px; }
th, td { padding: 6px 10px; border-bottom: 1px solid #e9ecf1; white-space: nowrap; }
table.figures th, table.figures td { text-align: right; }
table.figures .name { text-align: left; }
table.figures td.run { vertical-align: top; font-weight: 600; white-space: normal; overflow-wrap: anywhere; }
table.figures tbody + tbody tr:first-child td { border-top: 2px solid #d5dae2; }
table.settings th, table.settings td { text-align: left; padding: 4px 14px 4px 0; }
.differs td { font-weight: 600; }
.note { color: #5c6675; font-size: 13px; font-weight: 400; margin: 10px 0 0; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; font-size: 14px; }
.patch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 12px; margin-bottom: 16px; }
article { min-width: 0; }
pre { margin: 0; padding: 10px 12px; background: #f6f7f9; border: 1px solid #e9ecf1; border-radius: 6px; max-height: 420px;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 12.5px/1.45 ui-monospace, 'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace; }
pre.prompt { background: #eaf0f9; border-color: #d8e2f1; margin-bottom: 6px; }
details { margin: 10px 0 0; }
summary { cursor: pointer; margin-bottom: 8px; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 8px 0; } }
";
