//! The product of a packed matrix, panel by panel, on the calling thread: which kernel runs is chosen here.
//!
//! Every kernel sums over `k` in order and each row for itself, by fused multiply-adds, so that all give the same bits in
//! f32. It is one in intrinsics where there is one for the CPU (AVX-512, AVX2, NEON); elsewhere the one here, written with
//! the vectors of the `pulp` crate, which rounds products before it adds them where the CPU has no fused multiply-add.

use super::packed::{PANEL, Packed, Panels};
use super::pairs;
use super::vectorized;
use super::weights::Element;
use pulp::{Arch, Simd, WithSimd};
use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

/// The output, written by several threads in columns of their own.
#[derive(Clone, Copy)]
struct Shared<'a>(*mut f32, PhantomData<&'a mut [f32]>);

// SAFETY: [`Product::panels`] is called for each panel once, and panels are disjoint columns.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

/// A packed matrix, its input and where the output goes.
#[derive(Clone)]
pub(super) struct Product<'a> {
    w: &'a Packed,
    x: &'a [f32],
    /// Instead of `x` where the weights are in pairs.
    narrow: &'a [u32],
    y: Shared<'a>,
    /// Whether `x` lies as `[k, rows]`.
    transposed: bool,
    /// Whether the product is added to what `y` holds.
    add: bool,
    /// Outputs that are made.
    outputs: usize,
    /// Numbers of `k` that are summed, of weights in pairs.
    depth: usize,
    /// Rows that are multiplied, of weights in pairs.
    rows: Range<usize>,
}

/// Pairs of `k` that are summed at a time: those of [`ROWS`] rows stay in a core's second-level cache.
#[cfg(target_arch = "x86_64")]
const DEPTH: usize = 512;
/// Rows of an input in pairs that one task takes.
pub(super) const ROWS: usize = 256;

impl<'a> Product<'a> {
    /// Whether a transposed input can be taken as it lies.
    pub fn takes_transposed() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("avx512f") || super::avx2::is_there();
        #[cfg(target_arch = "aarch64")]
        return std::arch::is_aarch64_feature_detected!("neon");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return false;
    }

    /// The same of an input that lies as `[k, rows]`.
    pub fn transposed(mut self) -> Self {
        self.transposed = true;
        self
    }

    /// The same, added to what `y` holds.
    pub fn added(mut self) -> Self {
        self.add = true;
        self
    }

    /// The same of the first outputs alone.
    pub fn of_first_outputs(mut self, outputs: usize) -> Self {
        self.outputs = outputs;
        self
    }

    /// The same of the first numbers of `k` alone, for weights in pairs.
    pub fn of_first_depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self.rows = 0..self.narrow.len() / depth.div_ceil(2);
        self
    }

    /// The same of some rows alone, for weights in pairs.
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        Self { rows, ..self.clone() }
    }

    /// `x: [rows, k]`; `y: [rows, out]`.
    pub fn new(w: &'a Packed, x: &'a [f32], y: &'a mut [f32]) -> Self {
        let y = Shared(y.as_mut_ptr(), PhantomData);
        Self { w, x, narrow: &[], y, transposed: false, add: false, outputs: w.out, depth: w.k, rows: 0..0 }
    }

    /// The same for weights in pairs, with which `x: [rows, ceil(k / 2)]` is multiplied in pairs.
    pub fn of_pairs(w: &'a Packed, x: &'a [u32], y: &'a mut [f32]) -> Self {
        let rows = 0..x.len() / w.k.div_ceil(2);
        Self { narrow: x, rows, ..Self::new(w, &[], y) }
    }

    /// Makes the outputs of some panels, of every row.
    ///
    /// # Safety
    /// `y` has `outputs` elements for every row of `x`, and nobody else reads or writes those of these panels.
    pub unsafe fn panels(&self, range: Range<usize>) {
        let k = self.w.k;
        match &self.w.panels {
            Panels::F32(panels) => {
                for p in range {
                    // SAFETY: as the caller vouches.
                    unsafe { self.panel(p, &panels[p * k * PANEL..(p + 1) * k * PANEL], self.x) };
                }
            }
            Panels::Bf16(panels) => {
                let mut wide = vec![0.0; k * PANEL];
                for p in range {
                    let panel = &panels[p * k * PANEL..(p + 1) * k * PANEL];
                    vectorized!(wide.iter_mut().zip(panel).for_each(|(w, n)| *w = n.widen()));
                    // SAFETY: as the caller vouches.
                    unsafe { self.panel(p, &wide, self.x) };
                }
            }
            // SAFETY: as the caller vouches.
            Panels::Pairs(panels) => unsafe { self.pairs(range, panels) },
        }
    }

    /// [`Self::panels`] of weights in pairs.
    ///
    /// # Safety
    /// As for [`Self::panels`].
    unsafe fn pairs(&self, range: Range<usize>, panels: &[u32]) {
        let (size, k) = (self.w.k.div_ceil(2) * PANEL, self.depth.div_ceil(2));
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
            for start in (0..k).step_by(DEPTH) {
                let depth = start..k.min(start + DEPTH);
                let data = &self.narrow[(self.rows.start * k + depth.start).min(self.narrow.len())..];
                let x = super::avx512::Pairs { data, rows: self.rows.len(), stride: k };
                for p in range.clone() {
                    let panel = &panels[p * size + depth.start * PANEL..p * size + depth.end * PANEL];
                    let columns = Columns { add: self.add || start > 0, ..self.columns(p) };
                    // SAFETY: the CPU has the instructions; the rest as the caller vouches.
                    unsafe { super::avx512::product_bf16(x, panel, columns) };
                }
            }
            return;
        }
        let narrow = &self.narrow[self.rows.start * k..self.rows.end * k];
        let x: Vec<f32> = narrow.iter().flat_map(|&pair| pairs::both(pair)).collect();
        let mut wide = vec![0.0; 2 * k * PANEL];
        for p in range {
            let panel = &panels[p * size..][..k * PANEL];
            vectorized!({
                for (wide, pairs) in wide.chunks_exact_mut(2 * PANEL).zip(panel.chunks_exact(PANEL)) {
                    let (even, odd) = wide.split_at_mut(PANEL);
                    for ((even, odd), &pair) in even.iter_mut().zip(odd).zip(pairs) {
                        [*even, *odd] = pairs::both(pair);
                    }
                }
            });
            // SAFETY: as the caller vouches.
            unsafe { self.panel(p, &wide, &x) };
        }
    }

    /// Makes the outputs of panel `p`, which is `panel: [k, PANEL]`, for `x: [rows, k]`.
    ///
    /// # Safety
    /// As for [`Self::panels`].
    unsafe fn panel(&self, p: usize, panel: &[f32], x: &[f32]) {
        let k = panel.len() / PANEL;
        let rows = x.len() / k;
        let (row, depth) = if self.transposed { (1, rows) } else { (k, 1) };
        // SAFETY: as the caller vouches.
        unsafe { multiply(Input { data: x, rows, row, depth }, panel, self.columns(p)) };
    }

    fn columns(&self, p: usize) -> Columns {
        let out = self.outputs;
        // Within the allocation where there is a panel `p`.
        let at = self.y.0.wrapping_add(self.rows.start * out + p * PANEL);
        Columns { at, stride: out, width: PANEL.min(out - p * PANEL), add: self.add }
    }
}

/// `columns = input panel`, `panel: [k, PANEL]`, or added to what is there.
///
/// # Safety
/// `columns` has as many rows as `input`, and nobody else reads or writes these outputs of them.
///
/// # Panics
/// When the input is shorter than its shape says, or `panel` is not whole rows.
pub(super) unsafe fn multiply(input: Input, panel: &[f32], columns: Columns) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has the instructions; the rest as the caller vouches.
        unsafe { super::avx512::product(input, panel, columns) };
        return;
    } else if super::avx2::is_there() {
        // SAFETY: as above.
        unsafe { super::avx2::product(input, panel, columns) };
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: as above.
        unsafe { super::neon::product(input, panel, columns) };
        return;
    }
    input.check(panel);
    let x = input.gathered(panel.len() / PANEL);
    Arch::new().dispatch(Panel { x: &x, panel, columns });
}

/// A matrix `[rows, k]` in memory: element `(r, d)` is `data[r * row + d * depth]`.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Of them.
    pub rows: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one element of a row to the next.
    pub depth: usize,
}

impl Input<'_> {
    /// # Panics
    /// When `panel` is not whole rows of [`PANEL`], or the input is shorter than its shape says.
    pub fn check(&self, panel: &[f32]) {
        let k = panel.len() / PANEL;
        let last = (self.rows.max(1) - 1) * self.row + (k.max(1) - 1) * self.depth;
        assert!(panel.len() == k * PANEL && (self.rows == 0 || last < self.data.len()), "a product of wrong shapes");
    }

    /// The same without gaps, rows of `k` elements.
    fn gathered(&self, k: usize) -> Cow<'_, [f32]> {
        if (self.row, self.depth) == (k, 1) {
            return Cow::Borrowed(&self.data[..self.rows * k]);
        }
        (0..self.rows).flat_map(|row| (0..k).map(move |d| self.data[row * self.row + d * self.depth])).collect()
    }
}

/// Where a panel's outputs go: row `r` at `r * stride`, `width <= PANEL` of them.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// The first output of the first row.
    pub at: *mut f32,
    /// From one row to the next.
    pub stride: usize,
    /// Outputs a row.
    pub width: usize,
    /// Whether sums start from what is there, instead of from zero.
    pub add: bool,
}

impl Columns {
    /// What a row's outputs from `first` on start from, as many as it has of `sums`, which are zeros before.
    ///
    /// # Safety
    /// As for [`Self::write`].
    #[inline(always)]
    pub unsafe fn read(self, row: usize, first: usize, sums: &mut [f32]) {
        let count = sums.len().min(self.width.saturating_sub(first));
        if self.add {
            let at = self.at.wrapping_add(row * self.stride + first);
            // SAFETY: as the caller vouches, and `first + count` is within the row's `width`.
            sums[..count].copy_from_slice(unsafe { std::slice::from_raw_parts(at, count) });
        }
    }

    /// Writes a row's outputs from `first` on, as many as it has of `sums`.
    ///
    /// # Safety
    /// `at` has that row, and nobody else reads or writes these outputs of it.
    #[inline(always)]
    pub unsafe fn write(self, row: usize, first: usize, sums: &[f32]) {
        let count = sums.len().min(self.width.saturating_sub(first));
        let at = self.at.wrapping_add(row * self.stride + first);
        // SAFETY: as the caller vouches, and `first + count` is within the row's `width`.
        unsafe { std::slice::from_raw_parts_mut(at, count) }.copy_from_slice(&sums[..count]);
    }
}

/// One panel with the vectors that the CPU has.
struct Panel<'a> {
    /// `[rows, k]`.
    x: &'a [f32],
    /// `[k, PANEL]`.
    panel: &'a [f32],
    columns: Columns,
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Rows a tile: as many accumulators as the registers hold, beside the panel's row and a broadcast.
        match S::F32_LANES {
            16 => self.run::<S, 8, 2>(simd),
            8 => self.run::<S, 3, 4>(simd),
            4 => self.run::<S, 3, 8>(simd),
            _ => self.run_scalar(),
        }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let k = self.panel.len() / PANEL;
        let rows = self.x.len() / k;
        let mut row = 0;
        while row + ROWS <= rows {
            self.tile::<S, ROWS, VECTORS>(simd, row);
            row += ROWS;
        }
        while row < rows {
            self.tile::<S, 1, VECTORS>(simd, row);
            row += 1;
        }
    }

    /// `ROWS` rows from `row` on, all sums held in registers.
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, simd: S, row: usize) {
        let k = self.panel.len() / PANEL;
        let (weights, _) = S::as_simd_f32s(self.panel);
        let weights = &weights[..k * VECTORS];
        let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &self.x[(row + r) * k..(row + r + 1) * k]);
        let mut acc = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for (r, acc) in acc.iter_mut().enumerate() {
            let start = self.start(row + r);
            let (vectors, _) = S::as_simd_f32s(&start);
            acc.copy_from_slice(&vectors[..VECTORS]);
        }
        for (depth, w) in weights.chunks_exact(VECTORS).enumerate() {
            for r in 0..ROWS {
                // SAFETY: `weights` was cut to `k * VECTORS`, so `depth < k`, and each row was cut to `k` elements.
                // Bounds checks cost more than the multiply-adds.
                let value = simd.splat_f32s(unsafe { *rows[r].get_unchecked(depth) });
                for v in 0..VECTORS {
                    acc[r][v] = simd.mul_add_f32s(value, w[v], acc[r][v]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            let mut full = [0.0f32; PANEL];
            let (vectors, _) = S::as_mut_simd_f32s(&mut full);
            vectors[..VECTORS].copy_from_slice(acc);
            self.store(row + r, &full);
        }
    }

    #[inline(always)]
    fn run_scalar(self) {
        let k = self.panel.len() / PANEL;
        for (row, x) in self.x.chunks_exact(k).enumerate() {
            let mut acc = self.start(row);
            for (&x, w) in x.iter().zip(self.panel.chunks_exact(PANEL)) {
                for (acc, &w) in acc.iter_mut().zip(w) {
                    *acc += x * w;
                }
            }
            self.store(row, &acc);
        }
    }

    /// What one row's sums start from.
    #[inline(always)]
    fn start(&self, row: usize) -> [f32; PANEL] {
        let mut sums = [0.0; PANEL];
        // SAFETY: whoever made `columns` has these outputs of every row of `x` for itself.
        unsafe { self.columns.read(row, 0, &mut sums) };
        sums
    }

    #[inline(always)]
    fn store(&self, row: usize, sums: &[f32; PANEL]) {
        // SAFETY: whoever made `columns` has these outputs of every row of `x` for itself.
        unsafe { self.columns.write(row, 0, sums) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + seed) * 0.37).sin()).collect()
    }

    /// Outputs `[rows, width]`, each row followed by one that has to stay as it is: once of the product, once of it added to
    /// what is there.
    fn outputs(rows: usize, width: usize, run: impl Fn(Columns)) -> Vec<f32> {
        let both = [false, true].map(|add| {
            let mut y = vec![9.0; rows * (width + 1)];
            run(Columns { at: y.as_mut_ptr(), stride: width + 1, width, add });
            assert!(y.chunks_exact(width + 1).all(|row| row[width] == 9.0), "a neighbour was written");
            y
        });
        assert_ne!(both[0], both[1]);
        both.concat()
    }

    #[test]
    fn every_form_that_this_cpu_has_gives_the_same_bits() {
        for (rows, k, width) in [(1, 1, 1), (5, 40, 32), (6, 33, 16), (13, 70, 17), (64, 128, 31)] {
            let (x, panel) = (values(rows * k, 1.0), values(k * PANEL, 2.0));
            let transposed = super::super::transpose::transposed(&x, k);
            let inputs =
                [Input { data: &x, rows, row: k, depth: 1 }, Input { data: &transposed, rows, row: 1, depth: rows }];
            let want = outputs(rows, width, |columns| Arch::new().dispatch(Panel { x: &x, panel: &panel, columns }));
            for (lies, input) in ["by rows", "transposed"].into_iter().zip(inputs) {
                for (name, got) in forms(input, &panel, width) {
                    assert_eq!(got, want, "{name}: [{rows}, {k}] {lies}, {width} outputs");
                }
            }
        }
    }

    /// What each form in intrinsics makes of the same.
    fn forms(input: Input, panel: &[f32], width: usize) -> Vec<(&'static str, Vec<f32>)> {
        let mut made = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has the instructions, and the outputs are the test's own.
                let run = |columns| unsafe { super::super::avx512::product(input, panel, columns) };
                made.push(("AVX-512", outputs(input.rows, width, run)));
            }
            if super::super::avx2::is_there() {
                // SAFETY: as above.
                let run = |columns| unsafe { super::super::avx2::product(input, panel, columns) };
                made.push(("AVX2", outputs(input.rows, width, run)));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            // SAFETY: as above; every aarch64 CPU has NEON.
            let run = |columns| unsafe { super::super::neon::product(input, panel, columns) };
            made.push(("NEON", outputs(input.rows, width, run)));
        }
        made
    }
}
