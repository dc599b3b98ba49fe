//! The policy loss against numbers worked out by hand, and its gradients against finite differences.

use super::*;
use candle_core::{Device, Var};

fn settings() -> LossSettings {
    LossSettings::default()
}

fn dual() -> Clip {
    Clip { dual: Some(3.0), ..settings().clip }
}

fn inputs<'a>(old: &'a [f32], advantages: &'a [f32], weights: &'a [f32]) -> LossInputs<'a> {
    LossInputs { old_log_probs: old, advantages, weights, importance: None, reference_log_probs: None }
}

/// The loss, its gradient in the new log-probs, and its metrics.
fn run(new: &[f32], inputs: &LossInputs, settings: &LossSettings) -> (f32, Vec<f32>, LossMetrics) {
    let var = Var::from_slice(new, new.len(), &Device::Cpu).unwrap();
    let output = policy_loss(&var, inputs, None, settings).unwrap();
    let gradients = output.loss.backward().unwrap();
    let gradient = gradients.get(&var).unwrap().to_vec1().unwrap();
    (output.loss.to_scalar().unwrap(), gradient, output.metrics)
}

fn assert_close(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() < 2e-6, "{actual:?} is not {expected:?}");
    }
}

#[test]
fn on_policy_the_gradient_is_minus_weight_times_advantage() {
    let log_probs = [-1.0, -0.5, -2.0];
    let (loss, gradient, metrics) = run(&log_probs, &inputs(&log_probs, &[1.5, -0.5, 0.0], &[0.25; 3]), &settings());
    assert_close(&[loss], &[-0.25]);
    assert_close(&gradient, &[-0.375, 0.125, 0.0]);
    assert_eq!(metrics.tokens, 3);
    assert_eq!(metrics.clip_fraction(), 0.0);
    assert_eq!(metrics.mean(metrics.ratio), 1.0);
    assert_eq!(metrics.policy_kl, 0.0);
}

/// Ratios 1.5 and 0.5 with advantages of both signs: clipped only where moving on would still pay.
#[test]
fn clips_each_side_by_its_own_bound() {
    let new = [1.5_f32.ln(), 1.5_f32.ln(), 0.5_f32.ln(), 0.5_f32.ln()];
    let (loss, gradient, metrics) = run(&new, &inputs(&[0.0; 4], &[1.0, -1.0, 1.0, -1.0], &[1.0; 4]), &settings());
    // -1.28 (held), +1.5 (free), -0.5 (free), +0.8 (held)
    assert_close(&[loss], &[-1.28 + 1.5 - 0.5 + 0.8]);
    assert_close(&gradient, &[0.0, 1.5, -0.5, 0.0]);
    assert_eq!((metrics.clipped_high, metrics.clipped_low), (1, 1));
    assert_eq!(metrics.clip_fraction(), 0.5);
    assert_eq!(metrics.mean(metrics.ratio), {
        let ratio = |x: f32| f64::from(x).exp();
        new.iter().map(|&x| ratio(x)).sum::<f64>() / 4.0
    });
}

/// At a bound there is the whole gradient, just past it none.
#[test]
fn the_gradient_stops_past_the_bound() {
    let just = |ratio: f32, past: f32| (ratio + past * 1e-5).ln();
    let new = [just(1.28, -1.0), just(1.28, 1.0), just(0.8, 1.0), just(0.8, -1.0)];
    let (_, gradient, _) = run(&new, &inputs(&[0.0; 4], &[1.0, 1.0, -1.0, -1.0], &[1.0; 4]), &settings());
    assert_close(&gradient, &[-(1.28 - 1e-5), 0.0, 0.8 + 1e-5, 0.0]);
    let exact = LossSettings { clip: Clip { low: 0.0, high: 0.0, dual: None }, ..settings() };
    let (_, gradient, _) = run(&[-1.0], &inputs(&[-1.0], &[2.0], &[1.0]), &exact);
    assert_close(&gradient, &[-2.0]);
}

#[test]
fn dual_clip_bounds_a_negative_advantage() {
    let clipped = LossSettings { clip: dual(), ..settings() };
    let new = [4.0_f32.ln(), 2.0_f32.ln()];
    let (loss, gradient, metrics) = run(&new, &inputs(&[0.0; 2], &[-1.0; 2], &[1.0; 2]), &clipped);
    assert_close(&[loss], &[3.0 + 2.0]);
    assert_close(&gradient, &[0.0, 2.0]);
    assert_eq!(metrics.clipped_dual, 1);
}

#[test]
fn importance_scales_the_objective_but_not_the_penalty() {
    let new = [0.0, 0.0];
    let reference = [2.0_f32.ln(), 0.0];
    let batch = LossInputs {
        importance: Some(&[0.5, 2.0]),
        reference_log_probs: Some(&reference),
        ..inputs(&[0.0; 2], &[1.0; 2], &[0.5; 2])
    };
    let penalised = LossSettings { kl_beta: 0.1, ..settings() };
    let (loss, gradient, metrics) = run(&new, &batch, &penalised);
    // k3 = 2 - ln 2 - 1; its gradient in the new log-prob is 1 - 2 = -1.
    let k3 = 1.0 - 2.0_f32.ln();
    assert_close(&[loss], &[-0.5 * 2.5 + 0.05 * k3]);
    assert_close(&gradient, &[-0.25 - 0.05, -1.0]);
    assert!((metrics.reference_kl - f64::from(k3)).abs() < 1e-6);
    assert_eq!(metrics.importance, 2.5);
    // Without a penalty the reference is reported all the same.
    let (loss, _, metrics) = run(&new, &batch, &settings());
    assert_close(&[loss], &[-1.25]);
    assert!(metrics.reference_kl > 0.3);
}

#[test]
fn the_entropy_bonus_lowers_the_loss() {
    let entropy = Var::from_slice(&[1.0_f32, 3.0], 2, &Device::Cpu).unwrap();
    let new = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
    let bonus = LossSettings { entropy_bonus: 0.01, ..settings() };
    let batch = inputs(&[0.0; 2], &[0.0; 2], &[0.5; 2]);
    let output = policy_loss(&new, &batch, Some(&entropy), &bonus).unwrap();
    assert_close(&[output.loss.to_scalar().unwrap()], &[-0.02]);
    let gradients = output.loss.backward().unwrap();
    assert_close(&gradients.get(&entropy).unwrap().to_vec1().unwrap(), &[-0.005; 2]);
    assert_eq!(output.metrics.entropy, 4.0);
}

#[test]
fn masked_tokens_are_not_read() {
    let batch = LossInputs {
        reference_log_probs: Some(&[f32::NAN, 0.0]),
        importance: Some(&[f32::NAN, 1.0]),
        ..inputs(&[f32::NEG_INFINITY, 0.0], &[f32::NAN, 1.0], &[0.0, 1.0])
    };
    let penalised = LossSettings { kl_beta: 0.1, ..settings() };
    let (loss, gradient, metrics) = run(&[-90.0, 0.0], &batch, &penalised);
    assert_close(&[loss], &[-1.0]);
    assert_close(&gradient, &[0.0, -1.0]);
    assert_eq!(metrics.tokens, 1);
}

#[test]
fn a_clipped_token_whose_ratio_overflows_has_no_gradient() {
    let (loss, gradient, _) = run(&[0.0], &inputs(&[-100.0], &[1.0], &[1.0]), &settings());
    assert_close(&[loss], &[-1.28]);
    assert_eq!(gradient, [0.0]);
}

/// The metrics and gradients of two micro-batches add up to those of the batch.
#[test]
fn micro_batches_add_up() {
    let (new, old) = ([-1.0, -0.2, -0.7, -0.4], [-1.1, -0.5, -0.6, -0.9]);
    let (advantages, weights) = ([1.0, -1.0, -1.0, 1.0], [0.5, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]);
    let whole = run(&new, &inputs(&old, &advantages, &weights), &settings());
    let part = |r: std::ops::Range<usize>| {
        let batch = inputs(&old[r.clone()], &advantages[r.clone()], &weights[r.clone()]);
        run(&new[r], &batch, &settings())
    };
    let (first, second) = (part(0..1), part(1..4));
    assert_close(&[first.0 + second.0], &[whole.0]);
    assert_eq!([first.1, second.1].concat(), whole.1);
    let mut merged = first.2;
    merged.merge(&second.2);
    assert!((merged.ratio - whole.2.ratio).abs() < 1e-12);
    assert_eq!(merged.clip_fraction(), whole.2.clip_fraction());
    assert_eq!(merged.ratio_max, whole.2.ratio_max);
}

#[test]
fn gradients_match_finite_differences() {
    let new = [-1.0, -0.3, -2.0, -0.8, -0.05];
    let reference = [-1.2, -0.1, -1.5, -0.8, -0.5];
    let batch = LossInputs {
        importance: Some(&[1.0, 0.7, 1.4, 2.0, 0.3]),
        reference_log_probs: Some(&reference),
        ..inputs(&[-1.1, -0.5, -1.9, -0.2, -0.9], &[1.5, -0.5, 0.7, 0.3, -2.0], &[0.2, 0.1, 0.3, 0.1, 0.3])
    };
    let penalised = LossSettings { clip: dual(), kl_beta: 0.3, ..settings() };
    let (_, gradient, _) = run(&new, &batch, &penalised);
    for t in 0..new.len() {
        let step = 1.0 / 256.0;
        let at = |delta: f32| {
            let mut moved = new;
            moved[t] += delta;
            run(&moved, &batch, &penalised).0
        };
        let numeric = (at(step) - at(-step)) / (2.0 * step);
        assert!((gradient[t] - numeric).abs() < 1e-4, "token {t}: {} is not {numeric}", gradient[t]);
    }
}

#[test]
fn wrong_inputs_are_refused() {
    let new = Tensor::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
    let message =
        |batch: &LossInputs, settings: &LossSettings| policy_loss(&new, batch, None, settings).unwrap_err().to_string();
    let short = inputs(&[0.0; 2], &[0.0; 1], &[1.0; 2]);
    assert!(message(&short, &settings()).contains("`advantages` has 1 values for 2 tokens"));
    let batch = inputs(&[0.0; 2], &[0.0; 2], &[1.0; 2]);
    let penalised = LossSettings { kl_beta: 0.1, ..settings() };
    assert!(message(&batch, &penalised).contains("reference"));
    let broken = inputs(&[f32::NAN; 2], &[1.0; 2], &[1.0; 2]);
    assert!(message(&broken, &settings()).contains("not finite"));
}
