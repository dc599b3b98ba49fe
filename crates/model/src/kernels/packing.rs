//! How a matrix is laid out in panels of [`PANEL`] outputs: `[panels, depth, PANEL]`, with zeros beyond the outputs.

use super::packed::PANEL;
use super::transpose::{Block, Word, transpose};
use super::{for_each_chunk, pairs};

/// Rows `[k]` of matrices `[out_i, k]`, one under the other.
///
/// # Panics
/// When a matrix is not whole rows.
pub(super) fn rows_of<'a, T>(parts: &[&'a [T]], k: usize) -> Vec<&'a [T]> {
    let whole = |part: &&'a [T]| {
        assert_eq!(part.len() % k, 0, "a packed part is not whole rows");
        part.chunks_exact(k)
    };
    parts.iter().flat_map(whole).collect()
}

/// Panels of rows, each of which `convert` makes `depth` words.
pub(super) fn words<T: Sync, W: Word>(rows: &[&[T]], depth: usize, convert: impl Fn(&[T], &mut [W]) + Sync) -> Vec<W> {
    let size = depth * PANEL;
    let mut panels = vec![W::default(); rows.len().div_ceil(PANEL) * size];
    for_each_chunk(&mut panels, size, |p, panel| {
        let rows = &rows[p * PANEL..rows.len().min((p + 1) * PANEL)];
        let mut converted = vec![W::default(); rows.len() * depth];
        converted.chunks_exact_mut(depth).zip(rows).for_each(|(words, row)| convert(row, words));
        let block = Block { data: &converted, stride: depth, rows: rows.len(), columns: depth };
        transpose(block, panel, PANEL);
    });
    panels
}

/// Panels of rows as they are.
pub(super) fn narrow<T: Copy + Default>(rows: &[&[T]], k: usize) -> Vec<T> {
    let size = k * PANEL;
    let mut panels = vec![T::default(); rows.len().div_ceil(PANEL) * size];
    for (panel, rows) in panels.chunks_exact_mut(size).zip(rows.chunks(PANEL)) {
        for (lane, row) in rows.iter().enumerate() {
            for (lanes, &value) in panel.chunks_exact_mut(PANEL).zip(*row) {
                lanes[lane] = value;
            }
        }
    }
    panels
}

/// Panels of the columns of `b: [depth, n]`.
///
/// # Panics
/// When `b` is not whole rows.
pub(super) fn columns<T: Copy + Sync, W: Word>(b: &[T], n: usize, convert: impl Fn(T) -> W + Sync) -> Vec<W> {
    let depth = b.len() / n;
    assert_eq!(b.len(), depth * n, "a packed matrix is not whole rows");
    let size = depth * PANEL;
    let mut panels = vec![W::default(); n.div_ceil(PANEL) * size];
    for_each_chunk(&mut panels, size, |p, panel| {
        let columns = p * PANEL..n.min((p + 1) * PANEL);
        for (row, lanes) in b.chunks_exact(n).zip(panel.chunks_exact_mut(PANEL)) {
            for (lane, &value) in lanes.iter_mut().zip(&row[columns.clone()]) {
                *lane = convert(value);
            }
        }
    });
    panels
}

/// Panels of the columns of `b: [k, n]` in pairs.
pub(super) fn column_pairs<T: super::weights::Element>(b: &[T], n: usize) -> Vec<u32> {
    columns(&pairs::of_columns(b, n), n, |pair| pair)
}
