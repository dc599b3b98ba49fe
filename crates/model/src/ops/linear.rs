//! A linear layer: `y = x w^T + b`, with the bias gradient summed over rows by a product instead of a strided sum.
//!
//! The weights may be bf16 beside f32 activations: one matrix at a time is widened while it is packed. Weights that are
//! not trained (a detached view's) get no gradient computed. All three products are in f32, or in bf16 with f32 sums
//! ([`Compute`]); what goes in and comes out is f32 either way.

use super::{elements, fallbacks, fused, output, weights, with_elements, with_weights};
use crate::kernels::packed::{Compute, Packed};
use crate::kernels::weights::{Element, Weights};
use crate::kernels::{ROWS_PER_TASK, for_each_chunk, map_tasks, math, vectorized};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

/// `x: [tokens, in]`, `w: [out, in]`, `b: [out]` -> `[tokens, out]`. `compute` is for f32 activations on the CPU; elsewhere
/// products are in the type of `x`.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, compute: Compute) -> Result<Tensor> {
    if !fused(x) {
        fallbacks::note("linear");
        return composed(x, w, b, compute);
    }
    let (x, op) = (x.contiguous()?, Linear { compute });
    match b {
        Some(b) => x.apply_op3(&typed(w, &x)?, &typed(b, &x)?, op),
        None => x.apply_op2(&typed(w, &x)?, op),
    }
}

/// Weights in the type that they are multiplied in: the CPU widens them as it packs them, a GPU takes one type.
fn typed(w: &Tensor, x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { Ok(w.clone()) } else { w.to_dtype(x.dtype()) }
}

/// The gradients of [`linear`]'s inputs.
pub(crate) struct LinearGradients {
    pub x: Tensor,
    /// Of the weights, if they are trained.
    pub w: Option<Tensor>,
    /// Of the bias, if it is trained.
    pub b: Option<Tensor>,
}

/// What [`linear`] hands back for the gradient `g: [tokens, out]` of its value, where its kernels run: without a graph.
pub(crate) fn gradients(
    x: &Tensor,
    w: &Tensor,
    b: Option<&Tensor>,
    g: &Tensor,
    compute: Compute,
) -> Result<LinearGradients> {
    let (dx, dw) = Linear { compute }.gradients(x, &typed(w, x)?, g, [true, w.track_op()])?;
    let db = b.filter(|b| b.track_op()).map(|b| bias_gradient(g, b)).transpose()?;
    match dx {
        Some(x) => Ok(LinearGradients { x, w: dw, b: db }),
        None => bail!("linear: no gradient of the input"),
    }
}

/// The same of plain tensor ops, on any device.
pub fn composed(x: &Tensor, w: &Tensor, b: Option<&Tensor>, compute: Compute) -> Result<Tensor> {
    // The gradient passes the rounding by, unrounded.
    let rounded = |x: &Tensor| match compute {
        Compute::Bf16 => x + (x.to_dtype(DType::BF16)?.to_dtype(x.dtype())? - x)?.detach(),
        Compute::F32 => Ok(x.clone()),
    };
    let y = rounded(x)?.matmul(&rounded(&w.to_dtype(x.dtype())?)?.t()?)?;
    match b {
        Some(b) => y.broadcast_add(&b.to_dtype(x.dtype())?),
        None => Ok(y),
    }
}

struct Linear {
    compute: Compute,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, out, inner) = sizes(lx, lw)?;
        let (x, w) = (elements(x, lx, "linear")?, weights(w, lw, "linear")?);
        Ok(output(self.forward(x, w, None, (inner, out)), (tokens, out)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, lx: &Layout, w: &CudaStorage, lw: &Layout) -> Result<(CudaStorage, Shape)> {
        on_cuda((x, lx), (w, lw), None)
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, lx: &Layout, w: &MetalStorage, lw: &Layout) -> Result<(MetalStorage, Shape)> {
        sizes(lx, lw)?;
        super::metal::tensors::forward::linear((x, lx), (w, lw), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, w, g, [x.track_op(), w.track_op()])
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
        Ok(output(self.forward(x, w, Some(b), (inner, out)), (tokens, out)))
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

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        x: &MetalStorage,
        lx: &Layout,
        w: &MetalStorage,
        lw: &Layout,
        b: &MetalStorage,
        lb: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        sizes(lx, lw)?;
        super::metal::tensors::forward::linear((x, lx), (w, lw), Some((b, lb)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.gradients(x, w, g, [x.track_op(), w.track_op()])?;
        Ok((dx, dw, b.track_op().then(|| bias_gradient(g, b)).transpose()?))
    }
}

/// The sum over the rows of `g: [tokens, out]`.
fn bias_gradient(g: &Tensor, b: &Tensor) -> Result<Tensor> {
    let out = b.elem_count();
    #[cfg(feature = "cuda")]
    if g.device().is_cuda() {
        use super::cuda::{device, linear};
        let db = device::with([g], |gpu, [g]| linear::bias_gradient(gpu, g, out))?;
        return Ok(device::tensor(db, out));
    }
    #[cfg(feature = "metal")]
    if g.device().is_metal() {
        return super::metal::tensors::backward::bias(g);
    }
    Tensor::from_vec(with_elements(g, "linear", |g| Ok(column_sums(g, out)))?, out, b.device())
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

impl Linear {
    fn forward(&self, x: &[f32], w: Weights, bias: Option<&[f32]>, (inner, out): (usize, usize)) -> Vec<f32> {
        let w = match w {
            Weights::F32(w) => packed_rows(w, inner, self.compute),
            Weights::Bf16(w) => packed_rows(w, inner, self.compute),
        };
        let mut y = by_rows(x, &w, inner);
        if let Some(bias) = bias {
            for_each_chunk(&mut y, ROWS_PER_TASK * out, |_, y| {
                vectorized!(y.chunks_exact_mut(out).for_each(|row| math::axpy(row, 1.0, bias)));
            });
        }
        y
    }

    /// `dx = g w` and `dw = g^T x`, each where it is wanted; `dw` has the type of `w`.
    fn gradients(
        &self,
        x: &Tensor,
        w: &Tensor,
        g: &Tensor,
        wanted: [bool; 2],
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (inner, out) = (x.dim(1)?, w.dim(0)?);
        #[cfg(feature = "metal")]
        if x.device().is_metal() {
            return super::metal::tensors::backward::linear(x, w, g, wanted);
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            use super::cuda::{device, linear};
            let shape = [out, inner];
            let dx = || device::with([g, w], |gpu, [g, w]| linear::input_gradient(gpu, g, w, shape));
            let dw = || device::with([g, x], |gpu, [g, x]| linear::weight_gradient(gpu, g, x, shape));
            let (dx, dw) = (wanted[0].then(dx).transpose()?, wanted[1].then(dw).transpose()?);
            return Ok((dx.map(|dx| device::tensor(dx, x.shape())), dw.map(|dw| device::tensor(dw, w.shape()))));
        }
        let dx = || {
            let dx = with_weights(w, "linear", |w| {
                with_elements(g, "linear", |g| {
                    let w = match w {
                        Weights::F32(w) => Packed::columns(w, inner, self.compute),
                        Weights::Bf16(w) => Packed::columns(w, inner, self.compute),
                    };
                    Ok(by_rows(g, &w, out))
                })
            })?;
            Tensor::from_vec(dx, x.shape(), x.device())
        };
        let dw = || {
            let dw = with_elements(x, "linear", |x| {
                with_elements(g, "linear", |g| {
                    let mut dw = vec![0.0; out * inner];
                    Packed::columns(x, inner, self.compute).matmul_transposed(g, &mut dw);
                    Ok(dw)
                })
            })?;
            Tensor::from_vec(dw, w.shape(), w.device())?.to_dtype(w.dtype())
        };
        Ok((wanted[0].then(dx).transpose()?, wanted[1].then(dw).transpose()?))
    }
}

/// `w: [out, in]` for `y = x w^T`.
pub(crate) fn packed_rows<T: Element>(w: &[T], inner: usize, compute: Compute) -> Packed {
    match compute {
        Compute::F32 => Packed::stack(&[w], inner),
        Compute::Bf16 => Packed::stack_pairs(&[w], inner),
    }
}

/// The product of `x: [rows, k]` with a packed matrix.
fn by_rows(x: &[f32], w: &Packed, k: usize) -> Vec<f32> {
    let out = w.out();
    let mut y = vec![0.0; x.len() / k * out];
    if w.compute() == Compute::Bf16 {
        // Each input is rounded once, and the threads share the panels.
        w.matmul(x, &mut y);
        return y;
    }
    for_each_chunk(&mut y, ROWS_PER_TASK * out, |i, y| {
        w.matmul(&x[i * ROWS_PER_TASK * k..][..y.len() / out * k], y);
    });
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
    use super::super::testing::{assert_twins, gap, variable};
    use super::*;
    use candle_core::Var;

    const COMPUTE: Compute = Compute::F32;

    #[test]
    fn weights_in_bf16_equal_their_twin_and_frozen_ones_get_no_gradient() {
        let (x, w) = (variable(&[300, 33], 1), variable(&[70, 33], 2));
        let narrow = w.as_detached_tensor().to_dtype(DType::BF16).unwrap();
        assert_twins(&[&x], || linear(&x, &narrow, None, COMPUTE), || composed(&x, &narrow, None, COMPUTE), 1e-5);
        let store = linear(&x, &narrow, None, COMPUTE).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(store.get(&narrow).is_none());
        let trained = Var::from_tensor(&narrow).unwrap();
        let store = linear(&x, &trained, None, COMPUTE).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(store.get(trained.as_tensor()).unwrap().dtype(), DType::BF16);
    }

    #[test]
    fn equals_its_twin() {
        for (tokens, inner, out) in [(1, 3, 2), (9, 128, 64), (600, 16, 300)] {
            let (x, w, b) = (variable(&[tokens, inner], 1), variable(&[out, inner], 2), variable(&[out], 3));
            assert_twins(&[&x, &w], || linear(&x, &w, None, COMPUTE), || composed(&x, &w, None, COMPUTE), 1e-5);
            let (fused, twin) = (|| linear(&x, &w, Some(&b), COMPUTE), || composed(&x, &w, Some(&b), COMPUTE));
            assert_twins(&[&x, &w, &b], fused, twin, 1e-5);
        }
    }

    /// Gradients of a weighting that bf16 holds exactly, which are then sums of the same products as the twin's.
    fn gradients(y: Tensor, variables: &[&Var]) -> Vec<Tensor> {
        let weights = variable(y.dims(), 77).as_detached_tensor();
        let weights = weights.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let store = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        variables.iter().map(|v| store.get(v.as_tensor()).unwrap().clone()).collect()
    }

    #[test]
    fn products_in_bf16_equal_their_twin() {
        for (tokens, inner, out) in [(1, 3, 2), (9, 128, 64), (301, 33, 130), (600, 16, 300)] {
            let (x, w, b) = (variable(&[tokens, inner], 1), variable(&[out, inner], 2), variable(&[out], 3));
            let fused = linear(&x, &w, Some(&b), Compute::Bf16).unwrap();
            let twin = composed(&x, &w, Some(&b), Compute::Bf16).unwrap();
            assert!(gap(&fused, &twin) < 1e-5);
            let exact = linear(&x, &w, Some(&b), Compute::F32).unwrap();
            assert!(gap(&fused, &exact) > 1e-5, "nothing was rounded");
            let variables = [&x, &w, &b];
            for (a, b) in gradients(fused, &variables).iter().zip(gradients(twin, &variables)) {
                assert!(gap(a, &b) < 1e-5, "a gradient differs by {}", gap(a, &b));
            }
        }
    }

    #[test]
    fn gradients_without_a_graph_are_those_of_the_graph() {
        for compute in [Compute::F32, Compute::Bf16] {
            let (x, w, b) = (variable(&[40, 12], 1), variable(&[30, 12], 2), variable(&[30], 3));
            let g = variable(&[40, 30], 4).as_detached_tensor();
            let y = linear(&x, &w, Some(&b), compute).unwrap();
            let store = (y * &g).unwrap().sum_all().unwrap().backward().unwrap();
            let alone = super::gradients(&x, &w, Some(&b), &g, compute).unwrap();
            for (v, found) in [(&x, &alone.x), (&w, &alone.w.unwrap()), (&b, &alone.b.unwrap())] {
                assert_eq!(gap(store.get(v.as_tensor()).unwrap(), found), 0.0);
            }
            let frozen = super::gradients(&x, &w.as_detached_tensor(), None, &g, compute).unwrap();
            assert!(frozen.w.is_none() && frozen.b.is_none());
        }
    }
}
