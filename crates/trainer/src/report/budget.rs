//! The picture of a schedule: the budget of every step over its phases.

use schedule::{Budget, Phase};

use super::{
    axis::{Axis, number},
    svg::{AREA, BAND, Font, GRID, INK, Point, RULE, Svg, colour},
};

/// Draws the budget over the steps of the run, with the compress phases shaded, as an SVG document.
pub fn budget_svg(budget: &Budget) -> String {
    let (width, height) = (960.0, 360.0);
    let (left, right, top, bottom) = (64.0, width - 20.0, 64.0, height - 48.0);
    let steps = budget.total_steps();
    let across = Axis::exact((0.0, steps as f64), 8, (left, right));
    let up = Axis::new((0.0, budget.largest() as f64), 5, (bottom, top));
    let settings = budget.settings();
    let mut svg = Svg::new(width, height, "budget over steps");

    svg.text((left, 24.0), &format!("Budget: {}", settings.kind), Font::title());
    let note = format!(
        "{} × {} steps, {} to {} response tokens",
        settings.cycles,
        settings.cycle_steps,
        number(budget.smallest() as f64, 0),
        number(budget.largest() as f64, 0)
    );
    svg.text((right, 24.0), &note, Font::note("end"));
    for (start, end, phase) in phases(budget) {
        let (start, end) = (across.at(start as f64), across.at(end as f64));
        if phase == Phase::Compress {
            svg.rectangle((start, top), (end, bottom), BAND);
        }
        // Narrow phases go without their names; the shade tells them apart.
        if end - start > 58.0 {
            svg.text(((start + end) / 2.0, top - 8.0), phase.name(), Font::note("middle"));
        }
    }
    let edge = stairs((0..steps).map(|step| (step as f64, budget.length(step) as f64)), &across, &up, 0.0);
    let mut area = edge.clone();
    area.extend([(right, bottom), (left, bottom)]);
    svg.polygon(&area, AREA, " fill-opacity=\"0.75\"");
    grid(&mut svg, &across, &up, (left, right, bottom));
    svg.polyline(&edge, colour(0), 2.0, "");
    svg.text(((left + right) / 2.0, height - 10.0), "step", Font { colour: INK, ..Font::note("middle") });
    svg.finish()
}

/// The phases of the run in order: first step, the step after the last, phase.
fn phases(budget: &Budget) -> Vec<(usize, usize, Phase)> {
    let mut start = 0;
    let mut phases = Vec::new();
    for mark in budget.marks() {
        phases.push((start, mark.low, Phase::Compress));
        if mark.high > mark.low {
            phases.push((mark.low, mark.high, Phase::Expand));
        }
        start = mark.high;
    }
    phases
}

/// A line that holds each value for a whole step, from `shift` before its place to one step later.
pub(super) fn stairs(values: impl Iterator<Item = (f64, f64)>, across: &Axis, up: &Axis, shift: f64) -> Vec<Point> {
    values
        .flat_map(|(step, value)| {
            let (start, end) = (across.at(step - shift), across.at(step - shift + 1.0));
            [(start, up.at(value)), (end, up.at(value))]
        })
        .collect()
}

/// Horizontal grid lines with their labels, and the step axis with its own.
pub(super) fn grid(svg: &mut Svg, across: &Axis, up: &Axis, (left, right, bottom): (f64, f64, f64)) {
    for tick in up.ticks() {
        let y = up.at(tick);
        svg.line((left, y), (right, y), GRID, 1.0);
        svg.text((left - 8.0, y + 4.0), &up.label(tick), Font::note("end"));
    }
    svg.line((left, bottom), (right, bottom), RULE, 1.0);
    for tick in across.ticks() {
        let x = across.at(tick);
        svg.line((x, bottom), (x, bottom + 4.0), RULE, 1.0);
        svg.text((x, bottom + 18.0), &across.label(tick), Font::note("middle"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_tile_the_run() {
        let settings = schedule::Settings {
            kind: schedule::Kind::Cosine,
            cycles: 2,
            cycle_steps: 3,
            l_max: 9,
            l_min: 3,
            stages: Vec::new(),
        };
        let budget = Budget::new(&settings).unwrap();
        let expected = [(0, 2, Phase::Compress), (2, 3, Phase::Expand), (3, 5, Phase::Compress), (5, 6, Phase::Expand)];
        assert_eq!(phases(&budget), expected);
        let shortest = Budget::new(&schedule::Settings { cycle_steps: 1, ..settings }).unwrap();
        assert_eq!(phases(&shortest), [(0, 1, Phase::Compress), (1, 2, Phase::Compress)]);
        assert!(budget_svg(&shortest).starts_with("<svg"));
    }
}
