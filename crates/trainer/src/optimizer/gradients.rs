//! The gradient of a batch: f32 sums over its micro-batches, in an order that doesn't depend on threads.

use super::CHUNK;
use super::fused::Summed;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{CpuStorage, DType, Storage, Tensor, Var};
use half::bf16;
use model::backward::Sink;
use model::kernels::adamw::Kept;
use model::kernels::sums::HostSum;
use model::ops::norm;
use rayon::prelude::*;

/// How far apart the additions of two updates are numbered: odd, and far from what one update needs.
const APART: u32 = 0x9e37_79b1;

/// One sum for each variable.
///
/// Micro-batches may run on any threads, each with `Gradients` of its own, which are added in the order of the batch by
/// [`Gradients::merge`].
#[derive(Debug)]
pub struct Gradients {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    sum: Sum,
    received: bool,
}

/// A sum in the shape of its variable: flat host memory for one on the CPU, else a tensor on its device.
#[derive(Debug)]
pub(super) enum Sum {
    Host(Vec<f32>),
    /// In bf16, rounded by chance, which the number of the addition decides: from one update to the next they go on at
    /// another place.
    Narrow {
        sums: Vec<bf16>,
        additions: u32,
    },
    Device(Tensor),
}

impl Gradients {
    /// Zeros for the named variables, in their order, kept in f32.
    ///
    /// # Errors
    /// If a device has no memory for them.
    pub fn new(vars: &[(String, Var)]) -> Result<Self> {
        Self::kept(vars, false)
    }

    /// The same, kept in bf16 if they are to be `narrow` and are on the CPU.
    ///
    /// # Errors
    /// If a device has no memory for them.
    pub fn kept(vars: &[(String, Var)], narrow: bool) -> Result<Self> {
        let entries = vars
            .iter()
            .map(|(name, var)| {
                Ok(Entry { name: name.clone(), var: var.clone(), sum: Sum::zeros(var, narrow)?, received: false })
            })
            .collect::<Result<_>>()?;
        Ok(Self { entries })
    }

    /// Adds the gradient of the variable at `index`, in its shape and any float type.
    ///
    /// # Errors
    /// If there is no such variable or its shape is another.
    pub fn add(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        let variables = self.entries.len();
        let entry = self
            .entries
            .get_mut(index)
            .with_context(|| format!("there is no variable {index}: there are {variables}"))?;
        entry.add(gradient)
    }

    /// The sum of a variable on the CPU, for something to be added to it in place; `None` for another tensor.
    pub fn host(&mut self, variable: &Tensor) -> Option<HostSum<'_>> {
        let entry = self.entries.iter_mut().find(|entry| entry.var.as_tensor().id() == variable.id())?;
        let sum = entry.sum.host()?;
        entry.received = true;
        Some(sum)
    }

    /// The sum of a variable on a device, for a kernel to add to it in place; `None` for another tensor.
    pub fn device(&mut self, variable: &Tensor) -> Option<Tensor> {
        let entry = self.entries.iter_mut().find(|entry| entry.var.as_tensor().id() == variable.id())?;
        match &entry.sum {
            Sum::Device(sum) => {
                entry.received = true;
                Some(sum.clone())
            }
            Sum::Host(_) | Sum::Narrow { .. } => None,
        }
    }

    /// Whether threads may share the variables: what is on a device belongs to the thread that launches there.
    fn on_host(&self) -> bool {
        self.entries.iter().all(|entry| !matches!(entry.sum, Sum::Device(_)))
    }

    /// Adds the sums of other micro-batches.
    ///
    /// # Errors
    /// If they were made for other variables.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let sums = other.sums_for(self.entries.iter().map(|entry| entry.name.as_str()))?;
        let on_host = self.on_host();
        let add = |((entry, sum), other): ((&mut Entry, &Sum), &Entry)| {
            entry.received |= other.received;
            entry.sum.add(sum)
        };
        if on_host {
            self.entries.par_iter_mut().zip(sums).zip(&other.entries).try_for_each(add)
        } else {
            self.entries.iter_mut().zip(sums).zip(&other.entries).try_for_each(add)
        }
    }

    /// Names of the variables that no gradient was added to since the last [`Gradients::begin`].
    #[must_use]
    pub fn missing(&self) -> Vec<&str> {
        let missing = self.entries.iter().filter(|entry| !entry.received);
        missing.map(|entry| entry.name.as_str()).collect()
    }

    /// Each variable's name and sum, f32, in its shape and on its device.
    ///
    /// # Errors
    /// An item that its device has no memory for.
    pub fn tensors(&self) -> impl Iterator<Item = Result<(&str, Tensor)>> {
        self.entries.iter().map(|entry| Ok((entry.name.as_str(), entry.sum.to_tensor(&entry.var)?)))
    }

    /// The Euclidean norm over all variables, summed in f64 and in a fixed order on the CPU.
    ///
    /// # Errors
    /// If a device fails.
    pub fn global_norm(&self) -> Result<f64> {
        Ok(self.squares()?.iter().sum::<f64>().sqrt())
    }

    /// The sum of squares of each variable's gradient; a device is waited for once.
    fn squares(&self) -> Result<Vec<f64>> {
        if self.on_host() {
            return self.entries.par_iter().map(|entry| entry.sum.squares()).collect();
        }
        let sums = self.entries.iter().map(|entry| entry.sum.to_tensor(&entry.var)).collect::<Result<Vec<_>>>()?;
        Ok(norm::squares(&sums.iter().collect::<Vec<_>>())?)
    }

    /// Back to zeros, for the batch of the update of this number; host memory is kept.
    ///
    /// What is rounded by chance follows from the number and not from what was summed before, so that a run that goes on
    /// from a checkpoint rounds as the one that was left alone.
    ///
    /// # Errors
    /// If a device has no memory for them.
    pub fn begin(&mut self, update: u64) -> Result<()> {
        for entry in &mut self.entries {
            entry.received = false;
            match &mut entry.sum {
                Sum::Host(values) => values.fill(0.0),
                Sum::Narrow { sums, additions } => {
                    sums.fill(bf16::ZERO);
                    *additions = (update as u32).wrapping_mul(APART);
                }
                Sum::Device(tensor) => *tensor = tensor.zeros_like()?,
            }
        }
        Ok(())
    }

    /// The sums, if they belong to the variables of these names.
    pub(super) fn sums_for<'a>(&self, names: impl ExactSizeIterator<Item = &'a str>) -> Result<Vec<&Sum>> {
        ensure!(
            names.len() == self.entries.len(),
            "gradients of {} variables for {} others",
            self.entries.len(),
            names.len()
        );
        for (name, entry) in names.zip(&self.entries) {
            if name != entry.name {
                bail!("the gradient of `{}` was given for `{name}`", entry.name);
            }
        }
        Ok(self.entries.iter().map(|entry| &entry.sum).collect())
    }

    /// The name of the first variable whose gradient has a value that is not finite.
    pub(super) fn first_not_finite(&self) -> Result<&str> {
        let mut named = self.entries.iter().zip(self.squares()?);
        Ok(named
            .find(|(_, squares)| !squares.is_finite())
            .map_or("all variables together", |(entry, _)| entry.name.as_str()))
    }
}

impl Sink<anyhow::Error> for Gradients {
    fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<()> {
        match self.entries.iter_mut().find(|entry| entry.var.as_tensor().id() == variable.id()) {
            Some(entry) => entry.add(gradient),
            None => bail!("a gradient {:?} of none of the variables", gradient.dims()),
        }
    }

    fn host(&mut self, variable: &Tensor) -> Option<HostSum<'_>> {
        Self::host(self, variable)
    }

    fn device(&mut self, variable: &Tensor) -> Option<Tensor> {
        Self::device(self, variable)
    }
}

impl Entry {
    fn add(&mut self, gradient: &Tensor) -> Result<()> {
        if gradient.shape() != self.var.shape() {
            bail!("`{}` is {:?}, its gradient {:?}", self.name, self.var.dims(), gradient.dims());
        }
        self.received = true;
        match &mut self.sum {
            Sum::Device(sum) => {
                *sum = norm::added(sum, gradient)?;
                Ok(())
            }
            sum => add_tensor(sum, gradient),
        }
    }
}

impl Sum {
    fn zeros(var: &Var, narrow: bool) -> Result<Self> {
        if var.device().is_cpu() {
            let count = var.elem_count();
            return Ok(match narrow {
                true => Self::Narrow { sums: vec![bf16::ZERO; count], additions: 0 },
                false => Self::Host(vec![0.0; count]),
            });
        }
        let zeros = Tensor::zeros(var.shape(), DType::F32, var.device())?;
        Ok(Self::Device(zeros))
    }

    /// Where something can be added in host memory, if that is where it is.
    fn host(&mut self) -> Option<HostSum<'_>> {
        match self {
            Self::Host(values) => Some(HostSum::F32(values)),
            Self::Narrow { sums, additions } => {
                *additions = additions.wrapping_add(1);
                Some(HostSum::Bf16 { sums, addition: additions.wrapping_mul(0xc2b2_ae35) })
            }
            Self::Device(_) => None,
        }
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        match (self, other) {
            (Self::Host(sum), Self::Host(other)) => add_slice(sum, other),
            (Self::Device(sum), Self::Device(other)) => *sum = norm::added(sum, other)?,
            (sum @ Self::Narrow { .. }, Self::Host(other)) => {
                if let Some(mut sum) = sum.host() {
                    sum.add(0, other);
                }
            }
            _ => bail!("gradients of one variable are on two devices, or kept in two types"),
        }
        Ok(())
    }

    /// The sum of the squared values.
    fn squares(&self) -> Result<f64> {
        match self {
            Self::Host(values) => {
                let chunks: Vec<f64> = values.par_chunks(CHUNK).map(squares).collect();
                Ok(chunks.iter().sum())
            }
            Self::Narrow { sums, .. } => {
                let chunks: Vec<f64> = sums.par_chunks(CHUNK).map(squares).collect();
                Ok(chunks.iter().sum())
            }
            Self::Device(tensor) => Ok(norm::composed(tensor)?),
        }
    }

    /// The values in host memory.
    pub(super) fn summed(&self) -> Result<Summed<'_>> {
        match self {
            Self::Host(values) => Ok(Summed::F32(values)),
            Self::Narrow { sums, .. } => Ok(Summed::Bf16(sums)),
            Self::Device(_) => bail!("a gradient is on a device"),
        }
    }

    /// The sum as an f32 tensor in the shape and on the device of its variable.
    pub(super) fn to_tensor(&self, var: &Var) -> Result<Tensor> {
        match self {
            Self::Host(values) => Ok(Tensor::from_slice(values, var.shape(), var.device())?),
            Self::Narrow { sums, .. } => Ok(Tensor::from_slice(sums, var.shape(), var.device())?.to_dtype(DType::F32)?),
            Self::Device(tensor) => Ok(tensor.clone()),
        }
    }
}

/// Eight running sums, since one would wait for each addition to end before it starts the next.
fn squares<T: Kept>(values: &[T]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    for eight in values.chunks(8) {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(value.load()) * f64::from(value.load());
        }
    }
    lanes.iter().sum()
}

fn add_slice(sum: &mut [f32], other: &[f32]) {
    sum.par_chunks_mut(CHUNK)
        .zip(other.par_chunks(CHUNK))
        .for_each(|(sum, other)| sum.iter_mut().zip(other).for_each(|(s, o)| *s += o));
}

/// Adds a tensor's values to a sum in host memory, from its own memory where they lie there in order.
fn add_tensor(sum: &mut Sum, gradient: &Tensor) -> Result<()> {
    let mut add = |values: &[f32]| {
        if let Some(mut sum) = sum.host() {
            sum.add(0, values);
        }
    };
    {
        let (storage, layout) = gradient.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            add(&values[start..end]);
            return Ok(());
        }
    }
    add(&gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
    Ok(())
}
