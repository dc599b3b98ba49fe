//! Run folders made of invented rows, read and drawn.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::metrics::{
    MetricsWriter,
    tests::{eval_row, step_row},
};

const CONFIG: &str = "[run]\nseed = 1\n[schedule]\nkind = \"cosine\"\nstages = [[0, 8]]\n";

/// A run of two cycles of eight steps in `parent/name`, with hostile text in its responses.
fn write_run(parent: &Path, name: &str, gain: f64) -> PathBuf {
    let dir = parent.join(name);
    let mut writer = MetricsWriter::create(&dir).unwrap();
    fs::write(dir.join("config.toml"), CONFIG).unwrap();
    fs::create_dir(dir.join("rollouts")).unwrap();
    writer.eval(&eval_row(0, "start", 0.5, 300.0)).unwrap();
    for step in 1..=16 {
        let mut row = step_row(step);
        row.learning.kl = None;
        writer.step(&row).unwrap();
        let name = match step {
            4 => "cycle-1-low",
            8 => "cycle-1-high",
            12 => "cycle-2-low",
            16 => "cycle-2-high",
            _ => continue,
        };
        writer.eval(&eval_row(step, name, 0.5 + gain * step as f64 / 16.0, 300.0 - 5.0 * step as f64)).unwrap();
        let row = serde_json::json!({"step": step, "prompt": "Make 19 & more", "response": "<script>alert(1)</script>",
            "reward": 1.0, "finish": "stop", "tokens": 1234});
        fs::write(dir.join(format!("rollouts/step-{step:06}.jsonl")), format!("{row}\n")).unwrap();
    }
    dir
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_report_of_one_run_holds_its_figures_and_no_outside_resource() {
    let parent = folder();
    let dir = write_run(parent.path(), "first", 0.2);
    let page = fs::read_to_string(write_run_report(&dir).unwrap()).unwrap();
    for expected in ["<h1>first</h1>", "70.0 ± 2.0", "+20.0 pt", "220 ± 5", "−27%", "low 2", "cosine", "not tracked"]
    {
        assert!(page.contains(expected), "{expected:?} is missing");
    }
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)"), "responses are escaped");
    assert!(page.contains("Make 19 &amp; more"));
    for outside in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside:?} would load something");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "a coordinate is not finite");
    assert!(fs::read_to_string(dir.join("pareto.svg")).unwrap().starts_with("<svg"));
}

#[test]
fn the_page_says_what_a_reader_would_have_to_guess() {
    let parent = folder();
    let dir = write_run(parent.path(), "run", 0.2);
    let config = format!("# As resolved by trainer 9.8.7.\n{CONFIG}").replace("seed = 1", "seed = 1\ndevice = \"cpu\"");
    fs::write(dir.join("config.toml"), config).unwrap();
    let page = || fs::read_to_string(write_run_report(&dir).unwrap()).unwrap();
    let one = page();
    // The folder's event file is from now.
    assert!(one.contains("begun 20") && one.contains(" UTC · trainer 9.8.7 · device cpu"), "the origin is missing");
    assert!(one.contains("reward +1.0 · complete · 1,234 tokens"), "a finish and a length read as such");
    assert!(one.matches(">step</text>").count() >= 7, "every axis of steps says so");
    assert!(!one.contains("pass@k") && !one.contains("Faint"), "what is not there is not explained");
    assert!(one.contains("scroll sideways"), "a narrow screen says that there is more");
    // Without tokens, and cut off.
    let row = serde_json::json!({"step": 17, "prompt": "Make 19 & more", "response": "four", "reward": 0.0,
        "finish": "length"});
    fs::write(dir.join("rollouts/step-000017.jsonl"), format!("{row}\n")).unwrap();
    let mut writer = MetricsWriter::resume(&dir, Some(16)).unwrap();
    (17..=60).for_each(|step| writer.step(&step_row(step)).unwrap());
    writer.eval(&EvalRow { samples: 4, pass_at_k: 0.875, ..eval_row(60, "cycle-3-low", 0.7, 250.0) }).unwrap();
    let page = page();
    assert!(page.contains("reward 0.0 · cut off · 4 characters"));
    assert!(page.contains("pass@k") && page.contains("87.5 (k=4)") && page.contains("Faint lines are single steps."));
}

#[test]
fn shares_that_are_all_zero_have_an_axis_that_begins_there() {
    let parent = folder();
    let mut run = Run::load(&write_run(parent.path(), "run", 0.2)).unwrap();
    run.steps.iter_mut().for_each(|row| row.learning.clip_fraction = 0.0);
    let (_, narrow) = curves::panels(&[run], None);
    let clipped = narrow.iter().find(|svg| svg.contains("Clipped ratios")).unwrap();
    assert!(clipped.contains(">0.0</text>") && !clipped.contains('−'), "{clipped}");
}

#[test]
fn an_unknown_error_is_neither_written_nor_drawn() {
    let parent = folder();
    let mut run = Run::load(&write_run(parent.path(), "run", 0.2)).unwrap();
    run.evals.iter_mut().for_each(|row| (row.pass_at_1_se, row.response_tokens_se) = (None, None));
    let page = html(&[run]);
    assert!(page.contains("70.0&thinsp;%") && !page.contains("± 0") && !page.contains("NaN"));
}

#[test]
fn several_runs_are_drawn_in_colours_of_their_own_with_a_legend() {
    let parent = folder();
    let dirs = [write_run(parent.path(), "siri", 0.2), write_run(parent.path(), "constant", 0.1)];
    let out = parent.path().join("both.html");
    write_report(&dirs, &out).unwrap();
    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains("<h1>2 runs</h1>") && page.contains("class=\"legend\""));
    for index in 0..2 {
        assert!(page.contains(&format!("stroke=\"{}\"", svg::colour(index))));
    }
}

#[test]
fn runs_that_share_a_name_get_longer_ones() {
    let parent = folder();
    let dirs = ["a", "b"].map(|seed| write_run(&parent.path().join(seed), "run", 0.2));
    let runs = load_runs(&dirs).unwrap();
    assert_eq!(runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>(), ["a/run", "b/run"]);
    let twice = load_runs(&[dirs[0].clone(), dirs[0].clone()]).unwrap_err().to_string();
    assert!(twice.contains("given twice"), "{twice}");
}

#[test]
fn a_run_that_has_just_begun_has_a_report() {
    let parent = folder();
    drop(MetricsWriter::create(parent.path()).unwrap());
    fs::write(parent.path().join("config.toml"), CONFIG).unwrap();
    let page = fs::read_to_string(write_run_report(parent.path()).unwrap()).unwrap();
    assert!(page.contains("no evaluation yet") && !page.contains("NaN"));
    let mut writer = MetricsWriter::resume(parent.path(), Some(0)).unwrap();
    writer.eval(&eval_row(0, "start", 0.0, 0.0)).unwrap();
    writer.step(&step_row(1)).unwrap();
    let page = fs::read_to_string(write_run_report(parent.path()).unwrap()).unwrap();
    assert!(page.contains("0.0 ± 2.0") && !page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn settings_are_found_by_their_keys() {
    let parent = folder();
    let run = Run::load(&write_run(parent.path(), "run", 0.2)).unwrap();
    assert_eq!(run.setting("schedule.kind").as_deref(), Some("cosine"));
    assert_eq!(run.setting("schedule.stages").as_deref(), Some("[[0, 8]]"));
    assert_eq!(run.setting("run.seed").as_deref(), Some("1"));
    assert_eq!((run.setting("run.device"), run.setting("run.seed.deeper")), (None, None));
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let parent = folder();
    let dir = write_run(parent.path(), "run", 0.2);
    let message = |dir: &Path| format!("{:#}", Run::load(dir).unwrap_err());
    assert!(message(&parent.path().join("none")).contains("none: no such run folder"));
    fs::write(dir.join("config.toml"), "[run").unwrap();
    assert!(message(&dir).contains("config.toml: not TOML"));
    fs::remove_file(dir.join("config.toml")).unwrap();
    assert!(message(&dir).contains("config.toml: cannot read"));
    assert!(load_runs(&[]).is_err());
}
