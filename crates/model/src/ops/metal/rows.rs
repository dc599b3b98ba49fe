//! Launches of sums over rows (`rows.metal`): of columns, and of rows that were picked.

use super::gpu::{Argument, Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::{Result, bail};
use std::sync::Arc;

/// Threads of a group.
const THREADS: usize = 256;

/// Rows whose part of a column's sum one thread adds up.
pub(super) const BLOCK_ROWS: usize = 256;

/// Threads of the kernels that take a thread a column.
pub(super) const COLUMN_THREADS: usize = 64;

/// The sum over the rows of `x: [rows, width]`, added up in f32, in the type of `x`.
///
/// # Errors
/// Those of the device.
pub(crate) fn column_sums<G: Gpu>(
    gpu: &G,
    (x, scalar): (View<G::Memory>, Scalar),
    rows: usize,
    width: usize,
) -> Result<Arc<G::Memory>> {
    let blocks = rows.div_ceil(BLOCK_ROWS);
    let parts = gpu.allocate(blocks * width * 4)?;
    gpu.launch(Launch {
        library: Library::new(Source::Rows, scalar),
        function: "column_parts",
        arguments: vec![
            Read(x),
            Write(View::all(&parts)),
            U32(count(rows)?),
            U32(count(width)?),
            U32(count(BLOCK_ROWS)?),
        ],
        groups: [width.div_ceil(COLUMN_THREADS), blocks, 1],
        threads: COLUMN_THREADS,
    })?;
    total(gpu, scalar, View::all(&parts), [blocks, width])
}

/// The sum over the rows of f32 `parts: [blocks, width]`, in `scalar`.
pub(super) fn total<G: Gpu>(
    gpu: &G,
    scalar: Scalar,
    parts: View<G::Memory>,
    [blocks, width]: [usize; 2],
) -> Result<Arc<G::Memory>> {
    let sums = gpu.allocate(width * scalar.bytes())?;
    gpu.launch(Launch {
        library: Library::new(Source::Rows, scalar),
        function: "column_sums",
        arguments: vec![Read(parts), Write(View::all(&sums)), U32(count(blocks)?), U32(count(width)?)],
        groups: [width.div_ceil(COLUMN_THREADS), 1, 1],
        threads: COLUMN_THREADS,
    })?;
    Ok(sums)
}

/// The gradient of rows that were picked.
pub(crate) struct Picked<'a, M> {
    /// One row for each that was picked, `[picked, width]`.
    pub parts: View<'a, M>,
    /// Their type.
    pub scalar: Scalar,
    /// Elements of a row.
    pub width: usize,
    /// Which row each was picked from.
    pub rows: &'a [u32],
}

impl<M> Picked<'_, M> {
    /// The parts by the row that they are of, each row's in their order.
    fn order(&self) -> Result<Vec<u32>> {
        let mut order: Vec<u32> = (0..count(self.rows.len())?).collect();
        order.sort_by_key(|&j| self.rows[j as usize]);
        Ok(order)
    }

    fn launch<'a, G: Gpu<Memory = M>>(
        &'a self,
        gpu: &G,
        function: &'static str,
        (starts, sums): (&[u32], View<'a, M>),
        ids: Option<Argument<'a, M>>,
    ) -> Result<()> {
        let n = (starts.len() - 1) * self.width;
        let (starts, order) = (gpu.upload(starts)?, gpu.upload(&self.order()?)?);
        let inputs = [Read(self.parts), Read(View::all(&*starts)), Read(View::all(&*order))];
        let rest = [Write(sums), U32(count(self.width)?), U32(count(n)?)];
        gpu.launch(Launch {
            library: Library::new(Source::Rows, self.scalar),
            function,
            arguments: inputs.into_iter().chain(rest).chain(ids).collect(),
            groups: [n.div_ceil(THREADS), 1, 1],
            threads: THREADS,
        })
    }

    /// The sums of all rows, `[total, width]`; zero for one that was not picked.
    ///
    /// # Errors
    /// Those of the device; a row that is not below `total`.
    pub fn gather_sums<G: Gpu<Memory = M>>(&self, gpu: &G, total: usize) -> Result<Arc<M>> {
        let mut starts = vec![0u32; total + 1];
        for &row in self.rows {
            match starts.get_mut(row as usize + 1) {
                Some(start) => *start += 1,
                None => bail!("row {row} was picked of {total}"),
            }
        }
        for i in 0..total {
            starts[i + 1] += starts[i];
        }
        let sums = gpu.allocate(total * self.width * self.scalar.bytes())?;
        self.launch(gpu, "gather_sums", (&starts, View::all(&sums)), None)?;
        Ok(sums)
    }

    /// Adds the parts to their rows of f32 `sums: [total, width]`.
    ///
    /// # Errors
    /// Those of the device; a row that is not below `total`.
    pub fn add_to<G: Gpu<Memory = M>>(&self, gpu: &G, sums: View<M>, total: usize) -> Result<()> {
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for (place, &j) in self.order()?.iter().enumerate() {
            let row = self.rows[j as usize];
            if row as usize >= total {
                bail!("row {row} was picked of {total}");
            }
            if ids.last() != Some(&row) {
                ids.push(row);
                starts.push(count(place)?);
            }
        }
        starts.push(count(self.rows.len())?);
        let ids = gpu.upload(&ids)?;
        self.launch(gpu, "add_picked", (&starts, sums), Some(Read(View::all(&*ids))))
    }
}
