//! Launches of `reduce.cu`: sums over rows, in a fixed order.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use candle_core::{DType, Result};

/// Rows that one thread of a first stage adds up.
pub(crate) const ROWS_PER_BLOCK: usize = 64;

/// How a sum over rows is cut: `(partial sums, grid of the first stage)`.
pub(crate) fn stages(rows: usize, width: usize) -> (usize, Grid) {
    let partials = rows.div_ceil(ROWS_PER_BLOCK);
    (partials, Grid { blocks: [width.div_ceil(256), partials, 1], threads: 256, shared: 0 })
}

/// The sum of `partial: [rows, width]` over its rows, in `dtype`.
pub(crate) fn rows_sum<M: Machine>(
    machine: &M,
    partial: View<'_, M::Memory>,
    width: usize,
    dtype: DType,
) -> Result<M::Memory> {
    let mut y = machine.allocate(dtype, width)?;
    let kernel = Kernel { file: "reduce", name: &format!("rows_sum_{}", suffix(dtype)?) };
    let arguments = &mut [
        Argument::Read(partial),
        Argument::Write(&mut y, 0),
        Argument::size(partial.len / width)?,
        Argument::size(width)?,
    ];
    // SAFETY: `rows_sum_*(x, y, rows, width)`; `x` is `[rows, width]` and `y` is `[width]`.
    unsafe { machine.launch(kernel, Grid::over(width), arguments)? };
    Ok(y)
}

/// The sum of `x: [rows, width]` over its rows, in the type of `x`: the gradient of a bias.
pub(crate) fn column_sums<M: Machine>(machine: &M, x: View<'_, M::Memory>, width: usize) -> Result<M::Memory> {
    let rows = x.len / width;
    let (partials, grid) = stages(rows, width);
    let mut partial = machine.allocate(DType::F32, partials * width)?;
    let kernel = Kernel { file: "reduce", name: &format!("rows_partial_{}", suffix(x.dtype)?) };
    let arguments = &mut [
        Argument::Read(x),
        Argument::Write(&mut partial, 0),
        Argument::size(rows)?,
        Argument::size(width)?,
        Argument::size(ROWS_PER_BLOCK)?,
    ];
    // SAFETY: `rows_partial_*(x, partial, rows, width, rows_per_block)`; `partial` has a row for each block of the grid's y.
    unsafe { machine.launch(kernel, grid, arguments)? };
    rows_sum(machine, View::whole(&partial, DType::F32, partials * width), width, x.dtype)
}
