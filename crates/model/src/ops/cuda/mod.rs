//! The CUDA kernels: one `.cu` file an operation, compiled to PTX by the build script, and the code that launches it beside it.
//!
//! Launch code is written against [`Machine`], not against a driver: `device` launches on a GPU, and the tests' `shim`
//! runs the same sources, compiled as C++, on the CPU with the same arguments over the same grid. What the driver alone
//! does (loading PTX, streams, cuBLAS) is thus all that no test on a CPU covers.
//!
//! Nothing here waits for the device: memory is allocated, used and freed in the order of one stream.

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod decode;
pub(crate) mod decode_attention;
#[cfg(feature = "cuda")]
pub(crate) mod device;
pub(crate) mod linear;
pub(crate) mod log_prob;
pub(crate) mod norm;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod sample;
#[cfg(test)]
pub(crate) mod shim;
pub(crate) mod swiglu;

use candle_core::{DType, Result, bail};
use std::sync::Arc;

/// A device that runs kernels, in the order of their launches.
pub(crate) trait Machine {
    /// A block of device memory with a type of element.
    type Memory: 'static;

    /// Memory whose contents are whatever was there; a kernel has to write each element before one reads it.
    fn allocate(&self, dtype: DType, len: usize) -> Result<Self::Memory>;

    /// Memory of zeros.
    fn zeros(&self, dtype: DType, len: usize) -> Result<Self::Memory>;

    /// Host values that do not change, on the device; copied once for as long as `values` lives.
    fn resident_u32(&self, values: &Arc<[u32]>) -> Result<Arc<Self::Memory>>;

    /// As [`Machine::resident_u32`].
    fn resident_f32(&self, values: &Arc<[f32]>) -> Result<Arc<Self::Memory>>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The arguments have to be those of the kernel, in its order and types, and the kernel, over this grid, must stay
    /// within the memory it is given.
    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &mut [Argument<'_, Self::Memory>]) -> Result<()>;

    /// `c = a b` or `c += a b`, summed in f32.
    fn product(&self, product: &Product<'_, Self::Memory>, c: Target<'_, Self::Memory>) -> Result<()>;
}

/// A kernel by its file (without `.cu`) and name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel<'a> {
    pub file: &'static str,
    pub name: &'a str,
}

/// How many blocks of how many threads, and the bytes of dynamic shared memory of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub blocks: [usize; 3],
    pub threads: usize,
    pub shared: usize,
}

impl Grid {
    /// A line of blocks without dynamic shared memory.
    pub fn line(blocks: usize, threads: usize) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared: 0 }
    }

    /// One thread for each of `count` elements, in blocks of 256.
    pub fn over(count: usize) -> Self {
        Self::line(count.div_ceil(256), 256)
    }
}

/// Contiguous elements to be read.
#[derive(Debug)]
pub(crate) struct View<'a, M> {
    pub memory: &'a M,
    /// The first element.
    pub offset: usize,
    pub len: usize,
    pub dtype: DType,
}

impl<M> Clone for View<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for View<'_, M> {}

impl<'a, M> View<'a, M> {
    /// All of a block of memory.
    pub fn whole(memory: &'a M, dtype: DType, len: usize) -> Self {
        Self { memory, offset: 0, len, dtype }
    }

    /// Elements from `start` on.
    pub fn from(self, start: usize) -> Self {
        Self { offset: self.offset + start, len: self.len - start, ..self }
    }
}

/// What a kernel is given.
pub(crate) enum Argument<'a, M> {
    /// A pointer that is read.
    Read(View<'a, M>),
    /// A pointer to an element that is written, or read and written.
    Write(&'a mut M, usize),
    /// No memory: a null pointer.
    Null,
    U32(u32),
    F32(f32),
}

impl<M> Argument<'_, M> {
    /// A count or size; an error where it has more than 32 bits.
    pub fn size(value: usize) -> Result<Self> {
        match u32::try_from(value) {
            Ok(value) => Ok(Self::U32(value)),
            Err(_) => bail!("a size of {value} is more than a kernel takes"),
        }
    }
}

/// `a: [m, k]` times `b: [k, n]`, each possibly stored transposed; rows are contiguous. Both f32 or both bf16.
pub(crate) struct Product<'a, M> {
    pub a: View<'a, M>,
    /// `a` is stored as `[k, m]`.
    pub a_transposed: bool,
    pub b: View<'a, M>,
    /// `b` is stored as `[n, k]`.
    pub b_transposed: bool,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl<'a, M> Product<'a, M> {
    /// `a: [m, k]` times `b: [n, k]` transposed, as weights are stored.
    pub fn by_rows(a: View<'a, M>, b: View<'a, M>, [m, n, k]: [usize; 3]) -> Self {
        Self { a, a_transposed: false, b, b_transposed: true, m, n, k }
    }

    /// `a: [m, k]` times `b: [k, n]`.
    pub fn plain(a: View<'a, M>, b: View<'a, M>, [m, n, k]: [usize; 3]) -> Self {
        Self { a, a_transposed: false, b, b_transposed: false, m, n, k }
    }

    /// `a: [k, m]` transposed times `b: [k, n]`: a sum over rows, as the gradient of weights is.
    pub fn over_rows(a: View<'a, M>, b: View<'a, M>, [m, n, k]: [usize; 3]) -> Self {
        Self { a, a_transposed: true, b, b_transposed: false, m, n, k }
    }
}

/// Where a product goes: `[m, n]` from an element of `memory` on, f32, or in the type of the factors.
pub(crate) struct Target<'a, M> {
    pub memory: &'a mut M,
    pub offset: usize,
    pub dtype: DType,
    /// Added to what is there.
    pub add: bool,
}

/// The ending of a kernel's name for elements of a type.
pub(crate) fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        other => bail!("no CUDA kernel takes {other:?}; f32 and bf16 are supported"),
    }
}
