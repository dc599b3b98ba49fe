//! Causal grouped-query attention over packed sequences: `softmax(q k^T / sqrt(d)) v` within each sequence.
//!
//! The fused kernels go by blocks of queries, so that scores never take more than `[block, time]`; backward recomputes them
//! (Dao et al. 2022, arXiv 2205.14135, has the formulas).

mod narrow;
mod wide;

use super::{elements, fallbacks, fused, output, with_elements};
use crate::kernels::map_tasks;
use crate::kernels::packed::Compute;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;
#[cfg(any(feature = "cuda", feature = "metal"))]
use std::sync::OnceLock;

/// The widest head that the CUDA kernels take.
const WIDEST_ON_CUDA: usize = 256;

/// The head layout of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; each serves `query / key_value` query heads.
    pub key_value: usize,
    /// Width of a head.
    pub dim: usize,
}

/// `q: [tokens, query * dim]`, `k, v: [tokens, key_value * dim]`, sequences `offsets[i]..offsets[i + 1]` of the tokens
/// -> `[tokens, query * dim]`. `form.compute` is for f32 activations on the CPU; elsewhere it is as in [`composed`] in f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, form: Form, offsets: &Arc<[usize]>) -> Result<Tensor> {
    check([q, k, v], form.heads, offsets)?;
    if has_kernel(q, form.heads) {
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention::new(form, offsets));
    }
    fallbacks::note("attention");
    composed(q, k, v, form.heads, offsets)
}

/// The same without a graph, and the operation for its [`Attention::gradients`]; where [`has_kernel`] says that it has one.
pub(crate) fn kept(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    form: Form,
    offsets: &Arc<[usize]>,
) -> Result<(Tensor, Attention)> {
    check([q, k, v], form.heads, offsets)?;
    let op = Attention::new(form, offsets);
    let mixed = q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &op)?;
    Ok((mixed, op))
}

fn check([q, k, v]: [&Tensor; 3], heads: Heads, offsets: &[usize]) -> Result<()> {
    let tokens = q.dim(0)?;
    if offsets.first() != Some(&0) || offsets.last() != Some(&tokens) || offsets.windows(2).any(|w| w[0] > w[1]) {
        bail!("attention: sequence offsets do not cover the {tokens} tokens in order");
    }
    if q.dim(1)? != heads.query * heads.dim || k.dims() != [tokens, heads.key_value * heads.dim] || k.dims() != v.dims()
    {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {heads:?}", q.dims(), k.dims(), v.dims());
    }
    Ok(())
}

/// Whether there is a kernel for heads of this shape on the device and in the type of `q`.
pub(crate) fn has_kernel(q: &Tensor, heads: Heads) -> bool {
    if !fused(q) {
        return false;
    }
    #[cfg(feature = "metal")]
    if q.device().is_metal() {
        return super::metal::attention::fits(heads);
    }
    q.device().is_cpu() || heads.dim <= WIDEST_ON_CUDA
}

/// The heads of an attention layer, and what its products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The layout of the heads.
    pub heads: Heads,
    /// Of the products on the CPU.
    pub compute: Compute,
}

/// The same of plain tensor ops in f32, on any device.
pub fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, offsets: &[usize]) -> Result<Tensor> {
    let repeat = heads.query / heads.key_value;
    let mut outputs = Vec::new();
    for span in offsets.windows(2).filter(|w| w[1] > w[0]) {
        let (start, len) = (span[0], span[1] - span[0]);
        let split = |x: &Tensor, count: usize| {
            x.narrow(0, start, len)?.to_dtype(DType::F32)?.reshape((len, count, heads.dim))?.transpose(0, 1)
        };
        let expand = |x: Tensor| {
            let shape = (heads.key_value, repeat, len, heads.dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.reshape((heads.query, len, heads.dim))
        };
        let q = split(q, heads.query)?.contiguous()?;
        let (k, v) = (expand(split(k, heads.key_value)?)?, expand(split(v, heads.key_value)?)?);
        let mask: Vec<f32> = (0..len * len).map(|i| if i % len > i / len { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, len, len), q.device())?;
        let scores = (q.matmul(&k.t()?)? / (heads.dim as f64).sqrt())?.broadcast_add(&mask)?;
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        outputs.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((len, heads.query * heads.dim))?);
    }
    Tensor::cat(&outputs, 0)?.to_dtype(q.dtype())
}

/// Attention over given sequences.
pub(crate) struct Attention {
    heads: Heads,
    compute: Compute,
    offsets: Arc<[usize]>,
    /// The logarithm of each query's sum of exponentials, which the forward of a GPU leaves for the backward.
    #[cfg(any(feature = "cuda", feature = "metal"))]
    log_sums: OnceLock<Tensor>,
}

/// The inputs as slices.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// One key-value head of one sequence.
struct Task {
    start: usize,
    len: usize,
    kv_head: usize,
}

impl Attention {
    fn new(form: Form, offsets: &Arc<[usize]>) -> Self {
        Self {
            heads: form.heads,
            compute: form.compute,
            offsets: offsets.clone(),
            #[cfg(any(feature = "cuda", feature = "metal"))]
            log_sums: OnceLock::new(),
        }
    }

    fn tasks(&self) -> Vec<Task> {
        let spans = self.offsets.windows(2).filter(|w| w[1] > w[0]);
        spans
            .flat_map(|w| {
                let (start, len) = (w[0], w[1] - w[0]);
                (0..self.heads.key_value).map(move |kv_head| Task { start, len, kv_head })
            })
            .collect()
    }

    fn group(&self) -> usize {
        self.heads.query / self.heads.key_value
    }

    /// Where the rows of a task's query heads start in `[tokens, query * dim]`.
    fn query_offset(&self, task: &Task) -> usize {
        (task.start * self.heads.query + task.kv_head * self.group()) * self.heads.dim
    }

    /// Where the rows of a task's key (or value) head start in `[tokens, key_value * dim]`.
    fn key_offset(&self, task: &Task) -> usize {
        task.start * self.heads.key_value * self.heads.dim + task.kv_head * self.heads.dim
    }

    fn forward(&self, x: Inputs) -> Vec<f32> {
        let Heads { query, dim, .. } = self.heads;
        let tasks = self.tasks();
        let parts = map_tasks(tasks.len(), |i| match self.compute {
            Compute::F32 => self.in_place(&tasks[i], x).forward(),
            Compute::Bf16 => self.gathered(&tasks[i], x).group(self.heads).forward(),
        });
        let mut out = vec![0.0; x.q.len()];
        for (task, part) in tasks.iter().zip(parts) {
            scatter(&part, self.group() * dim, &mut out[self.query_offset(task)..], query * dim);
        }
        out
    }

    fn backward(&self, x: Inputs, out: &[f32], g: &[f32]) -> [Vec<f32>; 3] {
        let Heads { query, key_value, dim } = self.heads;
        let tasks = self.tasks();
        let parts = map_tasks(tasks.len(), |i| match self.compute {
            Compute::F32 => {
                let from = self.query_offset(&tasks[i]);
                self.in_place(&tasks[i], x).backward(&out[from..], &g[from..])
            }
            Compute::Bf16 => {
                let of_queries = |rows| self.gathered_queries(&tasks[i], rows);
                self.gathered(&tasks[i], x).group(self.heads).backward(&of_queries(out), &of_queries(g))
            }
        });
        let (mut dq, mut dk, mut dv) = (vec![0.0; x.q.len()], vec![0.0; x.k.len()], vec![0.0; x.v.len()]);
        for (task, [q, k, v]) in tasks.iter().zip(parts) {
            scatter(&q, self.group() * dim, &mut dq[self.query_offset(task)..], query * dim);
            scatter(&k, dim, &mut dk[self.key_offset(task)..], key_value * dim);
            scatter(&v, dim, &mut dv[self.key_offset(task)..], key_value * dim);
        }
        [dq, dk, dv]
    }
}

/// What [`narrow::Group`] borrows.
struct Gathered {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Gathered {
    fn group(&self, heads: Heads) -> narrow::Group<'_> {
        narrow::Group { q: &self.q, k: &self.k, v: &self.v, heads }
    }
}

impl Attention {
    fn in_place<'a>(&self, task: &Task, x: Inputs<'a>) -> wide::Group<'a> {
        let (queries, keys) = (self.query_offset(task), self.key_offset(task));
        wide::Group { q: &x.q[queries..], k: &x.k[keys..], v: &x.v[keys..], len: task.len, heads: self.heads }
    }

    fn gathered(&self, task: &Task, x: Inputs) -> Gathered {
        let Heads { key_value, dim, .. } = self.heads;
        let of_keys = |rows: &[f32]| gather(&rows[self.key_offset(task)..], dim, key_value * dim, task.len);
        Gathered { q: self.gathered_queries(task, x.q), k: of_keys(x.k), v: of_keys(x.v) }
    }

    fn gathered_queries(&self, task: &Task, rows: &[f32]) -> Vec<f32> {
        let Heads { query, dim, .. } = self.heads;
        gather(&rows[self.query_offset(task)..], self.group() * dim, query * dim, task.len)
    }
}

/// `count` rows of `width` out of rows `stride` apart: the reverse of [`scatter`].
fn gather(from: &[f32], width: usize, stride: usize, count: usize) -> Vec<f32> {
    from.chunks(stride).take(count).flat_map(|row| &row[..width]).copied().collect()
}

/// Copies rows of `width` into rows `stride` apart.
fn scatter(from: &[f32], width: usize, to: &mut [f32], stride: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(stride)) {
        to[..width].copy_from_slice(from);
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let name = "attention";
        let x = Inputs { q: elements(q, lq, name)?, k: elements(k, lk, name)?, v: elements(v, lv, name)? };
        Ok(output(self.forward(x), lq.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        lq: &Layout,
        k: &CudaStorage,
        lk: &Layout,
        v: &CudaStorage,
        lv: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use super::cuda::{attention, device};
        let gpu = device::Gpu::new(&q.device);
        let (q, k, v) = (device::view(q, lq)?, device::view(k, lk)?, device::view(v, lv)?);
        let spans = attention::Spans::of(&self.offsets);
        let attention = attention::Attention { machine: &gpu, q, k, v, heads: self.heads, spans: &spans };
        let (out, log_sums) = attention.forward()?;
        let (tokens, _) = lq.shape().dims2()?;
        // One forward an operation: what is set stays.
        let _ = self.log_sums.set(device::tensor(log_sums, (tokens, self.heads.query)));
        Ok((out, lq.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(
        &self,
        q: &MetalStorage,
        lq: &Layout,
        k: &MetalStorage,
        lk: &Layout,
        v: &MetalStorage,
        lv: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        let inputs = [(q, lq), (k, lk), (v, lv)];
        let (out, shape, log_sums) = super::metal::tensors::forward::attention(inputs, self.heads, &self.offsets)?;
        // One forward an operation: what is set stays.
        let _ = self.log_sums.set(log_sums);
        Ok((out, shape))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = self.gradients([q, k, v], out, g)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

impl Attention {
    /// Gradients of `q`, `k` and `v` for the gradient `g` of the value `out`, which this very operation gave.
    pub(crate) fn gradients(&self, [q, k, v]: [&Tensor; 3], out: &Tensor, g: &Tensor) -> Result<[Tensor; 3]> {
        #[cfg(feature = "cuda")]
        if q.device().is_cuda() {
            use super::cuda::{attention, device};
            let Some(log_sums) = self.log_sums.get() else { bail!("attention: a backward without a forward") };
            let spans = attention::Spans::of(&self.offsets);
            let gradients = device::with([q, k, v, out, log_sums, g], |gpu, [q, k, v, out, log_sums, g]| {
                let attention = attention::Attention { machine: gpu, q, k, v, heads: self.heads, spans: &spans };
                attention.backward(out, log_sums, g)
            })?;
            let [dq, dk, dv] = gradients;
            let wrap = |memory, like: &Tensor| device::tensor(memory, like.shape());
            return Ok([wrap(dq, q), wrap(dk, k), wrap(dv, v)]);
        }
        #[cfg(feature = "metal")]
        if q.device().is_metal() {
            let Some(lse) = self.log_sums.get() else { bail!("attention: a backward without a forward") };
            let (heads, offsets) = (self.heads, &*self.offsets);
            let op = super::metal::tensors::backward::Attention { inputs: [q, k, v], out, lse, heads, offsets };
            return op.gradients(g);
        }
        let name = "attention";
        let [dq, dk, dv] = with_elements(q, name, |q| {
            with_elements(k, name, |k| {
                with_elements(v, name, |v| {
                    with_elements(out, name, |out| {
                        with_elements(g, name, |g| Ok(self.backward(Inputs { q, k, v }, out, g)))
                    })
                })
            })
        })?;
        let wrap = |values: Vec<f32>, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
        Ok([wrap(dq, q)?, wrap(dk, k)?, wrap(dv, v)?])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn equals_its_twin_over_packed_sequences_and_head_ratios() {
        for (query, key_value, dim) in [(1, 1, 8), (4, 2, 32), (7, 1, 16), (6, 6, 8)] {
            let heads = Heads { query, key_value, dim };
            let offsets: Arc<[usize]> = [0, 1, 71, 71, 200].into();
            let q = variable(&[200, query * dim], 1);
            let (k, v) = (variable(&[200, key_value * dim], 2), variable(&[200, key_value * dim], 3));
            let form = Form { heads, compute: Compute::F32 };
            let fused = || attention(&q, &k, &v, form, &offsets);
            assert_twins(&[&q, &k, &v], fused, || composed(&q, &k, &v, heads, &offsets), 2e-5);
        }
    }

    /// bf16 has 8 bits: inputs, weights and their gradients are rounded by up to 1/512 of themselves.
    #[test]
    fn products_in_bf16_are_near_the_twin() {
        for (query, key_value, dim) in [(1, 1, 8), (4, 2, 32), (7, 1, 16), (14, 2, 64)] {
            let form = Form { heads: Heads { query, key_value, dim }, compute: Compute::Bf16 };
            let offsets: Arc<[usize]> = [0, 1, 71, 71, 401].into();
            let q = variable(&[401, query * dim], 1);
            let (k, v) = (variable(&[401, key_value * dim], 2), variable(&[401, key_value * dim], 3));
            let fused = || attention(&q, &k, &v, form, &offsets);
            assert_twins(&[&q, &k, &v], fused, || composed(&q, &k, &v, form.heads, &offsets), 8e-3);
        }
    }

    #[test]
    fn wrong_offsets_are_an_error() {
        let heads = Heads { query: 1, key_value: 1, dim: 4 };
        let x = variable(&[3, 4], 1);
        let form = Form { heads, compute: Compute::F32 };
        assert!(attention(&x, &x, &x, form, &[0, 2].into()).is_err());
    }
}
