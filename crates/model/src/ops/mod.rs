//! The differentiable operations of the policy: each with its formula, a composed twin of plain tensor ops, a fused CPU
//! kernel and its backward.
//!
//! On the CPU the fused kernel runs, in f32, over weights in f32 or bf16; on a GPU it is one of `cuda`'s, in f32 or bf16
//! throughout. Elsewhere the composed twin runs, which is made of ops that candle can differentiate on every device;
//! [`fallbacks`] counts how often. (candle's own `rms_norm`, `rope` and `softmax_last_dim` drop the gradient in silence.)

pub mod adamw;
pub mod attention;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod cuda;
pub mod embedding;
pub mod fallbacks;
pub mod linear;
pub mod log_prob;
pub mod norm;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub(crate) mod streamed_head;
pub mod swiglu;

use crate::kernels::weights::Weights;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

pub use attention::{Heads, attention};
pub use embedding::embedding;
pub use linear::linear;
pub use log_prob::{HeadScores, log_prob};
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope};
pub use streamed_head::workspace_bytes as head_workspace_bytes;
pub use swiglu::swiglu;

/// Whether fused kernels apply to the activations `x`: in f32 on the CPU, in f32 and bf16 on a GPU that this program has
/// kernels for.
pub(crate) fn fused(x: &Tensor) -> bool {
    match x.device() {
        Device::Cpu => x.dtype() == DType::F32,
        Device::Cuda(_) => cfg!(feature = "cuda") && matches!(x.dtype(), DType::F32 | DType::BF16),
        Device::Metal(_) => false,
    }
}

/// The elements of a contiguous f32 CPU storage.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: the input is not contiguous");
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` with the elements of a CPU tensor, made contiguous first where it is not.
pub(crate) fn with_elements<R>(x: &Tensor, op: &'static str, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout, op)?),
        _ => bail!("{op}: the backward of the fused op runs on the CPU only"),
    }
}

/// The weights in a contiguous f32 or bf16 CPU storage.
pub(crate) fn weights<'a>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<Weights<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: the weights are not contiguous");
    };
    match storage {
        CpuStorage::F32(values) => Ok(Weights::F32(&values[start..end])),
        CpuStorage::BF16(values) => Ok(Weights::Bf16(&values[start..end])),
        _ => bail!("{op}: weights of a type that is neither f32 nor bf16"),
    }
}

/// Calls `f` with the weights in a CPU tensor.
pub(crate) fn with_weights<R>(w: &Tensor, op: &'static str, f: impl FnOnce(Weights) -> Result<R>) -> Result<R> {
    let (storage, layout) = w.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(weights(storage, layout, op)?),
        _ => bail!("{op}: the fused op runs on the CPU only"),
    }
}

/// A CPU result of the given shape.
pub(crate) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Comparing a fused op with its composed twin: values and gradients.

    use candle_core::{Device, Result, Tensor, Var};

    /// A variable of fixed pseudo-random values in `[-1, 1]`.
    pub fn variable(shape: &[usize], seed: u64) -> Var {
        let n: usize = shape.iter().product();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let values: Vec<f32> = (0..n)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The largest difference over the largest magnitude.
    pub fn gap(a: &Tensor, b: &Tensor) -> f64 {
        let a = a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let b = b.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(a.len(), b.len());
        let scale = b.iter().fold(1e-3f64, |m, v| m.max(v.abs() as f64));
        a.iter().zip(&b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs() as f64)) / scale
    }

    /// Asserts that two functions of the same variables have the same values and the same gradients of a random
    /// weighting of their outputs.
    pub fn assert_twins(
        variables: &[&Var],
        fused: impl Fn() -> Result<Tensor>,
        composed: impl Fn() -> Result<Tensor>,
        tolerance: f64,
    ) {
        let (a, b) = (fused().unwrap(), composed().unwrap());
        assert_eq!(a.dims(), b.dims());
        assert!(gap(&a, &b) < tolerance, "values differ by {}", gap(&a, &b));
        let weights = variable(a.dims(), 77).as_detached_tensor();
        let (ga, gb) = (
            (a * &weights).unwrap().sum_all().unwrap().backward().unwrap(),
            (b * &weights).unwrap().sum_all().unwrap().backward().unwrap(),
        );
        for (i, v) in variables.iter().enumerate() {
            let x = ga.get(v.as_tensor()).unwrap_or_else(|| panic!("input {i} got no gradient from the fused op"));
            let y = gb.get(v.as_tensor()).unwrap_or_else(|| panic!("input {i} got no gradient from the twin"));
            assert!(gap(x, y) < tolerance, "gradient of input {i} differs by {}", gap(x, y));
        }
    }
}
