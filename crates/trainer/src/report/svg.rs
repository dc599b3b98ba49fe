//! A small writer of SVG: shapes, text and the palette.
//!
//! Every look is a plain attribute, so that a picture reads the same in a browser, in a README and in a drawing program.

use std::fmt::Write;

pub(super) use super::markers::{Marker, Shape};

/// A place in the picture, pixels from the top left.
pub(super) type Point = (f64, f64);
/// A rectangle: left, top, right, bottom.
pub(super) type Frame = [f64; 4];

/// Text of first rank.
pub(super) const INK: &str = "#1c2330";
/// Text of second rank: tick labels, notes.
pub(super) const MUTED: &str = "#5c6675";
/// Grid lines.
pub(super) const GRID: &str = "#e6e9ee";
/// Axis lines.
pub(super) const RULE: &str = "#aab2bf";
/// Shade of the compress phases.
pub(super) const BAND: &str = "#f4f6f9";
/// The budget, drawn as an area.
pub(super) const AREA: &str = "#e3e8f0";
/// The upper edge of the budget.
pub(super) const AREA_EDGE: &str = "#9aa7ba";
/// The background.
pub(super) const PAPER: &str = "#ffffff";

/// One colour a run. They stay apart (0.11 in OKLab between the two nearest) for full colour vision and for simulated
/// protanopia, deuteranopia and tritanopia alike, and each has a contrast of at least 2.7 against white.
const PALETTE: [&str; 8] = ["#2457a6", "#d9730d", "#0da5f4", "#7c2420", "#8c02ff", "#885c28", "#3488a2", "#433f64"];
/// Dashes that tell runs apart once the colours have been used up.
const DASHES: [&str; 4] = ["", "7 4", "2 4", "10 4 2 4"];

/// The colour of the run at `index`.
pub(super) fn colour(index: usize) -> &'static str {
    PALETTE[index % PALETTE.len()]
}

/// The `stroke-dasharray` attribute of the run at `index`; empty for the first eight.
pub(super) fn dash(index: usize) -> String {
    match DASHES[index / PALETTE.len() % DASHES.len()] {
        "" => String::new(),
        pattern => format!(" stroke-dasharray=\"{pattern}\""),
    }
}

/// A picture under construction; later shapes cover earlier ones.
#[derive(Debug)]
pub(super) struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

/// How a piece of text looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font<'a> {
    /// Height in pixels.
    pub(super) size: f64,
    /// Its colour.
    pub(super) colour: &'a str,
    /// `start`, `middle` or `end`: which part of the text is at the given point.
    pub(super) anchor: &'a str,
    /// Whether it is semibold.
    pub(super) strong: bool,
}

impl Font<'static> {
    /// Small grey text, for ticks and notes.
    pub(super) fn note(anchor: &'static str) -> Self {
        Self { size: 12.0, colour: MUTED, anchor, strong: false }
    }

    /// The title of a chart.
    pub(super) fn title() -> Self {
        Self { size: 14.0, colour: INK, anchor: "start", strong: true }
    }
}

impl Svg {
    /// An empty picture; `label` describes it to those who cannot see it.
    pub(super) fn new(width: f64, height: f64, label: &str) -> Self {
        Self { width, height, label: label.to_string(), body: String::new() }
    }

    /// The whole document.
    pub(super) fn finish(self) -> String {
        let Self { width, height, label, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{label}\" font-family=\"Inter, system-ui, -apple-system, \
             'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif\" \
             style=\"font-variant-numeric:tabular-nums\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"{PAPER}\"/>\n{body}</svg>\n",
            label = escape(&label),
        )
    }

    /// A straight line.
    pub(super) fn line(&mut self, from: Point, to: Point, stroke: &str, width: f64) {
        let d = path(&[from, to]);
        self.put(format_args!("<path d=\"{d}\" stroke=\"{stroke}\" stroke-width=\"{width}\" fill=\"none\"/>"));
    }

    /// A line through `points`; `more` are further attributes, with a leading space.
    pub(super) fn polyline(&mut self, points: &[Point], stroke: &str, width: f64, more: &str) {
        if points.len() > 1 {
            let d = path(points);
            self.put(format_args!(
                "<path d=\"{d}\" stroke=\"{stroke}\" stroke-width=\"{width}\" fill=\"none\" stroke-linejoin=\"round\" \
                 stroke-linecap=\"round\"{more}/>"
            ));
        }
    }

    /// A closed shape; `more` are further attributes, with a leading space.
    pub(super) fn polygon(&mut self, points: &[Point], fill: &str, more: &str) {
        let d = path(points);
        self.put(format_args!("<path d=\"{d}Z\" fill=\"{fill}\"{more}/>"));
    }

    /// A filled rectangle between two corners.
    pub(super) fn rectangle(&mut self, (left, top): Point, (right, bottom): Point, fill: &str) {
        self.put(format_args!(
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>",
            right - left,
            bottom - top
        ));
    }

    /// Text at a point of its baseline, with a rim of paper so that it reads over lines.
    pub(super) fn text(&mut self, (x, y): Point, text: &str, font: Font) {
        let Font { size, colour, anchor, strong } = font;
        let weight = if strong { 600 } else { 400 };
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{colour}\" \
             text-anchor=\"{anchor}\" stroke=\"{PAPER}\" stroke-width=\"3\" stroke-linejoin=\"round\" \
             paint-order=\"stroke\">{}</text>",
            escape(text)
        ));
    }

    /// Markers, later ones over earlier ones. They are outlined and their insides let through what is below, and none has
    /// a rim over another, so that of two that coincide both are seen.
    pub(super) fn markers(&mut self, markers: &[Marker]) {
        let rim = format!("fill=\"none\" stroke=\"{PAPER}\" stroke-width=\"4.5\" stroke-linejoin=\"round\"");
        for marker in markers {
            self.put(format_args!("{} {rim}/>", marker.outline()));
        }
        for marker @ Marker { shape, colour, tip, .. } in markers {
            let opacity = if *shape == Shape::Ring { 0.0 } else { 0.4 };
            let title = if tip.is_empty() { String::new() } else { format!("<title>{}</title>", escape(tip)) };
            let (outline, end) = (marker.outline(), if shape.corners().is_some() { "path" } else { "circle" });
            self.put(format_args!(
                "{outline} fill=\"{colour}\" fill-opacity=\"{opacity}\" stroke=\"{colour}\" stroke-width=\"1.8\" \
                 stroke-linejoin=\"round\">{title}</{end}>"
            ));
        }
    }

    /// A framed rectangle.
    pub(super) fn outline(&mut self, [left, top, right, bottom]: Frame, fill: &str, stroke: &str) {
        self.put(format_args!(
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\" \
             stroke=\"{stroke}\"/>",
            right - left,
            bottom - top
        ));
    }

    /// Draws, and leaves out what lies outside of the frame. A picture in the picture does it without a name that another
    /// picture of the same page could have too.
    pub(super) fn clipped(&mut self, [left, top, right, bottom]: Frame, draw: impl FnOnce(&mut Self)) {
        let (width, height) = (right - left, bottom - top);
        self.put(format_args!(
            "<svg x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             viewBox=\"{left:.1} {top:.1} {width:.1} {height:.1}\" overflow=\"hidden\">"
        ));
        draw(self);
        self.put(format_args!("</svg>"));
    }

    fn put(&mut self, shape: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.body, "{shape}");
    }
}

pub(super) fn path(points: &[Point]) -> String {
    let mut d = String::new();
    for (index, (x, y)) in points.iter().enumerate() {
        let _ = write!(d, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    d
}

/// About how wide `text` is, for placing it without a font at hand; a little generous.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.57
}

/// Escapes text for HTML and XML, in content and in double-quoted attributes. Control characters that XML forbids
/// become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' | '\r' => out.push(letter),
            letter if letter.is_control() => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_escaped() {
        assert_eq!(escape("<a b=\"c\">&'\u{1}\n"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\u{fffd}\n");
        let mut svg = Svg::new(10.0, 10.0, "a<b");
        svg.text((0.0, 0.0), "x<y", Font::title());
        let text = svg.finish();
        assert!(text.contains("aria-label=\"a&lt;b\"") && text.contains(">x&lt;y</text>"));
    }

    #[test]
    fn a_ninth_run_is_dashed() {
        assert_eq!((colour(8), dash(0).as_str(), dash(8).as_str()), (colour(0), "", " stroke-dasharray=\"7 4\""));
    }
}
