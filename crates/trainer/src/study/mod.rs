//! The study behind the result table: SIRI over several seeds, against other schedules at equal rollout tokens.
//!
//! Every run is a `trainer train` of its own in a folder of its own, so that a study can be interrupted and continued
//! by the same command, and each of its runs read by `trainer report`.

mod execute;
mod figures;
mod folder;
mod plan;
mod progress;
mod table;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::Read,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    cli::{self, SettingsArgs},
    commands::{self, UsageError, outcome},
    config::{Config, Overrides},
};
use execute::Outcomes;
use figures::Study;
use plan::{Curriculum, Job};

/// The first argument that makes this program a run of the study.
const CHILD: &str = "--child";

static STOP: AtomicBool = AtomicBool::new(false);

/// Trains SIRI's cosine schedule once a seed, then every other schedule with the rollout tokens that it took, and
/// writes what came of them: OUT/study.md, OUT/study.json and OUT/pareto.svg. The table goes to stdout as well.
///
/// Stopped at any time, the same command goes on where it was.
///
/// Exit status: 0 done, 1 a run failed or is missing, 2 wrong usage or configuration, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "study")]
struct Args {
    /// The seeds, each a run of every schedule
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,2,3,4,5")]
    seeds: Vec<u64>,
    /// The schedules; cosine (SIRI) always runs, because it says what the others may cost
    #[arg(long, value_enum, value_name = "NAME,NAME,...", value_delimiter = ',', default_values_t = Curriculum::ALL)]
    schedules: Vec<Curriculum>,
    /// Runs at once, which share the cores; results do not depend on it
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Where the runs and the results go
    #[arg(long, value_name = "DIR", default_value = "runs/study")]
    out: PathBuf,
    /// The settings of every run.
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the study on a command line, the program's name first, and returns its exit status.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let [_, first, rest @ ..] = &arguments[..]
        && first == CHILD
    {
        std::thread::spawn(end_with_parent);
        return commands::main(std::iter::once(OsString::from("trainer")).chain(rest.iter().cloned()));
    }
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            // `--help`. A reader that closed its end early has what it wanted.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            return complain(&cli::one_line(&error).replace("trainer --help", "study --help"), outcome::USAGE);
        }
    };
    match study(args) {
        Ok(code) => code,
        Err(error) => complain(&outcome::one_line(&error), outcome::exit_code(&error)),
    }
}

/// Ends a run whose study is gone: its standard input is a pipe that only the study holds open.
fn end_with_parent() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(i32::from(outcome::INTERRUPTED));
}

fn complain(message: &str, code: u8) -> ExitCode {
    progress::line(&format!("error: {message}"));
    ExitCode::from(code)
}

fn study(args: Args) -> Result<ExitCode> {
    let config = Config::resolve(args.settings.config.as_deref(), &args.settings.set, &Overrides::default())?;
    let jobs = jobs(&args, &config)?;
    fs::create_dir_all(&args.out).with_context(|| format!("{}: cannot make the folder", args.out.display()))?;
    let stop = || {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(outcome::INTERRUPTED));
        }
    };
    ctrlc::set_handler(stop).context("cannot listen for Ctrl-C")?;
    let Outcomes { runs, missing, interrupted } = execute::execute(&args, &config, jobs)?;
    if interrupted {
        return Ok(complain("interrupted; the same command goes on from here", outcome::INTERRUPTED));
    }
    let study = Study::new(&config, &runs, missing);
    let text = table::markdown(&study, &config);
    write(&args, "study.md", &text)?;
    write(&args, "study.json", &(serde_json::to_string_pretty(&study)? + "\n"))?;
    write(&args, "pareto.svg", &table::pareto(&study, &config))?;
    outcome::print(&text)?;
    Ok(if study.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(outcome::FAILED) })
}

/// The runs to make, the cosine ones first, because the others wait for what they cost.
fn jobs(args: &Args, config: &Config) -> Result<Vec<Job>> {
    let seeds: BTreeSet<u64> = args.seeds.iter().copied().collect();
    if seeds.len() < args.seeds.len() {
        return Err(UsageError::new("--seeds: a seed is given twice; its runs would be the same").into());
    }
    let job = |curriculum: Curriculum, seed: u64| {
        let name = format!("{}-seed-{seed}", curriculum.name());
        // The settings are checked here, before hours of runs; one token stands for a cost that is not known yet.
        let sets = plan::sets(curriculum, config, Some(1));
        let folder = args.out.join(&name);
        let wanted = plan::resolve(&args.settings, &sets, seed, &folder)?;
        if folder::is_other(&folder, &wanted)? {
            let shown = folder.display();
            let message = format!("{shown}: a run with other settings is there; delete it or give another --out");
            return Err(UsageError::new(message).into());
        }
        Ok(Job { curriculum, seed, folder, name })
    };
    let controls = |seed: u64| {
        let wanted =
            Curriculum::ALL.into_iter().filter(|&one| one != Curriculum::Cosine && args.schedules.contains(&one));
        wanted.map(move |one| (one, seed))
    };
    let cosines = seeds.iter().map(|&seed| (Curriculum::Cosine, seed));
    let all = cosines.chain(seeds.iter().flat_map(|&seed| controls(seed)));
    all.map(|(curriculum, seed)| job(curriculum, seed)).collect()
}

fn write(args: &Args, name: &str, text: &str) -> Result<()> {
    let path = args.out.join(name);
    fs::write(&path, text).with_context(|| format!("{}: cannot write", path.display()))?;
    progress::line(&path.display().to_string());
    Ok(())
}
