//! Launches of `adamw.cu`.

use super::{Argument, Grid, Kernel, Machine, View};
use crate::ops::adamw::Factors;
use candle_core::{DType, Result, bail};

/// Memory that is read and written, from an element on.
pub(crate) type Place<'a, M> = (&'a mut M, usize);

/// One variable and its state; everything but the values of a narrow variable is f32.
pub(crate) struct Update<'a, M> {
    pub values: Place<'a, M>,
    pub dtype: DType,
    /// Of a bf16 variable, whose values are a rounded copy of it.
    pub master: Option<Place<'a, M>>,
    pub first: Place<'a, M>,
    pub second: Place<'a, M>,
    pub gradient: View<'a, M>,
}

impl<M> Update<'_, M> {
    /// Moves the moments, the master and the values, each of as many elements as the gradient.
    pub fn apply<D: Machine<Memory = M>>(self, machine: &D, f: &Factors) -> Result<()> {
        let count = self.gradient.len;
        let write = |(memory, offset)| Argument::Write(memory, offset);
        let mut arguments = vec![write(self.values)];
        let name = match (self.dtype, self.master) {
            (DType::F32, None) => "adamw_f32",
            (DType::BF16, Some(master)) => {
                arguments.push(write(master));
                "adamw_bf16"
            }
            (other, master) => bail!("adamw: a variable of {other:?}, master copy: {}", master.is_some()),
        };
        arguments.extend([
            write(self.first),
            write(self.second),
            Argument::Read(self.gradient),
            Argument::size(count)?,
        ]);
        let factors = [
            f.grad_scale,
            f.beta1,
            f.one_minus_beta1,
            f.beta2,
            f.one_minus_beta2,
            f.step_size,
            f.second_scale,
            f.epsilon,
            f.keep,
        ];
        arguments.extend(factors.map(Argument::F32));
        // SAFETY: `adamw_f32(values, first, second, gradient, count, factors..)`, `adamw_bf16` with the master behind the
        // values; the caller's memory holds `count` elements from each place on.
        unsafe { machine.launch(Kernel { file: "adamw", name }, Grid::over(count), &mut arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::shim::{Copied, inputs, shim};
    use super::*;
    use crate::ops::adamw::composed;
    use candle_core::{CpuStorage, Tensor};

    fn f32s(x: &Tensor) -> CpuStorage {
        CpuStorage::F32(x.to_vec1().unwrap())
    }

    #[test]
    fn equals_its_twin_and_a_narrow_copy_is_the_rounded_master() {
        let Some(shim) = shim() else { return };
        let f = Factors {
            grad_scale: 0.3,
            beta1: 0.9,
            one_minus_beta1: 0.1,
            beta2: 0.95,
            one_minus_beta2: 0.05,
            step_size: 0.01,
            second_scale: 1.7,
            epsilon: 1e-8,
            keep: 0.999,
        };
        let x = inputs(&[&[301], &[301], &[301], &[301]], DType::F32);
        let (old, gradient) = (&x[0], &x[3]);
        let (mut first, mut second) = (x[1].clone(), x[2].abs().unwrap());
        let mut memory = [old, &first, &second].map(f32s);
        let mut narrow = CpuStorage::BF16(vec![half::bf16::ZERO; 301]);
        let mut again = memory.clone();
        let gradient_copy = Copied::new(gradient);
        let [values, m, v] = &mut memory;
        let update = Update {
            values: (values, 0),
            dtype: DType::F32,
            master: None,
            first: (m, 0),
            second: (v, 0),
            gradient: gradient_copy.view(),
        };
        update.apply(&shim, &f).unwrap();
        let [master, m, v] = &mut again;
        let update = Update {
            values: (&mut narrow, 0),
            dtype: DType::BF16,
            master: Some((master, 0)),
            first: (m, 0),
            second: (v, 0),
            gradient: gradient_copy.view(),
        };
        update.apply(&shim, &f).unwrap();
        let new = composed(old, &mut first, &mut second, gradient, &f).unwrap();
        for (found, expected) in [(&memory[0], &new), (&memory[1], &first), (&memory[2], &second)] {
            let CpuStorage::F32(found) = found else { panic!("the state is f32") };
            for (found, expected) in found.iter().zip(expected.to_vec1::<f32>().unwrap()) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{found} is not {expected}");
            }
        }
        for (one, other) in memory.iter().zip(&again) {
            assert_eq!(one.as_slice::<f32>().unwrap(), other.as_slice::<f32>().unwrap());
        }
        let rounded: Vec<_> = memory[0].as_slice::<f32>().unwrap().iter().map(|&x| half::bf16::from_f32(x)).collect();
        assert_eq!(narrow.as_slice::<half::bf16>().unwrap(), rounded);
    }
}
