//! The tables and the picture of a study.

use std::fmt::Write;

use super::{
    figures::{END, Figure, Row, Study},
    plan::Curriculum,
};
use crate::{
    config::Config,
    metrics::plus_minus,
    report::{Series, Spot, pareto_plot, short_name},
};

/// The result as Markdown.
pub fn markdown(study: &Study, config: &Config) -> String {
    let mut out = String::new();
    siri(&mut out, study);
    schedules(&mut out, study);
    against(&mut out, study);
    let measured = study.runs.iter().flat_map(|run| &run.evals).next();
    if let Some(row) = measured {
        let _ = writeln!(
            out,
            "\n{} held-out problems ({}), {} at temperature {}, at most {} tokens. {}",
            row.problems,
            row.data,
            if row.samples == 1 { "one response each".into() } else { format!("{} responses each", row.samples) },
            config.evaluate.temperature,
            config.evaluate.max_tokens.unwrap_or(config.schedule.l_max),
            errors(study)
        );
    }
    for note in &study.notes {
        let _ = writeln!(out, "\nNote: {note}.");
    }
    for missing in &study.missing {
        let _ = writeln!(out, "\n**Missing**: {}: {}", missing.name, missing.reason);
    }
    out
}

/// What ± means.
fn errors(study: &Study) -> String {
    let largest = study.schedules.iter().map(|row| row.seeds).max().unwrap_or(0);
    let smallest = study.schedules.iter().map(|row| row.seeds).min().unwrap_or(0);
    let over_seeds = "±: one standard error over seeds; changes are paired by seed.";
    match (smallest, largest) {
        (_, 0 | 1) => "One seed: ± is one standard error over problems and says nothing of other seeds.".into(),
        (1, _) => format!("{over_seeds} Where there is one seed, ± is over problems."),
        _ => over_seeds.into(),
    }
}

/// SIRI seed by seed, and the mean.
fn siri(out: &mut String, study: &Study) {
    let last = study.cycles;
    let marks = [format!("cycle-{last}-low"), format!("cycle-{last}-high")];
    let row_of = |name: &str| study.siri.iter().find(|row| row.checkpoint == name);
    let (Some(start), [Some(low), Some(high)]) = (row_of("start"), [row_of(&marks[0]), row_of(&marks[1])]) else {
        return;
    };
    let _ = writeln!(
        out,
        "SIRI (cosine), accuracy % / tokens:\n\n| seed | start | low {last} | change | high {last} | change |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |"
    );
    for run in study.siri_runs() {
        let (Some(start), [Some(low), Some(high)]) = (run.eval("start"), [run.eval(&marks[0]), run.eval(&marks[1])])
        else {
            continue;
        };
        let at = |row: &crate::metrics::EvalRow| format!("{:.1} / {:.0}", 100.0 * row.pass_at_1, row.response_tokens);
        let change = |row: &crate::metrics::EvalRow| {
            format!(
                "{} pt / {}%",
                signed(100.0 * (row.pass_at_1 - start.pass_at_1), 1),
                signed(100.0 * (row.response_tokens / start.response_tokens - 1.0), 1)
            )
        };
        let (low_change, high_change) = (change(low), change(high));
        let _ = writeln!(
            out,
            "| {} | {} | {} | {low_change} | {} | {high_change} |",
            run.seed,
            at(start),
            at(low),
            at(high)
        );
    }
    let at = |row: &Row| format!("**{} / {}**", plain(row.accuracy, 1), plain(row.tokens, 1));
    let change = |row: &Row| format!("**{} pt / {}%**", change(row.accuracy_change, 1), change(row.tokens_change, 1));
    let (low_change, high_change) = (change(low), change(high));
    let _ = writeln!(out, "| mean | {} | {} | {low_change} | {} | {high_change} |\n", at(start), at(low), at(high));
}

/// Every schedule's checkpoints, one a line.
fn schedules(out: &mut String, study: &Study) {
    if study.schedules.is_empty() {
        out.push_str("There is no complete run.\n");
        return;
    }
    let _ = writeln!(
        out,
        "Schedules at equal rollout tokens:\n\n\
         | schedule | at | accuracy % | change, pt | tokens | change, % | cut off | \"wait\"s | steps | rollout tokens | seeds |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for row in &study.schedules {
        let is_start = row.checkpoint == "start";
        let against_start = |figure: Figure| if is_start { String::new() } else { change(figure, 1) };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {:.0}% | {} | {:.0} | {:.2}M | {} |",
            if is_start { "all" } else { row.schedule.name() },
            place(row, study.cycles),
            plain(row.accuracy, 1),
            against_start(row.accuracy_change),
            plain(row.tokens, 1),
            against_start(row.tokens_change),
            row.truncated,
            row.markers_per_response.map_or(String::new(), |count| format!("{count:.1}")),
            row.steps,
            row.rollout_tokens / 1e6,
            row.seeds
        );
    }
}

/// SIRI's end is the last high, and the tables call it so.
fn place(row: &Row, cycles: usize) -> String {
    match (row.schedule, row.checkpoint.as_str()) {
        (Curriculum::Cosine, END) => format!("high {cycles}"),
        (_, name) => short_name(name),
    }
}

/// SIRI's end against every other.
fn against(out: &mut String, study: &Study) {
    if study.against.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\nSIRI (cosine) at its end less each schedule at its end, paired by seed:\n\n\
         | schedule | accuracy, pt | tokens, % | seeds |\n| --- | ---: | ---: | ---: |"
    );
    for row in &study.against {
        let (accuracy, tokens) = (change(row.accuracy, 1), change(row.tokens, 1));
        let _ = writeln!(out, "| {} | {accuracy} | {tokens} | {} |", row.schedule.name(), row.seeds);
    }
}

fn plain(figure: Figure, decimals: usize) -> String {
    format!("{:.decimals$}{}", figure.mean, plus_minus(figure.se, decimals))
}

fn change(figure: Figure, decimals: usize) -> String {
    format!("{}{}", signed(figure.mean, decimals), plus_minus(figure.se, decimals))
}

/// With its sign, and a real minus; a rounded zero has none.
fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    match text.chars().any(|digit| ('1'..='9').contains(&digit)) {
        true if value < 0.0 => format!("−{text}"),
        true => format!("+{text}"),
        false => text,
    }
}

/// SIRI's path and the ends of the others as an SVG document.
pub fn pareto(study: &Study, config: &Config) -> String {
    let spot = |row: &Row, label: String| Spot {
        name: row.checkpoint.clone(),
        tip: format!(
            "{} · {}: {} %, {} tokens, seeds: {}",
            row.schedule.name(),
            short_name(&row.checkpoint),
            plain(row.accuracy, 1),
            plain(row.tokens, 1),
            row.seeds
        ),
        label: Some(label),
        accuracy: (row.accuracy.mean, row.accuracy.se),
        tokens: (row.tokens.mean, row.tokens.se),
    };
    let path = study.siri.iter().map(|row| spot(row, short_name(&row.checkpoint))).collect();
    let mut series = vec![Series { name: "SIRI (cosine)".into(), in_legend: true, spots: path }];
    for row in study.schedules.iter().filter(|row| row.schedule != Curriculum::Cosine && row.checkpoint == END) {
        let name = row.schedule.name();
        series.push(Series { name: name.into(), in_legend: true, spots: vec![spot(row, name.into())] });
    }
    let seeds = study.siri.first().map_or(0, |row| row.seeds);
    let over = if seeds < 2 { "problems, one seed".into() } else { format!("{seeds} seeds") };
    let ends = if series.len() > 1 { " · other schedules: at their end" } else { "" };
    pareto_plot(&series, &format!("{} · bars: ± one standard error over {over}{ends}", config.data.eval))
}

#[cfg(test)]
mod tests {
    use super::super::{execute::Missing, figures::tests::study};
    use super::*;

    #[test]
    fn the_tables_hold_the_figures() {
        let missing = vec![Missing { name: "linear-seed-2".into(), reason: "the disk is full".into() }];
        let (study, config) = study(
            &[
                (Curriculum::Cosine, 1, (0.6, 240.0)),
                (Curriculum::Cosine, 2, (0.8, 180.0)),
                (Curriculum::Staged, 1, (0.45, 300.0)),
                (Curriculum::Staged, 2, (0.65, 300.0)),
                (Curriculum::Linear, 1, (0.5, 300.0)),
            ],
            missing,
        );
        let text = markdown(&study, &config);
        for line in [
            "| 1 | 50.0 / 300 | 55.0 / 220 | +5.0 pt / −26.7% | 60.0 / 240 | +10.0 pt / −20.0% |",
            "| **50.0 ± 0.0 / 300.0 ± 0.0** |",
            "| **70.0 ± 10.0 / 210.0 ± 30.0** | **+20.0 ± 10.0 pt / −30.0 ± 10.0%** |",
            "| all | start | 50.0 ± 0.0 |  | 300.0 ± 0.0 |  | 25% | 4.5 | 0 | 0.00M | 2 |",
            "| cosine | high 1 | 70.0 ± 10.0 | +20.0 ± 10.0 |",
            "| staged | end | 55.0 ± 10.0 | +5.0 ± 10.0 | 300.0 ± 0.0 | 0.0 ± 0.0 | 25% | 4.5 | 2 | 0.12M | 2 |",
            "| staged | +15.0 ± 0.0 | −30.0 ± 10.0 | 2 |",
            "500 held-out problems (countdown), one response each at temperature 1, at most 448 tokens.",
            "over seeds; changes are paired by seed. Where there is one seed, ± is over problems.",
            "**Missing**: linear-seed-2: the disk is full",
        ] {
            assert!(text.contains(line), "{line}\nis missing from\n{text}");
        }
        let columns = |line: &str| line.matches('|').count();
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            assert!(table.lines().all(|line| columns(line) == columns(table.lines().next().unwrap())), "{table}");
        }
    }

    #[test]
    fn one_seed_is_said() {
        let (study, config) = study(&[(Curriculum::Cosine, 1, (0.6, 240.0))], vec![]);
        let text = markdown(&study, &config);
        assert!(text.contains("One seed: ± is one standard error over problems"), "{text}");
        assert!(pareto(&study, &config).contains("over problems, one seed"));
    }

    #[test]
    fn a_study_without_runs_is_not_an_error() {
        let (study, config) = study(&[], vec![]);
        assert!(markdown(&study, &config).contains("no complete run"));
        assert!(pareto(&study, &config).contains("no evaluation yet"));
    }

    #[test]
    fn signs_are_those_of_what_is_written() {
        assert_eq!([signed(-0.04, 1), signed(0.06, 1), signed(-2.25, 1)], ["0.0", "+0.1", "−2.2"]);
    }
}
