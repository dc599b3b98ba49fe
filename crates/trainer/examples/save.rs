//! How long a run waits for a checkpoint, written at once and written from a copy while it goes on:
//! `cargo run --release -p trainer --example save -- MODEL FOLDER [f32|bf16]`. The folder is made and removed again.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use trainer::checkpoint::{Checkpoints, OPTIMIZER_FILE, State};
use trainer::config::Dtype;
use trainer::optimizer::{AdamW, AdamWSettings};
use trainer::policy::Policy;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().context("say which model")?;
    let folder = PathBuf::from(arguments.next().context("say where to write")?);
    let dtype = if arguments.next().as_deref() == Some("bf16") { Dtype::Bf16 } else { Dtype::F32 };
    ensure!(!folder.exists(), "{}: already there", folder.display());
    let policy = Policy::load(&model, dtype, &Device::Cpu)?;
    let optimizer = AdamW::new(policy.model.variables(), AdamWSettings::default())?;
    let checkpoints = Checkpoints::open(&folder, 1)?;
    let state = |step| State { step, ..State::default() };

    let begun = Instant::now();
    ensure!(policy.first_not_finite()?.is_none(), "the weights are no numbers");
    let looked = begun.elapsed();
    let begun = Instant::now();
    let write = |folder: &std::path::Path| {
        policy.save(folder)?;
        optimizer.save(&folder.join(OPTIMIZER_FILE))
    };
    let saved = checkpoints.save(&state(1), &write)?;
    let at_once = begun.elapsed();
    // So that the disk holds one at a time.
    fs::remove_dir_all(saved)?;
    let begun = Instant::now();
    let (weights, moments) = (policy.snapshot()?, optimizer.stored()?.into_owned());
    let copied = begun.elapsed();
    let begun = Instant::now();
    let write = |folder: &std::path::Path| {
        weights.save(folder)?;
        moments.write(&folder.join(OPTIMIZER_FILE))
    };
    let saved = checkpoints.save(&state(2), &write)?;
    let from_copy = begun.elapsed();
    let bytes: u64 =
        fs::read_dir(&saved)?.flatten().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum();
    fs::remove_dir_all(&folder)?;
    println!("{:.2} GB; looked at in {looked:.2?}", bytes as f64 / 1e9);
    println!("the run waits {at_once:.2?} for a checkpoint written at once");
    println!("the run waits {copied:.2?} for a copy, which is written in {from_copy:.2?}");
    Ok(())
}
