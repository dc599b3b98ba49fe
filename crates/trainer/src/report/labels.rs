//! Labels beside points: each goes to the side on which it covers least of what is drawn already.

use super::svg::{Font, Point, Svg, text_width};

/// Writes `text` beside a point, on the side where it covers least.
pub(super) fn label(svg: &mut Svg, text: &str, (x, y): Point, colour: &str, taken: &mut Taken) {
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
pub(super) struct Taken {
    across: (f64, f64),
    down: (f64, f64),
    points: Vec<(Point, usize)>,
    texts: Vec<[f64; 4]>,
}

impl Taken {
    /// Nothing yet, in a frame of pixels that labels should not leave.
    pub(super) fn new(across: (f64, f64), down: (f64, f64)) -> Self {
        Self { across, down, points: Vec::new(), texts: Vec::new() }
    }

    /// A line is there; each four pixels of it weigh `weight`.
    pub(super) fn line(&mut self, from: Point, to: Point, weight: usize) {
        let pieces = ((to.0 - from.0).hypot(to.1 - from.1) / 4.0).ceil().max(1.0);
        for piece in 0..=pieces as usize {
            let share = piece as f64 / pieces;
            self.points.push(((from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1)), weight));
        }
    }

    /// A marker is there.
    pub(super) fn disc(&mut self, (x, y): Point) {
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
