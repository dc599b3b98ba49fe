//! Launches of the norm of a gradient (`norm.metal`).

use super::gpu::{Argument::*, Gpu, Launch, Library, Scalar, Source, View, count};
use candle_core::Result;

/// Threads of a group.
const THREADS: usize = 256;

/// Elements that a group sums: above 2^24 of them there are more parts than the second kernel's threads, which loop.
const SPAN: usize = 1 << 14;

/// The sum of the squares of `values: [n]`, f32, into `sums[place]`, f32.
///
/// # Errors
/// Those of the device.
pub fn squares<G: Gpu>(gpu: &G, values: View<G::Memory>, n: usize, sums: View<G::Memory>, place: usize) -> Result<()> {
    let library = Library::new(Source::Norm, Scalar::F32);
    let groups = n.div_ceil(SPAN);
    let parts = gpu.allocate(groups * 4)?;
    gpu.launch(Launch {
        library,
        function: "square_parts",
        arguments: vec![Read(values), Write(View::all(&parts)), U32(count(n)?), U32(count(SPAN)?)],
        groups: [groups, 1, 1],
        threads: THREADS,
    })?;
    gpu.launch(Launch {
        library,
        function: "sum_parts",
        arguments: vec![Read(View::all(&parts)), Write(sums), U32(count(groups)?), U32(count(place)?)],
        groups: [1, 1, 1],
        threads: THREADS,
    })
}
