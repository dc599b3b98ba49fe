//! AdamW's update in one pass over host memory, written into the storage of the variable.

use super::moments::Moment;
use super::{CHUNK, Factors};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};
use half::{bf16, f16};
use model::kernels::adamw::{self, Kept, Numbers};
use model::ops::adamw::Factors as Narrow;
use rayon::prelude::*;
use std::cell::RefCell;

/// The update of one variable, to be applied to its tensor in place.
pub(super) struct Update<'a> {
    /// In a cell because candle hands an operation to its storage by shared reference.
    state: RefCell<Slices<'a>>,
    gradient: Summed<'a>,
    step: Step,
}

/// The sum of the gradients of a variable.
#[derive(Clone, Copy)]
pub(super) enum Summed<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// The factors of an update of a variable, and its number.
#[derive(Clone, Copy)]
struct Step {
    factors: Narrow,
    update: u32,
}

struct Slices<'a> {
    first: &'a mut Moment,
    second: &'a mut Moment,
    master: Option<&'a mut Vec<f32>>,
}

impl<'a> Update<'a> {
    pub(super) fn new(
        [first, second]: [&'a mut Moment; 2],
        master: Option<&'a mut Vec<f32>>,
        gradient: Summed<'a>,
        f: Factors,
    ) -> Self {
        let step = Step { factors: f.narrow(), update: f.update };
        Self { state: RefCell::new(Slices { first, second, master }), gradient, step }
    }
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("adamw: a variable has to be contiguous") };
        let mut state = self.state.borrow_mut();
        let Slices { first, second, master } = &mut *state;
        match (storage, master) {
            (CpuStorage::F32(values), None) => {
                let values = &mut values[start..end];
                update(values, first, second, self.gradient, self.step)?;
            }
            (CpuStorage::BF16(values), Some(master)) => {
                update(master, first, second, self.gradient, self.step)?;
                narrow(&mut values[start..end], master, bf16::from_f32);
            }
            (CpuStorage::F16(values), Some(master)) => {
                update(master, first, second, self.gradient, self.step)?;
                narrow(&mut values[start..end], master, f16::from_f32);
            }
            _ => bail!("adamw: the variable's type has changed"),
        }
        Ok(())
    }
}

fn update(values: &mut [f32], first: &mut Moment, second: &mut Moment, gradient: Summed, f: Step) -> Result<()> {
    match (first, second, gradient) {
        (Moment::F32(first), Moment::F32(second), Summed::F32(gradient)) => each(values, first, second, gradient, f),
        (Moment::F32(first), Moment::F32(second), Summed::Bf16(gradient)) => each(values, first, second, gradient, f),
        (Moment::Bf16(first), Moment::Bf16(second), Summed::F32(gradient)) => each(values, first, second, gradient, f),
        (Moment::Bf16(first), Moment::Bf16(second), Summed::Bf16(gradient)) => each(values, first, second, gradient, f),
        _ => bail!("adamw: the moments of a variable are kept in two types"),
    }
    Ok(())
}

/// Values are independent, so the split over threads doesn't change them.
fn each<A: Kept, B: Kept, G: Kept>(values: &mut [f32], first: &mut [A], second: &mut [B], gradient: &[G], f: Step) {
    values
        .par_chunks_mut(CHUNK)
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .zip(gradient.par_chunks(CHUNK))
        .enumerate()
        .for_each(|(i, (((values, first), second), gradient))| {
            let numbers = Numbers { values, first, second, gradient, first_place: (i * CHUNK) as u32 };
            adamw::update(numbers, &f.factors, f.update);
        });
}

fn narrow<T: Send>(values: &mut [T], master: &[f32], round: impl Fn(f32) -> T + Sync) {
    values.par_chunks_mut(CHUNK).zip(master.par_chunks(CHUNK)).for_each(|(values, master)| {
        for (value, &master) in values.iter_mut().zip(master) {
            *value = round(master);
        }
    });
}
