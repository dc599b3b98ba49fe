//! A linear layer on a device: cuBLAS products that sum in f32, and `linear.cu` for the bias.

use super::{Argument, Grid, Kernel, Machine, Product, Target, View, reduce, suffix};
use candle_core::{DType, Result, bail};

/// `x: [tokens, in]`, `w: [out, in]`, `b: [out]`, all of one type -> `[tokens, out]`.
pub(crate) fn forward<M: Machine>(
    machine: &M,
    x: View<'_, M::Memory>,
    w: View<'_, M::Memory>,
    b: Option<View<'_, M::Memory>>,
    [out, inner]: [usize; 2],
) -> Result<M::Memory> {
    let tokens = x.len / inner;
    let mut y = machine.allocate(x.dtype, tokens * out)?;
    let target = Target { memory: &mut y, offset: 0, dtype: x.dtype, add: false };
    machine.product(&Product::by_rows(x, w, [tokens, out, inner]), target)?;
    let Some(b) = b else { return Ok(y) };
    if b.len != out || b.dtype != x.dtype {
        bail!("linear: a bias of {} {:?} for {out} outputs of {:?}", b.len, b.dtype, x.dtype);
    }
    let kernel = Kernel { file: "linear", name: &format!("linear_add_bias_{}", suffix(x.dtype)?) };
    let arguments =
        &mut [Argument::Read(b), Argument::Write(&mut y, 0), Argument::size(tokens * out)?, Argument::size(out)?];
    // SAFETY: `linear_add_bias_*(bias, y, count, width)`; `y` has `count` elements and the bias `width`.
    unsafe { machine.launch(kernel, Grid::over(tokens * out), arguments)? };
    Ok(y)
}

/// `dx = g w`.
pub(crate) fn input_gradient<M: Machine>(
    machine: &M,
    g: View<'_, M::Memory>,
    w: View<'_, M::Memory>,
    [out, inner]: [usize; 2],
) -> Result<M::Memory> {
    let tokens = g.len / out;
    let mut dx = machine.allocate(g.dtype, tokens * inner)?;
    let target = Target { memory: &mut dx, offset: 0, dtype: g.dtype, add: false };
    machine.product(&Product::plain(g, w, [tokens, inner, out]), target)?;
    Ok(dx)
}

/// `dw = g^T x`.
pub(crate) fn weight_gradient<M: Machine>(
    machine: &M,
    g: View<'_, M::Memory>,
    x: View<'_, M::Memory>,
    [out, inner]: [usize; 2],
) -> Result<M::Memory> {
    let mut dw = machine.allocate(g.dtype, out * inner)?;
    let target = Target { memory: &mut dw, offset: 0, dtype: g.dtype, add: false };
    machine.product(&Product::over_rows(g, x, [out, inner, g.len / out]), target)?;
    Ok(dw)
}

/// `db = sum over rows of g`.
pub(crate) fn bias_gradient<M: Machine>(machine: &M, g: View<'_, M::Memory>, out: usize) -> Result<M::Memory> {
    if !matches!(g.dtype, DType::F32 | DType::BF16) {
        bail!("linear: a gradient of {:?}", g.dtype);
    }
    reduce::column_sums(machine, g, out)
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, gradients, inputs, shim};
    use super::*;
    use crate::kernels::packed::Compute;
    use crate::ops::linear::composed;

    #[test]
    fn equals_its_twin() {
        let Some(shim) = shim() else { return };
        for (dtype, tolerance) in TYPES {
            for (tokens, inner, out) in [(1, 3, 2), (9, 128, 65), (150, 16, 300)] {
                let x = inputs(&[&[tokens, inner], &[out, inner], &[out], &[tokens, out]], dtype);
                let (y, expected) = gradients(&x[..3], &x[3], |x| composed(&x[0], &x[1], Some(&x[2]), Compute::F32));
                let copies: Vec<Copied> = x.iter().map(Copied::new).collect();
                let [x, w, b, g] = [0, 1, 2, 3].map(|i| copies[i].view());
                let shape = [out, inner];
                close(&forward(&shim, x, w, Some(b), shape).unwrap(), &y, tolerance);
                close(&input_gradient(&shim, g, w, shape).unwrap(), &expected[0], tolerance);
                close(&weight_gradient(&shim, g, x, shape).unwrap(), &expected[1], tolerance);
                close(&bias_gradient(&shim, g, out).unwrap(), &expected[2], tolerance);
            }
        }
    }
}
