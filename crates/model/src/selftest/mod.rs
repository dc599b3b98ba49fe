//! Whether a device computes what it should: each operation fused, beside its composed twin and beside the CPU.
//!
//! A [`Case`] is an operation at one shape. [`check`] runs it on a device in a type and compares values and the gradients
//! of every input: the fused form with its twin on the same device, and with the twin in f32 on the CPU, from the same
//! inputs, rounded to the type first. It also runs the fused form twice and asks for the same bits.

mod cases;
mod evaluate;

use crate::ops::fallbacks;
use crate::qwen2::kept_in;
use candle_core::{DType, Device, Result, Tensor, Var};

pub use cases::cases;
pub use evaluate::{Parts, gap};
use evaluate::{evaluate, same_bits};

/// An operation as a function of its inputs.
pub type Function = Box<dyn Fn(&[Tensor]) -> Result<Tensor>>;

/// What an input is, which decides the type that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// In the type that the device computes in; f32 on the CPU.
    Activation,
    /// In the type that weights are kept in.
    Weight,
}

/// One differentiable input of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Input {
    /// What messages call it.
    pub name: &'static str,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its values are uniform in `[-scale, scale]`.
    pub scale: f32,
    /// What it is.
    pub role: Role,
}

impl Input {
    /// Activations, uniform in `[-1, 1]`.
    pub fn activation(name: &'static str, dims: &[usize]) -> Self {
        Self { name, dims: dims.to_vec(), scale: 1.0, role: Role::Activation }
    }

    /// Weights, uniform in `[-scale, scale]`.
    pub fn weight(name: &'static str, dims: &[usize], scale: f32) -> Self {
        Self { name, dims: dims.to_vec(), scale, role: Role::Weight }
    }
}

/// How far two results may be apart: the largest difference over the largest magnitude (see [`gap`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Where everything is f32.
    pub f32: f64,
    /// Where activations or weights are bf16.
    pub bf16: f64,
}

/// An operation at one shape.
pub struct Case {
    /// Its name, that of its file in `ops`.
    pub op: &'static str,
    /// Its sizes, for a person.
    pub shape: String,
    /// What it is a function of.
    pub inputs: Vec<Input>,
    /// The form that a run uses.
    pub fused: Function,
    /// The same of plain tensor operations.
    pub composed: Function,
    /// How far they may be apart.
    pub tolerance: Tolerance,
    /// Whether the activations are parts of larger tensors, and the gradient comes in transposed.
    pub views: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What was compared.
    pub op: String,
    /// At which sizes.
    pub shape: String,
    /// The type that was computed in.
    pub dtype: &'static str,
    /// The largest error in proportion to its tolerance, as it is.
    pub error: f64,
    /// What it may be.
    pub tolerance: f64,
    /// Where that error was: `gradient of k, CPU`.
    pub place: String,
    /// Why there is nothing to compare, or what else is wrong.
    pub failure: Option<String>,
}

impl Finding {
    /// Of named errors, each with its tolerance, the worst.
    pub fn worst(
        op: impl Into<String>,
        shape: impl Into<String>,
        dtype: DType,
        errors: impl IntoIterator<Item = (String, f64, f64)>,
    ) -> Self {
        let mut finding = Self {
            op: op.into(),
            shape: shape.into(),
            dtype: name_of(dtype),
            error: 0.0,
            tolerance: 0.0,
            place: String::new(),
            failure: None,
        };
        let mut worst = f64::NEG_INFINITY;
        for (place, error, tolerance) in errors {
            // What is not a number is worse than any number.
            let ratio = if error.is_nan() { f64::INFINITY } else { error / tolerance };
            if ratio > worst {
                worst = ratio;
                (finding.place, finding.error, finding.tolerance) = (place, error, tolerance);
            }
        }
        if finding.place.is_empty() {
            finding.failure = Some("nothing was compared".into());
        }
        finding
    }

    /// A comparison that could not be made.
    pub fn failed(op: impl Into<String>, shape: impl Into<String>, dtype: DType, why: impl ToString) -> Self {
        let why = why.to_string().lines().next().unwrap_or_default().to_string();
        Self { failure: Some(why), ..Self::worst(op, shape, dtype, []) }
    }

    /// Whether the device may be used as far as this goes.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.error <= self.tolerance
    }
}

/// `f32` or `bf16`.
pub fn name_of(dtype: DType) -> &'static str {
    dtype.as_str()
}

/// The types that a case can be computed in on a device: f32, and bf16 where it changes anything (on the CPU, matrices of
/// weights alone are bf16).
pub fn types(case: &Case, device: &Device) -> Vec<DType> {
    let matrix = |input: &Input| input.role == Role::Weight && input.dims.len() > 1;
    if device.is_cpu() && !case.inputs.iter().any(matrix) { vec![DType::F32] } else { vec![DType::F32, DType::BF16] }
}

/// The type of activations.
pub(crate) fn computed_in(dtype: DType, device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}

/// Compares a case on a device. What goes wrong is in the finding.
pub fn check(case: &Case, dtype: DType, device: &Device) -> Finding {
    compare(case, dtype, device).unwrap_or_else(|error| Finding::failed(case.op, &case.shape, dtype, error))
}

fn compare(case: &Case, dtype: DType, device: &Device) -> Result<Finding> {
    let values: Vec<Tensor> =
        (1..).zip(&case.inputs).map(|(seed, x)| numbers(x, seed, dtype, case.views)).collect::<Result<_>>()?;
    let inputs = |device: &Device, dtype: DType| -> Result<Vec<Var>> {
        let cast = |(x, value): (&Input, &Tensor)| {
            let dtype = match x.role {
                Role::Activation => computed_in(dtype, device),
                Role::Weight => kept_in(dtype, device, x.dims.len()),
            };
            Var::from_tensor(&value.to_dtype(dtype)?.to_device(device)?)
        };
        case.inputs.iter().zip(&values).map(cast).collect()
    };
    let (here, cpu) = (inputs(device, dtype)?, inputs(&Device::Cpu, DType::F32)?);
    let _ = fallbacks::take();
    let fused = evaluate(&case.fused, &here, case, dtype)?;
    let without_kernel = !device.is_cpu() && !fallbacks::take().is_empty();
    let twin = evaluate(&case.composed, &here, case, dtype)?;
    let reference = evaluate(&case.composed, &cpu, case, dtype)?;
    let tolerance = if dtype == DType::F32 { case.tolerance.f32 } else { case.tolerance.bf16 };
    let against = |other: &Parts, whose: &str| -> Vec<(String, f64, f64)> {
        let pairs = fused.iter().zip(other);
        pairs.map(|((name, a), (_, b))| (format!("{name}, {whose}"), gap(a, b), tolerance)).collect()
    };
    let errors = [against(&twin, "twin"), against(&reference, "CPU")].concat();
    let mut finding = Finding::worst(case.op, &case.shape, dtype, errors);
    if without_kernel {
        finding.place += " (its twin ran, there is no kernel)";
    }
    if let Some(place) = same_bits(&fused, &evaluate(&case.fused, &here, case, dtype)?) {
        finding.failure = Some(format!("{place}: a second run gave other bits"));
    }
    Ok(finding)
}

/// The same numbers everywhere, rounded to `dtype` and kept in f32 on the CPU. Of a view, one row more.
fn numbers(input: &Input, seed: u64, dtype: DType, views: bool) -> Result<Tensor> {
    let mut dims = input.dims.clone();
    if views && is_viewed(input) {
        dims[0] += 1;
    }
    noise(&dims, seed, input.scale)?.to_dtype(dtype)?.to_dtype(DType::F32)
}

/// Whether a case of views takes a part of this input.
fn is_viewed(input: &Input) -> bool {
    input.role == Role::Activation && input.dims.len() == 2
}

/// Uniform in `[-scale, scale]`, f32, on the CPU; the same for a seed everywhere.
pub fn noise(dims: &[usize], seed: u64, scale: f32) -> Result<Tensor> {
    let mut state = seed << 32;
    let values: Vec<f32> = (0..dims.iter().product::<usize>())
        .map(|_| scale * (2.0 * crate::init::uniform(&mut state) - 1.0) as f32)
        .collect();
    Tensor::from_vec(values, dims, &Device::Cpu)
}

#[cfg(test)]
mod tests;
