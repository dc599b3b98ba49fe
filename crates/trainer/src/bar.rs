//! A bar of progress that fits its terminal: what there is no room for is left out, the least needed first.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use console::{Term, style};
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// Widths that the bar itself may have; the widest that fits is taken, or none.
const WIDTHS: [usize; 2] = [24, 12];

/// How long a line of progress stands before it is drawn again: a step of a large model takes minutes, and a clock that
/// stands still looks like a program that does.
const TICK: Duration = Duration::from_secs(1);

/// The ranks of the times, among those that the caller gives to its parts.
const TO_GO: u8 = 1;
const GONE: u8 = 4;

/// A piece of the line.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The piece with the highest rank is left out first.
    rank: u8,
    text: String,
}

impl Part {
    /// A piece that is left out before those of lower ranks.
    pub fn new(rank: u8, text: impl Into<String>) -> Self {
        Self { rank, text: text.into() }
    }
}

/// A bar on stderr with a line of parts behind it. Where stderr is no terminal, nothing is drawn.
pub struct Bar {
    bar: ProgressBar,
    parts: Arc<Mutex<Vec<Part>>>,
}

impl Bar {
    /// A bar for `total` things of which `done` are behind it.
    ///
    /// # Errors
    /// Never: the template is fixed.
    pub fn new(done: u64, total: u64) -> Result<Self> {
        let parts = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&parts);
        let line = move |state: &ProgressState, out: &mut dyn Write| {
            // A line as long as the terminal is wide would wrap on some.
            let width = usize::from(Term::stderr().size().1).saturating_sub(1);
            let parts: Vec<Part> = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // An error of the terminal costs a line of progress.
            let _ = out.write_str(&line(state, done, parts, width));
        };
        let style = ProgressStyle::with_template("{line}")?.with_key("line", line);
        let bar = ProgressBar::new(total).with_style(style);
        bar.set_position(done);
        bar.reset_eta();
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Ok(Self { bar, parts })
    }

    /// Shows these parts, in their order, once `done` things are done.
    pub fn show(&self, done: u64, parts: Vec<Part>) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = parts;
        self.bar.set_position(done);
        self.bar.tick();
    }

    /// What came so far says nothing of how long the things take.
    pub fn forget_time(&self) {
        self.bar.reset_eta();
    }

    /// Whether nothing is drawn.
    pub fn is_hidden(&self) -> bool {
        self.bar.is_hidden()
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.println(text);
    }

    /// Leaves the terminal as it was.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The whole line in at most `width` characters.
fn line(state: &ProgressState, from: u64, mut parts: Vec<Part>, width: usize) -> String {
    let (done, total) = (state.pos(), state.len().unwrap_or(0));
    parts.extend(times([from, done, total], state.elapsed(), state.eta()));
    let text = fitted(parts, width);
    let room = width.saturating_sub(text.chars().count() + 1);
    match WIDTHS.into_iter().find(|&width| width <= room) {
        Some(width) => format!("{} {text}", drawn(done, total, width)),
        None => text,
    }
}

/// How long it took, and how long it will take where there is something to tell it from: one thing done since `from`.
fn times([from, done, total]: [u64; 3], gone: Duration, to_go: Duration) -> Vec<Part> {
    let mut times = vec![Part::new(GONE, format!("{:#} gone", HumanDuration(gone)))];
    if from < done && done < total {
        times.push(Part::new(TO_GO, format!("{:#} to go", HumanDuration(to_go))));
    }
    times
}

/// The parts in `width` characters: those of the highest ranks are left out until the rest fits, and a single one that
/// does not is cut.
fn fitted(mut parts: Vec<Part>, width: usize) -> String {
    loop {
        let text = parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(" · ");
        if text.chars().count() <= width {
            return text;
        }
        let last = parts.iter().enumerate().max_by_key(|(_, part)| part.rank).map(|(index, _)| index);
        match last {
            Some(index) if parts.len() > 1 => drop(parts.remove(index)),
            _ => return text.chars().take(width).collect(),
        }
    }
}

/// The bar itself, `width` cells of it.
fn drawn(done: u64, total: u64, width: usize) -> String {
    let whole = (width as u64 * done.min(total)).checked_div(total).map_or(width, |cells| cells as usize);
    let head = if whole < width { "╸" } else { "" };
    let rest = "─".repeat((width - whole).saturating_sub(1));
    format!("{}{}", style("━".repeat(whole) + head).cyan().for_stderr(), style(rest).dim().for_stderr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        vec![Part::new(0, "3/28"), Part::new(3, "57% right"), Part::new(2, "sampling"), Part::new(1, "40s to go")]
    }

    #[test]
    fn the_least_needed_is_left_out_until_the_rest_fits() {
        assert_eq!(fitted(parts(), 80), "3/28 · 57% right · sampling · 40s to go");
        assert_eq!(fitted(parts(), 38), "3/28 · sampling · 40s to go");
        assert_eq!(fitted(parts(), 26), "3/28 · 40s to go");
        assert_eq!([fitted(parts(), 5), fitted(parts(), 2), fitted(vec![], 9)], ["3/28", "3/", ""]);
    }

    #[test]
    fn the_bar_is_as_wide_as_it_says() {
        let plain = |done| console::strip_ansi_codes(&drawn(done, 8, 12)).into_owned();
        assert_eq!([plain(0), plain(4), plain(8)], ["╸───────────", "━━━━━━╸─────", "━━━━━━━━━━━━"]);
        assert_eq!(console::measure_text_width(&drawn(0, 0, 12)), 12, "nothing to do is done");
    }

    #[test]
    fn no_time_is_told_before_there_is_one_to_tell_from() {
        let shown = |done| fitted(times([3, done, 28], Duration::from_secs(2), Duration::from_secs(40)), 80);
        assert_eq!([shown(3), shown(4), shown(28)], ["2s gone", "2s gone · 40s to go", "2s gone"]);
    }
}
