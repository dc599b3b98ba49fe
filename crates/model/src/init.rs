//! Fresh weights for a model that starts from nothing, from a seed.

use crate::config::Config;
use crate::error::Result;
use crate::qwen2::{Qwen2, expected, kept_in};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// What [`uniform`] adds to its state at each number.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Numbers that one task draws: each is a function of its place, so that the split changes nothing.
const CHUNK: usize = 1 << 16;

/// Normal weights of standard deviation `std` (projections back into the residual stream are scaled by
/// `1 / sqrt(2 layers)`, as in GPT-2), norms at one, biases at zero. The same seed gives the same bits everywhere.
///
/// # Errors
/// When the weights cannot be allocated.
pub fn random(config: Config, std: f64, seed: u64, dtype: DType, device: &Device) -> Result<Qwen2> {
    let mut state = seed;
    let residual = 1.0 / (2.0 * config.num_layers as f64).sqrt();
    let tensors = expected(&config)
        .into_iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.ends_with(".bias") {
                vec![0.0; count]
            } else {
                let into_residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let scale = if into_residual { std * residual } else { std };
                normals(&mut state, count, scale)
            };
            // Each as it will be kept, before the next: a large model never exists in f32 as a whole.
            let dtype = kept_in(dtype, device, shape.len());
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?))
        })
        .collect::<Result<_>>()?;
    Qwen2::new(config, tensors, dtype, device)
}

/// SplitMix64 (Steele, Lea and Flood 2014): uniform in `(0, 1]`.
pub(crate) fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(STRIDE);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON
}

/// The next `count` numbers of [`normal`], times `scale`.
fn normals(state: &mut u64, count: usize, scale: f64) -> Vec<f32> {
    // Each takes two uniform ones.
    let behind = |numbers: usize| state.wrapping_add(STRIDE.wrapping_mul(2 * numbers as u64));
    let mut values = vec![0.0; count];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let mut state = behind(chunk * CHUNK);
        values.iter_mut().for_each(|value| *value = (normal(&mut state) * scale) as f32);
    });
    *state = behind(count);
    values
}

/// Box and Muller's cosine branch.
fn normal(state: &mut u64) -> f64 {
    let (u, v) = (uniform(state), uniform(state));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_drawn_side_by_side_are_those_drawn_one_after_the_other() {
        let (mut together, mut one_by_one) = (7, 7);
        for count in [1, CHUNK - 1, CHUNK + 5, 3] {
            let expected: Vec<f32> = (0..count).map(|_| (normal(&mut one_by_one) * 0.02) as f32).collect();
            assert_eq!(normals(&mut together, count, 0.02), expected);
        }
        assert_eq!(together, one_by_one);
    }
}
