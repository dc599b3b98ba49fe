//! Launches of `swiglu.cu`.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use candle_core::{Result, bail};

/// Threads that take sixteen bytes each.
fn grid(count: usize, dtype: candle_core::DType) -> Grid {
    Grid::over(count.div_ceil(16 / dtype.size_in_bytes()))
}

fn check<M>(views: &[View<'_, M>]) -> Result<()> {
    match views.windows(2).find(|pair| pair[0].len != pair[1].len || pair[0].dtype != pair[1].dtype) {
        Some(pair) => {
            bail!("swiglu: {} elements of {:?} for {} of {:?}", pair[0].len, pair[0].dtype, pair[1].len, pair[1].dtype)
        }
        None => Ok(()),
    }
}

/// `silu(gate) * up`, element by element.
pub(crate) fn forward<M: Machine>(
    machine: &M,
    gate: View<'_, M::Memory>,
    up: View<'_, M::Memory>,
) -> Result<M::Memory> {
    check(&[gate, up])?;
    let mut y = machine.allocate(gate.dtype, gate.len)?;
    let kernel = Kernel { file: "swiglu", name: &format!("swiglu_forward_{}", suffix(gate.dtype)?) };
    let arguments =
        &mut [Argument::Read(gate), Argument::Read(up), Argument::Write(&mut y, 0), Argument::size(gate.len)?];
    // SAFETY: `swiglu_forward_*(gate, up, y, count)`, each of `count` elements.
    unsafe { machine.launch(kernel, grid(gate.len, gate.dtype), arguments)? };
    Ok(y)
}

/// The gradients of gate and up for the gradient `g` of the output.
pub(crate) fn backward<M: Machine>(
    machine: &M,
    [gate, up, g]: [View<'_, M::Memory>; 3],
) -> Result<(M::Memory, M::Memory)> {
    check(&[gate, up, g])?;
    let mut dgate = machine.allocate(gate.dtype, gate.len)?;
    let mut dup = machine.allocate(gate.dtype, gate.len)?;
    let kernel = Kernel { file: "swiglu", name: &format!("swiglu_backward_{}", suffix(gate.dtype)?) };
    let arguments = &mut [
        Argument::Read(gate),
        Argument::Read(up),
        Argument::Read(g),
        Argument::Write(&mut dgate, 0),
        Argument::Write(&mut dup, 0),
        Argument::size(gate.len)?,
    ];
    // SAFETY: `swiglu_backward_*(gate, up, g, dgate, dup, count)`, each of `count` elements.
    unsafe { machine.launch(kernel, grid(gate.len, gate.dtype), arguments)? };
    Ok((dgate, dup))
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, gradients, inputs, shim};
    use super::*;
    use crate::ops::swiglu::composed;

    #[test]
    fn equals_its_twin() {
        let Some(shim) = shim() else { return };
        for (dtype, tolerance) in TYPES {
            for shape in [[1, 5], [7, 384], [33, 77]] {
                let x = inputs(&[&shape, &shape, &shape], dtype);
                let (y, expected) = gradients(&x[..2], &x[2], |x| composed(&x[0], &x[1]));
                let copies: Vec<Copied> = x.iter().map(Copied::new).collect();
                let [gate, up, g] = [0, 1, 2].map(|i| copies[i].view());
                close(&forward(&shim, gate, up).unwrap(), &y, tolerance);
                let (dgate, dup) = backward(&shim, [gate, up, g]).unwrap();
                close(&dgate, &expected[0], tolerance);
                close(&dup, &expected[1], tolerance);
            }
        }
    }
}
