//! Curves over the steps of a run: the budget with the response length over it, accuracy, truncation and health figures.

use schedule::Phase;

use super::{
    Run,
    axis::{Axis, range},
    budget::{grid, stairs},
    short_name,
    svg::{AREA, AREA_EDGE, BAND, Font, INK, Marker, Point, Shape, Svg, colour, dash},
};
use crate::metrics::{EvalRow, StepRow, plus_minus};

/// A figure of an evaluation and its standard error, where that is known.
type EvalFigure = fn(&EvalRow) -> (f64, Option<f64>);

/// What one panel shows.
struct Panel {
    title: &'static str,
    note: String,
    width: f64,
    height: f64,
    /// Values that the vertical axis includes whatever the data.
    include: &'static [f64],
    /// A figure of a step; `None` leaves a gap in the curve.
    step: fn(&StepRow) -> Option<f64>,
    /// What the points over the curve show.
    eval: Option<EvalFigure>,
    /// Whether the budget is the background.
    budget: bool,
}

/// All panels as SVG documents, the wide ones first: two wide, then six narrow. `data` is the data set whose evaluations
/// are drawn over the curves.
pub(super) fn panels(runs: &[Run], data: Option<&str>) -> (Vec<String>, Vec<String>) {
    let window = window(runs);
    let smoothed = if window > 1 { format!("mean over {window} steps") } else { String::new() };
    let wide = |title, include, step, eval, budget, note| Panel {
        title,
        note,
        width: 960.0,
        height: 344.0,
        include,
        step,
        eval: Some(eval),
        budget,
    };
    let narrow = |title, step| Panel {
        title,
        note: smoothed.clone(),
        width: 472.0,
        height: 254.0,
        include: &[0.0],
        step,
        eval: None,
        budget: false,
    };
    let budget = if budgets(runs).1.is_some() { "grey" } else { "dashed" };
    let points = "points: evaluation ± one standard error";
    let first = [
        wide(
            "Response tokens over the budget",
            &[0.0],
            |row| Some(row.response_tokens),
            |row| (row.response_tokens, row.response_tokens_se),
            true,
            format!("{budget}: budget · line: mean response in training · {points}"),
        ),
        wide(
            "Accuracy, %",
            &[],
            |row| Some(100.0 * row.accuracy),
            |row| (100.0 * row.pass_at_1, row.pass_at_1_se.map(|error| 100.0 * error)),
            false,
            format!("line: training within the budget, {smoothed} · {points}").replace(",  ·", " ·"),
        ),
    ];
    let second = [
        narrow("Cut off at the budget, %", |row| Some(100.0 * row.truncated)),
        narrow("Entropy, nats a token", |row| Some(row.learning.entropy)),
        narrow("KL from the reference, nats a token", |row| row.learning.kl),
        narrow("Clipped ratios, % of tokens", |row| Some(100.0 * row.learning.clip_fraction)),
        narrow("Gradient norm before clipping", |row| Some(row.learning.grad_norm)),
        narrow("Log-prob gap, sampler to trainer, nats", |row| Some(row.learning.logprob_gap)),
    ];
    let draw = |panel: &Panel| panel.draw(runs, data);
    (first.iter().map(draw).collect(), second.iter().map(draw).collect())
}

impl Panel {
    fn draw(&self, runs: &[Run], data: Option<&str>) -> String {
        let (left, right, top, bottom) = (56.0, self.width - 16.0, 46.0, self.height - 48.0);
        let mut svg = Svg::new(self.width, self.height, self.title);
        svg.text((left - 40.0, 22.0), self.title, Font::title());
        svg.text((right, 22.0), &self.note, Font { size: 11.5, ..Font::note("end") });

        let evals: Vec<Vec<&EvalRow>> =
            runs.iter().map(|run| data.map_or(Vec::new(), |data| run.evals_on(data))).collect();
        let last_step = runs.iter().filter_map(|run| run.steps.last()).map(|row| row.step).max().unwrap_or(1);
        let across = Axis::exact((0.0, last_step as f64), if self.width > 600.0 { 10 } else { 6 }, (left, right));
        let Some(extent) = range(self.values(runs, &evals)) else {
            svg.text((self.width / 2.0, self.height / 2.0), "not tracked", Font::note("middle"));
            return svg.finish();
        };
        let up = Axis::new(extent, if self.height > 300.0 { 5 } else { 4 }, (bottom, top));
        bands(&mut svg, runs, &across, (top, bottom));
        if self.budget {
            draw_budgets(&mut svg, runs, &across, &up, bottom);
        }
        grid(&mut svg, &across, &up, (left, right, bottom));
        let below = ((left + right) / 2.0, self.height - 10.0);
        svg.text(below, "step", Font { colour: INK, ..Font::note("middle") });
        for (index, run) in runs.iter().enumerate() {
            self.curve(&mut svg, run, index, &across, &up);
        }
        if let Some(figure) = self.eval {
            for (index, rows) in evals.iter().enumerate() {
                // Runs are evaluated at the same steps: side by side, their bars can be told apart.
                let aside = (index as f64 - (runs.len() - 1) as f64 / 2.0) * (28.0 / runs.len() as f64).min(6.0);
                for row in rows {
                    let x = across.at(row.step as f64) + aside;
                    point(&mut svg, row, figure(row), index, (x, &up));
                }
            }
        }
        svg.finish()
    }

    /// Every value that has to fit on the vertical axis.
    fn values<'a>(&'a self, runs: &'a [Run], evals: &'a [Vec<&EvalRow>]) -> impl Iterator<Item = f64> + 'a {
        let rows = || runs.iter().flat_map(|run| &run.steps);
        let measured = rows().filter_map(self.step);
        let budgets = rows().filter(|_| self.budget).map(|row| row.budget as f64);
        let bars = evals.iter().flatten().filter_map(|row| Some((self.eval?)(row)));
        let data = measured.chain(budgets).chain(bars.flat_map(|(value, error)| ends(value, error)));
        let mut data = data.peekable();
        // Bounds of the axis alone are nothing to draw.
        let include: &[f64] = if data.peek().is_some() { self.include } else { &[] };
        data.chain(include.iter().copied())
    }

    /// The figures of one run: faint as they are, strong smoothed. The budget's panel is not smoothed, since its point is
    /// how the length follows the budget.
    fn curve(&self, svg: &mut Svg, run: &Run, index: usize, across: &Axis, up: &Axis) {
        let values: Vec<(f64, f64)> =
            run.steps.iter().filter_map(|row| Some((row.step as f64, (self.step)(row)?))).collect();
        let window = if self.budget { 1 } else { smoothing(values.len()) };
        let place = |values: &[(f64, f64)]| -> Vec<Point> {
            values.iter().map(|&(step, value)| (across.at(step), up.at(value))).collect()
        };
        if window > 1 {
            svg.polyline(&place(&values), colour(index), 1.0, " stroke-opacity=\"0.28\"");
        }
        svg.polyline(&place(&smooth(&values, window)), colour(index), 2.0, &dash(index));
    }
}

/// One evaluation at pixel `x`: its bar and its marker.
fn point(svg: &mut Svg, row: &EvalRow, (value, error): (f64, Option<f64>), index: usize, (x, up): (f64, &Axis)) {
    if error.is_some() {
        let [low, high] = ends(value, error).map(|value| up.at(value));
        svg.line((x, low), (x, high), colour(index), 1.2);
        for y in [low, high] {
            svg.line((x - 3.5, y), (x + 3.5, y), colour(index), 1.2);
        }
    }
    let tip = format!("{} · step {}: {value:.1}{}", short_name(&row.name), row.step, plus_minus(error, 1));
    let (shape, colour) = (Shape::of(&row.name, 0), colour(index));
    svg.markers(&[Marker { at: (x, up.at(value)), radius: 5.5, shape, colour, tip: &tip }]);
}

/// The ends of an error bar; the value itself where the error is not known.
fn ends(value: f64, error: Option<f64>) -> [f64; 2] {
    let error = error.unwrap_or(0.0);
    [value - error, value + error]
}

/// Shades the compress phases, where all runs have theirs at the same steps.
fn bands(svg: &mut Svg, runs: &[Run], across: &Axis, (top, bottom): (f64, f64)) {
    let Some(longest) = runs.iter().max_by_key(|run| run.steps.len()) else { return };
    let agrees = |run: &Run| {
        run.steps.iter().zip(&longest.steps).all(|(row, other)| (row.step, row.phase) == (other.step, other.phase))
    };
    if !runs.iter().all(agrees) {
        return;
    }
    for phase in longest.steps.chunk_by(|row, next| row.phase == next.phase) {
        if let ([first, ..], [.., last]) = (phase, phase)
            && first.phase == Phase::Compress
        {
            let (start, end) = (across.at(first.step as f64 - 1.0), across.at(last.step as f64));
            svg.rectangle((start, top), (end, bottom), BAND);
        }
    }
}

/// The budget of every step, as `(step, budget)`.
type Budgets = Vec<(usize, usize)>;

/// The budgets of each run, and the longest of them where all the others are its beginning.
fn budgets(runs: &[Run]) -> (Vec<Budgets>, Option<Budgets>) {
    let lengths = |run: &Run| run.steps.iter().map(|row| (row.step, row.budget)).collect();
    let all: Vec<Budgets> = runs.iter().map(lengths).collect();
    let longest = all.iter().max_by_key(|lengths| lengths.len());
    let shared = longest.filter(|longest| all.iter().all(|lengths| longest.starts_with(lengths))).cloned();
    (all, shared)
}

/// The budget as an area. Equal budgets share a grey one; different ones get an edge in the colour of their run, over
/// areas so faint that all of them together stay in the background.
fn draw_budgets(svg: &mut Svg, runs: &[Run], across: &Axis, up: &Axis, bottom: f64) {
    let (all, shared) = budgets(runs);
    let is_shared = shared.is_some();
    let faint = format!(" fill-opacity=\"{:.3}\"", 0.12 / all.len() as f64);
    for (index, lengths) in shared.map_or(all, |longest| vec![longest]).iter().enumerate() {
        // The budget of row `step` held while the step before it was the last one done.
        let edge = stairs(lengths.iter().map(|&(step, budget)| (step as f64, budget as f64)), across, up, 1.0);
        let ([first, ..], [.., last]) = (edge.as_slice(), edge.as_slice()) else { continue };
        let area: Vec<Point> = edge.iter().copied().chain([(last.0, bottom), (first.0, bottom)]).collect();
        if is_shared {
            svg.polygon(&area, AREA, "");
            svg.polyline(&edge, AREA_EDGE, 1.2, "");
        } else {
            svg.polygon(&area, colour(index), &faint);
            svg.polyline(&edge, colour(index), 1.0, " stroke-opacity=\"0.6\" stroke-dasharray=\"3 3\"");
        }
    }
}

/// Over how many steps the curves of `runs` are smoothed, at the most; where it is one, single steps are what is drawn.
pub(super) fn window(runs: &[Run]) -> usize {
    runs.iter().map(|run| smoothing(run.steps.len())).max().unwrap_or(1)
}

/// How many steps a smoothed point is the mean of: about a twentieth of the run, odd.
fn smoothing(steps: usize) -> usize {
    (steps / 20) | 1
}

/// Means over a window centred on each value; near the ends the window shrinks on both sides, so that it stays centred.
fn smooth(values: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    (0..values.len())
        .map(|index| {
            let reach = (window / 2).min(index).min(values.len() - 1 - index);
            let near = &values[index - reach..=index + reach];
            (values[index].0, near.iter().map(|(_, value)| value).sum::<f64>() / near.len() as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_is_centred_and_keeps_the_ends() {
        let values = [(1.0, 0.0), (2.0, 3.0), (3.0, 6.0), (4.0, 0.0)];
        assert_eq!(smooth(&values, 3), [(1.0, 0.0), (2.0, 3.0), (3.0, 3.0), (4.0, 0.0)]);
        assert_eq!(smooth(&values, 1), values);
        assert_eq!(smooth(&[], 3), []);
    }

    #[test]
    fn windows_are_odd() {
        assert_eq!([0, 19, 40, 72, 1920].map(smoothing), [1, 1, 3, 3, 97]);
    }
}
