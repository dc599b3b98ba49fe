//! The embedding: rows of a table by their numbers, and a gradient that sums what came from one row in a fixed order.

#[cfg(feature = "cuda")]
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// `table: [vocab, width]` -> its rows `ids`, `[ids, width]`.
///
/// # Errors
/// When a number is beyond the table.
pub fn embedding(table: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if table.device().is_cuda() && super::fused(table) {
        return table.contiguous()?.apply_op1(Embedding { ids: ids.clone() });
    }
    if !table.device().is_cpu() {
        super::fallbacks::note("embedding");
    }
    composed(table, ids)
}

/// The same of plain tensor ops, on any device.
///
/// # Errors
/// As [`embedding`].
pub fn composed(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::new(ids, table.device())?, 0)
}

/// Adds the gradient `g: [ids, width]` of the rows to f32 sums `[vocab, width]` on a GPU, in place.
///
/// # Errors
/// When there is no kernel for it, or the shapes do not fit.
#[cfg(feature = "cuda")]
pub(crate) fn add_gradient(sum: &Tensor, ids: &[u32], g: &Tensor) -> Result<()> {
    use super::cuda::device::{with, write};
    use super::cuda::rows::{Groups, Sums, sum_into};
    let (len, width) = (sum.elem_count(), g.dim(1)?);
    with([g], |gpu, [g]| {
        write(sum, |(memory, offset), dtype| {
            sum_into(gpu, g, &Groups::of(ids), Sums { memory, offset, len, dtype }, width)
        })
    })
}

#[cfg(feature = "cuda")]
struct Embedding {
    ids: Arc<[u32]>,
}

#[cfg(feature = "cuda")]
impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("embedding: the fused op runs on a GPU only")
    }

    fn cuda_fwd(&self, table: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use super::cuda::device::{Gpu, view};
        let width = layout.shape().dims2()?.1;
        let rows = super::cuda::rows::gather(&Gpu::new(&table.device), view(table, layout)?, &self.ids, width)?;
        Ok((rows, (self.ids.len(), width).into()))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        use super::cuda::Machine;
        use super::cuda::device::{tensor, with};
        use super::cuda::rows::{Groups, Sums, sum_into};
        let (len, width, dtype) = (table.elem_count(), table.dim(1)?, table.dtype());
        with([g], |gpu, [g]| {
            let mut memory = gpu.zeros(dtype, len)?;
            let sums = Sums { memory: &mut memory, offset: 0, len, dtype };
            sum_into(gpu, g, &Groups::of(&self.ids), sums, width)?;
            Ok(Some(tensor(memory, table.shape())))
        })
    }
}
