//! The markers of evaluations: a shape for what each is, or for whose it is.

use super::svg::{Point, path};

/// What a marker looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The start.
    Ring,
    /// A low: a triangle that points down.
    Down,
    /// A high: a triangle that points up.
    Up,
    /// Any other evaluation of the first run.
    Disc,
    /// Of the second.
    Square,
    /// Of the third.
    Diamond,
    /// Of the fourth.
    Plus,
    /// Of the fifth.
    Cross,
    /// Of the sixth.
    Hexagon,
}

impl Shape {
    /// The shape of an evaluation by its name, and where that says nothing by the index of its run.
    pub(super) fn of(name: &str, index: usize) -> Self {
        const OTHERS: [Shape; 6] =
            [Shape::Disc, Shape::Square, Shape::Diamond, Shape::Plus, Shape::Cross, Shape::Hexagon];
        match name {
            "start" => Self::Ring,
            name if name.ends_with("-low") => Self::Down,
            name if name.ends_with("-high") => Self::Up,
            _ => OTHERS[index % OTHERS.len()],
        }
    }

    /// Its corners around the point for a radius of 1; `None` where it is round.
    pub(super) fn corners(self) -> Option<&'static [Point]> {
        Some(match self {
            Self::Ring | Self::Disc => return None,
            Self::Down => &[(-1.0, -0.65), (1.0, -0.65), (0.0, 1.05)],
            Self::Up => &[(-1.0, 0.65), (1.0, 0.65), (0.0, -1.05)],
            Self::Square => &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
            Self::Diamond => &[(0.0, -1.15), (1.0, 0.0), (0.0, 1.15), (-1.0, 0.0)],
            Self::Plus => &[
                (-0.35, -1.0),
                (0.35, -1.0),
                (0.35, -0.35),
                (1.0, -0.35),
                (1.0, 0.35),
                (0.35, 0.35),
                (0.35, 1.0),
                (-0.35, 1.0),
                (-0.35, 0.35),
                (-1.0, 0.35),
                (-1.0, -0.35),
                (-0.35, -0.35),
            ],
            Self::Cross => &[
                (-1.0, -0.55),
                (-0.55, -1.0),
                (0.0, -0.45),
                (0.55, -1.0),
                (1.0, -0.55),
                (0.45, 0.0),
                (1.0, 0.55),
                (0.55, 1.0),
                (0.0, 0.45),
                (-0.55, 1.0),
                (-1.0, 0.55),
                (-0.45, 0.0),
            ],
            Self::Hexagon => &[(-1.0, 0.0), (-0.5, -0.87), (0.5, -0.87), (1.0, 0.0), (0.5, 0.87), (-0.5, 0.87)],
        })
    }
}

/// A marker of an evaluation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marker<'a> {
    /// Its middle.
    pub(super) at: Point,
    /// About half of its width.
    pub(super) radius: f64,
    /// What it looks like.
    pub(super) shape: Shape,
    /// Its colour.
    pub(super) colour: &'a str,
    /// What appears where a pointer rests on it, if anything.
    pub(super) tip: &'a str,
}

impl Marker<'_> {
    /// The beginning of its element, as far as its form.
    pub(super) fn outline(&self) -> String {
        let &Self { at: (x, y), radius, shape, .. } = self;
        let Some(corners) = shape.corners() else {
            return format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\"", 0.85 * radius);
        };
        let corners: Vec<Point> =
            corners.iter().map(|(across, down)| (x + radius * across, y + radius * down)).collect();
        format!("<path d=\"{}Z\"", path(&corners))
    }
}
