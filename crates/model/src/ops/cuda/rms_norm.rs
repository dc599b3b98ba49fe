//! Launches of `rms_norm.cu`.

use super::{Argument, Grid, Kernel, Machine, View, reduce, suffix};
use candle_core::{DType, Result, bail};

/// `x: [rows, width]`, `w: [width]` of one type -> `[rows, width]`.
pub(crate) fn forward<M: Machine>(
    machine: &M,
    x: View<'_, M::Memory>,
    w: View<'_, M::Memory>,
    eps: f32,
) -> Result<M::Memory> {
    let mut y = machine.allocate(x.dtype, x.len)?;
    forward_into(machine, x, w, eps, &mut y)?;
    Ok(y)
}

/// [`forward`] into memory that is there.
pub(crate) fn forward_into<M: Machine>(
    machine: &M,
    x: View<'_, M::Memory>,
    w: View<'_, M::Memory>,
    eps: f32,
    y: &mut M::Memory,
) -> Result<()> {
    let rows = rows(x, w)?;
    let kernel = Kernel { file: "rms_norm", name: &format!("rms_norm_forward_{}", suffix(x.dtype)?) };
    let arguments =
        &mut [Argument::Read(x), Argument::Read(w), Argument::Write(y, 0), Argument::size(w.len)?, Argument::F32(eps)];
    // SAFETY: `rms_norm_forward_*(x, w, y, width, eps)`; each block takes one of the rows.
    unsafe { machine.launch(kernel, Grid::line(rows, threads(w.len)), arguments) }
}

/// The gradients of `x` and, where it is wanted, of `w`, for the gradient `g` of the output.
pub(crate) fn backward<M: Machine>(
    machine: &M,
    [x, w, g]: [View<'_, M::Memory>; 3],
    eps: f32,
    weight_too: bool,
) -> Result<(M::Memory, Option<M::Memory>)> {
    let (rows, width, suffix) = (rows(x, w)?, w.len, suffix(x.dtype)?);
    if g.len != x.len || g.dtype != x.dtype {
        bail!("rms_norm: a gradient of {} elements for {}", g.len, x.len);
    }
    let mut dx = machine.allocate(x.dtype, x.len)?;
    let mut inverses = machine.allocate(DType::F32, rows)?;
    let kernel = Kernel { file: "rms_norm", name: &format!("rms_norm_backward_{suffix}") };
    let arguments = &mut [
        Argument::Read(x),
        Argument::Read(w),
        Argument::Read(g),
        Argument::Write(&mut dx, 0),
        Argument::Write(&mut inverses, 0),
        Argument::size(width)?,
        Argument::F32(eps),
    ];
    // SAFETY: `rms_norm_backward_*(x, w, g, dx, inverses, width, eps)`; each block takes one row and writes one inverse.
    unsafe { machine.launch(kernel, Grid::line(rows, threads(width)), arguments)? };
    if !weight_too {
        return Ok((dx, None));
    }
    let (partials, grid) = reduce::stages(rows, width);
    let mut partial = machine.allocate(DType::F32, partials * width)?;
    let kernel = Kernel { file: "rms_norm", name: &format!("rms_norm_weight_partial_{suffix}") };
    let arguments = &mut [
        Argument::Read(x),
        Argument::Read(g),
        Argument::Read(View::whole(&inverses, DType::F32, rows)),
        Argument::Write(&mut partial, 0),
        Argument::size(rows)?,
        Argument::size(width)?,
        Argument::size(reduce::ROWS_PER_BLOCK)?,
    ];
    // SAFETY: `rms_norm_weight_partial_*(x, g, inverses, partial, rows, width, rows_per_block)`; `partial` has a row for
    // each block of the grid's y.
    unsafe { machine.launch(kernel, grid, arguments)? };
    let dw = reduce::rows_sum(machine, View::whole(&partial, DType::F32, partials * width), width, w.dtype)?;
    Ok((dx, Some(dw)))
}

fn rows<M>(x: View<'_, M>, w: View<'_, M>) -> Result<usize> {
    if w.len == 0 || !x.len.is_multiple_of(w.len) || x.dtype != w.dtype {
        bail!("rms_norm: {} values of {:?} for weights of {} {:?}", x.len, x.dtype, w.len, w.dtype);
    }
    Ok(x.len / w.len)
}

/// Threads of a block that takes a row: whole warps, each thread with a few elements.
fn threads(width: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).clamp(32, 512)
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, result, shim};
    use super::*;
    use crate::ops::rms_norm::composed;
    use crate::ops::testing::{gap, variable};
    use candle_core::Var;

    #[test]
    fn equals_its_twin() {
        let Some(shim) = shim() else { return };
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
            for (rows, width) in [(1, 4), (5, 128), (131, 33), (2, 2100)] {
                let narrow = |v: Var| Var::from_tensor(&v.to_dtype(dtype).unwrap()).unwrap();
                let (x, w) = (narrow(variable(&[rows, width], 1)), narrow(variable(&[width], 2)));
                let g = variable(&[rows, width], 3).to_dtype(dtype).unwrap().detach();
                let y = composed(&x, &w, 1e-6).unwrap();
                let store = (&y * &g).unwrap().sum_all().unwrap().backward().unwrap();
                let [cx, cw, cg] = [x.as_tensor(), w.as_tensor(), &g].map(Copied::new);
                let fused = forward(&shim, cx.view(), cw.view(), 1e-6).unwrap();
                let (dx, dw) = backward(&shim, [cx.view(), cw.view(), cg.view()], 1e-6, true).unwrap();
                let f32 = |t: &candle_core::Tensor| t.to_dtype(DType::F32).unwrap();
                assert!(gap(&result(&fused, &[rows, width]), &f32(&y)) < tolerance);
                assert!(gap(&result(&dx, &[rows, width]), &f32(store.get(&x).unwrap())) < tolerance);
                assert!(gap(&result(&dw.unwrap(), &[width]), &f32(store.get(&w).unwrap())) < 2.0 * tolerance);
            }
        }
    }
}
