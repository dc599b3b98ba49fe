//! Checkpoints: `state.json`, and headers of safetensors files.

use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use trainer::checkpoint;

use crate::target::{Random, Target, put, texts};

/// `state.json` under its checksum, so that what is behind it is reached.
fn sealed(text: &[u8]) -> Vec<u8> {
    let body = text.strip_suffix(b"\n}").unwrap_or(text);
    let sum: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    [body, format!(",\n  \"checksum\": \"{sum}\"\n}}\n").as_bytes()].concat()
}

/// `state.json`.
pub fn manifest(folder: PathBuf) -> Target {
    let checkpoint = folder.join("run/checkpoints/step-000001");
    fs::create_dir_all(&checkpoint).unwrap_or_else(|error| panic!("{error}"));
    put(&checkpoint.join("optimizer.safetensors"), b"\x08\0\0\0\0\0\0\0{}      ");
    let read = move |bytes: &[u8], random: &mut Random| {
        let state = if random.below(2) == 0 { sealed(bytes) } else { bytes.to_vec() };
        put(&checkpoint.join(checkpoint::STATE_FILE), &state);
        let _ = checkpoint::read(&checkpoint);
        let _ = checkpoint::newest_whole(&folder.join("run"));
        Ok(())
    };
    let hash: String = Sha256::digest(b"\x08\0\0\0\0\0\0\0{}      ").iter().map(|byte| format!("{byte:02x}")).collect();
    let seed = format!(
        "{{\n  \"format\": \"bellows-checkpoint\",\n  \"version\": 2,\n  \"step\": 1,\n  \"cycle\": 1,\n  \"tokens_total\": 9,\n  \
         \"seed\": 3,\n  \"settings\": {{\n    \"run.seed\": \"3\"\n  }},\n  \"extra\": {{}},\n  \"files\": {{\n    \
         \"optimizer.safetensors\": {{\n      \"bytes\": 16,\n      \"sha256\": \"{hash}\"\n    }}\n  }}\n}}"
    );
    let pieces = &[
        "{",
        "}",
        "[",
        "\"",
        "\"../../x\": {\"bytes\": 1, \"sha256\": \"\"},",
        "-1",
        "1e99",
        "null",
        ",",
        "\n}",
        "/",
        "\\",
    ];
    Target { name: "manifest", seeds: vec![seed], pieces, read: Box::new(read) }
}

/// The header of a safetensors file.
pub fn header(folder: PathBuf) -> Target {
    let files = model::embedded::files();
    for (name, text) in [("config.json", &files.config), ("tokenizer.json", &files.tokenizer)] {
        put(&folder.join(name), text.as_bytes());
    }
    let read = move |bytes: &[u8], random: &mut Random| {
        let length = match random.below(8) {
            0 => random.next(),
            1 => (bytes.len() + random.below(9)) as u64,
            _ => bytes.len() as u64,
        };
        let data = vec![1; random.below(64)];
        let path = folder.join("model.safetensors");
        put(&path, &[&length.to_le_bytes(), bytes, &data].concat());
        let _ = checkpoint::tensors::verify(&path, &[("w".into(), vec![2, 3])]);
        let opened = model::Files::open(&model::Source::Folder(folder.clone()));
        let opened = opened.map_err(|error| error.to_string())?;
        let _ = model::weights::load(&opened, candle_core::DType::F32, &candle_core::Device::Cpu);
        Ok(())
    };
    let seeds = texts(&[
        r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#,
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#,
        r#"{"model.norm.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
    ]);
    let pieces = &[
        "18446744073709551615",
        "4611686018427387904",
        "-1",
        "0",
        "[",
        "]",
        "{",
        "}",
        "\"F8_E4M3\"",
        "\"U8\"",
        ",",
        ":",
    ];
    Target { name: "header", seeds, pieces, read: Box::new(read) }
}
