//! Labels beside points: each goes where it covers least of what is drawn already, and a line leads to its point where
//! it does not stand right beside it.

use super::svg::{Font, Frame, Point, Svg, text_width};

/// Height of a label's text.
const SIZE: f64 = 12.0;
/// How far a marker reaches from its point.
const MARKER: f64 = 8.5;
/// Distances from the point that are tried, nearest first.
const DISTANCES: [f64; 7] = [11.0, 18.0, 28.0, 40.0, 54.0, 70.0, 88.0];
/// Directions that are tried: beside the point first, which reads best.
const DIRECTIONS: [Point; 12] = [
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.8, -1.0),
    (0.8, 1.0),
    (-0.8, -1.0),
    (-0.8, 1.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (1.0, -0.5),
    (1.0, 0.5),
    (-1.0, -0.5),
    (-1.0, 0.5),
];

/// Writes `text` for a point where it covers least, with a line to the point unless it is right beside it.
pub(super) fn label(svg: &mut Svg, text: &str, point: Point, colour: &str, taken: &mut Taken) {
    let mut best: Option<(usize, Frame)> = None;
    for (index, distance) in DISTANCES.into_iter().enumerate() {
        for direction in DIRECTIONS {
            let frame = frame(text_width(text, SIZE), point, direction, distance);
            let led = leader(point, frame).map_or(0, |(from, to)| taken.crossed(from, to));
            let cost = taken.cost(frame) + led + 3 * index;
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, frame));
            }
        }
    }
    let Some((_, frame)) = best else { return };
    if let Some((from, to)) = leader(point, frame) {
        svg.polyline(&[from, to], colour, 1.0, "");
        taken.line(from, to, 2);
    }
    let font = Font { size: SIZE, colour, anchor: "middle", strong: true };
    svg.text(((frame[0] + frame[2]) / 2.0, frame[3] - 1.5), text, font);
    taken.text(frame);
}

/// Where a text stands (left, top, right, bottom) that is `distance` from a point in a direction.
fn frame(width: f64, (x, y): Point, (across, down): Point, distance: f64) -> Frame {
    let beside = if across == 0.0 { 0.0 } else { across.signum() };
    let left = x + distance * across + width * (beside - 1.0) / 2.0;
    let middle = y + distance * 1.1 * down;
    [left, middle - SIZE / 2.0, left + width, middle + SIZE / 2.0]
}

/// The line from the rim of a marker to a text; `None` where the text is so near that nothing fits between.
fn leader((x, y): Point, [left, top, right, bottom]: Frame) -> Option<(Point, Point)> {
    let end = (x.clamp(left, right), y.clamp(top, bottom));
    let (across, down) = (end.0 - x, end.1 - y);
    let length = across.hypot(down);
    let rim = MARKER / length;
    (length > 2.0 * MARKER).then_some(((x + rim * across, y + rim * down), end))
}

/// What is drawn already, as weighted points, for labels to keep clear of.
pub(super) struct Taken {
    across: (f64, f64),
    down: (f64, f64),
    points: Vec<(Point, usize)>,
    texts: Vec<Frame>,
}

impl Taken {
    /// Nothing yet, in a frame of pixels that labels should not leave.
    pub(super) fn new(across: (f64, f64), down: (f64, f64)) -> Self {
        Self { across, down, points: Vec::new(), texts: Vec::new() }
    }

    /// A line is there; each four pixels of it weigh `weight`.
    pub(super) fn line(&mut self, from: Point, to: Point, weight: usize) {
        self.points.extend(pieces(from, to).map(|point| (point, weight)));
    }

    /// A marker is there.
    pub(super) fn disc(&mut self, (x, y): Point) {
        for (across, down) in [(0.0, 0.0), (6.0, 0.0), (-6.0, 0.0), (0.0, 6.0), (0.0, -6.0)] {
            self.points.push(((x + across, y + down), 12));
        }
    }

    /// A text is there, or something else that no text should cover.
    pub(super) fn text(&mut self, frame: Frame) {
        self.texts.push(frame);
    }

    /// Whether nothing is in `frame`, and it lies within.
    pub(super) fn is_free(&self, frame: Frame) -> bool {
        self.cost(frame) == 0
    }

    /// How much a text in `frame` (left, top, right, bottom) would cover or stick out.
    fn cost(&self, frame: Frame) -> usize {
        let [left, top, right, bottom] = frame;
        let covered: usize = self
            .points
            .iter()
            .filter(|((x, y), _)| left - 2.0 < *x && *x < right + 2.0 && top - 2.0 < *y && *y < bottom + 2.0)
            .map(|(_, weight)| weight)
            .sum();
        let over = |other: &Frame| left < other[2] && other[0] < right && top < other[3] && other[1] < bottom;
        let texts = self.texts.iter().filter(|other| over(other)).count();
        let outside = left < self.across.0 || right > self.across.1 || top < self.down.0 || bottom > self.down.1;
        covered + 60 * texts + 500 * usize::from(outside)
    }

    /// How much a leader would cross; a crossed line is a nuisance, a crossed marker or text misleads.
    fn crossed(&self, from: Point, to: Point) -> usize {
        let near = |point: Point| {
            let (across, down) = (to.0 - from.0, to.1 - from.1);
            let square = across * across + down * down;
            let along = (((point.0 - from.0) * across + (point.1 - from.1) * down) / square).clamp(0.0, 1.0);
            (from.0 + along * across - point.0).hypot(from.1 + along * down - point.1) < 2.0
        };
        let points: usize = self.points.iter().filter(|(point, _)| near(*point)).map(|(_, weight)| weight).sum();
        let inside = |(x, y): Point, [left, top, right, bottom]: Frame| {
            left - 2.0 < x && x < right + 2.0 && top - 2.0 < y && y < bottom + 2.0
        };
        let texts = self.texts.iter().filter(|frame| pieces(from, to).any(|point| inside(point, **frame))).count();
        points + 60 * texts
    }
}

/// Points along a line, every four pixels or nearer.
fn pieces(from: Point, to: Point) -> impl Iterator<Item = Point> {
    let count = ((to.0 - from.0).hypot(to.1 - from.1) / 4.0).ceil().max(1.0);
    (0..=count as usize).map(move |piece| {
        let share = piece as f64 / count;
        (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_right_beside_its_point_has_no_leader() {
        let (mut svg, mut taken) = (Svg::new(200.0, 100.0, "x"), Taken::new((0.0, 200.0), (0.0, 100.0)));
        taken.disc((50.0, 50.0));
        label(&mut svg, "low 1", (50.0, 50.0), "red", &mut taken);
        assert_eq!(taken.texts.len(), 1);
        let text = svg.finish();
        assert!(text.contains(">low 1</text>") && !text.contains("<path"), "{text}");
    }

    #[test]
    fn a_label_that_has_to_stand_apart_is_led_to_its_point() {
        let (mut svg, mut taken) = (Svg::new(400.0, 400.0, "x"), Taken::new((0.0, 400.0), (0.0, 400.0)));
        let point = (200.0, 200.0);
        for across in -4..=4 {
            for down in -4..=4 {
                taken.disc((point.0 + 10.0 * f64::from(across), point.1 + 10.0 * f64::from(down)));
            }
        }
        label(&mut svg, "low 1", point, "red", &mut taken);
        let frame = taken.texts[0];
        let (from, to) = leader(point, frame).unwrap();
        assert!((from.0 - point.0).hypot(from.1 - point.1) < MARKER + 0.1, "it begins at the marker");
        assert!(to.0 >= frame[0] && to.0 <= frame[2] && to.1 >= frame[1] && to.1 <= frame[3], "it ends at the text");
        assert!(svg.finish().contains("<path"));
    }
}
