//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face's models:
//! with `theta_i = base^(-2i/d)`, `(x_i, x_{i+d/2})` is rotated by `position * theta_i`.

use super::{elements, fallbacks, fused, output, with_elements};
use crate::kernels::{ROWS_PER_TASK, for_each_chunk, math, vectorized};
use crate::scaling::Rope;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
#[cfg(feature = "metal")]
use candle_core::MetalStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// Cosines and sines of every position up to a limit: `[positions, head_dim / 2]`, always f32 (bf16 cannot tell
/// positions above 256 apart).
#[derive(Clone)]
pub struct RopeTable {
    /// Half of the head's width.
    pub half: usize,
    /// Cosines, row by position.
    pub cos: Arc<[f32]>,
    /// Sines, row by position.
    pub sin: Arc<[f32]>,
}

impl RopeTable {
    /// Plain angles of one base, in f32.
    pub fn new(head_dim: usize, base: f64, positions: usize) -> Self {
        Self::scaled(head_dim, &Rope::plain(base), positions)
    }

    /// Angles are rounded as the model says ([`crate::scaling::Angles`]), cosines and sines once.
    pub fn scaled(head_dim: usize, rope: &Rope, positions: usize) -> Self {
        let half = head_dim / 2;
        let (angle, scale) = rope.angles(head_dim);
        let angle = |i: usize| angle(i / half, i % half);
        Self {
            half,
            cos: (0..positions * half).map(|i| (angle(i).cos() * scale) as f32).collect(),
            sin: (0..positions * half).map(|i| (angle(i).sin() * scale) as f32).collect(),
        }
    }

    /// Positions the table covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// The cosines and sines of one position, `[head_dim / 2]` each.
    #[inline(always)]
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// `x: [tokens, heads * head_dim]`, one position a token -> the same shape, rotated.
pub fn rope(x: &Tensor, table: &RopeTable, positions: &Arc<[u32]>) -> Result<Tensor> {
    check(x, table, positions)?;
    if fused(x) {
        return x.contiguous()?.apply_op1(Rotate { table: table.clone(), positions: positions.clone(), sign: 1.0 });
    }
    fallbacks::note("rope");
    composed(x, table, positions)
}

/// The gradient of [`rope`]'s input for the gradient `g` of its value, where its kernels run: `g` rotated back.
pub(crate) fn gradient(g: &Tensor, table: &RopeTable, positions: &Arc<[u32]>) -> Result<Tensor> {
    check(g, table, positions)?;
    let back = Rotate { table: table.clone(), positions: positions.clone(), sign: -1.0 };
    g.contiguous()?.apply_op1_no_bwd(&back)
}

fn check(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<()> {
    let (tokens, width) = x.dims2()?;
    if tokens != positions.len() || width % (2 * table.half) != 0 {
        bail!("rope: an input [{tokens}, {width}] with {} positions, heads of {}", positions.len(), 2 * table.half);
    }
    match positions.iter().max() {
        Some(&last) if last as usize >= table.positions() => {
            bail!("rope: position {last} is beyond the model's limit of {} tokens", table.positions())
        }
        _ => Ok(()),
    }
}

/// The same of plain tensor ops, on any device.
pub fn composed(x: &Tensor, table: &RopeTable, positions: &[u32]) -> Result<Tensor> {
    let ((tokens, width), half) = (x.dims2()?, table.half);
    let pick = |values: &[f32], device: &Device| {
        let rows: Vec<f32> =
            positions.iter().flat_map(|&p| values[p as usize * half..][..half].iter().copied()).collect();
        Tensor::from_vec(rows, (tokens, 1, half), device)
    };
    let (cos, sin) = (pick(&table.cos, x.device())?, pick(&table.sin, x.device())?);
    let heads = x.to_dtype(DType::F32)?.reshape((tokens, width / (2 * half), 2 * half))?;
    let (low, high) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let rotated = Tensor::cat(
        &[
            (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?,
            (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?,
        ],
        2,
    )?;
    rotated.reshape((tokens, width))?.to_dtype(x.dtype())
}

struct Rotate {
    table: RopeTable,
    positions: Arc<[u32]>,
    /// `-1` rotates back: the backward of a rotation.
    sign: f32,
}

impl Rotate {
    fn rotated(&self, x: &[f32], width: usize) -> Vec<f32> {
        let head = 2 * self.table.half;
        let mut y = x.to_vec();
        for_each_chunk(&mut y, ROWS_PER_TASK * width, |i, y| {
            vectorized!({
                let mut back = vec![0.0; self.table.half];
                for (row, &position) in y.chunks_exact_mut(width).zip(&self.positions[i * ROWS_PER_TASK..]) {
                    let (cos, sin) = self.table.at(position as usize);
                    back.iter_mut().zip(sin).for_each(|(b, s)| *b = s * self.sign);
                    for x in row.chunks_exact_mut(head) {
                        math::rotate(x, cos, &back);
                    }
                }
            });
        });
        y
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.shape().dims2()?.1;
        Ok(output(self.rotated(elements(x, layout, "rope")?, width), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        use super::cuda::{device, rope};
        let gpu = device::Gpu::new(&x.device);
        let y = rope::rotate(&gpu, device::view(x, layout)?, &self.table, &self.positions, self.sign)?;
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "metal")]
    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        super::metal::tensors::forward::rope((x, layout), &self.table, &self.positions, self.sign)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "metal")]
        if x.device().is_metal() {
            return super::metal::tensors::backward::rope(g, &self.table, &self.positions, -self.sign).map(Some);
        }
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            use super::cuda::{device, rope};
            let (table, positions) = (&self.table, &self.positions);
            let dx = device::with([g], |gpu, [g]| rope::rotate(gpu, g, table, positions, -self.sign))?;
            return Ok(Some(device::tensor(dx, x.shape())));
        }
        let back = Rotate { table: self.table.clone(), positions: self.positions.clone(), sign: -self.sign };
        let dx = with_elements(g, "rope", |g| Ok(back.rotated(g, x.dim(1)?)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_twins, variable};
    use super::*;

    #[test]
    fn equals_its_twin_at_any_positions() {
        let table = RopeTable::new(32, 10_000.0, 700);
        let positions: Arc<[u32]> = [0, 1, 2, 699, 5, 0].into();
        let x = variable(&[6, 96], 4);
        assert_twins(&[&x], || rope(&x, &table, &positions), || composed(&x, &table, &positions), 1e-5);
    }

    #[test]
    fn a_position_beyond_the_table_is_an_error() {
        let table = RopeTable::new(4, 10_000.0, 8);
        let x = variable(&[1, 4], 1);
        let message = rope(&x, &table, &[8].into()).unwrap_err().to_string();
        assert!(message.contains("position 8"), "{message}");
    }
}
