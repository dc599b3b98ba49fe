//! AdamW with f32 moments, parameter groups and gradient clipping, which can be saved and resumed bit for bit.
//!
//! On the CPU, and on a GPU that there is a kernel for, the update is one fused pass that writes into the variables' own
//! storage, so that everything that shares it (the detached twin that generates) sees the new weights. Elsewhere it is
//! composed of tensor operations.

mod fused;
mod gradients;
mod moments;
mod stored;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor, Var};
use model::ops::adamw;
use rayon::prelude::*;
use std::collections::HashSet;

pub use gradients::Gradients;
use gradients::Sum;
use moments::Moment;

/// Values handled at a time where work is split over threads: 256 KiB of f32, which stays in a core's own cache.
/// Fixed, so that the order of every sum is the same at any number of threads.
const CHUNK: usize = 1 << 16;

/// The knobs of [`AdamW`] that stay the same over a run; the learning rate is given with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the mean of the gradients, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the mean of their squares, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the second moment; above 0.
    pub epsilon: f64,
    /// Decoupled decay, times the learning rate, of matrices (see [`decays`]).
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm, over all variables, if it is longer; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Keeps the moments in bf16, rounded by chance; on the CPU.
    pub narrow: bool,
}

impl Default for AdamWSettings {
    /// Betas 0.9 and 0.999, epsilon 1e-8, no decay, gradient norm at most 1.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0, narrow: false }
    }
}

/// A gradient that cannot be stepped along; nothing was changed. Holds the first variable that it is of.
#[derive(Debug, thiserror::Error)]
#[error("the gradient of `{0}` is not finite")]
pub struct NotFinite(pub String);

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Norm of the gradient over all variables, before clipping.
    pub grad_norm: f64,
    /// What the gradient was multiplied with: 1 if it was not clipped.
    pub clip_scale: f64,
}

/// The optimiser and its state.
///
/// With gradient `g` (after clipping) and step count `t` from 1, each variable `p` is updated as
///
/// ```text
/// m = beta1 m + (1 - beta1) g
/// v = beta2 v + (1 - beta2) g^2
/// p = p (1 - lr weight_decay) - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
/// ```
///
/// Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (arXiv 1711.05101), in PyTorch's order of operations.
/// A bf16 or f16 variable has an f32 master copy: steps far smaller than its spacing add up there.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    step: u64,
    entries: Vec<Entry>,
}

/// One variable and its state.
#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    decays: bool,
    state: State,
    /// Whether the update is to be of plain tensor operations also where there is a kernel.
    composed: bool,
}

/// Moments and master copy, in the shape of the variable: flat host memory on the CPU, else tensors on its device.
#[derive(Debug)]
enum State {
    Host { first: Moment, second: Moment, master: Option<Vec<f32>> },
    Device { first: Tensor, second: Tensor, master: Option<Tensor> },
}

/// The factors of one step.
#[derive(Clone, Copy, Debug)]
struct Factors {
    grad_scale: f64,
    beta1: f64,
    beta2: f64,
    /// `lr / (1 - beta1^t)`
    step_size: f64,
    /// `1 / sqrt(1 - beta2^t)`
    second_scale: f64,
    epsilon: f64,
    /// `1 - lr weight_decay`
    keep: f64,
    /// Another number for each step; with the variable's place, for each update of a variable.
    update: u32,
}

impl Factors {
    /// In the precision of the arithmetic.
    fn narrow(&self) -> adamw::Factors {
        adamw::Factors {
            grad_scale: self.grad_scale as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            step_size: self.step_size as f32,
            second_scale: self.second_scale as f32,
            epsilon: self.epsilon as f32,
            keep: self.keep as f32,
        }
    }
}

/// Whether weight decay applies to a variable: to matrices (embeddings and LoRA's included), not to norms and biases,
/// which are told by their name or by having one dimension.
#[must_use]
pub fn decays(name: &str, rank: usize) -> bool {
    rank >= 2 && !name.ends_with(".bias") && !name.ends_with("norm.weight")
}

impl AdamW {
    /// An optimiser of the named variables, with zero moments.
    ///
    /// # Errors
    /// If there are none, two have one name, one is not f32, bf16 or f16, or a setting is out of range.
    pub fn new(vars: &[(String, Var)], settings: AdamWSettings) -> Result<Self> {
        Self::with_state(vars, settings, false)
    }

    /// The composed twin of [`AdamW::new`] on any device: the reference that the fused update is compared with.
    ///
    /// # Errors
    /// As [`AdamW::new`].
    pub fn composed(vars: &[(String, Var)], settings: AdamWSettings) -> Result<Self> {
        Self::with_state(vars, settings, true)
    }

    fn with_state(vars: &[(String, Var)], settings: AdamWSettings, composed: bool) -> Result<Self> {
        check_settings(&settings)?;
        ensure!(!vars.is_empty(), "there are no variables to train");
        let mut names = HashSet::new();
        if let Some((name, _)) = vars.iter().find(|(name, _)| !names.insert(name)) {
            bail!("two variables are named `{name}`");
        }
        let entries = vars
            .iter()
            .map(|(name, var)| {
                Ok(Entry {
                    name: name.clone(),
                    var: var.clone(),
                    decays: decays(name, var.rank()),
                    state: State::new(var, !composed && var.device().is_cpu(), settings.narrow)
                        .with_context(|| name.clone())?,
                    composed,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { settings, step: 0, entries })
    }

    /// Number of updates made, those before a resume included.
    #[must_use]
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// Updates every variable from the gradient of the whole batch. The result doesn't depend on the number of threads.
    ///
    /// # Errors
    /// If a variable got no gradient, a gradient is not finite ([`NotFinite`]), or `gradients` were made for other variables; then
    /// nothing is changed.
    pub fn step(&mut self, gradients: &Gradients, learning_rate: f64) -> Result<StepReport> {
        ensure!(
            learning_rate.is_finite() && learning_rate >= 0.0,
            "the learning rate is {learning_rate}; it has to be a number from 0"
        );
        let sums = gradients.sums_for(self.entries.iter().map(|entry| entry.name.as_str()))?;
        let missing = gradients.missing();
        ensure!(
            missing.is_empty(),
            "no gradient reached {} of {} variables: {}; an operation on their path is not differentiable",
            missing.len(),
            self.entries.len(),
            missing.join(", ")
        );
        let grad_norm = gradients.global_norm()?;
        if !grad_norm.is_finite() {
            return Err(NotFinite(gradients.first_not_finite()?.to_owned()).into());
        }
        let max = self.settings.max_grad_norm;
        let clip_scale = if max > 0.0 && grad_norm > max { max / grad_norm } else { 1.0 };
        self.step += 1;
        let factors = self.factors(clip_scale, learning_rate);
        let on_host = self.entries.iter().all(|entry| matches!(entry.state, State::Host { .. }));
        let update = |(i, (entry, gradient)): (usize, (&mut Entry, &Sum))| {
            let update = factors.update ^ (i as u32).wrapping_mul(0x9e37_79b9);
            entry.update(gradient, Factors { update, ..factors })
        };
        if on_host {
            self.entries.par_iter_mut().zip(sums).enumerate().try_for_each(update)?;
        } else {
            // What one thread launches on a device runs in its order.
            self.entries.iter_mut().zip(sums).enumerate().try_for_each(update)?;
        }
        Ok(StepReport { grad_norm, clip_scale })
    }

    fn factors(&self, grad_scale: f64, learning_rate: f64) -> Factors {
        let s = &self.settings;
        let t = self.step as f64;
        Factors {
            grad_scale,
            beta1: s.beta1,
            beta2: s.beta2,
            step_size: learning_rate / (1.0 - s.beta1.powf(t)),
            second_scale: (1.0 - s.beta2.powf(t)).sqrt().recip(),
            epsilon: s.epsilon,
            keep: 1.0 - learning_rate * s.weight_decay,
            update: (self.step as u32).wrapping_mul(0x85eb_ca77),
        }
    }
}

fn check_settings(settings: &AdamWSettings) -> Result<()> {
    for (key, value) in [("beta1", settings.beta1), ("beta2", settings.beta2)] {
        ensure!((0.0..1.0).contains(&value), "optimizer.{key} is {value}; it has to be at least 0 and below 1");
    }
    for (key, value) in [("weight_decay", settings.weight_decay), ("max_grad_norm", settings.max_grad_norm)] {
        ensure!(value.is_finite() && value >= 0.0, "optimizer.{key} is {value}; it has to be a number from 0");
    }
    let epsilon = settings.epsilon;
    ensure!(epsilon.is_finite() && epsilon > 0.0, "optimizer.epsilon is {epsilon}; it has to be above 0");
    Ok(())
}

impl State {
    fn new(var: &Var, on_host: bool, narrow: bool) -> Result<Self> {
        let master = match var.dtype() {
            DType::F32 => None,
            DType::BF16 | DType::F16 => Some(var.as_detached_tensor().to_dtype(DType::F32)?),
            other => bail!("a variable of type {other:?} can't be trained; use f32, bf16 or f16"),
        };
        if on_host {
            let zeros = || Moment::zeros(var.elem_count(), narrow);
            let master = master.map(|m| m.flatten_all()?.to_vec1()).transpose()?;
            return Ok(Self::Host { first: zeros(), second: zeros(), master });
        }
        ensure!(!narrow, "optimizer.state = \"bf16\" is for the CPU; elsewhere they are f32");
        let zeros = || Tensor::zeros(var.shape(), DType::F32, var.device());
        Ok(Self::Device { first: zeros()?, second: zeros()?, master })
    }
}

impl Entry {
    fn update(&mut self, gradient: &Sum, mut factors: Factors) -> Result<()> {
        if !self.decays {
            factors.keep = 1.0;
        }
        match (&mut self.state, gradient) {
            (State::Host { first, second, master }, Sum::Host(_) | Sum::Narrow { .. }) => {
                let gradient = gradient.summed()?;
                let update = fused::Update::new([first, second], master.as_mut(), gradient, factors);
                self.var.inplace_op1(&update)?;
            }
            (State::Device { first, second, master }, gradient) => {
                let gradient = gradient.to_tensor(&self.var)?;
                let factors = factors.narrow();
                let value = self.var.as_detached_tensor();
                let state = adamw::State { value: &value, master: master.as_ref(), first, second };
                if !self.composed && adamw::update(state, &gradient, &factors)? {
                    return Ok(());
                }
                let old = match master {
                    Some(master) => master.clone(),
                    None => value,
                };
                let new = adamw::composed(&old, first, second, &gradient, &factors)?;
                self.var.set(&new.to_dtype(self.var.dtype())?)?;
                if let Some(master) = master {
                    *master = new;
                }
            }
            (State::Host { .. }, Sum::Device(_)) => {
                bail!("`{}` is on the CPU but its gradient is not", self.name)
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
