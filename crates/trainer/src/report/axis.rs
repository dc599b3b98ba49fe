//! An axis: a range of values laid along a range of pixels, with ticks at round numbers.

/// Maps values to pixels. The range is widened so that its ends are ticks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    step: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// An axis that shows `low..=high` with about `count` intervals, from pixel `start` to pixel `end`.
    pub(super) fn new((low, high): (f64, f64), count: usize, (start, end): (f64, f64)) -> Self {
        // A single value gets room on both sides, or no position could be computed; but none below zero where it is not
        // negative itself, since shares and counts never are.
        let room = if high > low { 0.0 } else { (low.abs() * 0.05).max(0.5) };
        let floor = if low < 0.0 { f64::NEG_INFINITY } else { 0.0 };
        let (low, high) = ((low - room).max(floor), high + room);
        let step = nice_step((high - low) / count.max(1) as f64);
        // The small slack keeps a bound that is a tick, but for rounding, from adding an interval.
        let low = (low / step + 1e-9).floor() * step;
        let high = (high / step - 1e-9).ceil() * step;
        Self { low, high, step, start, end }
    }

    /// An axis that ends where its values do, with ticks inside; for steps, which have no room beyond.
    pub(super) fn exact((low, high): (f64, f64), count: usize, pixels: (f64, f64)) -> Self {
        let mut axis = Self::new((low, high), count, pixels);
        if high > low {
            axis.step = axis.step.max(1.0);
            (axis.low, axis.high) = (low, high);
        }
        axis
    }

    /// An axis that ends where its values do, with ticks inside.
    pub(super) fn within((low, high): (f64, f64), count: usize, pixels: (f64, f64)) -> Self {
        Self { low, high, ..Self::new((low, high), count, pixels) }
    }

    /// The value at a pixel: the inverse of [`at`](Self::at).
    pub(super) fn value(&self, pixel: f64) -> f64 {
        self.low + (pixel - self.start) / (self.end - self.start) * (self.high - self.low)
    }

    /// The pixel of `value`.
    pub(super) fn at(&self, value: f64) -> f64 {
        self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
    }

    /// The values with ticks, ascending.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        (first..=last).map(|index| index as f64 * self.step).collect()
    }

    /// How a tick is written: thousands apart, and no more decimals than the ticks need; as
    /// `2.5e-6` where that would be a row of zeros.
    pub(super) fn label(&self, tick: f64) -> String {
        if self.step < 1e-4 {
            return if tick == 0.0 { "0".into() } else { scientific(tick) };
        }
        let decimals = (0..6).find(|&places| is_whole(self.step * 10f64.powi(places))).unwrap_or(6);
        number(tick, decimals as usize)
    }
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`.
fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|digit| digit * power >= rough * (1.0 - 1e-9));
    digit.unwrap_or(10.0) * power
}

/// A number as digits and a power of ten, with at most two digits.
fn scientific(value: f64) -> String {
    format!("{value:.1e}").replace(".0e", "e").replace('-', "−")
}

/// A number with `decimals` decimals, commas between thousands and a real minus.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{:.decimals$}", value.abs());
    let negative = value < 0.0 && plain.chars().any(|digit| ('1'..='9').contains(&digit));
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut out = String::from(if negative { "−" } else { "" });
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// The smallest and the largest of `values`, or `None` where there is no finite one.
pub(super) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |range, value| {
        Some(range.map_or((value, value), |(low, high): (f64, f64)| (low.min(value), high.max(value))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        let axis = Axis::new((187.0, 412.0), 5, (0.0, 100.0));
        assert_eq!(axis.ticks(), [150.0, 200.0, 250.0, 300.0, 350.0, 400.0, 450.0]);
        assert_eq!((axis.at(150.0), axis.at(300.0), axis.at(450.0)), (0.0, 50.0, 100.0));
    }

    #[test]
    fn bounds_on_ticks_add_no_interval() {
        assert_eq!(Axis::new((0.0, 0.3), 3, (0.0, 1.0)).ticks().len(), 4);
    }

    #[test]
    fn one_value_gets_room() {
        let middle = |value: f64| Axis::new((value, value), 4, (0.0, 100.0)).at(value);
        assert_eq!([middle(40.0), middle(-1.0)], [50.0, 50.0]);
        let zero = Axis::new((0.0, 0.0), 4, (0.0, 100.0));
        assert_eq!((zero.at(0.0), zero.ticks()[0]), (0.0, 0.0), "there is no share below zero");
    }

    #[test]
    fn an_exact_axis_ends_with_its_values() {
        let axis = Axis::exact((0.0, 72.0), 8, (0.0, 720.0));
        assert_eq!((axis.at(0.0), axis.at(72.0)), (0.0, 720.0));
        assert_eq!(axis.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]);
        assert_eq!(Axis::exact((0.0, 2.0), 8, (0.0, 1.0)).ticks(), [0.0, 1.0, 2.0], "no half steps");
    }

    #[test]
    fn an_axis_within_keeps_its_ends_and_a_pixel_gives_its_value_back() {
        let axis = Axis::within((152.3, 168.9), 4, (400.0, 0.0));
        assert_eq!((axis.at(152.3), axis.at(168.9)), (400.0, 0.0));
        assert_eq!(axis.ticks(), [155.0, 160.0, 165.0]);
        assert!((axis.value(axis.at(161.25)) - 161.25).abs() < 1e-9);
    }

    #[test]
    fn labels_have_the_decimals_of_the_step() {
        let axis = Axis::new((0.0, 0.1), 4, (0.0, 1.0));
        assert_eq!(axis.ticks().into_iter().map(|tick| axis.label(tick)).collect::<Vec<_>>()[1], "0.025");
        let tiny = Axis::new((0.0, 4e-6), 4, (0.0, 1.0));
        assert_eq!(tiny.ticks().into_iter().map(|tick| tiny.label(tick)).collect::<Vec<_>>()[..2], ["0", "1e−6"]);
        assert_eq!(scientific(2.5e-6), "2.5e−6");
        assert_eq!(Axis::new((0.0, 16384.0), 4, (0.0, 1.0)).label(15000.0), "15,000");
    }

    #[test]
    fn numbers_are_grouped_and_signed() {
        assert_eq!(number(1234567.0, 0), "1,234,567");
        assert_eq!([number(999.5, 1), number(1024.0, 0)], ["999.5", "1,024"]);
        assert_eq!(number(-0.04, 1), "0.0", "no minus before a zero");
        assert_eq!(number(-21.25, 1), "−21.2");
    }
}
