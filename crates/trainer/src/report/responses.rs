//! The sample responses of a report, early beside late.

use std::fmt::Write;

use super::{Run, axis::number, html::patch, samples::Sample, svg::escape, table::signed};

/// The pairs of responses of every run; those of further runs are folded away.
pub(super) fn responses(runs: &[Run]) -> String {
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

/// How a response ended, in words.
fn ended(finish: &str) -> &str {
    match finish {
        "stop" => "complete",
        "length" => "cut off",
        other => other,
    }
}

fn response(sample: &Sample) -> String {
    // Runs of older programs did not count the tokens.
    let length = match sample.tokens {
        Some(tokens) => format!("{} tokens", number(tokens as f64, 0)),
        None => format!("{} characters", number(sample.response.chars().count() as f64, 0)),
    };
    format!(
        "<article><h3>step {} <span class=\"note\">reward {} · {} · {}</span></h3>\
         <pre class=\"prompt\">{}</pre><pre>{}</pre></article>",
        number(sample.step as f64, 0),
        signed(sample.reward, 1),
        escape(ended(&sample.finish)),
        length,
        escape(&sample.prompt),
        escape(&sample.response),
    )
}
