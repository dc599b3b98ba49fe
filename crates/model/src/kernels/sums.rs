//! Where gradients are summed in host memory: in f32, or in bf16 rounded by chance, which takes half of it.
//!
//! A sum rounded to the nearest bf16 would lose what is smaller than 1/512 of it; rounded up or down by chance, with the odds that
//! leave its mean where it was, it loses nothing on average ([`super::adamw`] keeps its moments in the same way).

use super::adamw::{Kept, chance};
use super::{for_each_chunk, vectorized};
use half::bf16;

/// Numbers that one task adds.
const CHUNK: usize = 1 << 16;

/// The sum of one variable's gradients, row-major.
#[derive(Debug)]
pub enum HostSum<'a> {
    /// In f32.
    F32(&'a mut [f32]),
    /// In bf16.
    Bf16 {
        /// The sums.
        sums: &'a mut [bf16],
        /// Another number for each addition to them, for [`chance`].
        addition: u32,
    },
}

impl HostSum<'_> {
    /// Numbers summed up.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(sums) => sums.len(),
            Self::Bf16 { sums, .. } => sums.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `values` from place `first` on.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn add(&mut self, first: usize, values: &[f32]) {
        match self {
            Self::F32(sums) => for_each_chunk(&mut sums[first..first + values.len()], CHUNK, |i, sums| {
                let values = &values[i * CHUNK..][..sums.len()];
                vectorized!(sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value));
            }),
            Self::Bf16 { sums, addition } => {
                *addition = addition.wrapping_add(0x9e37_79b9);
                let addition = *addition;
                for_each_chunk(&mut sums[first..first + values.len()], CHUNK, |i, sums| {
                    let values = &values[i * CHUNK..][..sums.len()];
                    let places = (first + i * CHUNK) as u32..;
                    vectorized!({
                        for ((sum, value), place) in sums.iter_mut().zip(values).zip(places.clone()) {
                            *sum = bf16::store(sum.load() + value, chance(addition, place));
                        }
                    });
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_additions_are_not_lost() {
        let mut sums = vec![bf16::ONE; 3 * CHUNK / 2];
        for addition in 0..100 {
            HostSum::Bf16 { sums: &mut sums, addition }.add(0, &vec![1e-3; 3 * CHUNK / 2]);
        }
        let mean = sums.iter().map(|x| f64::from(x.to_f32())).sum::<f64>() / sums.len() as f64;
        assert!((mean - 1.1).abs() < 1e-3, "{mean}");
    }

    #[test]
    fn f32_sums_are_plain_ones() {
        let mut sums = vec![1.0, 2.0, 3.0];
        HostSum::F32(&mut sums).add(1, &[0.5, 0.25]);
        assert_eq!(sums, [1.0, 2.5, 3.25]);
    }
}
