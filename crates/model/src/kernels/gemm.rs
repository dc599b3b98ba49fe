//! A safe view of the `gemm` crate: strided `f32` matrices over slices, bounds checked once a call.

use gemm::Parallelism;

/// A read-only strided matrix: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix whose rows start `stride` elements apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row_stride: stride, col_stride: 1 }
    }

    /// The same elements, rows and columns exchanged.
    pub fn t(self) -> Self {
        Self { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }
}

/// The sizes of `c[m, n] = a[m, k] b[k, n]`.
#[derive(Clone, Copy)]
pub struct Dims {
    /// Rows of `a` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`.
    pub n: usize,
    /// Columns of `a`, rows of `b`: the summed index.
    pub k: usize,
}

/// What happens to the elements that `c` already holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// They are overwritten.
    Set,
    /// The product is added to them.
    Add,
}

fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// `c = a b` or `c += a b` on the calling thread; `c` is row-major with rows `c_stride` apart.
///
/// # Panics
/// When a matrix is shorter than `dims` and its strides ask for.
pub fn gemm(c: &mut [f32], c_stride: usize, a: Mat, b: Mat, dims: Dims, write: Write) {
    let Dims { m, n, k } = dims;
    assert!(extent(m, n, c_stride, 1) <= c.len(), "gemm: c is too short");
    assert!(extent(m, k, a.row_stride, a.col_stride) <= a.data.len(), "gemm: a is too short");
    assert!(extent(k, n, b.row_stride, b.col_stride) <= b.data.len(), "gemm: b is too short");
    assert!(m == 0 || n == 0 || c_stride >= n, "gemm: rows of c overlap");
    // SAFETY: the three assertions bound every element that the call reads or writes, `c` is borrowed mutably and
    // apart from `a` and `b`, and its rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplies_transposes_and_adds() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let b = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]; // [3, 2]
        let mut c = [10.0; 4];
        let dims = Dims { m: 2, n: 2, k: 3 };
        gemm(&mut c, 2, Mat::rows(&a, 3), Mat::rows(&b, 2), dims, Write::Set);
        assert_eq!(c, [4.0, 5.0, 10.0, 11.0]);
        // a^T seen as [3, 2], b^T as [2, 3].
        let mut d = [1.0; 9];
        let dims = Dims { m: 3, n: 3, k: 2 };
        gemm(&mut d, 3, Mat::rows(&a, 3).t(), Mat::rows(&b, 2).t(), dims, Write::Add);
        assert_eq!(d, [2.0, 5.0, 6.0, 3.0, 6.0, 8.0, 4.0, 7.0, 10.0]);
    }

    #[test]
    #[should_panic(expected = "gemm: b is too short")]
    fn refuses_a_short_matrix() {
        let mut c = [0.0; 4];
        let dims = Dims { m: 2, n: 2, k: 2 };
        gemm(&mut c, 2, Mat::rows(&[0.0; 4], 2), Mat::rows(&[0.0; 3], 2), dims, Write::Set);
    }
}
