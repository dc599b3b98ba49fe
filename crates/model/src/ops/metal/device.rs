//! Metal itself: kernels compiled once a device, and their launches encoded beside candle's own.
//!
//! candle's buffers have no hazard tracking of Metal's; its encoder puts barriers between launches from what it is told is
//! read and written, so that the two sorts of arguments matter here.

use super::gpu::{Argument, Gpu, Launch, Library};
use candle_core::metal_backend::{DeviceId, MetalDevice};
use candle_core::{DType, Error, Result, bail};
use candle_metal_kernels::metal::{Buffer, ComputeCommandEncoder, ComputePipeline};
use objc2_metal::{MTLCompileOptions, MTLSize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

/// Compiled files and the kernels taken out of them.
#[derive(Default)]
struct Compiled {
    libraries: HashMap<(DeviceId, Library), candle_metal_kernels::metal::Library>,
    pipelines: HashMap<(DeviceId, Library, &'static str), ComputePipeline>,
}

static COMPILED: LazyLock<Mutex<Compiled>> = LazyLock::new(Mutex::default);

impl Compiled {
    fn pipeline(&mut self, device: &MetalDevice, file: Library, kernel: &'static str) -> Result<ComputePipeline> {
        let key = (device.id(), file, kernel);
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let library = match self.libraries.entry((device.id(), file)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(compile(device, &file.text())?),
        };
        let function = library.get_function(kernel, None).map_err(Error::wrap)?;
        let pipeline = device.new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)?;
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }
}

/// With exact arithmetic: no reordering, and infinities and NaN as they are.
fn compile(device: &MetalDevice, text: &str) -> Result<candle_metal_kernels::metal::Library> {
    let options = MTLCompileOptions::new();
    // macOS 15 has a finer setting, of which this is the older name.
    #[allow(deprecated)]
    options.setFastMathEnabled(false);
    device.new_library_with_source(text, Some(&options)).map_err(Error::wrap)
}

fn size([width, height, depth]: [usize; 3]) -> MTLSize {
    MTLSize { width, height, depth }
}

fn set(encoder: &ComputeCommandEncoder, index: usize, argument: &Argument<Buffer>) {
    match argument {
        Argument::Read(view) => encoder.set_input_buffer(index, Some(view.memory), view.offset),
        Argument::Write(view) => encoder.set_output_buffer(index, Some(view.memory), view.offset),
        Argument::U32(number) => encoder.set_bytes(index, number),
        Argument::F32(number) => encoder.set_bytes(index, number),
        Argument::Words(words) => encoder.set_bytes_directly(index, size_of_val(*words), words.as_ptr().cast()),
    }
}

impl Gpu for MetalDevice {
    type Memory = Buffer;

    fn allocate(&self, bytes: usize) -> Result<Arc<Buffer>> {
        self.new_buffer_builder().with_size_for(bytes.div_ceil(4).max(1), DType::F32).build()
    }

    fn upload(&self, numbers: &[u32]) -> Result<Arc<Buffer>> {
        // Metal makes no empty buffer.
        self.new_buffer_with_data(if numbers.is_empty() { &[0] } else { numbers })
    }

    fn launch(&self, launch: Launch<Buffer>) -> Result<()> {
        if launch.groups.contains(&0) {
            return Ok(());
        }
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let pipeline = compiled.pipeline(self, launch.library, launch.function)?;
        drop(compiled);
        let most = pipeline.max_total_threads_per_threadgroup();
        if launch.threads > most {
            bail!("{} needs {} threads a group, this GPU runs it with {most}", launch.function, launch.threads);
        }
        let guard = self.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        launch.arguments.iter().enumerate().for_each(|(index, argument)| set(encoder, index, argument));
        encoder.dispatch_thread_groups(size(launch.groups), size([launch.threads, 1, 1]));
        Ok(())
    }
}

/// A number of 32 bits.
pub(super) trait Word: Copy {
    /// Its bits.
    fn bits(self) -> u32;
}

impl Word for u32 {
    fn bits(self) -> u32 {
        self
    }
}

impl Word for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

/// Whether the numbers that were copied still live, and their copy.
type Copied = (Box<dyn Fn() -> bool + Send>, Arc<Buffer>);

static RESIDENT: LazyLock<Mutex<HashMap<(DeviceId, usize), Copied>>> = LazyLock::new(Mutex::default);

/// These numbers on the device, copied once for as long as they live.
pub(super) fn resident<T: Word + Send + Sync + 'static>(
    device: &MetalDevice,
    numbers: &Arc<[T]>,
) -> Result<Arc<Buffer>> {
    let key = (device.id(), numbers.as_ptr().addr());
    let mut copies = RESIDENT.lock().unwrap_or_else(PoisonError::into_inner);
    // Numbers that have gone may have left their address to others.
    copies.retain(|_, (lives, _)| lives());
    if let Some((_, copy)) = copies.get(&key) {
        return Ok(copy.clone());
    }
    let copy = device.upload(&numbers.iter().map(|n| n.bits()).collect::<Vec<u32>>())?;
    let weak: Weak<[T]> = Arc::downgrade(numbers);
    copies.insert(key, (Box::new(move || weak.strong_count() > 0), copy.clone()));
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_compiles_every_kernel() -> Result<()> {
        if candle_metal_kernels::metal::Device::all().is_empty() {
            let message = "Metal's compiler is not asked: there is no Metal device";
            assert!(std::env::var_os("BELLOWS_NEEDS_METAL").is_none(), "{message}");
            eprintln!("{message}");
            return Ok(());
        }
        let device = candle_core::Device::new_metal(0)?;
        for file in Library::all() {
            let library = compile(device.as_metal_device()?, &file.text())?;
            let text = file.text();
            for kernel in text.split("\nkernel void ").skip(1).filter_map(|rest| rest.split('(').next()) {
                let function = library.get_function(kernel, None).map_err(Error::wrap)?;
                let device = device.as_metal_device()?;
                let pipeline = device.new_compute_pipeline_state_with_function(&function).map_err(Error::wrap)?;
                assert!(pipeline.max_total_threads_per_threadgroup() >= 128, "{file:?}: {kernel}");
            }
        }
        Ok(())
    }
}
