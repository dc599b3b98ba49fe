//! Checkpoints written, named, thinned out, interrupted and spoiled.

use super::*;
use crate::config::Dtype;
use crate::optimizer::{AdamW, AdamWSettings};
use crate::policy::Policy;
use anyhow::bail;
use candle_core::{Device, Var};
use tempfile::TempDir;

fn optimizer() -> AdamW {
    let var = Var::from_slice(&[1.0_f32, 2.0], (1, 2), &Device::Cpu).unwrap();
    AdamW::new(&[("w".to_owned(), var)], AdamWSettings::default()).unwrap()
}

fn state(step: u64) -> State {
    State {
        step,
        cycle: 1,
        tokens_total: step * 1000,
        seed: 7,
        settings: BTreeMap::from([("schedule.l_max".to_owned(), "448".to_owned())]),
        extra: BTreeMap::from([("best".to_owned(), serde_json::json!(0.5))]),
    }
}

fn write_files(folder: &Path) -> Result<()> {
    optimizer().save(&folder.join(OPTIMIZER_FILE))?;
    let tensor = candle_core::Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?;
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file([("w", &tensor)], None, &file)?;
    fs::create_dir(folder.join("chat"))?;
    fs::write(folder.join("chat/template.jinja"), "hello")?;
    Ok(())
}

fn save(checkpoints: &Checkpoints, step: u64) -> PathBuf {
    checkpoints.save(&state(step), &write_files).unwrap()
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
    let failed = checkpoints.save(&state(2), &|_| bail!("disk full"));
    assert_eq!(failed.unwrap_err().to_string(), "disk full");
    assert_eq!(names(&run), ["step-000001"], "a full disk is not left fuller");
    assert_eq!(latest(run.path()).unwrap(), Some(good.clone()));
    // Stopped while it was written.
    fs::create_dir(run.path().join("checkpoints/.tmp-step-000002")).unwrap();
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
    fs::write(&path, text.replace(r#""version": 2"#, r#""version": 99"#)).unwrap();
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

/// SplitMix64: places to spoil, the same in every run.
fn places(seed: u64, below: usize) -> impl Iterator<Item = usize> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    })
}

/// Every file of the embedded policy's checkpoint truncated at 20 places and with 20 single bits flipped.
#[test]
fn every_spoiled_file_is_noticed_named_and_the_checkpoint_before_is_used() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 3);
    let policy = Policy::load("embedded", Dtype::F32, &Device::Cpu).unwrap();
    let optimizer = AdamW::new(policy.model.variables(), AdamWSettings::default()).unwrap();
    let write = |folder: &Path| {
        policy.save(folder)?;
        optimizer.save(&folder.join(OPTIMIZER_FILE))
    };
    let [before, spoiled] = [1, 2].map(|step| checkpoints.save(&state(step), &write).unwrap());
    let names = files(&spoiled).unwrap();
    assert!(names.len() >= 8, "{names:?}");
    for file in names {
        let path = spoiled.join(&file);
        let whole = fs::read(&path).unwrap();
        let cut = places(1, whole.len()).take(20).map(|at| whole[..at].to_vec());
        let flipped = places(2, 8 * whole.len()).take(20).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        for (number, bytes) in cut.chain(flipped).enumerate() {
            fs::write(&path, bytes).unwrap();
            let found = newest_whole(run.path()).unwrap().unwrap();
            assert_eq!((found.path, found.state.step), (before.clone(), 1), "{file} {number} was loaded");
            let [(damaged, why)] = found.damaged.as_slice() else { panic!("{file} {number}: {:?}", found.damaged) };
            assert!(*damaged == spoiled && why.contains(&file), "{file} {number}: {why}");
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(newest_whole(run.path()).unwrap().unwrap().path, spoiled);
}

#[test]
fn a_listed_file_outside_of_the_folder_is_refused() {
    let run = TempDir::new().unwrap();
    let checkpoint = save(&open(&run, 1), 1);
    // A sealed list that names a file elsewhere: nobody but an attacker writes one.
    fs::create_dir(checkpoint.join("..").join("outside")).unwrap();
    let link = checkpoint.join("sub");
    fs::create_dir(&link).unwrap();
    fs::write(checkpoint.join("../outside/file"), "x").unwrap();
    manifest::write_listing(&checkpoint, &state(1), &["../outside/file".to_owned(), OPTIMIZER_FILE.to_owned()])
        .unwrap();
    assert!(refusal(&checkpoint).contains("\"../outside/file\", which is not a file of its folder"));
}

#[test]
fn a_name_serves_where_every_step_is_spoiled() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 1);
    assert_eq!(newest_whole(run.path()).unwrap(), None);
    let first = save(&checkpoints, 4);
    let low = checkpoints.name(&first, "cycle-1-low").unwrap();
    let second = save(&checkpoints, 8);
    assert_eq!(newest_whole(run.path()).unwrap().unwrap().path, second);
    fs::write(second.join(OPTIMIZER_FILE), "").unwrap();
    assert_eq!(newest_whole(run.path()).unwrap().unwrap().path, low);
    let aside = checkpoints.set_aside_damaged(&second).unwrap();
    assert!(aside.ends_with("damaged-step-000008"));
    assert_eq!(newest_whole(run.path()).unwrap().unwrap().damaged, []);
    fs::write(low.join(OPTIMIZER_FILE), "").unwrap();
    let message = newest_whole(run.path()).unwrap_err().to_string();
    assert!(message.contains("none of its checkpoints is whole") && message.contains("cycle-1-low"), "{message}");
}

#[test]
fn a_run_that_goes_back_keeps_what_came_later_aside() {
    let run = TempDir::new().unwrap();
    let checkpoints = open(&run, 2);
    let first = save(&checkpoints, 1);
    checkpoints.name(&first, "cycle-1-low").unwrap();
    let second = save(&checkpoints, 5);
    checkpoints.name(&second, "cycle-1-high").unwrap();
    assert_eq!(checkpoints.set_aside_later(5).unwrap(), Vec::<PathBuf>::new());
    let later = checkpoints.set_aside_later(1).unwrap();
    assert!(later.len() == 2 && later[1].ends_with("later-step-000005"), "{later:?}");
    let found = checkpoint_or_newest(run.path()).unwrap().unwrap();
    assert_eq!(found.path, first);
    save(&checkpoints, 2);
    let kept = ["cycle-1-low", "later-cycle-1-high", "later-step-000005", "step-000001", "step-000002"];
    assert_eq!(names(&run), kept);
}
