//! A linear layer: `y = x w^T + b`, with the bias gradient summed over rows by a product instead of a strided sum.
//!
//! The weights may be bf16 beside f32 activations: one matrix at a time is widened while it is packed. Weights that are
//! not trained (a detached view's) get no gradient computed.

use super::{elements, fallbacks, fused, output, weights, with_elements, with_weights};
use crate::kernels::packed::Packed;
use crate::kernels::weights::{Element, Weights};
use crate::kernels::{ROWS_PER_TASK, for_each_chunk, map_tasks, math, vectorized};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// `x: [tokens, in]`, `w: [out, in]`, `b: [out]` -> `[tokens, out]`.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    // candle's own product is Metal's, and its gradients are products again.
    if x.device().is_metal() {
        return composed(x, w, b);
    }
    if !fused(x) {
        fallbacks::note("linear");
        return composed(x, w, b);
    }
    let x = x.contiguous()?;
    // The CPU widens weights as it packs them, a GPU multiplies one type.
    let typed = |w: &Tensor| if x.device().is_cpu() { Ok(w.clone()) } else { w.to_dtype(x.dtype()) };
    match b {
        Some(b) => x.apply_op3(&typed(w)?, &typed(b)?, Linear),
        None => x.apply_op2(&typed(w)?, Linear),
    }
}

/// The same of plain tensor ops, on any device.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&w.to_dtype(x.dtype())?.t()?)?;
    match b {
        Some(b) => y.broadcast_add(&b.to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, out, inner) = sizes(lx, lw)?;
        let (x, w) = (elements(x, lx, "linear")?, weights(w, lw, "linear")?);
        Ok(output(forward(x, w, None, inner, out), (tokens, out)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        on_cuda((x, lx), (w, lw), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, w, g)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, out, inner) = sizes(lx, lw)?;
        let (x, w, b) = (elements(x, lx, "linear")?, weights(w, lw, "linear")?, elements(b, lb, "linear")?);
        if b.len() != out {
            bail!("linear: a bias of {} for {out} outputs", b.len());
        }
        Ok(output(forward(x, w, Some(b), inner, out), (tokens, out)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        lx: &Layout,
        w: &CudaStorage,
        lw: &Layout,
        b: &CudaStorage,
        lb: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        on_cuda((x, lx), (w, lw), Some((b, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = gradients(x, w, g)?;
        let out = b.elem_count();
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            use super::cuda::{device, linear};
            let db = || Ok(device::tensor(device::with([g], |gpu, [g]| linear::bias_gradient(gpu, g, out))?, out));
            return Ok((dx, dw, b.track_op().then(db).transpose()?));
        }
        let db = || Tensor::from_vec(with_elements(g, "linear", |g| Ok(column_sums(g, out)))?, out, b.device());
        Ok((dx, dw, b.track_op().then(db).transpose()?))
    }
}

#[cfg(feature = "cuda")]
type Stored<'a> = (&'a CudaStorage, &'a Layout);

#[cfg(feature = "cuda")]
fn on_cuda((x, lx): Stored, (w, lw): Stored, bias: Option<Stored>) -> Result<(CudaStorage, Shape)> {
    use super::cuda::{device, linear};
    let (tokens, out, inner) = sizes(lx, lw)?;
    let bias = bias.map(|(b, lb)| device::view(b, lb)).transpose()?;
    let gpu = device::Gpu::new(&x.device);
    let y = linear::forward(&gpu, device::view(x, lx)?, device::view(w, lw)?, bias, [out, inner])?;
    Ok((y, (tokens, out).into()))
}

fn sizes(x: &Layout, w: &Layout) -> Result<(usize, usize, usize)> {
    let ((tokens, inner), (out, width)) = (x.shape().dims2()?, w.shape().dims2()?);
    if inner != width {
        bail!("linear: an input of width {inner} for weights [{out}, {width}]");
    }
    Ok((tokens, out, inner))
}

fn forward(x: &[f32], w: Weights, bias: Option<&[f32]>, inner: usize, out: usize) -> Vec<f32> {
    let w = match w {
        Weights::F32(w) => Packed::stack(&[w], inner),
        Weights::Bf16(w) => Packed::stack(&[w], inner),
    };
    let mut y = vec![0.0; x.len() / inner * out];
    for_each_chunk(&mut y, ROWS_PER_TASK * out, |i, y| {
        w.matmul(&x[i * ROWS_PER_TASK * inner..][..y.len() / out * inner], y);
        if let Some(bias) = bias {
            vectorized!(y.chunks_exact_mut(out).for_each(|row| math::axpy(row, 1.0, bias)));
        }
    });
    y
}

/// `dx = g w` and `dw = g^T x`, each where it is needed; `dw` has the type of `w`.
fn gradients(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (inner, out) = (x.dim(1)?, w.dim(0)?);
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        use super::cuda::{device, linear};
        let shape = [out, inner];
        let dx = || device::with([g, w], |gpu, [g, w]| linear::input_gradient(gpu, g, w, shape));
        let dw = || device::with([g, x], |gpu, [g, x]| linear::weight_gradient(gpu, g, x, shape));
        let (dx, dw) = (x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?);
        return Ok((dx.map(|dx| device::tensor(dx, x.shape())), dw.map(|dw| device::tensor(dw, w.shape()))));
    }
    let dx = || {
        let dx = with_weights(w, "linear", |w| {
            with_elements(g, "linear", |g| {
                Ok(match w {
                    Weights::F32(w) => product(g, w, out, inner),
                    Weights::Bf16(w) => product(g, w, out, inner),
                })
            })
        })?;
        Tensor::from_vec(dx, x.shape(), x.device())
    };
    let dw = || {
        let dw =
            with_elements(x, "linear", |x| with_elements(g, "linear", |g| Ok(product_over_rows(g, x, out, inner))))?;
        Tensor::from_vec(dw, w.shape(), w.device())?.to_dtype(w.dtype())
    };
    Ok((x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?))
}

/// `a b` of `a: [m, k]` and `b: [k, n]`.
pub(crate) fn product<T: Element>(a: &[f32], b: &[T], k: usize, n: usize) -> Vec<f32> {
    let b = Packed::columns(b, n);
    let mut y = vec![0.0; a.len() / k * n];
    for_each_chunk(&mut y, ROWS_PER_TASK * n, |i, y| {
        b.matmul(&a[i * ROWS_PER_TASK * k..][..y.len() / n * k], y);
    });
    y
}

/// `a^T b` of `a: [rows, m]` and `b: [rows, n]`: the sum over rows that a weight gradient is.
pub(crate) fn product_over_rows(a: &[f32], b: &[f32], m: usize, n: usize) -> Vec<f32> {
    let mut y = vec![0.0; m * n];
    Packed::columns(b, n).matmul_transposed(a, &mut y);
    y
}

/// The sum over rows of `g: [rows, width]`, by fixed groups of rows.
pub(crate) fn column_sums(g: &[f32], width: usize) -> Vec<f32> {
    let size = ROWS_PER_TASK * width;
    let parts = map_tasks(g.len().div_ceil(size), |i| {
        let mut sums = vec![0.0; width];
        vectorized!({
            for row in g[i * size..g.len().min((i + 1) * size)].chunks_exact(width) {
                math::axpy(&mut sums, 1.0, row);
            }
        });
        sums
    });
    parts.into_iter().fold(vec![0.0; width], |mut total, part| {
        vectorized!(math::axpy(&mut total, 1.0, &part));
        total
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn weights_in_bf16_equal_their_twin_and_frozen_ones_get_no_gradient() {
        let (x, w) = (variable(&[300, 33], 1), variable(&[70, 33], 2));
        let narrow = w.as_detached_tensor().to_dtype(candle_core::DType::BF16).unwrap();
        assert_twins(&[&x], || linear(&x, &narrow, None), || composed(&x, &narrow, None), 1e-5);
        let store = linear(&x, &narrow, None).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&narrow).is_none());
        let trained = candle_core::Var::from_tensor(&narrow).unwrap();
        let store = linear(&x, &trained, None).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(store.get(trained.as_tensor()).unwrap().dtype(), candle_core::DType::BF16);
    }

    #[test]
    fn equals_its_twin() {
        for (tokens, inner, out) in [(1, 3, 2), (9, 128, 64), (600, 16, 300)] {
            let (x, w, b) = (variable(&[tokens, inner], 1), variable(&[out, inner], 2), variable(&[out], 3));
            assert_twins(&[&x, &w], || linear(&x, &w, None), || composed(&x, &w, None), 1e-5);
            let (fused, twin) = (|| linear(&x, &w, Some(&b)), || composed(&x, &w, Some(&b)));
            assert_twins(&[&x, &w, &b], fused, twin, 1e-5);
        }
    }
}
