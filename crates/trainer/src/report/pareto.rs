//! The Pareto plot: accuracy against mean response tokens, from the start through every low and high.

use super::{
    Run,
    axis::{Axis, range},
    budget::grid,
    labels::{Taken, label},
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

/// A point of the plot.
#[derive(Debug, Clone)]
pub struct Spot {
    /// The evaluation, which gives the marker its shape: `start`, `...-low`, `...-high`; any other is a disc.
    pub name: String,
    /// What is written beside it.
    pub label: Option<String>,
    /// Accuracy and its standard error, percent.
    pub accuracy: (f64, f64),
    /// Mean response tokens and their standard error.
    pub tokens: (f64, f64),
    /// What appears where a pointer rests on it.
    pub tip: String,
}

/// Points in a colour of their own, joined by arrows in their order.
#[derive(Debug, Clone)]
pub struct Series {
    /// What the legend calls them.
    pub name: String,
    /// Whether the legend names them; their labels may do.
    pub in_legend: bool,
    /// The points.
    pub spots: Vec<Spot>,
}

/// Draws the evaluations of `runs` on the data set `data` as an SVG document. Bars are ± one standard error.
pub fn pareto_svg(runs: &[Run], data: &str) -> String {
    let series: Vec<Series> = runs
        .iter()
        .map(|run| {
            let path = marks(run, data);
            let labelled = labelled(&path, runs.len());
            let spot = |row: &&EvalRow| {
                let [name, accuracy, _, tokens, _, cut] = cells(row, path[0]);
                Spot {
                    name: row.name.clone(),
                    label: labelled.iter().any(|other| std::ptr::eq(*other, *row)).then(|| short_name(&row.name)),
                    accuracy: (100.0 * row.pass_at_1, 100.0 * row.pass_at_1_se.unwrap_or(0.0)),
                    tokens: (row.response_tokens, row.response_tokens_se.unwrap_or(0.0)),
                    tip: format!("{} · {name}: {accuracy} %, {tokens} tokens, {cut} cut off", run.name),
                }
            };
            // A single run is named by the page or the folder around the picture.
            Series { name: run.name.clone(), in_legend: runs.len() > 1, spots: path.iter().map(spot).collect() }
        })
        .collect();
    pareto_plot(&series, &format!("{data} · bars: ± one standard error"))
}

/// Draws accuracy against mean response tokens as an SVG document; `note` stands beside the title.
pub fn pareto_plot(series: &[Series], note: &str) -> String {
    let legend = Legend::new(series);
    let top = 66.0 + 20.0 * legend.lines as f64;
    let mut svg = Svg::new(WIDTH, HEIGHT, "accuracy against mean response tokens");
    svg.text((LEFT - 40.0, 24.0), "Accuracy against response length", Font::title());
    svg.text((RIGHT, 24.0), note, Font::note("end"));
    legend.draw(&mut svg);

    let spots = || series.iter().flat_map(|series| &series.spots);
    let Some((tokens, accuracy)) =
        extent(spots().flat_map(|spot| bar(spot.tokens))).zip(extent(spots().flat_map(|spot| bar(spot.accuracy))))
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

    let place = |spot: &Spot| (across.at(spot.tokens.0), up.at(spot.accuracy.0));
    let mut taken = Taken::new((LEFT, RIGHT), (top, BOTTOM));
    for (index, series) in series.iter().enumerate() {
        draw_bars(&mut svg, &series.spots, &across, &up, colour(index), &mut taken);
        let points: Vec<Point> = series.spots.iter().map(place).collect();
        for ends in points.windows(2) {
            arrow(&mut svg, ends[0], ends[1], index);
            taken.line(ends[0], ends[1], 1);
        }
    }
    for (index, series) in series.iter().enumerate() {
        for spot in &series.spots {
            svg.marker(place(spot), 7.0, &spot.name, colour(index), &spot.tip);
            taken.disc(place(spot));
        }
    }
    for (index, series) in series.iter().enumerate() {
        for spot in &series.spots {
            if let Some(text) = &spot.label {
                label(&mut svg, text, place(spot), colour(index), &mut taken);
            }
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

/// The ends of an error bar.
fn bar((value, error): (f64, f64)) -> [f64; 2] {
    [value - error, value + error]
}

/// The range of values, a little widened so that markers and labels at its ends have room.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = range(values)?;
    let room = 0.04 * (high - low);
    Some(((low - room).max(0.0), high + room))
}

/// Error bars in both directions, thin, under the paths.
fn draw_bars(svg: &mut Svg, spots: &[Spot], across: &Axis, up: &Axis, colour: &str, taken: &mut Taken) {
    for spot in spots {
        let (x, y) = (across.at(spot.tokens.0), up.at(spot.accuracy.0));
        let [left, right] = bar(spot.tokens).map(|tokens| across.at(tokens));
        let [low, high] = bar(spot.accuracy).map(|accuracy| up.at(accuracy));
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

/// The names of the series in their colours, and what the shapes mean.
struct Legend<'a> {
    /// Position of the left edge, line, name, index of the series.
    entries: Vec<(f64, usize, &'a str, usize)>,
    lines: usize,
    /// The shapes that are explained: a name that has the shape, and its meaning.
    shapes: Vec<(&'static str, &'static str)>,
}

impl<'a> Legend<'a> {
    fn new(series: &'a [Series]) -> Self {
        let (mut x, mut line) = (LEFT - 40.0, 1);
        let mut entries = Vec::new();
        for (index, series) in series.iter().enumerate().filter(|(_, series)| series.in_legend) {
            let width = 46.0 + text_width(&series.name, 12.0);
            if x > LEFT && x + width > RIGHT {
                (x, line) = (LEFT - 40.0, line + 1);
            }
            entries.push((x, line, series.name.as_str(), index));
            x += width;
        }
        let mut shapes = vec![("start", "start"), ("-low", "end of compression"), ("-high", "end of cycle")];
        if series.iter().flat_map(|series| &series.spots).any(|spot| spot.name == "end") {
            shapes.push(("end", "end of run"));
        }
        Self { lines: if entries.is_empty() { 0 } else { line }, entries, shapes }
    }

    fn draw(&self, svg: &mut Svg) {
        for &(x, line, name, index) in &self.entries {
            let y = 28.0 + 20.0 * line as f64;
            svg.polyline(&[(x, y - 4.0), (x + 22.0, y - 4.0)], colour(index), 3.0, &dash(index));
            svg.text((x + 29.0, y), name, Font { colour: INK, ..Font::note("start") });
        }
        let y = 52.0 + 20.0 * self.lines as f64;
        let width = |meaning: &str| 27.0 + text_width(meaning, 12.0);
        let mut x = RIGHT - self.shapes.iter().map(|(_, meaning)| width(meaning)).sum::<f64>() + 16.0;
        for &(name, meaning) in &self.shapes {
            svg.marker((x, y - 4.0), 6.0, name, MUTED, "");
            svg.text((x + 11.0, y), meaning, Font::note("start"));
            x += width(meaning);
        }
    }
}
