//! The Pareto plot: accuracy against mean response tokens, from the start through every low and high.

use super::{
    Run,
    axis::{Axis, range},
    budget::grid,
    short_name,
    svg::{Font, GRID, INK, MUTED, Point, Svg, colour, dash, text_width},
    table::cells,
};
use crate::metrics::EvalRow;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 28.0;
const BOTTOM: f64 = HEIGHT - 52.0;
/// Up to this many runs every point is labelled; beyond it only the last low and high, or the labels cover the points.
const ALL_LABELS: usize = 3;

/// Draws the evaluations of `runs` on the data set `data` as an SVG document. Bars are ± one standard error.
pub fn pareto_svg(runs: &[Run], data: &str) -> String {
    let paths: Vec<Vec<&EvalRow>> = runs.iter().map(|run| marks(run, data)).collect();
    let legend = Legend::new(runs);
    let top = 66.0 + 20.0 * legend.lines as f64;
    let mut svg = Svg::new(WIDTH, HEIGHT, "accuracy against mean response tokens");
    svg.text((LEFT - 40.0, 24.0), "Accuracy against response length", Font::title());
    svg.text((RIGHT, 24.0), &format!("{data} · bars: ± one standard error"), Font::note("end"));
    legend.draw(&mut svg);

    let rows = || paths.iter().flatten();
    let Some((tokens, accuracy)) = extent(rows().flat_map(|row| [tokens_bar(row), tokens_bar(row)]).flatten())
        .zip(extent(rows().flat_map(|row| accuracy_bar(row))))
    else {
        svg.text((WIDTH / 2.0, HEIGHT / 2.0), "no evaluation yet", Font::note("middle"));
        return svg.finish();
    };
    let across = Axis::new(tokens, 7, (LEFT, RIGHT));
    let up = Axis::new(accuracy, 6, (BOTTOM, top));
    for tick in across.ticks() {
        svg.line((across.at(tick), top), (across.at(tick), BOTTOM), GRID, 1.0);
    }
    grid(&mut svg, &across, &up, (LEFT, RIGHT, BOTTOM));
    let axis_font = Font { colour: INK, ..Font::note("start") };
    svg.text((LEFT - 40.0, top - 14.0), "accuracy, % (higher is better)", axis_font);
    let below = ((LEFT + RIGHT) / 2.0, HEIGHT - 12.0);
    svg.text(below, "mean response tokens (fewer is better)", Font { anchor: "middle", ..axis_font });

    let place = |row: &EvalRow| (across.at(row.response_tokens), up.at(100.0 * row.pass_at_1));
    let mut taken = Taken::new((LEFT, RIGHT), (top, BOTTOM));
    for (index, path) in paths.iter().enumerate() {
        draw_bars(&mut svg, path, &across, &up, colour(index), &mut taken);
        let points: Vec<Point> = path.iter().map(|row| place(row)).collect();
        for ends in points.windows(2) {
            arrow(&mut svg, ends[0], ends[1], index);
            taken.line(ends[0], ends[1], 1);
        }
    }
    for (index, path) in paths.iter().enumerate() {
        for row in path {
            let [name, accuracy, _, tokens, _, cut] = cells(row, path[0]);
            let tip = format!("{} · {name}: {accuracy} %, {tokens} tokens, {cut} cut off", runs[index].name);
            svg.marker(place(row), 7.0, &row.name, colour(index), &tip);
            taken.disc(place(row));
        }
    }
    for (index, path) in paths.iter().enumerate() {
        for row in labelled(path, runs.len()) {
            label(&mut svg, &short_name(&row.name), place(row), colour(index), &mut taken);
        }
    }
    svg.finish()
}

/// The start, the lows and the highs of a run, in order.
fn marks<'a>(run: &'a Run, data: &str) -> Vec<&'a EvalRow> {
    let is_mark = |name: &str| name == "start" || name.ends_with("-low") || name.ends_with("-high");
    run.evals_on(data).into_iter().filter(|row| is_mark(&row.name)).collect()
}

/// The rows of a path that get a label.
fn labelled<'a>(path: &[&'a EvalRow], runs: usize) -> Vec<&'a EvalRow> {
    if runs <= ALL_LABELS {
        return path.to_vec();
    }
    let last = |end: &str| path.iter().rev().find(|row| row.name.ends_with(end)).copied();
    [last("-low"), last("-high")].into_iter().flatten().collect()
}

fn tokens_bar(row: &EvalRow) -> [f64; 2] {
    [row.response_tokens - row.response_tokens_se, row.response_tokens + row.response_tokens_se]
}

fn accuracy_bar(row: &EvalRow) -> [f64; 2] {
    [row.pass_at_1 - row.pass_at_1_se, row.pass_at_1 + row.pass_at_1_se].map(|share| 100.0 * share)
}

/// The range of values, a little widened so that markers and labels at its ends have room.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = range(values)?;
    let room = 0.04 * (high - low);
    Some(((low - room).max(0.0), high + room))
}

/// Error bars in both directions, thin, under the paths.
fn draw_bars(svg: &mut Svg, path: &[&EvalRow], across: &Axis, up: &Axis, colour: &str, taken: &mut Taken) {
    for row in path {
        let (x, y) = (across.at(row.response_tokens), up.at(100.0 * row.pass_at_1));
        let [left, right] = tokens_bar(row).map(|tokens| across.at(tokens));
        let [low, high] = accuracy_bar(row).map(|accuracy| up.at(accuracy));
        for ends in [[(left, y), (right, y)], [(x, low), (x, high)]] {
            svg.polyline(&ends, colour, 1.2, " stroke-opacity=\"0.55\"");
            taken.line(ends[0], ends[1], 1);
        }
        for (x, y, across) in [(x, low, 4.0), (x, high, 4.0), (left, y, 0.0), (right, y, 0.0)] {
            let down = 4.0 - across;
            svg.polyline(&[(x - across, y - down), (x + across, y + down)], colour, 1.2, " stroke-opacity=\"0.55\"");
        }
    }
}

/// A line with its head just past the middle, where no marker hides it.
fn arrow(svg: &mut Svg, from: Point, to: Point, index: usize) {
    svg.polyline(&[from, to], colour(index), 1.8, &format!("{} stroke-opacity=\"0.8\"", dash(index)));
    let (along, down) = (to.0 - from.0, to.1 - from.1);
    let length = along.hypot(down);
    // A line that the two markers nearly fill has no room for a head.
    if length < 34.0 {
        return;
    }
    let (along, down) = (along / length, down / length);
    let tip = (from.0 + along * (length * 0.5 + 6.0), from.1 + down * (length * 0.5 + 6.0));
    let back = (tip.0 - 10.0 * along, tip.1 - 10.0 * down);
    let corners = [tip, (back.0 - 4.0 * down, back.1 + 4.0 * along), (back.0 + 4.0 * down, back.1 - 4.0 * along)];
    svg.polygon(&corners, colour(index), "");
}

/// Writes `text` beside a point, on the side where it covers least.
fn label(svg: &mut Svg, text: &str, (x, y): Point, colour: &str, taken: &mut Taken) {
    let (width, size) = (text_width(text, 12.0), 12.0);
    let mut best: Option<(usize, [f64; 4])> = None;
    for distance in [11.0, 18.0, 28.0] {
        for (across, down) in
            [(1.0, 0.0), (-1.0, 0.0), (0.8, -1.0), (0.8, 1.0), (-0.8, -1.0), (-0.8, 1.0), (0.0, -1.0), (0.0, 1.0)]
        {
            let left = x + distance * across + width * (across.signum() * f64::from(across != 0.0) - 1.0) / 2.0;
            let middle = y + distance * 1.1 * down;
            let frame = [left, middle - size / 2.0, left + width, middle + size / 2.0];
            let cost = taken.cost(frame) + distance as usize / 4;
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, frame));
            }
        }
    }
    if let Some((_, frame)) = best {
        let font = Font { size, colour, anchor: "middle", strong: true };
        svg.text(((frame[0] + frame[2]) / 2.0, frame[3] - 1.5), text, font);
        taken.text(frame);
    }
}

/// What is drawn already, as weighted points, for labels to keep clear of.
struct Taken {
    across: (f64, f64),
    down: (f64, f64),
    points: Vec<(Point, usize)>,
    texts: Vec<[f64; 4]>,
}

impl Taken {
    fn new(across: (f64, f64), down: (f64, f64)) -> Self {
        Self { across, down, points: Vec::new(), texts: Vec::new() }
    }

    fn line(&mut self, from: Point, to: Point, weight: usize) {
        let pieces = ((to.0 - from.0).hypot(to.1 - from.1) / 4.0).ceil().max(1.0);
        for piece in 0..=pieces as usize {
            let share = piece as f64 / pieces;
            self.points.push(((from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1)), weight));
        }
    }

    fn disc(&mut self, (x, y): Point) {
        for (across, down) in [(0.0, 0.0), (6.0, 0.0), (-6.0, 0.0), (0.0, 6.0), (0.0, -6.0)] {
            self.points.push(((x + across, y + down), 12));
        }
    }

    fn text(&mut self, frame: [f64; 4]) {
        self.texts.push(frame);
    }

    /// How much a text in `frame` (left, top, right, bottom) would cover or stick out.
    fn cost(&self, frame: [f64; 4]) -> usize {
        let [left, top, right, bottom] = frame;
        let covered: usize = self
            .points
            .iter()
            .filter(|((x, y), _)| left - 2.0 < *x && *x < right + 2.0 && top - 2.0 < *y && *y < bottom + 2.0)
            .map(|(_, weight)| weight)
            .sum();
        let over = |other: &[f64; 4]| left < other[2] && other[0] < right && top < other[3] && other[1] < bottom;
        let texts = self.texts.iter().filter(|other| over(other)).count();
        let outside = left < self.across.0 || right > self.across.1 || top < self.down.0 || bottom > self.down.1;
        covered + 60 * texts + 500 * usize::from(outside)
    }
}

/// The names of the runs in their colours, and what the shapes mean.
struct Legend<'a> {
    /// Position of the left edge, line, name, index of the run.
    entries: Vec<(f64, usize, &'a str, usize)>,
    lines: usize,
}

impl<'a> Legend<'a> {
    fn new(runs: &'a [Run]) -> Self {
        let (mut x, mut line) = (LEFT - 40.0, 1);
        let mut entries = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let width = 46.0 + text_width(&run.name, 12.0);
            if x > LEFT && x + width > RIGHT {
                (x, line) = (LEFT - 40.0, line + 1);
            }
            entries.push((x, line, run.name.as_str(), index));
            x += width;
        }
        // A single run is named by the page or the folder around the picture.
        if runs.len() == 1 {
            entries.clear();
        }
        Self { lines: if entries.is_empty() { 0 } else { line }, entries }
    }

    fn draw(&self, svg: &mut Svg) {
        for &(x, line, name, index) in &self.entries {
            let y = 28.0 + 20.0 * line as f64;
            svg.polyline(&[(x, y - 4.0), (x + 22.0, y - 4.0)], colour(index), 3.0, &dash(index));
            svg.text((x + 29.0, y), name, Font { colour: INK, ..Font::note("start") });
        }
        let y = 52.0 + 20.0 * self.lines as f64;
        let shapes = [("start", "start"), ("-low", "end of compression"), ("-high", "end of cycle")];
        let width = |meaning: &str| 27.0 + text_width(meaning, 12.0);
        let mut x = RIGHT - shapes.iter().map(|(_, meaning)| width(meaning)).sum::<f64>() + 16.0;
        for (name, meaning) in shapes {
            svg.marker((x, y - 4.0), 6.0, name, MUTED, "");
            svg.text((x + 11.0, y), meaning, Font::note("start"));
            x += width(meaning);
        }
    }
}
