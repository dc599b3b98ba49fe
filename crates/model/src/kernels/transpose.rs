//! Rows and columns exchanged, a cache line at a time.

use super::for_each_chunk;

/// A number of four bytes.
pub trait Word: Copy + Default + Send + Sync {}

impl Word for f32 {}
impl Word for u32 {}

/// Columns that one task moves.
const TASK: usize = 64;
/// Words of a cache line.
const LINE: usize = 16;

/// `x: [rows, columns]` with rows and columns exchanged.
///
/// # Panics
/// When `x` is not whole rows.
pub fn transposed<T: Word>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len() / columns;
    assert_eq!(x.len(), rows * columns, "a matrix is not whole rows");
    let mut out = vec![T::default(); x.len()];
    for_each_chunk(&mut out, TASK * rows, |i, out| {
        let count = out.len() / rows;
        transpose(Block { data: &x[i * TASK..], stride: columns, rows, columns: count }, out, rows);
    });
    out
}

/// Some columns of a matrix.
#[derive(Clone, Copy)]
pub struct Block<'a, T> {
    /// From the first element on.
    pub data: &'a [T],
    /// From one row to the next.
    pub stride: usize,
    /// Rows taken.
    pub rows: usize,
    /// Columns taken.
    pub columns: usize,
}

/// Writes a block's column `c` to `out[c * stride..][..rows]`.
///
/// # Panics
/// When a slice is too short.
pub fn transpose<T: Word>(block: Block<T>, out: &mut [T], stride: usize) {
    let Block { data, stride: from, rows, columns } = block;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!((rows - 1) * from + columns <= data.len() && (columns - 1) * stride + rows <= out.len());
    for row in (0..rows).step_by(LINE) {
        for column in (0..columns).step_by(LINE) {
            let (height, width) = (LINE.min(rows - row), LINE.min(columns - column));
            let (data, out) = (&data[row * from + column..], &mut out[column * stride + row..]);
            #[cfg(target_arch = "x86_64")]
            if height == LINE && width == LINE && is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has the instructions.
                unsafe { super::avx512_transpose::square(data, from, out, stride) };
                continue;
            }
            for c in 0..width {
                for r in 0..height {
                    out[c * stride + r] = data[r * from + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_goes_to_its_place() {
        for (rows, columns) in [(1, 1), (16, 16), (15, 17), (33, 100), (64, 130)] {
            let x: Vec<u32> = (0..rows * columns).map(|i| i as u32).collect();
            let turned = transposed(&x, columns as usize);
            for (i, &value) in turned.iter().enumerate() {
                let (row, column) = (i % rows as usize, i / rows as usize);
                assert_eq!(value, x[row * columns as usize + column], "[{rows}, {columns}]");
            }
        }
    }
}
