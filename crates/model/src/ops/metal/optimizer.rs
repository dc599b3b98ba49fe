//! What the optimiser does, over candle's tensors.

use super::gpu::{Gpu, Scalar, View};
use super::tensors::{Place, tensor};
use super::{adamw as update, log_prob, norm};
use crate::ops::adamw::{Factors, State};
use candle_core::{DType, Result, Tensor};

/// AdamW's update in place.
pub(crate) fn adamw(state: State, gradient: &Tensor, factors: Factors) -> Result<()> {
    let State { value: values, master, first, second } = state;
    let masters = master.map(Place::of).transpose()?;
    let (values_at, first, second) = (Place::of(values)?, Place::of(first)?, Place::of(second)?);
    let gradient = gradient.contiguous()?;
    let gradient = Place::of(&gradient)?;
    let op = update::Update {
        values: values_at.view()?,
        masters: masters.as_ref().map(Place::view).transpose()?,
        first: first.view()?,
        second: second.view()?,
        gradient: gradient.view()?,
        scalar: Scalar::of(values.dtype())?,
        count: values.elem_count(),
    };
    op.apply(values.device().as_metal_device()?, factors)
}

/// `sum += part` in place.
pub(crate) fn add_to(sum: &Tensor, part: &Tensor) -> Result<()> {
    let (to, from) = (Place::of(sum)?, Place::of(part)?);
    let scalar = Scalar::of(part.dtype())?;
    log_prob::add_to(part.device().as_metal_device()?, to.view()?, from.view()?, scalar, part.elem_count())
}

/// The sum of the squares of each tensor, added up in f32.
pub(crate) fn squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let device = first.device().as_metal_device()?;
    let sums = device.allocate(tensors.len() * 4)?;
    for (place, tensor) in tensors.iter().enumerate() {
        let at = Place::of(tensor)?;
        norm::squares(device, at.view()?, tensor.elem_count(), View::all(&*sums), place)?;
    }
    let sums: Vec<f32> = tensor(device, sums, tensors.len(), DType::F32).to_vec1()?;
    Ok(sums.into_iter().map(f64::from).collect())
}
