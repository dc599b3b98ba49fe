//! AdamW's update of one variable (Loshchilov and Hutter, arXiv 1711.05101) in PyTorch's order of operations.
//!
//! With a gradient `g` that `grad_scale` has clipped: `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
//! `p = keep p - step_size m / (second_scale sqrt(v) + epsilon)`. On a GPU it is one pass that writes where the tensors are.

use candle_core::{Result, Tensor};

/// The factors of one step, for one variable.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// What the gradient is multiplied with.
    pub grad_scale: f32,
    /// Decay of the mean of the gradients.
    pub beta1: f32,
    /// `1 - beta1`, rounded once.
    pub one_minus_beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// `1 - beta2`, rounded once.
    pub one_minus_beta2: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub second_scale: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// `1 - lr weight_decay`; 1 where nothing decays.
    pub keep: f32,
}

/// A variable and its state, all of one shape, contiguous and with storage of their own.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// f32, or bf16 beside an f32 master copy.
    pub value: &'a Tensor,
    /// What is stepped where the value is narrower.
    pub master: Option<&'a Tensor>,
    /// First moment, f32.
    pub first: &'a Tensor,
    /// Second moment, f32.
    pub second: &'a Tensor,
}

/// Whether [`update`] has a kernel for a variable.
pub fn is_fused(value: &Tensor) -> bool {
    !value.device().is_cpu() && super::fused(value)
}

/// Steps a variable on a GPU in place; the gradient is f32. Returns whether there is a kernel for it; else nothing happened.
///
/// # Errors
/// When shapes, types or devices do not fit.
pub fn update(state: State, gradient: &Tensor, factors: &Factors) -> Result<bool> {
    if !is_fused(state.value) {
        super::fallbacks::note("adamw");
        return Ok(false);
    }
    let tensors = [Some(state.value), state.master, Some(state.first), Some(state.second)];
    if tensors.into_iter().flatten().any(|x| x.shape() != gradient.shape()) {
        candle_core::bail!("adamw: a gradient {:?} for a variable {:?}", gradient.dims(), state.value.dims());
    }
    #[cfg(feature = "cuda")]
    if state.value.device().is_cuda() {
        on_cuda(state, gradient, factors)?;
        return Ok(true);
    }
    // Without a GPU's kernels nothing takes them.
    let _ = factors;
    Ok(false)
}

#[cfg(feature = "cuda")]
fn on_cuda(state: State, gradient: &Tensor, factors: &Factors) -> Result<()> {
    use super::cuda::adamw::Update;
    use super::cuda::device::{with, write};
    let State { value, master, first, second } = state;
    with([gradient], |gpu, [gradient]| {
        write(value, |values, dtype| {
            write(first, |first, _| {
                write(second, |second, _| match master {
                    Some(master) => write(master, |master, _| {
                        Update { values, dtype, master: Some(master), first, second, gradient }.apply(gpu, factors)
                    }),
                    None => Update { values, dtype, master: None, first, second, gradient }.apply(gpu, factors),
                })
            })
        })
    })
}

/// The same of plain tensor ops, on any device: moves the moments and returns the new value, all f32.
///
/// # Errors
/// When a device fails.
pub fn composed(
    old: &Tensor,
    first: &mut Tensor,
    second: &mut Tensor,
    gradient: &Tensor,
    f: &Factors,
) -> Result<Tensor> {
    let wide = f64::from;
    let gradient = (gradient * wide(f.grad_scale))?;
    *first = ((&*first * wide(f.beta1))? + (&gradient * wide(f.one_minus_beta1))?)?;
    *second = ((&*second * wide(f.beta2))? + (gradient.sqr()? * wide(f.one_minus_beta2))?)?;
    let divisor = ((second.sqrt()? * wide(f.second_scale))? + wide(f.epsilon))?;
    (old * wide(f.keep))? - ((&*first / divisor)? * wide(f.step_size))?
}
