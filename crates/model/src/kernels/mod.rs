//! CPU kernels on plain `f32` slices: what the ops and the decoder are made of.
//!
//! Two rules hold for all of them. *Vectors are chosen at run time*: `vectorized!` compiles an expression once per
//! instruction set (AVX-512, AVX2, NEON, scalar) and picks the widest the CPU has. *Work is cut the same way whatever
//! the number of threads*, so that a run is bit-identical at one thread and at many.

pub mod adamw;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_attention;
#[cfg(target_arch = "x86_64")]
mod avx512_int8;
#[cfg(target_arch = "x86_64")]
mod avx512_transpose;
pub mod decode_attention;
pub mod gemm;
pub mod int8;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod packed;
mod packing;
pub mod pairs;
mod product;
pub mod sums;
pub mod tiles;
mod transpose;
pub mod weights;

use rayon::prelude::*;

/// Evaluates an expression compiled for the widest vector instructions of this CPU.
///
/// What it calls has to be `#[inline(always)]`, or that is compiled for the baseline instruction set, where each
/// `mul_add` is a call. A macro, because the closure itself must be `#[inline(always)]` too (measured: 30 times slower
/// where the optimiser leaves it outside of the vectorised function).
macro_rules! vectorized {
    ($body:expr) => {
        pulp::Arch::new().dispatch($crate::kernels::Vectorized(
            #[inline(always)]
            || $body,
        ))
    };
}
pub(crate) use vectorized;

/// A closure for [`pulp::Arch::dispatch`]. Called through `FnMut`: the shim that `FnOnce` puts around other closures is
/// a function of its own, which is not inlined.
pub(crate) struct Vectorized<F>(pub F);

impl<R, F: FnMut() -> R> pulp::WithSimd for Vectorized<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, _simd: S) -> R {
        (self.0)()
    }
}

/// Rows that one task takes: large enough to feed a GEMM, small enough to stay in the cache.
pub const ROWS_PER_TASK: usize = 256;

/// Whether an op may spread over the thread pool: not when it already runs on one of the pool's threads.
///
/// Micro-batches run in parallel, each on one thread; an op that forked again inside would let a waiting thread pick
/// up a second micro-batch and hold the activations of both.
pub fn may_fork() -> bool {
    rayon::current_thread_index().is_none()
}

/// Calls `f(index, chunk)` for every chunk of `size` elements of `out`, over the thread pool where that helps.
pub fn for_each_chunk<T: Send>(out: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if may_fork() && out.len() > size {
        out.par_chunks_mut(size).enumerate().for_each(|(index, chunk)| f(index, chunk));
    } else {
        out.chunks_mut(size).enumerate().for_each(|(index, chunk)| f(index, chunk));
    }
}

/// Calls `f(index, chunk, other)` for every chunk of `size` elements of `out` and the chunk of `second` beside it.
///
/// # Panics
/// When the two differ in length.
pub fn for_each_two_chunks<T: Send>(
    out: &mut [T],
    second: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) {
    assert_eq!(out.len(), second.len(), "chunks of two lengths");
    if may_fork() && out.len() > size {
        let chunks = out.par_chunks_mut(size).zip(second.par_chunks_mut(size)).enumerate();
        chunks.for_each(|(index, (chunk, other))| f(index, chunk, other));
    } else {
        let chunks = out.chunks_mut(size).zip(second.chunks_mut(size)).enumerate();
        chunks.for_each(|(index, (chunk, other))| f(index, chunk, other));
    }
}

/// `f(index, chunk)` of every chunk of `size` elements of `out`, in order, over the thread pool where that helps.
pub fn map_chunks<T: Send>(out: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) -> T + Sync) -> Vec<T> {
    if may_fork() && out.len() > size {
        out.par_chunks_mut(size).enumerate().map(|(index, chunk)| f(index, chunk)).collect()
    } else {
        out.chunks_mut(size).enumerate().map(|(index, chunk)| f(index, chunk)).collect()
    }
}

/// `(0..count).map(f)` in order, over the thread pool where that helps.
pub fn map_tasks<T: Send>(count: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    if may_fork() && count > 1 { (0..count).into_par_iter().map(f).collect() } else { (0..count).map(f).collect() }
}
