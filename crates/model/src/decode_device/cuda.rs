//! The device decoder's kernels on an NVIDIA GPU: where tensors' memory is, and steps as captured graphs.

use super::Draws;
use super::graphs::{Graphs, Steps, padded};
use super::kernels::{self, Ends, Kernels, Layout};
use super::plan::Plan;
use super::store::Blocks;
use crate::cache::LANES;
use crate::error::{Error, Result};
use crate::ops::cuda::decode::Cached;
use crate::ops::cuda::device::{Gpu, Operand};
use crate::ops::cuda::{Machine, View};
use crate::ops::sample::Distribution;
use crate::qwen2::Qwen2;
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, sys};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Device, Tensor};

/// Of the memory that is free, so many parts of [`ALL_PARTS`] may be a cache: the allocator and cuBLAS take some too.
const PARTS: u64 = 9;
const ALL_PARTS: u64 = 10;

impl Ends for Gpu {
    type Held<'a> = Operand<'a>;

    fn hold<'a>(&self, tensor: &'a Tensor) -> Result<Operand<'a>> {
        Ok(Operand::new(tensor))
    }

    fn view<'a>(&self, held: &'a Operand<'_>) -> Result<View<'a, CudaStorage>> {
        Ok(held.view()?)
    }

    fn upload(&self, values: &[u32], to: &mut CudaStorage) -> Result<()> {
        let CudaStorageSlice::U32(slice) = &mut to.slice else { return Err(other_type()) };
        let mut slice = slice.try_slice_mut(..values.len()).ok_or_else(other_type)?;
        Ok(to.device.cuda_stream().memcpy_htod(values, &mut slice).w()?)
    }

    fn download(&self, from: &CudaStorage, len: usize) -> Result<Vec<u32>> {
        let CudaStorageSlice::U32(slice) = &from.slice else { return Err(other_type()) };
        let slice = slice.try_slice(..len).ok_or_else(other_type)?;
        let stream = from.device.cuda_stream();
        let values = stream.clone_dtoh(&slice).w()?;
        stream.synchronize().w()?;
        Ok(values)
    }
}

fn other_type() -> Error {
    Error::Unsupported("a step's numbers are in memory of another type or size".into())
}

/// Kernels on a GPU.
pub(super) struct Cuda {
    device: CudaDevice,
    kernels: Kernels<Gpu>,
    /// `None`: every kernel is launched by itself.
    graphs: Option<Graphs<CudaGraph>>,
}

impl Cuda {
    pub fn new(model: &Qwen2, graphs: bool) -> Result<Self> {
        let Device::Cuda(device) = model.device() else {
            return Err(Error::Unsupported("the CUDA kernels need weights on an NVIDIA GPU".into()));
        };
        let kernels = Kernels::new(Gpu::new(device), model)?;
        Ok(Self { device: device.clone(), kernels, graphs: graphs.then(Graphs::default) })
    }

    pub fn refresh(&mut self, model: &Qwen2) -> Result<()> {
        if self.kernels.refresh(model)? {
            self.forget();
        }
        Ok(())
    }

    pub fn rest(&mut self) {
        self.forget();
        self.kernels.rest();
    }

    fn forget(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.forget();
        }
    }

    /// Steps that were replayed so far, and why no more are captured, if the driver refused.
    pub fn graphs(&self) -> (usize, Option<&str>) {
        self.graphs.as_ref().map_or((0, None), |graphs| (graphs.replayed(), graphs.failure()))
    }

    /// Blocks in memory that is allocated now, and one more that padding writes to.
    pub fn blocks(&self, model: &Qwen2, count: usize) -> Result<Vec<Cached<CudaStorage>>> {
        let (len, dtype) = ((count + 1) * LANES * model.config().widths().1, model.embedding.dtype());
        let machine = self.kernels.machine();
        let layer = |_| Ok(Cached { keys: machine.zeros(dtype, len)?, values: machine.zeros(dtype, len)? });
        (0..model.config().num_layers).map(layer).collect()
    }

    /// Bytes that a cache may take, beside what steps of so many rows need.
    pub fn room(&self, model: &Qwen2, rows: usize) -> Result<u64> {
        let stream = self.device.cuda_stream();
        // What was freed goes back to the device when the stream is empty.
        stream.synchronize().w()?;
        let (free, _) = stream.context().mem_get_info().w()?;
        let width = model.config().max_positions.div_ceil(LANES);
        let steps = kernels::bytes(model, super::STEP_TOKENS + rows, rows, width);
        Ok((free as u64 / ALL_PARTS * PARTS).saturating_sub(self.kernels.missing(steps)))
    }

    /// A step; the tokens of all draws, in their order.
    pub fn step(&mut self, model: &Qwen2, blocks: &mut Blocks, plan: &Plan, draws: &Draws) -> Result<Vec<(u32, f32)>> {
        let (copies, spare) = (blocks.take_copies(), blocks.count() as u32);
        let cache = blocks.cuda()?;
        self.kernels.copy(model, cache, &copies)?;
        let at = kernels::draws(plan, draws);
        let repeats = self.graphs.is_some() && plan.only_decodes() && at.len() == plan.tokens.len();
        let layout = Layout::new(plan, at.len(), repeats.then(|| padded(plan.tokens.len())));
        if self.kernels.send(model, plan, &layout, &at, spare)? {
            self.forget();
        }
        let mut step =
            Step { device: &self.device, kernels: &mut self.kernels, model, cache, layout, from: draws.from };
        match &mut self.graphs {
            Some(graphs) if repeats => graphs.run(layout, &draws.from, &mut step)?,
            _ => step.launch()?,
        }
        self.kernels.receive(&layout, at.len())
    }
}

/// A step that was sent to the GPU.
struct Step<'a> {
    device: &'a CudaDevice,
    kernels: &'a mut Kernels<Gpu>,
    model: &'a Qwen2,
    cache: &'a mut [Cached<CudaStorage>],
    layout: Layout,
    from: Distribution,
}

impl Steps for Step<'_> {
    type Graph = CudaGraph;

    fn launch(&mut self) -> Result<()> {
        self.kernels.launch(self.model, self.cache, &self.layout, &self.from)
    }

    fn capture(&mut self) -> Result<CudaGraph> {
        let stream = self.device.cuda_stream();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let launched = self.launch();
        // Ended in any case: a stream that is left capturing runs nothing more.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags_enum(0)).w();
        launched?;
        graph?.ok_or_else(|| Error::Unsupported("the driver captured nothing".into()))
    }

    fn replay(&mut self, graph: &CudaGraph) -> Result<()> {
        Ok(graph.launch().w()?)
    }
}
