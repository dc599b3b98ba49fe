//! What every target has, and the loop that looks for a finding.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

pub use crate::mutate::Random;
use crate::mutate::mutate;

/// More than any input should take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong, if anything.
pub type Finding = Result<(), String>;

/// What reads an input, and may choose how.
pub type Reader = Box<dyn FnMut(&[u8], &mut Random) -> Finding>;

/// Something that reads what others wrote.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Inputs that are right, or nearly.
    pub seeds: Vec<String>,
    /// What inputs are made of.
    pub pieces: &'static [&'static str],
    /// Reads an input; the error is a finding.
    pub read: Reader,
}

/// A text, and sometimes a few bytes that no text has.
fn input(target: &Target, random: &mut Random) -> Vec<u8> {
    let text = mutate(&target.seeds[random.below(target.seeds.len())], &target.seeds, target.pieces, random);
    let mut bytes = text.into_bytes();
    for _ in 0..random.below(4) * random.below(3) {
        if !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    bytes
}

/// Texts of their own.
pub fn texts(seeds: &[&str]) -> Vec<String> {
    seeds.iter().map(|seed| (*seed).to_owned()).collect()
}

/// Writes a file, or ends the program.
pub fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Reads inputs for so long; how many, and the slowest.
pub fn fuzz(target: &mut Target, minutes: f64, seed: u64, kept: &Path) -> Result<(u64, Duration), String> {
    let mut random = Random(seed);
    let (start, mut count, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed().as_secs_f64() < 60.0 * minutes {
        let bytes = input(target, &mut random);
        count += 1;
        let before = random.0;
        let mut read = |random: &mut Random| {
            let begun = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| (target.read)(&bytes, random)));
            (result, begun.elapsed())
        };
        let (result, mut taken) = read(&mut random);
        // Slow is what is slow again: the machine may have had something else to do.
        for _ in 0..2 {
            if taken > PATIENCE {
                taken = taken.min(read(&mut Random(before)).1);
            }
        }
        slowest = slowest.max(taken);
        let finding = match result {
            Err(_) => "a panic".to_owned(),
            Ok(Err(finding)) => finding,
            Ok(Ok(())) if taken > PATIENCE => format!("{taken:?} for one input"),
            Ok(Ok(())) => continue,
        };
        let path = kept.join(format!("{}.input", target.name));
        put(&path, &bytes);
        return Err(format!("{}: {finding} after {count} inputs from seed {seed}: {}", target.name, path.display()));
    }
    Ok((count, slowest))
}
