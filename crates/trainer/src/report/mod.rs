//! Reports: what one or several run folders hold, as a self-contained HTML file, pictures and tables.
//!
//! A report reads the files of the run folder and nothing else, so it can be made while a run goes on, after it, and on
//! another machine.

mod axis;
mod budget;
mod curves;
mod enlarged;
mod html;
mod labels;
mod markers;
mod origin;
mod pareto;
mod plane;
mod responses;
mod samples;
mod svg;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::metrics::{EvalRow, StepRow, read_evals, read_steps};

pub use budget::budget_svg;
pub use html::html;
pub use origin::Origin;
pub use pareto::{Series, Spot, pareto_plot, pareto_svg};
pub use samples::{Pair, Sample};
pub use table::summary_table;

/// One run, as its folder tells it.
#[derive(Debug, Clone)]
pub struct Run {
    /// The name of the folder, longer where several runs of a report would share it.
    pub name: String,
    /// When it began and what made it.
    pub origin: Origin,
    /// `config.toml` as text.
    pub config: String,
    /// `config.toml` as a table.
    pub settings: toml::Table,
    /// The steps done so far.
    pub steps: Vec<StepRow>,
    /// The evaluations done so far.
    pub evals: Vec<EvalRow>,
    /// Responses from early and late in the run.
    pub samples: Vec<Pair>,
}

impl Run {
    /// Reads the run in the folder `dir`.
    ///
    /// # Errors
    /// A file is missing or malformed; the message names the file and, for rows, the line.
    pub fn load(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("{}: no such run folder", dir.display());
        }
        let path = dir.join("config.toml");
        let config = fs::read_to_string(&path).with_context(|| format!("{}: cannot read", path.display()))?;
        let settings: toml::Table = config.parse().with_context(|| format!("{}: not TOML", path.display()))?;
        let device = settings.get("run").and_then(|run| Some(run.get("device")?.as_str()?.to_string()));
        Ok(Self {
            name: folder_name(dir, 1),
            origin: Origin::of(dir, &config, device),
            config,
            settings,
            steps: read_steps(dir)?,
            evals: read_evals(dir)?,
            samples: samples::read(&dir.join("rollouts"))?,
        })
    }

    /// A setting by its dotted key, as it is written in TOML; `None` where the file has no such key.
    pub fn setting(&self, key: &str) -> Option<String> {
        let mut parts = key.split('.');
        let mut value = self.settings.get(parts.next()?)?;
        for part in parts {
            value = value.get(part)?;
        }
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_string))
    }

    /// The evaluations on the data set `data`, in order.
    fn evals_on(&self, data: &str) -> Vec<&EvalRow> {
        self.evals.iter().filter(|row| row.data == data).collect()
    }
}

/// Reads several runs and gives each a name of its own: as many trailing parts of its path as that takes.
///
/// # Errors
/// As [`Run::load`]; no folder at all; the same folder twice.
pub fn load_runs(dirs: &[PathBuf]) -> Result<Vec<Run>> {
    if dirs.is_empty() {
        bail!("no run folder given");
    }
    let mut runs = dirs.iter().map(|dir| Run::load(dir)).collect::<Result<Vec<_>>>()?;
    for parts in 2..16 {
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for (run, dir) in runs.iter_mut().zip(dirs) {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = folder_name(dir, parts);
            }
        }
    }
    for (index, run) in runs.iter().enumerate() {
        if runs[..index].iter().any(|other| other.name == run.name) {
            bail!("{}: given twice", dirs[index].display());
        }
    }
    Ok(runs)
}

/// Writes the report of `dirs` to the HTML file `out`.
///
/// # Errors
/// As [`load_runs`]; `out` cannot be written.
pub fn write_report(dirs: &[PathBuf], out: &Path) -> Result<()> {
    write(out, &html(&load_runs(dirs)?))
}

/// Writes `report.html` and `pareto.svg` into the run folder `dir` and returns the path of the former.
///
/// # Errors
/// As [`Run::load`]; a file cannot be written.
pub fn write_run_report(dir: &Path) -> Result<PathBuf> {
    let runs = [Run::load(dir)?];
    let page = dir.join("report.html");
    write(&page, &html(&runs))?;
    if let Some(data) = data_names(&runs).first() {
        write(&dir.join("pareto.svg"), &pareto_svg(&runs, data))?;
    }
    Ok(page)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{}: cannot write", path.display()))
}

/// The data sets that the runs were evaluated on, in the order in which they first appear.
pub fn data_names(runs: &[Run]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in runs.iter().flat_map(|run| &run.evals) {
        if !names.contains(&row.data) {
            names.push(row.data.clone());
        }
    }
    names
}

/// The last `parts` parts of the path of `dir`, with `.` and `..` resolved where the folder can be.
fn folder_name(dir: &Path, parts: usize) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let mut names: Vec<String> =
        full.iter().rev().take(parts).map(|part| part.to_string_lossy().into_owned()).collect();
    names.reverse();
    names.join("/")
}

/// What an evaluation is called in pictures and tables: `cycle-1-low` becomes `low 1`, other names stay.
pub(crate) fn short_name(name: &str) -> String {
    match name.strip_prefix("cycle-").and_then(|rest| rest.split_once('-')) {
        Some((cycle, end @ ("low" | "high"))) => format!("{end} {cycle}"),
        _ => name.to_string(),
    }
}

#[cfg(test)]
mod tests;
