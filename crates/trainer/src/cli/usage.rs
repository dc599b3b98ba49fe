//! What is said of a command line that cannot be understood.

use clap::CommandFactory;

use super::Cli;

/// What clap has against a command line, on one line.
///
/// Its own report is a paragraph of usage with the message in it; the message, its tips and where to read on are
/// enough.
pub fn one_line(error: &clap::Error) -> String {
    let report = error.render().to_string();
    let mut message = String::new();
    let mut command = String::from("trainer");
    for line in report.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(usage) = line.strip_prefix("Usage:") {
            // `Usage: trainer eval --model ..`, whatever the program's file is called: `Cli` has its name.
            let name = usage.split_whitespace().nth(1).unwrap_or_default();
            if Cli::command().find_subcommand(name).is_some() {
                command = format!("trainer {name}");
            }
            break;
        }
        let (joint, text) = match line.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None => (" ", line.strip_prefix("error: ").unwrap_or(line)),
        };
        if line.starts_with("For more information") {
            break;
        }
        message.push_str(if message.is_empty() { "" } else { joint });
        message.push_str(text);
    }
    format!("{message} (see `{command} --help`)")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Command;

    fn parse(arguments: &[&str]) -> Result<Command, String> {
        parse_as("trainer", arguments)
    }

    fn parse_as(program: &str, arguments: &[&str]) -> Result<Command, String> {
        let arguments = std::iter::once(program).chain(arguments.iter().copied());
        Cli::try_parse_from(arguments).map(Cli::into_command).map_err(|error| one_line(&error))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_is_train() {
        for line in [&["--cycles", "3"][..], &["train", "--cycles", "3"]] {
            let Command::Train(train) = parse(line).unwrap() else { panic!("{line:?} is not train") };
            assert_eq!(train.cycles, Some(3));
        }
        assert!(matches!(parse(&[]), Ok(Command::Train(_))));
    }

    #[test]
    fn refusals_are_one_line_with_the_nearest_name() {
        for (line, expected) in [
            (&["--cylces", "3"][..], "'--cycles'"),
            (&["shedule"], "'schedule'"),
            (&["--device", "gpu"], "[possible values: auto, cpu, cuda, metal]"),
            (&["eval", "--model", "embedded"], "--data <DATA>"),
            (&["generate", "--model", "embedded"], "--prompt <TEXT>"),
            (&["--cycles", "-1"], "invalid value '-1' for '--cycles <N>': must be a whole number"),
            (
                &["trian"],
                "unrecognized subcommand 'trian'; a similar subcommand exists: 'train' (see `trainer --help`)",
            ),
            (&["eval", "--model", "m"], "(see `trainer eval --help`)"),
            (&["eval", "--model", "m", "--data", "d", "--top-p", "-1"], "must be above 0 and at most 1"),
        ] {
            let message = parse(line).unwrap_err();
            assert_eq!(message.lines().count(), 1, "{message}");
            assert!(message.contains(expected), "{line:?}: {message}");
        }
    }

    #[test]
    fn a_refusal_is_the_same_whatever_the_programs_file_is_called() {
        for line in [&["frob"][..], &["--cylces", "3"], &["eval", "--model", "m"], &["--cycles", "1", "schedule"]] {
            let message = parse(line).unwrap_err();
            assert!(!message.contains("Usage"), "{message}");
            for program in ["trainer_z", "/opt/my tools/trainer 2", "eval"] {
                assert_eq!(parse_as(program, line).unwrap_err(), message, "{program}");
            }
        }
        let message = parse_as("trainer_z", &["eval", "--model", "m"]).unwrap_err();
        assert!(message.ends_with("(see `trainer eval --help`)"), "{message}");
    }
}
