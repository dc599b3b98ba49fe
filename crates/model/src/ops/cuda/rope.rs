//! Launches of `rope.cu`.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use crate::ops::RopeTable;
use candle_core::Result;
use std::sync::Arc;

/// `x: [tokens, width]`, heads of twice the table's half, rotated by the positions' angles; back with `sign` -1.
pub(crate) fn rotate<M: Machine>(
    machine: &M,
    x: View<'_, M::Memory>,
    table: &RopeTable,
    positions: &Arc<[u32]>,
    sign: f32,
) -> Result<M::Memory> {
    let (cosines, sines) = (machine.resident_f32(&table.cos)?, machine.resident_f32(&table.sin)?);
    let places = machine.resident_u32(positions)?;
    let tokens = positions.len();
    let mut y = machine.allocate(x.dtype, x.len)?;
    let kernel = Kernel { file: "rope", name: &format!("rope_{}", suffix(x.dtype)?) };
    let arguments = &mut [
        Argument::Read(x),
        Argument::Read(View::whole(&*cosines, candle_core::DType::F32, table.cos.len())),
        Argument::Read(View::whole(&*sines, candle_core::DType::F32, table.sin.len())),
        Argument::Read(View::whole(&*places, candle_core::DType::U32, tokens)),
        Argument::Write(&mut y, 0),
        Argument::size(tokens)?,
        Argument::size(x.len / tokens.max(1))?,
        Argument::size(table.half)?,
        Argument::F32(sign),
    ];
    // SAFETY: `rope_*(x, cosines, sines, positions, y, tokens, width, half, sign)`; the op has checked that heads fit the
    // width and that the table has a row for each position.
    unsafe { machine.launch(kernel, Grid::over(x.len / 2), arguments)? };
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, gradients, inputs, shim};
    use super::*;
    use crate::ops::rope::composed;

    #[test]
    fn equals_its_twin_at_any_positions() {
        let Some(shim) = shim() else { return };
        let positions: Arc<[u32]> = [0, 1, 2, 699, 5, 0, 31].into();
        for (dtype, tolerance) in TYPES {
            for (heads, dim) in [(3, 32), (1, 10), (7, 6)] {
                let table = RopeTable::new(dim, 10_000.0, 700);
                let shape = [positions.len(), heads * dim];
                let x = inputs(&[&shape, &shape], dtype);
                let (y, expected) = gradients(&x[..1], &x[1], |x| composed(&x[0], &table, &positions));
                let [cx, cg] = [0, 1].map(|i| Copied::new(&x[i]));
                close(&rotate(&shim, cx.view(), &table, &positions, 1.0).unwrap(), &y, tolerance);
                close(&rotate(&shim, cg.view(), &table, &positions, -1.0).unwrap(), &expected[0], tolerance);
            }
        }
    }
}
