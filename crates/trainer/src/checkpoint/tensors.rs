//! Safetensors files, opened by their header: what a file holds is known, and checked against its size, before its data
//! is read, one tensor at a time.

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, tensor::Metadata};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Bytes of the number that a file begins with: the length of its header.
const LENGTH_BYTES: u64 = 8;
/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;

/// An open file whose header agrees with its size.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut file = File::open(path).with_context(|| format!("{shown}: can't be opened"))?;
        let size = file.metadata().with_context(|| shown.to_string())?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).with_context(|| format!("{shown}: torn: {size} bytes are no safetensors file"))?;
        let length = u64::from_le_bytes(length);
        ensure!(
            length <= MAX_HEADER && length + LENGTH_BYTES <= size,
            "{shown}: torn or no safetensors file: a header of {length} bytes in a file of {size}"
        );
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).with_context(|| shown.to_string())?;
        let header: Metadata =
            serde_json::from_slice(&header).with_context(|| format!("{shown}: no safetensors header"))?;
        let data_start = LENGTH_BYTES + length;
        let expected = data_start + header.data_len() as u64;
        ensure!(size == expected, "{shown}: torn: {size} bytes, its header says {expected}");
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    /// The text under a key of the file's metadata.
    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        let metadata = self.header.metadata().as_ref()?;
        metadata.get(key).map(String::as_str)
    }

    /// Checks that the file holds exactly these tensors, of this type if one is given.
    pub(crate) fn expect(&self, expected: &[(String, Vec<usize>)], dtype: Option<Dtype>) -> Result<()> {
        let shown = self.path.display();
        let mut unexpected: BTreeMap<_, _> = self.header.tensors().into_iter().collect();
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
        let info = self
            .header
            .info(name)
            .filter(|info| info.dtype == Dtype::F32)
            .with_context(|| format!("{shown}: no f32 tensor `{name}`"))?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .with_context(|| format!("{shown}: tensor `{name}` can't be read"))?;
        let values = bytes.chunks_exact(size_of::<f32>());
        Ok(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
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
