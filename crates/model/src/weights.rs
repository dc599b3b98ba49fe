//! Weights in and out: safetensors named as Hugging Face names them.

#![deny(clippy::indexing_slicing)]

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::{Files, Weights};
use crate::qwen2::Qwen2;
use crate::shards::{self, Shard};
use crate::split;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Loads a model's weights.
///
/// # Errors
/// When a file is unreadable, torn, or does not hold the tensors that `config.json` asks for.
pub fn load(files: &Files, dtype: DType, device: &Device) -> Result<Qwen2> {
    let config = Config::parse(&files.config, &files.path("config.json"))?;
    let mut tensors = BTreeMap::new();
    match &files.weights {
        Weights::Bytes(bytes) => read(bytes, &files.path("model.safetensors"), &mut tensors)?,
        Weights::Paths(paths) => {
            for path in paths {
                Shard::open(path)?.read(|name, tensor| insert(&mut tensors, path, name, tensor))?;
            }
        }
    }
    Qwen2::new(config, tensors, dtype, device).map_err(|e| match e {
        Error::Unsupported(message) => Error::invalid(&files.origin, message),
        other => other,
    })
}

/// Whether every tensor of a model's files is of this type, so that loading them in it rounds nothing.
///
/// # Errors
/// When a file is unreadable or torn.
pub fn are_in(files: &Files, dtype: DType) -> Result<bool> {
    let Weights::Paths(paths) = &files.weights else { return Ok(false) };
    for path in paths {
        let header = shards::open(path)?.header;
        if !header.tensors().values().all(|info| DType::try_from(info.dtype).is_ok_and(|found| found == dtype)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read(bytes: &[u8], path: &Path, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    let loaded = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|e| Error::invalid(path, format!("not a whole safetensors file: {e}")))?;
    for (name, tensor) in loaded {
        insert(tensors, path, name, tensor)?;
    }
    Ok(())
}

fn insert(tensors: &mut BTreeMap<String, Tensor>, path: &Path, name: String, tensor: Tensor) -> Result<()> {
    match tensors.insert(name.clone(), tensor) {
        None => Ok(()),
        Some(_) => Err(Error::invalid(path, format!("tensor {name} is in another shard as well"))),
    }
}

/// Writes the weights, adapters merged in, to one safetensors file in `dtype`, or each in the type that it has.
///
/// # Errors
/// When the file cannot be written.
pub fn save(model: &Qwen2, path: &Path, dtype: impl Into<Option<DType>>) -> Result<()> {
    split::write(merged(model, dtype.into()).collect::<Result<_>>()?, path)
}

/// Every tensor, adapters merged in, in `dtype` or the type that it has, in memory that can be written.
fn merged(model: &Qwen2, dtype: Option<DType>) -> impl Iterator<Item = Result<(&str, Tensor)>> {
    model.merged().map(move |tensor| {
        let (name, tensor) = tensor?;
        Ok((name, tensor.to_dtype(dtype.unwrap_or(tensor.dtype()))?.to_device(&Device::Cpu)?))
    })
}

/// Writes a folder that transformers and vLLM load: the model's small files and its weights in `dtype`, or each in the
/// type that it has; in several files where one would be longer than [`split::FILE_BYTES`].
///
/// # Errors
/// When a file cannot be written.
pub fn save_folder(model: &Qwen2, files: &Files, folder: &Path, dtype: impl Into<Option<DType>>) -> Result<()> {
    save_folder_in_files(model, files, folder, dtype.into(), split::FILE_BYTES)
}

/// The same, with no file of weights longer than `limit` bytes.
///
/// # Errors
/// When a file cannot be written.
pub fn save_folder_in_files(
    model: &Qwen2,
    files: &Files,
    folder: &Path,
    dtype: Option<DType>,
    limit: usize,
) -> Result<()> {
    save_small_files(files, folder, dtype.unwrap_or(model.embedding.dtype()))?;
    let weights = split::save(merged(model, dtype), folder, limit)?;
    // `safetensors` makes a file for its owner alone; who may read the rest may read the weights (a server, say).
    let config = std::fs::metadata(folder.join("config.json")).map_err(Error::io(folder))?;
    weights.iter().try_for_each(|path| std::fs::set_permissions(path, config.permissions()).map_err(Error::io(path)))
}

/// Writes everything of a model but its weights, which are in `dtype`.
///
/// # Errors
/// When a file cannot be written.
pub fn save_small_files(files: &Files, folder: &Path, dtype: DType) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut config: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&files.config).map_err(|e| Error::invalid(files.path("config.json"), e))?;
    config.insert("torch_dtype".into(), dtype_name(dtype).into());
    // transformers 5 writes this name, and prefers it where both are there.
    if let Some(other) = config.get_mut("dtype") {
        *other = dtype_name(dtype).into();
    }
    // vLLM chooses its code by this one.
    let architecture = match config.get("model_type").and_then(serde_json::Value::as_str) {
        Some("qwen3") => "Qwen3ForCausalLM",
        _ => "Qwen2ForCausalLM",
    };
    config.insert("architectures".into(), serde_json::json!([architecture]));
    let config = format!("{:#}\n", serde_json::Value::Object(config));
    let small = [
        ("config.json", Some(&config)),
        ("tokenizer.json", Some(&files.tokenizer)),
        ("tokenizer_config.json", files.tokenizer_config.as_ref()),
        ("chat_template.jinja", files.chat_template.as_ref()),
        ("generation_config.json", files.generation_config.as_ref()),
    ];
    for (name, text) in small {
        if let Some(text) = text {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::io(path))?;
        }
    }
    Ok(())
}

fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}
