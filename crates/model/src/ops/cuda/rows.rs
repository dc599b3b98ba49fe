//! Launches of `rows.cu`: rows taken by number, and summed back to where they came from in a fixed order.

use super::{Argument, Grid, Kernel, Machine, View, suffix};
use candle_core::{DType, Result, bail};
use std::sync::Arc;

/// Which rows go to which place: those of `places[u]` are `order[starts[u]..starts[u + 1]]`, in their order.
pub(crate) struct Groups {
    places: Arc<[u32]>,
    starts: Arc<[u32]>,
    order: Arc<[u32]>,
}

impl Groups {
    /// Of rows that were taken from `rows[0]`, `rows[1]` and so on.
    pub fn of(rows: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        // Stable, so that rows of one place keep their order.
        order.sort_by_key(|&i| rows[i as usize]);
        let (mut places, mut starts) = (Vec::new(), Vec::new());
        for (at, &i) in order.iter().enumerate() {
            if places.last() != Some(&rows[i as usize]) {
                places.push(rows[i as usize]);
                starts.push(at as u32);
            }
        }
        starts.push(rows.len() as u32);
        Self { places: places.into(), starts: starts.into(), order: order.into() }
    }
}

/// The rows `rows` of `table: [_, width]`, each of which has to be there -> `[rows, width]`.
pub(crate) fn gather<M: Machine>(
    machine: &M,
    table: View<'_, M::Memory>,
    rows: &Arc<[u32]>,
    width: usize,
) -> Result<M::Memory> {
    if rows.iter().any(|&row| (row as usize + 1) * width > table.len) {
        bail!("rows: a row beyond the {} that there are", table.len / width);
    }
    let numbers = machine.resident_u32(rows)?;
    let mut y = machine.allocate(table.dtype, rows.len() * width)?;
    let kernel = Kernel { file: "rows", name: &format!("rows_gather_{}", suffix(table.dtype)?) };
    let arguments = &mut [
        Argument::Read(table),
        Argument::Read(View::whole(&*numbers, DType::U32, rows.len())),
        Argument::Write(&mut y, 0),
        Argument::size(width)?,
    ];
    // SAFETY: `rows_gather_*(table, rows, y, width)`; each block writes one row of `y` from a row that is in the table.
    unsafe { machine.launch(kernel, Grid::line(rows.len(), 128), arguments)? };
    Ok(y)
}

/// Rows `[_, width]` that are added to, from an element of `memory` on.
pub(crate) struct Sums<'a, M> {
    pub memory: &'a mut M,
    pub offset: usize,
    pub len: usize,
    pub dtype: DType,
}

/// Adds each row of `g: [rows, width]` to its place.
pub(crate) fn sum_into<M: Machine>(
    machine: &M,
    g: View<'_, M::Memory>,
    groups: &Groups,
    sums: Sums<'_, M::Memory>,
    width: usize,
) -> Result<()> {
    let last = groups.places.last().map_or(0, |&place| (place as usize + 1) * width);
    if g.len != groups.order.len() * width || last > sums.len {
        bail!("rows: {} elements for {} rows of {width}, into {}", g.len, groups.order.len(), sums.len);
    }
    let [places, starts, order] = [&groups.places, &groups.starts, &groups.order].map(|x| machine.resident_u32(x));
    let (places, starts, order) = (places?, starts?, order?);
    let numbers = |memory, values: &Arc<[u32]>| Argument::Read(View::whole(memory, DType::U32, values.len()));
    let name = format!("rows_sum_into_{}_{}", suffix(g.dtype)?, suffix(sums.dtype)?);
    let arguments = &mut [
        Argument::Read(g),
        numbers(&*places, &groups.places),
        numbers(&*starts, &groups.starts),
        numbers(&*order, &groups.order),
        Argument::Write(sums.memory, sums.offset),
        Argument::size(width)?,
    ];
    let grid = Grid { blocks: [groups.places.len(), width.div_ceil(128), 1], threads: 128, shared: 0 };
    // SAFETY: `rows_sum_into_*(g, places, starts, order, y, width)`; rows of `g` and places were checked above.
    unsafe { machine.launch(Kernel { file: "rows", name: &name }, grid, arguments) }
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, TYPES, close, gradients, inputs, shim};
    use super::*;

    #[test]
    fn rows_come_and_their_gradients_go_back() {
        let Some(shim) = shim() else { return };
        let rows: Arc<[u32]> = [4, 0, 4, 9, 4, 2, 0].into();
        for (dtype, tolerance) in TYPES {
            for width in [3, 8, 200] {
                let x = inputs(&[&[10, width], &[rows.len(), width]], dtype);
                let ids = candle_core::Tensor::new(&*rows, x[0].device()).unwrap();
                let (y, expected) = gradients(&x[..1], &x[1], |x| x[0].index_select(&ids, 0));
                let [table, g] = [0, 1].map(|i| Copied::new(&x[i]));
                close(&gather(&shim, table.view(), &rows, width).unwrap(), &y, 1e-9);
                for sum in [DType::F32, dtype] {
                    let mut memory = shim.zeros(sum, 10 * width).unwrap();
                    let sums = Sums { memory: &mut memory, offset: 0, len: 10 * width, dtype: sum };
                    sum_into(&shim, g.view(), &Groups::of(&rows), sums, width).unwrap();
                    close(&memory, &expected[0], tolerance);
                }
            }
        }
        assert!(gather(&shim, Copied::new(&inputs(&[&[9, 3]], DType::F32)[0]).view(), &rows, 3).is_err());
    }
}
