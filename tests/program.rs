//! The program under test, as its users call it.

use std::fs;
use std::process::{Command, Output};

/// Runs the program.
pub fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trainer")).args(arguments).output().expect("the program starts")
}

/// What it printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

/// The last line of stderr of a command that has to end with `status` and one line of error.
pub fn refusal(arguments: &[&str], status: i32) -> String {
    let output = trainer(arguments);
    let stderr = String::from_utf8(output.stderr.clone()).expect("text");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{arguments:?}: {stderr}");
    assert!(stdout(&output).is_empty(), "{arguments:?} printed: {}", stdout(&output));
    stderr
}

/// Writes a file and returns its path.
pub fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_string()
}
