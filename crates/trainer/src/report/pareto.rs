//! The Pareto plot: accuracy against mean response tokens, from the start through every low and high.

use super::{
    Run,
    axis::{Axis, range},
    budget::grid,
    enlarged::Enlarged,
    labels::Taken,
    plane::{Plane, bar},
    short_name,
    svg::{Font, GRID, INK, MUTED, Marker, Shape, Svg, colour, dash, text_width},
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
    /// The evaluation, which gives the marker its shape: `start`, `...-low`, `...-high`; any other has that of its
    /// series.
    pub name: String,
    /// What is written beside it.
    pub label: Option<String>,
    /// Accuracy and its standard error where it is known, percent.
    pub accuracy: (f64, Option<f64>),
    /// Mean response tokens and their standard error where it is known.
    pub tokens: (f64, Option<f64>),
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
                    accuracy: (100.0 * row.pass_at_1, row.pass_at_1_se.map(|error| 100.0 * error)),
                    tokens: (row.response_tokens, row.response_tokens_se),
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

    let plane = Plane { across, up };
    let frame = [LEFT, top, RIGHT, BOTTOM];
    let mut taken = Taken::new((LEFT, RIGHT), (top, BOTTOM));
    plane.draw(&mut svg, series, &mut taken);
    let crowd = plane.crowd(series);
    let enlarged = Enlarged::of(&crowd, &plane, series, frame, &taken);
    if let Some(enlarged) = &enlarged {
        enlarged.draw(&mut svg, series, &mut taken);
    }
    plane.label(&mut svg, series, &mut taken, |point| enlarged.is_none() || !crowd.contains(&point));
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

/// The range of values, a little widened so that markers and labels at its ends have room.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = range(values)?;
    let room = 0.04 * (high - low);
    Some(((low - room).max(0.0), high + room))
}

/// The names of the series in their colours, and what the shapes mean.
struct Legend<'a> {
    /// Position of the left edge, line, index of the series, the series.
    entries: Vec<(f64, usize, usize, &'a Series)>,
    lines: usize,
    /// The shapes that all series share, and their meanings.
    shapes: [(Shape, &'static str); 3],
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
            entries.push((x, line, index, series));
            x += width;
        }
        let shapes = [(Shape::Ring, "start"), (Shape::Down, "end of compression"), (Shape::Up, "end of cycle")];
        Self { lines: if entries.is_empty() { 0 } else { line }, entries, shapes }
    }

    fn draw(&self, svg: &mut Svg) {
        for &(x, line, index, series) in &self.entries {
            let y = 28.0 + 20.0 * line as f64;
            match series.spots.as_slice() {
                [spot] => {
                    let (at, shape) = ((x + 11.0, y - 4.0), Shape::of(&spot.name, index));
                    svg.markers(&[Marker { at, radius: 6.0, shape, colour: colour(index), tip: "" }]);
                }
                _ => svg.polyline(&[(x, y - 4.0), (x + 22.0, y - 4.0)], colour(index), 3.0, &dash(index)),
            }
            svg.text((x + 29.0, y), &series.name, Font { colour: INK, ..Font::note("start") });
        }
        let y = 52.0 + 20.0 * self.lines as f64;
        let width = |meaning: &str| 27.0 + text_width(meaning, 12.0);
        let mut x = RIGHT - self.shapes.iter().map(|(_, meaning)| width(meaning)).sum::<f64>() + 16.0;
        for (shape, meaning) in self.shapes {
            svg.markers(&[Marker { at: (x, y - 4.0), radius: 6.0, shape, colour: MUTED, tip: "" }]);
            svg.text((x + 11.0, y), meaning, Font::note("start"));
            x += width(meaning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(name: &str, accuracy: (f64, Option<f64>), tokens: (f64, Option<f64>)) -> Spot {
        Spot { name: name.into(), label: Some(short_name(name)), accuracy, tokens, tip: String::new() }
    }

    fn series(name: &str, spots: Vec<Spot>) -> Series {
        Series { name: name.into(), in_legend: true, spots }
    }

    /// The last low and high of a study, a third of a percent apart, where the start is far away.
    fn crowded() -> Vec<Series> {
        let error = |error| Some(error);
        let path = vec![
            spot("start", (57.3, error(0.3)), (277.2, error(1.9))),
            spot("cycle-3-low", (79.3, error(0.5)), (163.0, error(1.8))),
            spot("cycle-3-high", (79.6, error(0.5)), (162.7, error(2.8))),
        ];
        let end = |accuracy, tokens| vec![spot("end", (accuracy, error(0.9)), (tokens, error(3.2)))];
        vec![series("SIRI", path), series("stair", end(78.8, 156.7)), series("staged", end(79.6, 162.2))]
    }

    #[test]
    fn a_crowd_is_drawn_again_where_its_points_can_be_told_apart() {
        let text = pareto_plot(&crowded(), "");
        assert_eq!(
            [">enlarged</text>", ">low 3</text>", ">high 3</text>"].map(|one| text.matches(one).count()),
            [1; 3]
        );
        assert!(text.contains(">start</text>") && !text.contains("low 3, high 3"));
        // Without a start far away there is nothing to enlarge.
        let mut near = crowded();
        near.truncate(1);
        near[0].spots.remove(0);
        assert!(!pareto_plot(&near, "").contains(">enlarged</text>"));
    }

    #[test]
    fn every_series_has_a_legend_entry_a_colour_and_a_shape_and_the_first_is_on_top() {
        let text = pareto_plot(&crowded(), "");
        for (index, name) in ["SIRI", "stair", "staged"].into_iter().enumerate() {
            assert!(text.contains(&format!(">{name}</text>")) && text.contains(colour(index)), "{name}");
        }
        let (square, diamond) = (Shape::of("end", 1), Shape::of("end", 2));
        assert!(square != diamond && ![Shape::Ring, Shape::Down, Shape::Up].contains(&square));
        let last = |colour: &str| text.rfind(&format!("fill=\"{colour}\" fill-opacity")).unwrap();
        assert!(last(colour(0)) > last(colour(1)) && last(colour(0)) > last(colour(2)));
    }

    #[test]
    fn an_unknown_error_has_no_bar() {
        let of = |error| vec![series("one", vec![spot("start", (50.0, error), (300.0, error))])];
        let bars = |text: &str| text.matches("stroke-opacity=\"0.55\"").count();
        assert_eq!(bars(&pareto_plot(&of(Some(2.0)), "")), 6, "two bars with two caps each");
        let none = pareto_plot(&of(None), "");
        assert!(bars(&none) == 0 && !none.contains("NaN"), "{none}");
    }
}
