//! How far a download is, on stderr: a bar on a terminal; elsewhere a line for each tenth of a large file.

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::Write;

/// Files below this size are done before a line could be read.
const WORTH_A_LINE: u64 = 32 << 20;

/// The progress of one file.
pub(super) struct Bar {
    bar: ProgressBar,
    label: String,
    /// Tenths that were said; `None` before the first look, which a resumed download begins anywhere.
    tenths: Option<u64>,
    show: bool,
}

impl Bar {
    /// Nothing has come yet.
    pub(super) fn new(label: &str, size: Option<u64>, show: bool) -> Self {
        let bar = if show { ProgressBar::new(size.unwrap_or(0)) } else { ProgressBar::hidden() };
        let template = "{msg} {bar:24.cyan/dim} {bytes}/{total_bytes} · {bytes_per_sec} · {eta} to go";
        // The template is fixed, so that it parses.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_message(label.to_string());
        Self { bar, label: label.into(), tenths: None, show }
    }

    /// So many bytes are there.
    pub(super) fn at(&mut self, have: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(have);
        let Some(total) = total.filter(|&total| self.show && self.bar.is_hidden() && total >= WORTH_A_LINE) else {
            return;
        };
        let tenths = 10 * have / total;
        if self.tenths.is_some_and(|said| tenths > said) {
            let line = format!("{}: {} of {}", self.label, HumanBytes(have), HumanBytes(total));
            // Not `eprintln!`, which panics when stderr is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        self.tenths = Some(tenths);
    }
}

impl Drop for Bar {
    /// Leaves the terminal as it was.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
