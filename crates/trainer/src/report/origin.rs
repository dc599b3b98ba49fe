//! When a run began and what made it, as far as its folder tells.

use std::{fs, path::Path};

/// How the settings of a run are headed: the program's version stands between these.
const VERSION: (&str, &str) = ("# As resolved by trainer ", ".\n");
/// How TensorBoard's files are called: the second in which each was begun follows.
const EVENTS: &str = "events.out.tfevents.";

/// What made a run, and when; each part where the folder says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Seconds since 1970 in which the run began.
    pub began: Option<u64>,
    /// The version of the program that wrote its settings.
    pub version: Option<String>,
    /// The device that was asked for.
    pub device: Option<String>,
}

impl Origin {
    /// Of the run in `dir` with the settings `config`, as text, and the `device` that they name.
    pub(super) fn of(dir: &Path, config: &str, device: Option<String>) -> Self {
        let version = config.strip_prefix(VERSION.0).and_then(|rest| rest.split_once(VERSION.1));
        Self { began: began(dir), version: version.map(|(version, _)| version.to_string()), device }
    }

    /// The parts that are known, as a line.
    pub(super) fn line(&self) -> String {
        let began = self.began.map(|seconds| format!("begun {}", date(seconds)));
        let version = self.version.as_ref().map(|version| format!("trainer {version}"));
        let device = self.device.as_ref().map(|device| format!("device {device}"));
        [began, version, device].into_iter().flatten().collect::<Vec<_>>().join(" · ")
    }
}

/// The second of the oldest of TensorBoard's files: unlike the time of a file it outlives a copy, and a run that was
/// resumed has several.
fn began(dir: &Path) -> Option<u64> {
    let names = fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_prefix(EVENTS)?.split('.').next()?.parse().ok()).min()
}

/// A second since 1970 as a date and a time of day, in UTC.
///
/// Source: Howard Hinnant, *chrono-compatible low-level date algorithms*, `civil_from_days`: years begin in March, so that
/// a leap day ends one.
fn date(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400 + 719_468, seconds % 86_400 / 60);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = 400 * era + year + next;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @SECONDS`.
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_795_464_277, "2026-11-23 20:04 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn a_folder_tells_what_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Origin::of(dir.path(), "[run]\n", None), Origin::default());
        assert_eq!(Origin::default().line(), "");
        for name in ["events.out.tfevents.1795464999.bellows.2.0", "events.out.tfevents.1795464277.bellows.1.0"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let config = "# As resolved by trainer 0.1.0.\n[run]\n";
        let line = Origin::of(dir.path(), config, Some("cpu".into())).line();
        assert_eq!(line, "begun 2026-11-23 20:04 UTC · trainer 0.1.0 · device cpu");
    }
}
