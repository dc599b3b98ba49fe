//! How a command ends: its exit status, its one line of error, and output that survives a closed pipe.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::data::DataError;

/// Exit status of a command that failed.
pub const FAILED: u8 = 1;
/// Exit status of wrong usage or configuration, files that the user names included.
pub const USAGE: u8 = 2;
/// Exit status of a run that was interrupted and can be resumed: 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// What the user gave cannot be used: exit status 2. The message names the thing, its value and what to do; of several
/// things, each has a line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// A message that names the file, key or value, and what to do.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Several messages, said all at once.
    pub fn several(messages: impl IntoIterator<Item = String>) -> Self {
        let messages: Vec<String> = messages.into_iter().map(|message| on_one_line(&message)).collect();
        Self(messages.join("\n"))
    }
}

/// The run was interrupted and its state is safe: exit status 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; continue with: trainer --resume {}", checkpoint.display())]
pub struct Interrupted {
    /// The checkpoint to resume from.
    pub checkpoint: PathBuf,
}

/// Whoever read stdout has closed it, which is how `trainer schedule | head -3` ends well: exit status 0.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub struct OutputClosed;

/// Writes `text` to stdout and flushes it; what it quotes cannot command a terminal.
///
/// # Errors
/// [`OutputClosed`] when the reader is gone, else what the system says. `print!` would panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let shown = if stdout.is_terminal() { Cow::Owned(plain(text)) } else { Cow::Borrowed(text) };
    stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("cannot write to stdout"),
    })
}

/// Writes a line to stderr, if anyone reads it: `eprintln!` would panic. What it quotes cannot command the terminal.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", plain(text));
}

/// The text without the control characters that a terminal would obey.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}")
}

/// The exit status that an error stands for.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<OutputClosed>() {
        0
    } else if error.is::<Interrupted>() {
        INTERRUPTED
    } else if error.is::<UsageError>() || error.is::<ConfigError>() || error.is::<DataError>() {
        USAGE
    } else {
        FAILED
    }
}

/// What to say of an error: a line, or a line for each of several things that are wrong with what the user gave.
pub fn lines(error: &anyhow::Error) -> Vec<String> {
    let several = match (error.downcast_ref::<UsageError>(), error.downcast_ref::<ConfigError>()) {
        (Some(usage), _) => usage.0.lines().map(str::to_owned).collect(),
        (_, Some(ConfigError::Several(errors))) => errors.iter().map(|error| on_one_line(&error.to_string())).collect(),
        _ => Vec::new(),
    };
    if several.len() > 1 { several } else { vec![one_line(error)] }
}

fn on_one_line(message: &str) -> String {
    plain(&message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" "))
}

/// An error and its causes on one line, joined by `: `.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors of libraries quote their cause and have it too; it is said once.
        if !message.contains(&cause) {
            message.push_str(if message.is_empty() { "" } else { ": " });
            message.push_str(&cause);
        }
    }
    on_one_line(&message)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;
    use crate::config::{Config, Overrides};

    #[test]
    fn every_end_has_its_status() {
        let usage: anyhow::Error = UsageError::new("no such model").into();
        assert_eq!(exit_code(&usage), 2);
        let config = Config::resolve(None, &["nonsense".into()], &Overrides::default()).unwrap_err();
        assert_eq!(exit_code(&config.into()), 2);
        let data = "countdwon".parse::<crate::data::Source>().unwrap_err();
        assert_eq!(exit_code(&data.into()), 2);
        assert_eq!(exit_code(&Interrupted { checkpoint: "runs/a".into() }.into()), 130);
        assert_eq!(exit_code(&OutputClosed.into()), 0);
        assert_eq!(exit_code(&anyhow!("torn checkpoint")), 1);
    }

    #[test]
    fn context_does_not_hide_the_status() {
        let wrapped = Err::<(), _>(UsageError::new("no such file")).context("reading rows").unwrap_err();
        assert_eq!(exit_code(&wrapped), 2);
        assert_eq!(one_line(&wrapped), "reading rows: no such file");
    }

    #[test]
    fn several_problems_are_a_line_each() {
        let error: anyhow::Error = UsageError::several(["no disk".into(), "no\n data".into()]).into();
        assert_eq!(lines(&error), ["no disk", "no data"]);
        assert_eq!(exit_code(&error), 2);
        let sets = ["schedule.cycels=3".to_string(), "run.seed=x".to_string()];
        let error: anyhow::Error = Config::resolve(None, &sets, &Overrides::default()).unwrap_err().into();
        let lines = lines(&error);
        assert!(lines.len() == 2 && lines[0].contains("run.seed") && lines[1].contains("cycels"), "{lines:?}");
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(one_line(&anyhow!("first\n  second\n").context("top")), "top: first second");
        assert_eq!(one_line(&anyhow!("a\u{1b}[2J\rb")), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(one_line(&anyhow!("disk full").context("a.txt: disk full")), "a.txt: disk full");
    }
}
