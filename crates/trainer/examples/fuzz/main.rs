//! Gives mutated files and replies to everything that reads them: `cargo run --release -p trainer --example fuzz --
//! MINUTES [TARGET...] [--seed N]`, with the targets `config`, `data`, `manifest`, `header`, `model` and `hub`; all when
//! none is named, for so many minutes each.
//!
//! A finding is a panic, settings that do not survive being written, a file outside of its folder, or ten seconds for one
//! input. Exits 1 on the first and says where the input is.

#[path = "../../../reward/examples/mutate/mod.rs"]
mod mutate;

mod checkpoints;
mod policies;
mod rows;
mod settings;
mod target;

use std::fs;
use std::process::ExitCode;

use mutate::Wanted;
use target::fuzz;

fn main() -> ExitCode {
    let Some(Wanted { minutes, seed, names: wanted }) = Wanted::parse() else {
        eprintln!("say for how many minutes");
        return ExitCode::FAILURE;
    };
    let kept = std::env::temp_dir().join(format!("bellows-fuzz-{}", std::process::id()));
    let folder = |name: &str| {
        let path = kept.join(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    };
    let mut targets = [
        settings::config(folder("config")),
        rows::rows(folder("data")),
        checkpoints::manifest(folder("manifest")),
        checkpoints::header(folder("header")),
        policies::small_files(),
        policies::replies(folder("hub")),
    ];
    if let Some(unknown) = wanted.iter().find(|name| targets.iter().all(|target| target.name != **name)) {
        eprintln!("there is no target {unknown}: config, data, manifest, header, model or hub");
        return ExitCode::FAILURE;
    }
    for target in targets.iter_mut().filter(|target| wanted.is_empty() || wanted.iter().any(|name| name == target.name))
    {
        match fuzz(target, minutes, seed, &kept) {
            Ok((count, slowest)) => {
                println!(
                    "{}: {count} inputs in {minutes} minutes from seed {seed}, no finding; the slowest took {slowest:?}",
                    target.name
                );
            }
            Err(finding) => {
                println!("{finding}");
                return ExitCode::FAILURE;
            }
        }
    }
    let _ = fs::remove_dir_all(&kept);
    ExitCode::SUCCESS
}
