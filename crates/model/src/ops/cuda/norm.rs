//! Launches of `norm.cu`: sums of gradients over micro-batches, and the squares of their norm.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use candle_core::{DType, Result, bail};

/// Values that one block squares and sums.
const PER_BLOCK: usize = 1 << 14;

/// `sum += g`; `sum` is f32 and has as many elements, from `offset` on.
pub(crate) fn add<M: Machine>(machine: &M, g: View<'_, M::Memory>, sum: &mut M::Memory, offset: usize) -> Result<()> {
    let kernel = Kernel { file: "norm", name: &format!("norm_add_{}", suffix(g.dtype)?) };
    let arguments = &mut [Argument::Read(g), Argument::Write(sum, offset), Argument::size(g.len)?];
    // SAFETY: `norm_add_*(g, sum, count)`; the caller has given a sum of `count` elements.
    unsafe { machine.launch(kernel, Grid::over(g.len), arguments) }
}

/// The sum of squares of each, f64, `[views]`; by fixed blocks, each by a fixed tree, and the blocks by one.
pub(crate) fn squares<M: Machine>(machine: &M, views: &[View<'_, M::Memory>]) -> Result<M::Memory> {
    let mut totals = machine.zeros(DType::F64, views.len())?;
    for (i, &x) in views.iter().enumerate() {
        if x.dtype != DType::F32 {
            bail!("norm: a sum of gradients in {:?}", x.dtype);
        }
        let blocks = x.len.div_ceil(PER_BLOCK);
        let mut partial = machine.allocate(DType::F64, blocks)?;
        let kernel = Kernel { file: "norm", name: "norm_squares" };
        let arguments = &mut [
            Argument::Read(x),
            Argument::Write(&mut partial, 0),
            Argument::size(x.len)?,
            Argument::size(PER_BLOCK)?,
        ];
        // SAFETY: `norm_squares(x, partial, count, per_block)`; `partial` has one value a block.
        unsafe { machine.launch(kernel, Grid::line(blocks, 256), arguments)? };
        let kernel = Kernel { file: "norm", name: "norm_total" };
        let partial = View::whole(&partial, DType::F64, blocks);
        let arguments = &mut [Argument::Read(partial), Argument::Write(&mut totals, i), Argument::size(blocks)?];
        // SAFETY: `norm_total(partial, total, count)`; `total` is one of the values of `totals`.
        unsafe { machine.launch(kernel, Grid::line(1, 256), arguments)? };
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, inputs, shim};
    use super::*;
    use candle_core::CpuStorage;

    #[test]
    fn sums_and_squares_are_those_of_the_values() {
        let Some(shim) = shim() else { return };
        for (dtype, _) in TYPES {
            let x = inputs(&[&[300], &[300]], dtype);
            let mut sum = CpuStorage::F32(x[0].to_dtype(DType::F32).unwrap().to_vec1().unwrap());
            add(&shim, Copied::new(&x[1]).view(), &mut sum, 0).unwrap();
            let wide = |x: &candle_core::Tensor| x.to_dtype(DType::F32).unwrap();
            close(&sum, &(wide(&x[0]) + wide(&x[1])).unwrap(), 1e-7);
        }
        let x = inputs(&[&[1], &[40_001], &[5]], DType::F32);
        let copies: Vec<Copied> = x.iter().map(Copied::new).collect();
        let views: Vec<_> = copies.iter().map(Copied::view).collect();
        let CpuStorage::F64(found) = squares(&shim, &views).unwrap() else { panic!("squares are f64") };
        for (x, found) in x.iter().zip(found) {
            let expected: f64 = x.to_vec1::<f32>().unwrap().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            assert!((found - expected).abs() < 1e-12 * expected, "{found} is not {expected}");
        }
    }
}
