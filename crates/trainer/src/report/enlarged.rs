//! The part of the Pareto plot where markers cover each other, drawn again in a free corner and larger.

use super::{
    axis::{Axis, range},
    budget::grid,
    labels::Taken,
    pareto::Series,
    plane::{Plane, bar},
    svg::{Font, Frame, GRID, PAPER, Point, RULE, Svg},
};

/// Sizes that the enlarged part may have, its ticks included; the largest with a free corner is taken.
const SIZES: [(f64, f64); 4] = [(352.0, 232.0), (320.0, 208.0), (288.0, 184.0), (256.0, 160.0)];
/// Room for the ticks on the left and below, and for the title above.
const LEFT: f64 = 42.0;
const BELOW: f64 = 26.0;
const ABOVE: f64 = 24.0;
/// Between the enlarged part and the edges of the plot.
const ASIDE: f64 = 10.0;
/// Room around the markers and error bars that are enlarged.
const AROUND: f64 = 5.0;
/// Below this many times as large, nothing becomes clearer.
const WORTH: f64 = 2.0;

/// A part of the plot and the place of its enlargement.
pub(super) struct Enlarged {
    /// What is enlarged.
    part: Frame,
    /// Where it goes.
    frame: Frame,
    plane: Plane,
}

impl Enlarged {
    /// The enlargement of the `crowd` of points in a `plane` with the frame `all`; `None` where there is no crowd, it is
    /// large already, or no corner is free.
    pub(super) fn of(crowd: &[Point], plane: &Plane, series: &[Series], all: Frame, taken: &Taken) -> Option<Self> {
        let spots: Vec<_> =
            series.iter().flat_map(|series| &series.spots).filter(|spot| crowd.contains(&plane.place(spot))).collect();
        let tokens = range(spots.iter().flat_map(|spot| bar(spot.tokens)))?;
        let accuracy = range(spots.iter().flat_map(|spot| bar(spot.accuracy)))?;
        let part = [
            plane.across.at(tokens.0) - AROUND,
            plane.up.at(accuracy.1) - AROUND,
            plane.across.at(tokens.1) + AROUND,
            plane.up.at(accuracy.0) + AROUND,
        ];
        let frame = corner(all, part, taken)?;
        let inside = inside(frame);
        let times = |part: [f64; 2], inside: [f64; 2]| (inside[1] - inside[0]) / (part[1] - part[0]);
        if times([part[0], part[2]], [inside[0], inside[2]]) < WORTH
            || times([part[1], part[3]], [inside[1], inside[3]]) < WORTH
        {
            return None;
        }
        let tokens = (plane.across.value(part[0]), plane.across.value(part[2]));
        let accuracy = (plane.up.value(part[3]), plane.up.value(part[1]));
        let across = Axis::within(tokens, 6, (inside[0], inside[2]));
        let up = Axis::within(accuracy, 4, (inside[3], inside[1]));
        Some(Self { part, frame, plane: Plane { across, up } })
    }

    /// Draws it with its labels, and marks what it enlarges.
    pub(super) fn draw(&self, svg: &mut Svg, series: &[Series], taken: &mut Taken) {
        let [left, top, right, bottom] = inside(self.frame);
        for corners in self.ties() {
            svg.polyline(&corners, RULE, 1.0, " stroke-dasharray=\"3 3\"");
            taken.line(corners[0], corners[1], 1);
        }
        svg.outline(self.part, "none", RULE);
        svg.outline(self.frame, PAPER, RULE);
        svg.text((self.frame[0] + 10.0, self.frame[1] + 16.0), "enlarged", Font::note("start"));
        for tick in self.plane.across.ticks() {
            svg.line((self.plane.across.at(tick), top), (self.plane.across.at(tick), bottom), GRID, 1.0);
        }
        grid(svg, &self.plane.across, &self.plane.up, (left, right, bottom));
        let mut inner = Taken::new((left, right), (top, bottom));
        svg.clipped([left, top, right, bottom], |svg| {
            self.plane.draw(svg, series, &mut inner);
            let shown = |(x, y): Point| left <= x && x <= right && top <= y && y <= bottom;
            self.plane.label(svg, series, &mut inner, shown);
        });
        taken.text(self.frame);
        taken.text(self.part);
    }

    /// Lines from two corners of the part to the same corners of the enlargement: of the two diagonals, the one whose ends
    /// lie aside of the straight way between the two.
    fn ties(&self) -> [[Point; 2]; 2] {
        let ([a, b, c, d], [left, top, right, bottom]) = (self.part, self.frame);
        // To the right and below, or to the left and above, the falling diagonal is the way itself.
        if (left > a) == (top > b) {
            [[(c, b), (right, top)], [(a, d), (left, bottom)]]
        } else {
            [[(a, b), (left, top)], [(c, d), (right, bottom)]]
        }
    }
}

/// The plot in a frame, without its ticks and title.
fn inside([left, top, right, bottom]: Frame) -> Frame {
    [left + LEFT, top + ABOVE, right - 12.0, bottom - BELOW]
}

/// The corner of `all` where nothing is drawn, `part` included.
fn corner([left, top, right, bottom]: Frame, part: Frame, taken: &Taken) -> Option<Frame> {
    let corners = |(width, height): (f64, f64)| {
        let (near, far) = (left + ASIDE, right - ASIDE - width);
        let (high, low) = (top + ASIDE, bottom - ASIDE - height);
        [(far, high), (near, low), (far, low), (near, high)].map(|(x, y)| [x, y, x + width, y + height])
    };
    SIZES.into_iter().flat_map(corners).find(|frame| {
        let apart = frame[2] < part[0] || part[2] < frame[0] || frame[3] < part[1] || part[3] < frame[1];
        apart && taken.is_free(*frame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Frame = [0.0, 0.0, 800.0, 400.0];
    const PART: Frame = [60.0, 30.0, 90.0, 60.0];

    #[test]
    fn a_free_corner_is_taken_at_the_largest_size_that_has_one() {
        let mut taken = Taken::new((ALL[0], ALL[2]), (ALL[1], ALL[3]));
        let at = |taken: &Taken| {
            corner(ALL, PART, taken).map(|[left, top, right, bottom]| (left, top, right - left, bottom - top))
        };
        assert_eq!(at(&taken), Some((800.0 - 362.0, 10.0, 352.0, 232.0)));
        // A line through the middle of the right half leaves the lower left corner.
        taken.line((600.0, 0.0), (600.0, 400.0), 1);
        assert_eq!(at(&taken), Some((10.0, 400.0 - 242.0, 352.0, 232.0)));
        // One that just reaches into it as well leaves it to a smaller size.
        taken.line((0.0, 165.0), (800.0, 165.0), 1);
        assert_eq!(at(&taken), Some((10.0, 400.0 - 218.0, 320.0, 208.0)));
        taken.line((100.0, 0.0), (100.0, 400.0), 1);
        assert_eq!(at(&taken), None);
    }
}
