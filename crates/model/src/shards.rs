//! A safetensors file read one tensor at a time: loading a model never holds a whole file beside the tensors made of it.

#![deny(clippy::indexing_slicing)]

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of the number that a file begins with: the length of its header.
const LENGTH_BYTES: u64 = 8;
/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;

/// A safetensors file whose header agrees with its size, so that nothing in it is longer than the file.
#[derive(Debug)]
pub struct Opened {
    /// The file, somewhere in its data.
    pub file: File,
    /// What it holds.
    pub header: Metadata,
    /// Bytes before the data.
    pub data_start: u64,
}

/// Opens a safetensors file and reads its header. No memory is taken for more than the file has.
///
/// # Errors
/// When it cannot be read, or its size is not what its header says: it is torn.
pub fn open(path: &Path) -> Result<Opened> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let torn = |why: String| Error::invalid(path, format!("torn, not a whole safetensors file: {why}"));
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|_| torn(format!("it has {size} bytes")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + LENGTH_BYTES > size {
        return Err(torn(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(Error::io(path))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| torn(e.to_string()))?;
    let data_start = LENGTH_BYTES + length;
    match data_start.checked_add(header.data_len() as u64) {
        Some(expected) if expected == size => Ok(Opened { file, header, data_start }),
        Some(expected) => Err(torn(format!("it has {size} bytes, its header says {expected}"))),
        None => Err(torn("its header says more bytes than there are numbers for".into())),
    }
}

/// An open file whose header agrees with its size.
pub struct Shard {
    path: PathBuf,
    file: File,
    data_start: u64,
    tensors: Vec<(String, TensorInfo)>,
}

impl Shard {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(path: &Path) -> Result<Self> {
        let Opened { file, header, data_start } = open(path)?;
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path: path.into(), file, data_start, tensors })
    }

    /// Reads the tensors, one after the other.
    ///
    /// # Errors
    /// When the file cannot be read or a tensor has a type that tensors here cannot have.
    pub fn read(mut self, mut take: impl FnMut(String, Tensor) -> Result<()>) -> Result<()> {
        for (name, info) in std::mem::take(&mut self.tensors) {
            let tensor = self.tensor(&name, &info)?;
            take(name, tensor)?;
        }
        Ok(())
    }

    fn tensor(&mut self, name: &str, info: &TensorInfo) -> Result<Tensor> {
        let path = &self.path;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end.saturating_sub(start)];
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(Error::io(path))?;
        self.file.read_exact(&mut bytes).map_err(Error::io(path))?;
        let invalid = |e: candle_core::Error| Error::invalid(path, format!("tensor {name}: {e}"));
        let dtype = info.dtype.try_into().map_err(invalid)?;
        Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu).map_err(invalid)
    }
}
