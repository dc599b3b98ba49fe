//! Sums of gradients on a device: f32 sums over micro-batches, and the squares of their norm, in a fixed order.

use candle_core::{DType, Result, Tensor};

/// `sum + gradient` of an f32 sum; in place on a GPU, where the sum that is returned is the one that was given.
///
/// # Errors
/// When shapes or devices do not fit.
pub fn added(sum: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if sum.shape() != gradient.shape() {
        candle_core::bail!("norm: a gradient {:?} for a sum {:?}", gradient.dims(), sum.dims());
    }
    #[cfg(feature = "cuda")]
    if sum.device().is_cuda() && super::fused(sum) && super::fused(gradient) {
        use super::cuda::{device, norm};
        device::with([gradient], |gpu, [g]| device::write(sum, |(sum, offset), _| norm::add(gpu, g, sum, offset)))?;
        return Ok(sum.clone());
    }
    super::fallbacks::note("norm");
    // Detached, for a gradient may still hold the graph that it came from.
    Ok((sum + gradient.to_dtype(DType::F32)?)?.detach())
}

/// The sum of squares of each f32 tensor, in f64 on a GPU that has a kernel; the host waits for the device once.
///
/// # Errors
/// When a device fails.
pub fn squares(sums: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if let Some(first) = sums.first()
        && sums.iter().all(|sum| sum.device().is_cuda() && super::fused(sum))
    {
        use super::cuda::{device, norm};
        let operands: Vec<_> = sums.iter().map(|sum| device::Operand::new(sum)).collect();
        let views = operands.iter().map(device::Operand::view).collect::<Result<Vec<_>>>()?;
        return device::tensor(norm::squares(&device::Gpu::of(first)?, &views)?, sums.len()).to_vec1();
    }
    sums.iter().map(|sum| composed(sum)).collect()
}

/// The sum of squares by plain tensor ops, in f32 and on any device.
///
/// # Errors
/// When a device fails.
pub fn composed(sum: &Tensor) -> Result<f64> {
    super::fallbacks::note("norm");
    Ok(f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?))
}
