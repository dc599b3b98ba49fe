//! SwiGLU's gate: `y = silu(gate) * up`, `silu(z) = z / (1 + e^-z)` (Shazeer 2020, arXiv 2002.05202).

use super::{elements, fallbacks, fused, output, with_elements};
use crate::kernels::{for_each_chunk, for_each_two_chunks, math, vectorized};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Elements that one task takes.
const CHUNK: usize = 1 << 15;

/// `gate, up: [tokens, intermediate]` -> `[tokens, intermediate]`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(gate) {
        return gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu);
    }
    fallbacks::note("swiglu");
    composed(gate, up)
}

/// The same of plain tensor ops, on any device.
pub fn composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (elements(a, la, "swiglu")?, elements(b, lb, "swiglu")?);
        if gate.len() != up.len() {
            bail!("swiglu: a gate of {} elements for {}", gate.len(), up.len());
        }
        let mut y = vec![0.0; gate.len()];
        for_each_chunk(&mut y, CHUNK, |i, y| {
            let (gate, up) = (&gate[i * CHUNK..][..y.len()], &up[i * CHUNK..][..y.len()]);
            vectorized!({
                for ((y, &z), &u) in y.iter_mut().zip(gate).zip(up) {
                    *y = z * math::sigmoid(z) * u;
                }
            });
        });
        Ok(output(y, la.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout, b: &CudaStorage, lb: &Layout) -> Result<(CudaStorage, Shape)> {
        use super::cuda::{device, swiglu};
        let gpu = device::Gpu::new(&a.device);
        Ok((swiglu::forward(&gpu, device::view(a, la)?, device::view(b, lb)?)?, la.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, a: &MetalStorage, la: &Layout, b: &MetalStorage, lb: &Layout) -> Result<(MetalStorage, Shape)> {
        super::metal::tensors::forward::swiglu((a, la), (b, lb))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = gradients(gate, up, g)?;
        Ok((Some(dgate), Some(dup)))
    }
}

/// The gradients of `gate` and `up` for the gradient `g` of [`swiglu`]'s value, where its kernels run.
pub(crate) fn gradients(gate: &Tensor, up: &Tensor, g: &Tensor) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "metal")]
    if gate.device().is_metal() {
        return super::metal::tensors::backward::swiglu(gate, up, g);
    }
    #[cfg(feature = "cuda")]
    if gate.device().is_cuda() {
        use super::cuda::{device, swiglu};
        let (dgate, dup) = device::with([gate, up, g], swiglu::backward)?;
        return Ok((device::tensor(dgate, gate.shape()), device::tensor(dup, up.shape())));
    }
    let (dgate, dup) = with_elements(gate, "swiglu", |gate| {
        with_elements(up, "swiglu", |up| with_elements(g, "swiglu", |g| Ok(backward(gate, up, g))))
    })?;
    Ok((Tensor::from_vec(dgate, gate.shape(), gate.device())?, Tensor::from_vec(dup, up.shape(), up.device())?))
}

/// With `s = sigmoid(z)`: `dup = g z s`, `dgate = g up s (1 + z (1 - s))`.
fn backward(gate: &[f32], up: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
    for_each_two_chunks(&mut dgate, &mut dup, CHUNK, |i, dgate, dup| {
        let range = i * CHUNK..i * CHUNK + dgate.len();
        let (gate, up, g) = (&gate[range.clone()], &up[range.clone()], &g[range]);
        vectorized!({
            for (((dz, du), (&z, &u)), &g) in dgate.iter_mut().zip(&mut *dup).zip(gate.iter().zip(up)).zip(g) {
                let s = math::sigmoid(z);
                *du = g * z * s;
                *dz = g * u * s * (1.0 + z * (1.0 - s));
            }
        });
    });
    (dgate, dup)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn equals_its_twin() {
        for (tokens, width) in [(1, 5), (7, 384), (200, 400)] {
            let (gate, up) = (variable(&[tokens, width], 1), variable(&[tokens, width], 2));
            assert_twins(&[&gate, &up], || swiglu(&gate, &up), || composed(&gate, &up), 1e-5);
        }
    }
}
