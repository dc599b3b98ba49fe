//! Weights on disk as Hugging Face lays them out: `model.safetensors`, or several files and an index above a size.

#![deny(clippy::indexing_slicing)]

use crate::error::{Error, Result};
use crate::files::{INDEX, SINGLE};
use candle_core::Tensor;
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of one file at most, where no tensor alone has more: the limit that transformers has had for years, and small
/// enough for every file system and upload.
pub const FILE_BYTES: usize = 5_000_000_000;

/// Writes tensors in their order, each file at most `limit` bytes long, and holds no more than a file's at a time.
/// Returns the files.
///
/// # Errors
/// When a tensor cannot be made or a file cannot be written.
pub(crate) fn save<'a>(
    tensors: impl Iterator<Item = Result<(&'a str, Tensor)>>,
    folder: &Path,
    limit: usize,
) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut place: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut pending, mut pending_bytes, mut total) = (HashMap::new(), 0, 0);
    for tensor in tensors {
        let (name, tensor) = tensor?;
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        if pending_bytes > 0 && pending_bytes + bytes > limit {
            let file = part(folder, files.len());
            write(std::mem::take(&mut pending), &file)?;
            files.push(file);
            pending_bytes = 0;
        }
        place.insert(name, files.len());
        pending.insert(name, tensor);
        pending_bytes += bytes;
        total += bytes;
    }
    let file = part(folder, files.len());
    write(pending, &file)?;
    files.push(file);
    // How many there are is in their names, and known only now.
    let names: Vec<String> = match files.len() {
        1 => vec![SINGLE.into()],
        count => (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect(),
    };
    for (file, name) in files.iter_mut().zip(&names) {
        let named = folder.join(name);
        fs::rename(&file, &named).map_err(Error::io(&named))?;
        *file = named;
    }
    if names.len() > 1 {
        let placed = place.into_iter().filter_map(|(tensor, i)| Some((tensor.into(), names.get(i)?.as_str().into())));
        let map: Map<_, _> = placed.collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let path = folder.join(INDEX);
        fs::write(&path, format!("{index:#}\n")).map_err(Error::io(&path))?;
        files.push(path);
    }
    Ok(files)
}

fn part(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!(".model-{index}.part"))
}

/// One file; `format: pt` is what transformers looks for before it loads it.
pub(crate) fn write(tensors: HashMap<&str, Tensor>, path: &Path) -> Result<()> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|e| Error::invalid(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::files::{Files, Source};
    use crate::{embedded, init, weights};
    use candle_core::{DType, Device};

    #[test]
    fn a_model_in_several_files_is_the_same_model() {
        let files = embedded::files();
        let config = Config::parse(&files.config, Path::new("config.json")).unwrap();
        let model = init::random(config, 0.1, 3, DType::F32, &Device::Cpu).unwrap();
        let bytes = 4 * model.config().parameters();
        for (limit, count) in [(bytes, 1), (bytes - 1, 2), (bytes / 4, 5), (1, model.variables().len())] {
            let folder = tempfile::tempdir().unwrap();
            weights::save_small_files(&files, folder.path(), DType::F32).unwrap();
            let written = save(model.merged(), folder.path(), limit).unwrap();
            assert_eq!(written.len(), if count == 1 { 1 } else { count + 1 }, "{written:?}");
            assert!(fs::read_dir(folder.path()).unwrap().all(|e| !e.unwrap().path().ends_with(".part")));
            let source = Source::Folder(folder.path().into());
            let loaded = weights::load(&Files::open(&source).unwrap(), DType::F32, &Device::Cpu).unwrap();
            for ((name, var), (_, other)) in model.variables().iter().zip(loaded.variables()) {
                let values = |v: &Tensor| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert!(values(var.as_tensor()) == values(other.as_tensor()), "{name}");
            }
            if count > 1 {
                let index: serde_json::Value =
                    serde_json::from_str(&fs::read_to_string(folder.path().join(INDEX)).unwrap()).unwrap();
                assert_eq!(index["metadata"]["total_size"], bytes);
                assert_eq!(index["weight_map"].as_object().unwrap().len(), model.variables().len());
            }
        }
    }
}
