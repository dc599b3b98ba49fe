//! The k3 estimate of a KL divergence, of which only log-probs of sampled tokens are known.

use anyhow::Result;
use candle_core::{Device, Tensor};

/// `exp(gap) - gap - 1`, never negative: with `gap = log q(y) - log p(y)` and `y` drawn from `p` its mean is
/// `KL(p || q)`. Schulman, *Approximating KL Divergence* (2020); as a loss in GRPO (arXiv 2402.03300).
#[must_use]
pub fn k3(gap: f64) -> f64 {
    gap.exp() - gap - 1.0
}

/// [`k3`] of `reference - new` for each token, `[tokens]`, differentiable in `new`, and 0 where `active` is 0.
pub(super) fn masked_k3(new: &Tensor, reference: &[f32], active: &[u8], device: &Device) -> Result<Tensor> {
    let tokens = reference.len();
    let reference = Tensor::from_slice(reference, tokens, device)?;
    let gap = (reference - new)?;
    let gap = Tensor::from_slice(active, tokens, device)?.where_cond(&gap, &gap.zeros_like()?)?;
    Ok(((gap.exp()? - gap)? - 1.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn k3_is_zero_at_no_gap_and_above_it_elsewhere() {
        assert_eq!(k3(0.0), 0.0);
        assert!((k3(2.0_f64.ln()) - (1.0 - 2.0_f64.ln())).abs() < 1e-15);
        assert!(k3(-1.0) > 0.0 && k3(1.0) > 0.0);
    }

    /// `d k3 / d new = 1 - exp(reference - new)`, and a masked token, whatever its value, has none.
    #[test]
    fn the_gradient_leaves_masked_tokens_out() {
        let new = Var::from_slice(&[0.0_f32, 0.0], 2, &Device::Cpu).unwrap();
        let k3 = masked_k3(&new, &[2.0_f32.ln(), f32::INFINITY], &[1, 0], &Device::Cpu).unwrap();
        let gradients = k3.sum_all().unwrap().backward().unwrap();
        let gradient: Vec<f32> = gradients.get(&new).unwrap().to_vec1().unwrap();
        assert!((gradient[0] + 1.0).abs() < 1e-6 && gradient[1] == 0.0, "{gradient:?}");
    }
}
