//! Checkpoints written, named, thinned out, interrupted and spoiled.

use super::*;
use crate::optimizer::{AdamW, AdamWSettings};
use candle_core::{Device, Var};
use tempfile::TempDir;

fn optimizer() -> AdamW {
    let var = Var::from_slice(&[1.0_f32, 2.0], (1, 2), &Device::Cpu).unwrap();
    AdamW::new(&[("w".to_owned(), var)], AdamWSettings::default()).unwrap()
}

fn state(step: u64) -> State {
    State {
        step,
        tokens_total: step * 1000,
        seed: 7,
        config_hash: config_hash("a = 1"),
        extra: BTreeMap::from([("best".to_owned(), serde_json::json!(0.5))]),
    }
}

fn write_model(folder: &Path) -> Result<()> {
    let tensor = candle_core::Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?;
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file([("w", &tensor)], None, &file)?;
    fs::create_dir(folder.join("chat"))?;
    fs::write(folder.join("chat/template.jinja"), "hello")?;
    Ok(())
}

fn save(checkpoints: &Checkpoints, step: u64) -> PathBuf {
    checkpoints.save(&state(step), &write_model, &optimizer()).unwrap()
}

fn open(run: &TempDir, keep: usize) -> Checkpoints {
    Checkpoints::open(run.path(), keep).unwrap()
}

fn names(run: &TempDir) -> Vec<String> {
    entries(&run.path().join(FOLDER)).unwrap()
}

fn refusal(checkpoint: &Path) -> String {
    format!("{:#}", read(checkpoint).unwrap_err())
}

#[test]
fn what_is_saved_is_read() {
    let run = TempDir::new().unwrap();
    assert_eq!(latest(run.path()).unwrap(), None);
    let checkpoint = save(&open(&run, 2), 40);
    assert_eq!(checkpoint, run.path().join("checkpoints/step-000040"));
    assert_eq!(files(&checkpoint).unwrap(), ["chat/template.jinja", "model.safetensors", OPTIMIZER_FILE, STATE_FILE]);
    assert_eq!(latest(run.path()).unwrap(), Some(checkpoint.clone()));
    assert_eq!(read(&checkpoint).unwrap(), state(40));
    optimizer().load(&checkpoint.join(OPTIMIZER_FILE)).unwrap();
    let shape = |rows| [("w".to_owned(), vec![rows, 3])];
    let model = checkpoint.join("model.safetensors");
    tensors::verify(&model, &shape(2)).unwrap();
    assert!(tensors::verify(&model, &shape(4)).is_err());
}

#[test]
fn the_newest_steps_and_all_names_are_kept() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 2);
    let first = save(&checkpoints, 8);
    let low = checkpoints.name(&first, "cycle-1-low").unwrap();
    for step in [999_999, 1_000_000, 16] {
        save(&checkpoints, step);
    }
    assert_eq!(names(&run), ["cycle-1-low", "step-1000000", "step-999999"]);
    assert_eq!(read(&low).unwrap(), state(8));
    let newest = latest(run.path()).unwrap().unwrap();
    assert!(newest.ends_with("step-1000000"));
    // A name moves on when it is given again.
    checkpoints.name(&newest, "cycle-1-low").unwrap();
    assert_eq!(read(&low).unwrap(), state(1_000_000));
    assert_eq!(names(&run), ["cycle-1-low", "step-1000000", "step-999999"]);
}

#[test]
fn a_step_is_replaced_whole() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 1);
    let checkpoint = save(&checkpoints, 1);
    let named = checkpoints.name(&checkpoint, "cycle-1-high").unwrap();
    fs::write(checkpoint.join("stray"), "").unwrap();
    save(&checkpoints, 1);
    assert!(!checkpoint.join("stray").exists());
    assert_eq!(names(&run), ["cycle-1-high", "step-000001"]);
    read(&named).unwrap();
}

#[test]
fn an_interruption_leaves_the_last_checkpoint() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 3);
    let good = save(&checkpoints, 1);
    // The model can't be written: the error is passed on, nothing new has a name.
    let failed = checkpoints.save(&state(2), &|_| bail!("disk full"), &optimizer());
    assert_eq!(failed.unwrap_err().to_string(), "disk full");
    assert_eq!(names(&run), [".tmp-step-000002", "step-000001"]);
    assert_eq!(latest(run.path()).unwrap(), Some(good.clone()));
    // Stopped between the two renames of a replacement: the old one comes back.
    fs::rename(&good, run.path().join("checkpoints/.old-step-000001")).unwrap();
    open(&run, 3);
    assert_eq!(names(&run), ["step-000001"]);
    read(&good).unwrap();
    // Stopped after them: the new one stays.
    fs::create_dir(run.path().join("checkpoints/.old-step-000001")).unwrap();
    open(&run, 3);
    assert_eq!(names(&run), ["step-000001"]);
    read(&good).unwrap();
    save(&checkpoints, 2);
}

#[test]
fn torn_files_are_named() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 3);
    for file in ["model.safetensors", OPTIMIZER_FILE, "chat/template.jinja", STATE_FILE] {
        let checkpoint = save(&checkpoints, 1);
        let path = checkpoint.join(file);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let message = refusal(&checkpoint);
        assert!(message.contains(file) && message.contains("torn"), "{message}");
        fs::remove_file(&path).unwrap();
        assert!(refusal(&checkpoint).contains(file));
    }
    // The right size, but not what a header says.
    let checkpoint = save(&checkpoints, 1);
    let path = checkpoint.join("model.safetensors");
    let size = fs::metadata(&path).unwrap().len();
    fs::write(&path, vec![0; size as usize]).unwrap();
    assert!(refusal(&checkpoint).contains("model.safetensors"));
}

#[test]
fn foreign_folders_are_refused() {
    let run = TempDir::new().unwrap();
    let checkpoint = save(&open(&run, 1), 1);
    let path = checkpoint.join(STATE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(r#""version": 1"#, r#""version": 99"#)).unwrap();
    assert!(refusal(&checkpoint).contains("version 99"));
    fs::write(&path, r#"{"epoch": 3}"#).unwrap();
    assert!(refusal(&checkpoint).contains("not the state of a checkpoint"));
    assert!(refusal(run.path()).contains("no checkpoint"));
}

#[test]
fn bad_names_and_limits_are_refused() {
    let run = TempDir::new().unwrap();
    assert!(Checkpoints::open(run.path(), 0).is_err());
    let checkpoints = open(&run, 1);
    let checkpoint = save(&checkpoints, 1);
    for name in ["", "../up", "a/b", ".hidden", "step-000002"] {
        assert!(checkpoints.name(&checkpoint, name).is_err(), "{name}");
    }
    assert_eq!(names(&run), ["step-000001"]);
}

#[test]
fn the_hash_is_fnv_1a() {
    // Published test vectors.
    assert_eq!(config_hash(""), "cbf29ce484222325");
    assert_eq!(config_hash("a"), "af63dc4c8601ec8c");
    assert_eq!(config_hash("foobar"), "85944171f73967e8");
}
