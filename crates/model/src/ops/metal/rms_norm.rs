//! Launches of RMSNorm (`rms_norm.metal`).

use super::gpu::{Argument::*, Gpu, LANES, Launch, Library, Scalar, Source, View, count};
use super::rows::{BLOCK_ROWS, COLUMN_THREADS, total};
use candle_core::Result;
use std::sync::Arc;

/// The input: `x: [rows, width]`, `w: [width]`.
pub struct Norm<'a, M> {
    /// What is normalised.
    pub x: View<'a, M>,
    /// The weights.
    pub w: View<'a, M>,
    /// Their type.
    pub scalar: Scalar,
    /// Rows of `x`.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// Gradients of `x` and `w`, in their type.
pub struct Gradients<M> {
    /// `[rows, width]`.
    pub x: Arc<M>,
    /// `[width]`.
    pub w: Arc<M>,
}

impl<M> Norm<'_, M> {
    fn library(&self) -> Library {
        Library::new(Source::RmsNorm, self.scalar)
    }

    /// A thread for every four elements of a row, as whole SIMD-groups and at most eight.
    fn threads(&self) -> usize {
        self.width.div_ceil(4 * LANES).clamp(1, 8) * LANES
    }

    /// `[rows, width]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward<G: Gpu<Memory = M>>(&self, gpu: &G) -> Result<Arc<M>> {
        let y = gpu.allocate(self.rows * self.width * self.scalar.bytes())?;
        gpu.launch(Launch {
            library: self.library(),
            function: "rms_norm",
            arguments: vec![Read(self.x), Read(self.w), Write(View::all(&y)), U32(count(self.width)?), F32(self.eps)],
            groups: [self.rows, 1, 1],
            threads: self.threads(),
        })?;
        Ok(y)
    }

    /// For the gradient `g: [rows, width]` of the output.
    ///
    /// # Errors
    /// Those of the device.
    pub fn backward<G: Gpu<Memory = M>>(&self, gpu: &G, g: View<M>) -> Result<Gradients<M>> {
        let (rows, width) = (count(self.rows)?, count(self.width)?);
        let dx = gpu.allocate(self.rows * self.width * self.scalar.bytes())?;
        let inverses = gpu.allocate(self.rows * 4)?;
        let (x, w) = (Read(self.x), Read(self.w));
        let written = [Write(View::all(&*dx)), Write(View::all(&inverses)), U32(width), F32(self.eps)];
        gpu.launch(Launch {
            library: self.library(),
            function: "rms_norm_backward",
            arguments: [x, w, Read(g)].into_iter().chain(written).collect(),
            groups: [self.rows, 1, 1],
            threads: self.threads(),
        })?;
        let blocks = self.rows.div_ceil(BLOCK_ROWS);
        let parts = gpu.allocate(blocks * self.width * 4)?;
        let columns = self.width.div_ceil(COLUMN_THREADS);
        gpu.launch(Launch {
            library: self.library(),
            function: "rms_norm_weight_parts",
            arguments: vec![
                Read(self.x),
                Read(g),
                Read(View::all(&inverses)),
                Write(View::all(&parts)),
                U32(rows),
                U32(width),
                U32(count(BLOCK_ROWS)?),
            ],
            groups: [columns, blocks, 1],
            threads: COLUMN_THREADS,
        })?;
        let dw = total(gpu, self.scalar, View::all(&parts), [blocks, self.width])?;
        Ok(Gradients { x: dx, w: dw })
    }
}
