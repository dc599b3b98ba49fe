//! Launches of SwiGLU's gate (`swiglu.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::Result;
use std::sync::Arc;

/// Threads of a group.
const THREADS: usize = 256;

/// The input, `gate, up: [count]`.
pub struct Gate<'a, M> {
    /// What goes through the sigmoid.
    pub gate: View<'a, M>,
    /// What it is multiplied with.
    pub up: View<'a, M>,
    /// Their type.
    pub scalar: Scalar,
    /// Elements of each.
    pub count: usize,
}

impl<M> Gate<'_, M> {
    fn launch<'a, G: Gpu<Memory = M>>(
        &'a self,
        gpu: &G,
        function: &'static str,
        others: impl IntoIterator<Item = super::gpu::Argument<'a, M>>,
    ) -> Result<()> {
        let inputs = [Read(self.gate), Read(self.up)];
        gpu.launch(Launch {
            library: Library::new(Source::Swiglu, self.scalar),
            function,
            arguments: inputs.into_iter().chain(others).chain([U32(count(self.count)?)]).collect(),
            groups: [self.count.div_ceil(THREADS), 1, 1],
            threads: THREADS,
        })
    }

    /// `[count]`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forward<G: Gpu<Memory = M>>(&self, gpu: &G) -> Result<Arc<M>> {
        let y = gpu.allocate(self.count * self.scalar.bytes())?;
        self.launch(gpu, "swiglu", [Write(View::all(&*y))])?;
        Ok(y)
    }

    /// The gradients of `gate` and `up` for the gradient `g: [count]` of the output.
    ///
    /// # Errors
    /// Those of the device.
    pub fn backward<G: Gpu<Memory = M>>(&self, gpu: &G, g: View<M>) -> Result<[Arc<M>; 2]> {
        let bytes = self.count * self.scalar.bytes();
        let (dgate, dup) = (gpu.allocate(bytes)?, gpu.allocate(bytes)?);
        self.launch(gpu, "swiglu_backward", [Read(g), Write(View::all(&*dgate)), Write(View::all(&*dup))])?;
        Ok([dgate, dup])
    }
}
