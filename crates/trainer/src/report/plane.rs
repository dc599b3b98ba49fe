//! What the Pareto plot draws between its axes: error bars, paths, markers and labels.

use super::{
    axis::Axis,
    labels::{Taken, label},
    pareto::{Series, Spot},
    svg::{Marker, Point, Shape, Svg, colour, dash},
};

/// Pixels below which two points of a series share a label: no place would tell apart which is meant.
const COINCIDE: f64 = 6.0;
/// Pixels below which two markers cover each other.
const COVERED: f64 = 14.0;

/// Two axes that give every spot its place.
pub(super) struct Plane {
    /// Mean response tokens.
    pub(super) across: Axis,
    /// Accuracy, percent.
    pub(super) up: Axis,
}

impl Plane {
    /// The pixel of a spot.
    pub(super) fn place(&self, spot: &Spot) -> Point {
        (self.across.at(spot.tokens.0), self.up.at(spot.accuracy.0))
    }

    /// Draws everything but the labels, and remembers where.
    pub(super) fn draw(&self, svg: &mut Svg, series: &[Series], taken: &mut Taken) {
        for (index, series) in series.iter().enumerate() {
            self.bars(svg, &series.spots, colour(index), taken);
            let points: Vec<Point> = series.spots.iter().map(|spot| self.place(spot)).collect();
            for ends in points.windows(2) {
                arrow(svg, ends[0], ends[1], index);
                taken.line(ends[0], ends[1], 1);
            }
        }
        // The first series is what the picture is about: no other covers it.
        let spots = series.iter().enumerate().rev().flat_map(|(i, one)| one.spots.iter().map(move |spot| (i, spot)));
        let markers: Vec<Marker> = spots
            .map(|(index, spot)| Marker {
                at: self.place(spot),
                radius: 7.0,
                shape: Shape::of(&spot.name, index),
                colour: colour(index),
                tip: &spot.tip,
            })
            .collect();
        svg.markers(&markers);
        markers.iter().for_each(|marker| taken.disc(marker.at));
    }

    /// Writes the labels of the points that are `wanted`.
    pub(super) fn label(&self, svg: &mut Svg, series: &[Series], taken: &mut Taken, wanted: impl Fn(Point) -> bool) {
        for (index, series) in series.iter().enumerate() {
            let labels = series.spots.iter().filter_map(|spot| Some((self.place(spot), spot.label.clone()?)));
            for (point, text) in merged(labels.filter(|(point, _)| wanted(*point))) {
                label(svg, &text, point, colour(index), taken);
            }
        }
    }

    /// The points of the largest group of markers that cover each other, one by the other; none where all stand apart.
    pub(super) fn crowd(&self, series: &[Series]) -> Vec<Point> {
        let mut left: Vec<Point> =
            series.iter().flat_map(|series| &series.spots).map(|spot| self.place(spot)).collect();
        let mut largest = Vec::new();
        while let Some(first) = left.pop() {
            let mut group = vec![first];
            let mut next = 0;
            while let Some(&(x, y)) = group.get(next) {
                let (near, far) = left.iter().partition(|(a, b)| (a - x).hypot(b - y) < COVERED);
                left = far;
                group.extend::<Vec<Point>>(near);
                next += 1;
            }
            if group.len() > largest.len().max(1) {
                largest = group;
            }
        }
        largest
    }

    /// Error bars in both directions, thin, under the paths.
    fn bars(&self, svg: &mut Svg, spots: &[Spot], colour: &str, taken: &mut Taken) {
        for spot in spots {
            let (x, y) = self.place(spot);
            let [left, right] = bar(spot.tokens).map(|tokens| self.across.at(tokens));
            let [low, high] = bar(spot.accuracy).map(|accuracy| self.up.at(accuracy));
            let bars = [
                (spot.tokens.1, [(left, y), (right, y)], (0.0, 4.0)),
                (spot.accuracy.1, [(x, low), (x, high)], (4.0, 0.0)),
            ];
            for (_, ends, (across, down)) in bars.into_iter().filter(|(error, ..)| error.is_some()) {
                svg.polyline(&ends, colour, 1.2, " stroke-opacity=\"0.55\"");
                taken.line(ends[0], ends[1], 1);
                for (x, y) in ends {
                    let cap = [(x - across, y - down), (x + across, y + down)];
                    svg.polyline(&cap, colour, 1.2, " stroke-opacity=\"0.55\"");
                }
            }
        }
    }
}

/// The labels of points that coincide as one, at the first of them.
fn merged(labels: impl Iterator<Item = (Point, String)>) -> Vec<(Point, String)> {
    let mut merged: Vec<(Point, String)> = Vec::new();
    for ((x, y), text) in labels {
        match merged.iter_mut().find(|(other, _)| (other.0 - x).hypot(other.1 - y) < COINCIDE) {
            Some((_, texts)) => *texts = format!("{texts}, {text}"),
            None => merged.push(((x, y), text)),
        }
    }
    merged
}

/// The ends of an error bar; the value itself where there is none.
pub(super) fn bar((value, error): (f64, Option<f64>)) -> [f64; 2] {
    let error = error.unwrap_or(0.0);
    [value - error, value + error]
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

#[cfg(test)]
mod tests {
    use super::*;

    fn plane() -> Plane {
        let axis = || Axis::new((0.0, 100.0), 5, (0.0, 100.0));
        Plane { across: axis(), up: axis() }
    }

    #[test]
    fn labels_of_points_that_coincide_are_one() {
        let apart = [((0.0, 0.0), "a".to_string()), ((COINCIDE + 0.1, 0.0), "b".into()), ((0.0, 3.0), "c".into())];
        let texts: Vec<String> = merged(apart.into_iter()).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["a, c", "b"]);
    }

    #[test]
    fn a_crowd_is_the_largest_group_of_neighbours() {
        let at = |points: &[Point]| {
            let spots = points.iter().map(|&(x, y)| Spot {
                name: "end".into(),
                label: None,
                accuracy: (y, None),
                tokens: (x, None),
                tip: String::new(),
            });
            vec![Series { name: "one".into(), in_legend: false, spots: spots.collect() }]
        };
        // The third is near the second only, the fourth and fifth are a smaller group, the sixth stands alone.
        let points = [(10.0, 10.0), (20.0, 10.0), (30.0, 10.0), (60.0, 60.0), (61.0, 60.0), (90.0, 10.0)];
        let mut crowd = plane().crowd(&at(&points));
        crowd.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert_eq!(crowd, points[..3]);
        assert!(plane().crowd(&at(&points[4..])).is_empty() && plane().crowd(&[]).is_empty());
    }
}
