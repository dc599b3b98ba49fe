//! Launches of AdamW's update (`adamw.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::Result;

/// Threads of a group.
const THREADS: usize = 256;

/// The factors of one step, in the order of the kernel's struct.
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

impl Factors {
    fn words(self) -> [u32; 9] {
        [
            self.grad_scale,
            self.beta1,
            self.one_minus_beta1,
            self.beta2,
            self.one_minus_beta2,
            self.step_size,
            self.second_scale,
            self.epsilon,
            self.keep,
        ]
        .map(f32::to_bits)
    }
}

/// One variable, all `[count]`; everything but `values` is f32.
pub struct Update<'a, M> {
    /// The variable, in the type `scalar`.
    pub values: View<'a, M>,
    /// The f32 copy that is stepped, of values in bf16.
    pub masters: Option<View<'a, M>>,
    /// First moments.
    pub first: View<'a, M>,
    /// Second moments.
    pub second: View<'a, M>,
    /// The gradient.
    pub gradient: View<'a, M>,
    /// The type of `values`; f32 where there are no masters.
    pub scalar: Scalar,
    /// Elements.
    pub count: usize,
}

impl<M> Update<'_, M> {
    /// Moves values, masters and moments.
    ///
    /// # Errors
    /// Those of the device.
    pub fn apply<G: Gpu<Memory = M>>(&self, gpu: &G, factors: Factors) -> Result<()> {
        let words = factors.words();
        let moments = [Write(self.values), Write(self.first), Write(self.second), Read(self.gradient)];
        let rest = [Words(&words), U32(count(self.count)?)];
        gpu.launch(Launch {
            library: Library::new(Source::AdamW, self.scalar),
            function: if self.masters.is_some() { "adamw_master" } else { "adamw" },
            arguments: moments.into_iter().chain(rest).chain(self.masters.map(Write)).collect(),
            groups: [self.count.div_ceil(THREADS), 1, 1],
            threads: THREADS,
        })
    }
}
