//! Values and gradients of one form of an operation, brought to the host, and how far two of them are apart.

use super::{Case, Function, is_viewed, noise};
use candle_core::{DType, Result, Tensor, Var, bail};

/// The seed of what outputs are weighted with.
const WEIGHTS: u64 = 77;

/// The value and the gradient of every input, by their names.
pub type Parts = Vec<(String, Vec<f32>)>;

/// The value of `f`, and its gradients where the output is weighted with fixed numbers.
pub(super) fn evaluate(f: &Function, inputs: &[Var], case: &Case, dtype: DType) -> Result<Parts> {
    let viewed = |(x, var): (_, &Var)| -> Result<Tensor> {
        let tensor = var.as_tensor();
        if case.views && is_viewed(x) { tensor.narrow(0, 1, tensor.dim(0)? - 1) } else { Ok(tensor.clone()) }
    };
    let tensors: Vec<Tensor> = case.inputs.iter().zip(inputs).map(viewed).collect::<Result<_>>()?;
    let y = f(&tensors)?;
    let mut parts = vec![("value".to_string(), to_host(&y)?)];
    // Rounded as the output is, so that the gradient that enters is the same number in every type.
    let weights = noise(y.dims(), WEIGHTS, 1.0)?.to_dtype(dtype)?.to_dtype(DType::F32)?.to_device(y.device())?;
    let y = y.to_dtype(DType::F32)?;
    let weighted = if case.views && y.rank() == 2 { (y.t()? * weights.t()?)? } else { (y * weights)? };
    let gradients = weighted.sum_all()?.backward()?;
    for (x, var) in case.inputs.iter().zip(inputs) {
        let Some(gradient) = gradients.get(var.as_tensor()) else { bail!("{} got no gradient", x.name) };
        if gradient.dims() != var.dims() {
            bail!("{} is {:?}, its gradient {:?}", x.name, var.dims(), gradient.dims());
        }
        parts.push((format!("gradient of {}", x.name), to_host(gradient)?));
    }
    Ok(parts)
}

fn to_host(x: &Tensor) -> Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The largest difference over the largest magnitude of `b`, which counts as 0.001 at least; infinite where a difference is
/// not a number, or the lengths differ.
pub fn gap(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let mut scale = 1e-3f64;
    let mut largest = 0.0f64;
    for (&a, &b) in a.iter().zip(b) {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if difference.is_nan() {
            return f64::INFINITY;
        }
        scale = scale.max(f64::from(b).abs());
        largest = largest.max(difference);
    }
    largest / scale
}

/// The first part of two that is not the same to the bit.
pub(super) fn same_bits<'a>(a: &'a Parts, b: &Parts) -> Option<&'a str> {
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    let pairs = a.iter().zip(b);
    pairs.filter(|((_, a), (_, b))| a.iter().zip(b).any(differ)).map(|((name, _), _)| name.as_str()).next()
}
