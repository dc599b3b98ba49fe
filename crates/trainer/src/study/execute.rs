//! Makes the runs of a study: each a process of its own, several at once, those that are complete left alone.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{
    Args, CHILD, STOP,
    folder::{Ended, State, inspect},
    plan::{self, Curriculum, Job},
    progress::{Line, Progress},
};
use crate::config::Config;

/// How long runs may take to write their checkpoints when the study is stopped.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often processes are looked after.
const INTERVAL: Duration = Duration::from_millis(500);

/// What became of the runs.
pub struct Outcomes {
    /// The complete ones.
    pub runs: BTreeMap<(Curriculum, u64), Ended>,
    /// The others.
    pub missing: Vec<Missing>,
    /// Whether the user stopped the study.
    pub interrupted: bool,
}

/// A run that the study lacks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Missing {
    /// The name of its folder.
    pub name: String,
    /// Why, in a clause.
    pub reason: String,
}

/// A process at work.
struct Running {
    job: Job,
    config: Config,
    child: Child,
    line: Line,
}

/// Makes all `jobs`, of which the controls wait for the cosine run of their seed. `config` is the SIRI run's.
///
/// # Errors
/// When no process can be started or a file of the study cannot be written. A run that fails is an outcome.
pub fn execute(args: &Args, config: &Config, jobs: Vec<Job>) -> Result<Outcomes> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut work = Work {
        args,
        config,
        threads: (cores / usize::from(args.jobs)).max(1),
        progress: Progress::new(jobs.len()),
        pending: jobs,
        running: Vec::new(),
        outcomes: Outcomes { runs: BTreeMap::new(), missing: Vec::new(), interrupted: false },
    };
    let mut stopped: Option<Instant> = None;
    loop {
        if STOP.load(Ordering::SeqCst) && stopped.is_none() {
            stopped = Some(Instant::now());
            work.outcomes.interrupted = true;
            work.pending.clear();
            work.progress.say("stopping: the runs write their checkpoints (once more: stop now)");
        }
        if stopped.is_some_and(|since| since.elapsed() > PATIENCE) {
            // Without standard input a run ends at once.
            work.running.iter_mut().for_each(|running| drop(running.child.stdin.take()));
        }
        work.start()?;
        if work.running.is_empty() {
            break;
        }
        thread::sleep(INTERVAL);
        work.look_after()?;
    }
    work.progress.finish();
    Ok(work.outcomes)
}

/// The state of a study at work.
struct Work<'a> {
    args: &'a Args,
    config: &'a Config,
    threads: usize,
    progress: Progress,
    pending: Vec<Job>,
    running: Vec<Running>,
    outcomes: Outcomes,
}

impl Work<'_> {
    /// Starts what there is room for.
    fn start(&mut self) -> Result<()> {
        while self.running.len() < usize::from(self.args.jobs) {
            let waits = |job: &Job| {
                job.curriculum != Curriculum::Cosine
                    && self
                        .running
                        .iter()
                        .any(|other| other.job.curriculum == Curriculum::Cosine && other.job.seed == job.seed)
            };
            let Some(next) = self.pending.iter().position(|job| !waits(job)) else { break };
            let job = self.pending.remove(next);
            if let Err(error) = self.open(&job) {
                self.fail(&job, format!("{error:#}"));
            }
        }
        Ok(())
    }

    /// Takes a run as it is if it is complete, else starts its process.
    fn open(&mut self, job: &Job) -> Result<()> {
        let cost = match job.curriculum {
            Curriculum::Cosine => None,
            _ => match self.outcomes.runs.get(&(Curriculum::Cosine, job.seed)) {
                Some(cosine) => Some(cosine.tokens),
                None => bail!("its cost is not known, because the cosine run of seed {} is missing", job.seed),
            },
        };
        let sets = plan::sets(job.curriculum, self.config, cost);
        let config = plan::resolve(&self.args.settings, &sets, job.seed, &job.folder)?;
        let state = inspect(&job.folder, &config)?;
        let arguments = match state {
            State::Complete(ended) => {
                self.progress.say(&format!("{}: complete already", job.name));
                self.succeed(job, ended);
                return Ok(());
            }
            State::Other => {
                bail!("{} holds a run with other settings; delete it or give another --out", job.folder.display())
            }
            State::Resumable => vec!["--resume".to_string(), job.folder.display().to_string()],
            State::Absent | State::Torn => {
                if job.folder.exists() {
                    fs::remove_dir_all(&job.folder)
                        .with_context(|| format!("{}: cannot delete a partial run", job.folder.display()))?;
                }
                fresh(self.args, &sets, job)
            }
        };
        let child = spawn(&job.folder, &arguments, self.threads)?;
        let line = self.progress.line(&job.name, &job.folder, &config);
        self.running.push(Running { job: job.clone(), config, child, line });
        Ok(())
    }

    /// Shows how runs get on, and takes those that have ended.
    fn look_after(&mut self) -> Result<()> {
        for running in std::mem::take(&mut self.running) {
            let Running { job, config, mut child, mut line } = running;
            let status = child.try_wait().with_context(|| format!("{}: its process is lost", job.name))?;
            line.show(&self.progress);
            let Some(status) = status else {
                self.running.push(Running { job, config, child, line });
                continue;
            };
            line.finish();
            match inspect(&job.folder, &config) {
                Ok(State::Complete(ended)) => self.succeed(&job, ended),
                // A run may have heard of Ctrl-C before this loop looked.
                _ if STOP.load(Ordering::SeqCst) => {}
                Ok(_) => {
                    let said = last_line(&job.folder).unwrap_or_else(|| status.to_string());
                    self.fail(&job, format!("{said} (see {})", log(&job.folder).display()));
                }
                Err(error) => self.fail(&job, format!("{error:#}")),
            }
        }
        Ok(())
    }

    fn succeed(&mut self, job: &Job, ended: Ended) {
        self.outcomes.runs.insert((job.curriculum, job.seed), ended);
        self.progress.done();
    }

    fn fail(&mut self, job: &Job, reason: String) {
        self.progress.say(&format!("{}: {reason}", job.name));
        self.outcomes.missing.push(Missing { name: job.name.clone(), reason });
        self.progress.done();
    }
}

/// The arguments of a run that starts from nothing.
fn fresh(args: &Args, sets: &[String], job: &Job) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(file) = &args.settings.config {
        arguments.extend(["--config".to_string(), file.display().to_string()]);
    }
    for set in args.settings.set.iter().chain(sets) {
        arguments.extend(["--set".to_string(), set.clone()]);
    }
    let (seed, folder) = (job.seed.to_string(), job.folder.display().to_string());
    arguments.extend(["--seed".to_string(), seed, "--out".to_string(), folder]);
    arguments
}

/// Starts this program again as a run. Its output goes to `log.txt`, headed by the command that makes the same run.
fn spawn(folder: &Path, arguments: &[String], threads: usize) -> Result<Child> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    let path = log(folder);
    let open = || -> std::io::Result<(File, File)> {
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let quoted: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
        writeln!(file, "$ trainer train {}", quoted.join(" "))?;
        Ok((file.try_clone()?, file))
    };
    let (out, err) = open().with_context(|| format!("{}: cannot write", path.display()))?;
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    Command::new(program)
        .args([CHILD, "train"])
        .args(arguments)
        .args(["--set".to_string(), format!("run.threads={threads}")])
        .env("RAYON_NUM_THREADS", threads.to_string())
        // As the trainer program does: candle's own pool only takes the cores from ours.
        .env("CANDLE_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err)
        .spawn()
        .context("cannot start a run")
}

/// `argument` for a shell.
fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@".contains(c);
    if argument.chars().all(plain) { argument.into() } else { format!("'{}'", argument.replace('\'', r"'\''")) }
}

fn log(folder: &Path) -> std::path::PathBuf {
    folder.join("log.txt")
}

/// What a run said last.
fn last_line(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(log(folder)).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_a_shell() {
        assert_eq!(quote("schedule.kind=cosine"), "schedule.kind=cosine");
        assert_eq!(quote("schedule.stages=[[0, 8]]"), "'schedule.stages=[[0, 8]]'");
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
