//! What an optimiser does in a device's memory, in one kernel each: AdamW's update, adding to a gradient, and the squares of
//! gradients. Each says whether the device has the kernel; where it does not, the caller composes the same of tensor ops.

use candle_core::{DType, Result, Tensor, bail};

/// The factors of one step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// What the gradient is multiplied with.
    pub grad_scale: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// `1 - beta1`, rounded from 64 bits.
    pub one_minus_beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `1 - beta2`, rounded from 64 bits.
    pub one_minus_beta2: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub second_scale: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// `1 - lr weight_decay`.
    pub keep: f32,
}

/// A variable and what its update needs, all contiguous and of one shape. All but `values` are f32.
#[derive(Clone, Copy, Debug)]
pub struct Variable<'a> {
    /// The weights: f32, or bf16 beside an f32 master copy.
    pub values: &'a Tensor,
    /// The f32 copy that is stepped, of weights in bf16.
    pub master: Option<&'a Tensor>,
    /// First moments.
    pub first: &'a Tensor,
    /// Second moments.
    pub second: &'a Tensor,
    /// The gradient of the whole batch.
    pub gradient: &'a Tensor,
}

/// Moves values, master and moments in place: `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `p = p keep - step_size m / (sqrt(v) second_scale + epsilon)`, for the gradient `g` times `grad_scale`.
///
/// # Errors
/// When the tensors do not fit, or the device fails.
pub fn adamw(variable: &Variable, factors: Factors) -> Result<bool> {
    let Variable { values, master, first, second, gradient } = *variable;
    let float = [Some(first), Some(second), Some(gradient), master];
    if float.into_iter().flatten().any(|t| t.dtype() != DType::F32 || t.shape() != values.shape()) {
        bail!("adamw: moments, gradient and master copy have to be f32 and of the shape {:?}", values.dims());
    }
    if master.is_none() != (values.dtype() == DType::F32) {
        bail!("adamw: values in {:?} with {} master copy", values.dtype(), if master.is_some() { "a" } else { "no" });
    }
    #[cfg(feature = "metal")]
    if super::metal::tensors::fused(values) {
        return super::metal::optimizer::adamw(variable, factors).map(|()| true);
    }
    let _ = factors;
    Ok(false)
}

/// `sum += part` in place, `sum` in f32, both contiguous and of one shape.
///
/// # Errors
/// When the tensors do not fit, or the device fails.
pub fn add_to(sum: &Tensor, part: &Tensor) -> Result<bool> {
    if sum.dtype() != DType::F32 || sum.shape() != part.shape() {
        bail!("{:?} of {:?} cannot be added to {:?} of {:?}", part.dims(), part.dtype(), sum.dims(), sum.dtype());
    }
    #[cfg(feature = "metal")]
    if super::metal::tensors::fused(part) && part.is_contiguous() {
        return super::metal::optimizer::add_to(sum, part).map(|()| true);
    }
    Ok(false)
}

/// The sum of the squares of each of these f32 tensors, contiguous and on one device, with one wait for the device; `None`
/// where it has no kernel for that.
///
/// # Errors
/// When the device fails.
pub fn squares(tensors: &[&Tensor]) -> Result<Option<Vec<f32>>> {
    #[cfg(feature = "metal")]
    if tensors.iter().all(|t| t.device().is_metal() && t.dtype() == DType::F32) && !tensors.is_empty() {
        return super::metal::optimizer::squares(tensors).map(Some);
    }
    let _ = tensors;
    Ok(None)
}
