//! Launches of AdamW's update (`adamw.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use crate::ops::adamw::Factors;
use candle_core::Result;

/// Threads of a group.
const THREADS: usize = 256;

/// In the order of the kernel's struct.
fn words(f: Factors) -> [u32; 9] {
    let Factors { grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, second_scale, epsilon, keep } =
        f;
    [grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, second_scale, epsilon, keep]
        .map(f32::to_bits)
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
        let words = words(factors);
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
