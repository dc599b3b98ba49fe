//! Safetensors files, opened by their header: what a file holds is known, and checked against its size, before its data
//! is read, one tensor at a time.

use anyhow::{Context, Result, bail, ensure};
use model::shards::{self, Opened};
use safetensors::Dtype;
use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// An open file whose header agrees with its size.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    opened: Opened,
}

impl TensorFile {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), opened: shards::open(path)? })
    }

    /// The text under a key of the file's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.opened.header.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// Checks that the file holds exactly these tensors, of this type if one is given.
    pub(crate) fn expect(&self, expected: &[(String, Vec<usize>)], dtype: Option<Dtype>) -> Result<()> {
        let shown = self.path.display();
        let mut unexpected: BTreeMap<_, _> = self.opened.header.tensors().into_iter().collect();
        for (name, shape) in expected {
            let Some(info) = unexpected.remove(name) else {
                bail!("{shown}: tensor `{name}` is missing");
            };
            ensure!(info.shape == *shape, "{shown}: tensor `{name}` is {:?}, the model's is {shape:?}", info.shape);
            if let Some(dtype) = dtype.filter(|&dtype| dtype != info.dtype) {
                bail!("{shown}: tensor `{name}` is {:?}, not {dtype:?}", info.dtype);
            }
        }
        match unexpected.keys().next() {
            Some(name) => bail!("{shown}: tensor `{name}` is not one of this model"),
            None => Ok(()),
        }
    }

    /// Reads an f32 tensor, flat.
    pub(crate) fn read_f32(&mut self, name: &str) -> Result<Vec<f32>> {
        let shown = self.path.display();
        let Opened { file, header, data_start } = &mut self.opened;
        let info = header
            .info(name)
            .filter(|info| info.dtype == Dtype::F32)
            .with_context(|| format!("{shown}: no f32 tensor `{name}`"))?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end.saturating_sub(start)];
        file.seek(SeekFrom::Start(*data_start + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .with_context(|| format!("{shown}: tensor `{name}` can't be read"))?;
        let values = bytes.chunks_exact(size_of::<f32>());
        Ok(values.filter_map(|b| b.try_into().ok()).map(f32::from_le_bytes).collect())
    }
}

/// Checks a safetensors file against its own header and against the tensors it should hold, `(name, shape)`, without
/// reading its data.
///
/// # Errors
/// If the file is torn, or a tensor is missing, unexpected or of another shape; each names the file.
pub fn verify(path: &Path, expected: &[(String, Vec<usize>)]) -> Result<()> {
    TensorFile::open(path)?.expect(expected, None)
}
