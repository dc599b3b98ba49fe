//! RMSNorm: `y = x / sqrt(mean(x^2) + eps) * w` (Zhang and Sennrich 2019, arXiv 1910.07467).

use super::{elements, fallbacks, fused, output, with_elements};
use crate::kernels::{ROWS_PER_TASK, for_each_chunk, map_chunks, math, vectorized};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor};

/// `x: [tokens, hidden]`, `w: [hidden]` -> `[tokens, hidden]`, reduced in f32.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    if fused(x) {
        return x.contiguous()?.apply_op2(&w.to_dtype(x.dtype())?, RmsNorm { eps: eps as f32 });
    }
    fallbacks::note("rms_norm");
    composed(x, w, eps)
}

/// The same of plain tensor ops, on any device.
pub fn composed(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(&w.to_dtype(DType::F32)?)?.to_dtype(dtype)
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (elements(x, lx, "rms_norm")?, elements(w, lw, "rms_norm")?);
        let width = w.len();
        let mut y = vec![0.0; x.len()];
        for_each_chunk(&mut y, ROWS_PER_TASK * width, |i, y| {
            let x = &x[i * ROWS_PER_TASK * width..][..y.len()];
            vectorized!({
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                    math::rms_norm_row(x, w, self.eps, y);
                }
            });
        });
        Ok(output(y, lx.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        use super::cuda::{device, rms_norm};
        let gpu = device::Gpu::new(&x.device);
        let y = rms_norm::forward(&gpu, device::view(x, lx)?, device::view(w, lw)?, self.eps)?;
        Ok((y, lx.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        super::metal::tensors::forward::rms_norm((x, lx), (w, lw), self.eps)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = gradients(x, w, g, f64::from(self.eps))?;
        Ok((Some(dx), dw))
    }
}

/// The gradients of `x` and, if they are trained, of the weights for the gradient `g` of [`rms_norm`]'s value, where its
/// kernels run.
pub(crate) fn gradients(x: &Tensor, w: &Tensor, g: &Tensor, eps: f64) -> Result<(Tensor, Option<Tensor>)> {
    let (w, eps) = (w.to_dtype(x.dtype())?, eps as f32);
    #[cfg(feature = "metal")]
    if x.device().is_metal() {
        let (dx, dw) = super::metal::tensors::backward::rms_norm(x, &w, g, eps)?;
        return Ok((dx, Some(dw).filter(|_| w.track_op())));
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        use super::cuda::{device, rms_norm};
        let (dx, dw) = device::with([x, &w, g], |gpu, views| rms_norm::backward(gpu, views, eps, w.track_op()))?;
        return Ok((device::tensor(dx, x.shape()), dw.map(|dw| device::tensor(dw, w.shape()))));
    }
    let (dx, dw) = with_elements(x, "rms_norm", |x| {
        with_elements(&w, "rms_norm", |w| with_elements(g, "rms_norm", |g| Ok(backward(x, w, g, eps))))
    })?;
    let dw = w.track_op().then(|| Tensor::from_vec(dw, w.shape(), w.device())).transpose()?;
    Ok((Tensor::from_vec(dx, x.shape(), x.device())?, dw))
}

/// With `n = x / rms`: `dw = sum_rows g n`, `dx = (g w - n mean(g w n)) / rms`. The sum over rows goes by fixed groups.
fn backward(x: &[f32], w: &[f32], g: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = w.len();
    let size = ROWS_PER_TASK * width;
    let mut dx = vec![0.0; x.len()];
    let parts = map_chunks(&mut dx, size, |i, dx| {
        let (x, g) = (&x[i * size..][..dx.len()], &g[i * size..][..dx.len()]);
        let mut dw = vec![0.0; width];
        vectorized!({
            for ((x, g), dx) in x.chunks_exact(width).zip(g.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
                backward_row(Row { x, w, g }, eps, dx, &mut dw);
            }
        });
        dw
    });
    let mut dw = vec![0.0; width];
    for part in parts {
        for (sum, value) in dw.iter_mut().zip(part) {
            *sum += value;
        }
    }
    (dx, dw)
}

struct Row<'a> {
    x: &'a [f32],
    w: &'a [f32],
    g: &'a [f32],
}

#[inline(always)]
fn backward_row(row: Row, eps: f32, dx: &mut [f32], dw: &mut [f32]) {
    let Row { x, w, g } = row;
    let n = x.len() as f32;
    let inverse = 1.0 / (math::dot(x, x) / n + eps).sqrt();
    for ((d, &g), &w) in dx.iter_mut().zip(g).zip(w) {
        *d = g * w;
    }
    let mean = math::dot(dx, x) * inverse * inverse / n;
    for (((d, dw), &x), &g) in dx.iter_mut().zip(dw).zip(x).zip(g) {
        *dw += g * x * inverse;
        *d = inverse * (*d - x * mean);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn equals_its_twin() {
        for (rows, width) in [(1, 4), (5, 128), (300, 33)] {
            let (x, w) = (variable(&[rows, width], 1), variable(&[width], 2));
            assert_twins(&[&x, &w], || rms_norm(&x, &w, 1e-6), || composed(&x, &w, 1e-6), 1e-5);
        }
    }
}
