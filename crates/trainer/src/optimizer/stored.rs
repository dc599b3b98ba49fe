//! The optimiser's state as a safetensors file: `NAME.first_moment`, `NAME.second_moment` and, for a variable that is
//! not f32, `NAME.master`, all f32 (moments in bf16 widened); the step count is in the file's metadata.

use super::{AdamW, Entry, State};
use crate::checkpoint::tensors::TensorFile;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::HashMap, path::Path};

/// Raised whenever a file of an older program can no longer be read.
const VERSION: u32 = 1;
/// The key of the file's metadata. One key, because a map of several is written in random order.
const KEY: &str = "adamw";

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    step: u64,
}

/// A tensor to be written.
struct Values<'a> {
    shape: &'a [usize],
    values: Cow<'a, [f32]>,
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        for value in self.values.iter() {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}

impl AdamW {
    /// Writes the state to `path`. The same state gives the same bytes.
    ///
    /// # Errors
    /// If the file can't be written, naming it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = serde_json::to_string(&Header { version: VERSION, step: self.step })?;
        let mut tensors = Vec::new();
        for entry in &self.entries {
            tensors.extend(entry.values()?);
        }
        let metadata = HashMap::from([(KEY.to_owned(), header)]);
        safetensors::serialize_to_file(tensors, Some(metadata), path)
            .with_context(|| format!("{}: can't be written", path.display()))
    }

    /// Reads the state from `path`, after which training goes on bit for bit as if it had not stopped, given the same
    /// f32 variables; a bf16 or f16 variable is set from its master copy.
    ///
    /// # Errors
    /// If the file is torn, of another version, or of other variables, naming the file and what differs. Nothing is
    /// changed then, unless the disk fails half-way.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let mut file = TensorFile::open(path)?;
        let header = file.metadata(KEY).with_context(|| {
            format!("{}: not the state of an optimiser (no `{KEY}` in its metadata)", path.display())
        })?;
        let header: Header =
            serde_json::from_str(header).with_context(|| format!("{}: `{KEY}` in its metadata", path.display()))?;
        ensure!(
            header.version == VERSION,
            "{}: version {}, this program reads {VERSION}",
            path.display(),
            header.version
        );
        let mut expected = Vec::new();
        for entry in &self.entries {
            let names = entry.tensor_names();
            expected.extend(names.into_iter().map(|name| (name, entry.var.dims().to_vec())));
        }
        file.expect(&expected, Some(Dtype::F32))?;
        for entry in &mut self.entries {
            entry.read(&mut file)?;
        }
        self.step = header.step;
        Ok(())
    }
}

impl Entry {
    fn has_master(&self) -> bool {
        self.var.dtype() != DType::F32
    }

    /// Names of the stored tensors: the moments, then the master copy if there is one.
    fn tensor_names(&self) -> Vec<String> {
        let mut kinds = vec!["first_moment", "second_moment"];
        kinds.extend(self.has_master().then_some("master"));
        kinds.into_iter().map(|kind| format!("{}.{kind}", self.name)).collect()
    }

    /// The stored tensors, in the order of their names.
    fn values(&self) -> Result<Vec<(String, Values<'_>)>> {
        let values: Vec<Cow<[f32]>> = match &self.state {
            State::Host { first, second, master } => {
                let master = master.as_ref().map(|values| Cow::Borrowed(values.as_slice()));
                [Some(first.values()), Some(second.values()), master].into_iter().flatten().collect()
            }
            State::Device { first, second, master } => [Some(first), Some(second), master.as_ref()]
                .into_iter()
                .flatten()
                .map(|tensor| Ok(Cow::Owned(tensor.flatten_all()?.to_vec1()?)))
                .collect::<Result<_>>()?,
        };
        let shape = self.var.dims();
        let values = values.into_iter().map(|values| Values { shape, values });
        Ok(self.tensor_names().into_iter().zip(values).collect())
    }

    fn read(&mut self, file: &mut TensorFile) -> Result<()> {
        let mut stored =
            self.tensor_names().iter().map(|name| file.read_f32(name)).collect::<Result<Vec<_>>>()?.into_iter();
        let (shape, device) = (self.var.shape().clone(), self.var.device().clone());
        let mut next = || stored.next().context("a tensor is missing");
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, &shape, &device);
        let (first, second) = (next()?, next()?);
        let master = if self.has_master() {
            let master = next()?;
            let value = tensor(master.clone())?.to_dtype(self.var.dtype())?;
            self.var.set(&value)?;
            Some(master)
        } else {
            None
        };
        match &mut self.state {
            State::Host { first: old_first, second: old_second, master: old_master } => {
                old_first.set(first);
                old_second.set(second);
                *old_master = master;
            }
            State::Device { .. } => {
                self.state = State::Device {
                    first: tensor(first)?,
                    second: tensor(second)?,
                    master: master.map(tensor).transpose()?,
                };
            }
        }
        Ok(())
    }
}
