//! Fresh weights for a model that starts from nothing, from a seed.

use crate::config::Config;
use crate::error::Result;
use crate::qwen2::{Qwen2, expected};
use candle_core::{DType, Device, Tensor};

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
                (0..count).map(|_| (normal(&mut state) * scale) as f32).collect()
            };
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        })
        .collect::<Result<_>>()?;
    Qwen2::new(config, tensors, dtype, device)
}

/// SplitMix64 (Steele, Lea and Flood 2014): uniform in `(0, 1]`.
pub(crate) fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON
}

/// Box and Muller's cosine branch.
fn normal(state: &mut u64) -> f64 {
    let (u, v) = (uniform(state), uniform(state));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
