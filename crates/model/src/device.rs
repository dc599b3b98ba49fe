//! What a device is: whether it can be opened, what it is called, how much memory it has, and the most that was taken.

use candle_core::Device;

/// Memory of a device in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What a program can still take.
    pub available: u64,
}

/// The first CUDA device.
///
/// # Errors
/// When this program was built without CUDA, or the machine has no device or driver for it.
pub fn open_cuda() -> candle_core::Result<Device> {
    Device::new_cuda(0)
}

/// The Metal device.
///
/// # Errors
/// When this program was built without Metal, or the machine has no device for it.
pub fn open_metal() -> candle_core::Result<Device> {
    // candle takes the first device of a list without a look at its length.
    #[cfg(feature = "metal")]
    if candle_metal_kernels::metal::Device::all().is_empty() {
        candle_core::bail!("there is no Metal device");
    }
    Device::new_metal(0)
}

/// What a person would call it: its kind, and where it can be told, its name.
pub fn name(device: &Device) -> String {
    match device {
        Device::Cpu => format!("cpu ({})", std::env::consts::ARCH),
        Device::Cuda(device) => named("cuda", cuda_name(device)),
        Device::Metal(device) => named("metal", metal_name(device)),
    }
}

fn named(kind: &str, name: Option<String>) -> String {
    name.map_or_else(|| kind.to_string(), |name| format!("{kind} ({name})"))
}

/// The memory of a device of its own; `None` for the CPU, whose is the machine's, and where it cannot be told.
///
/// On Metal all of it is what the system recommends to keep in use at once.
pub fn memory(device: &Device) -> Option<Memory> {
    match device {
        Device::Cpu => None,
        Device::Cuda(device) => cuda_memory(device),
        Device::Metal(device) => metal_memory(device),
    }
}

/// The most bytes that tensors have taken on a device since the program started; `None` where nobody keeps count.
///
/// On CUDA that is the high-water mark of the device's memory pool; the context and the libraries' own memory, some hundred
/// MiB, are not in it.
pub fn peak(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu | Device::Metal(_) => None,
        Device::Cuda(device) => cuda_peak(device),
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::Memory;
    use candle_core::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    pub fn name(device: &CudaDevice) -> Option<String> {
        let stream = device.cuda_stream();
        let (major, minor) = stream.context().compute_capability().ok()?;
        Some(format!("{}, compute capability {major}.{minor}", stream.context().name().ok()?))
    }

    pub fn memory(device: &CudaDevice) -> Option<Memory> {
        let (free, total) = device.cuda_stream().context().mem_get_info().ok()?;
        Some(Memory { total: total as u64, available: free as u64 })
    }

    pub fn peak(device: &CudaDevice) -> Option<u64> {
        let stream = device.cuda_stream();
        let context = stream.context();
        if !context.has_async_alloc() {
            return None;
        }
        context.bind_to_thread().ok()?;
        let mut bytes = 0u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        // SAFETY: the device is that of a live context; the pool is its current one; the attribute is a cuuint64_t.
        unsafe {
            let pool = result::device::get_mem_pool(context.cu_device()).ok()?;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).ok()?;
        }
        Some(bytes)
    }
}

#[cfg(feature = "cuda")]
use cuda::{memory as cuda_memory, name as cuda_name, peak as cuda_peak};

#[cfg(not(feature = "cuda"))]
mod without_cuda {
    //! A program without CUDA has no such device to ask.

    use super::Memory;
    use candle_core::CudaDevice;

    pub fn name(_: &CudaDevice) -> Option<String> {
        None
    }

    pub fn memory(_: &CudaDevice) -> Option<Memory> {
        None
    }

    pub fn peak(_: &CudaDevice) -> Option<u64> {
        None
    }
}

#[cfg(not(feature = "cuda"))]
use without_cuda::{memory as cuda_memory, name as cuda_name, peak as cuda_peak};

#[cfg(feature = "metal")]
fn metal_name(device: &candle_core::MetalDevice) -> Option<String> {
    Some(device.metal_device().architecture_name())
}

#[cfg(feature = "metal")]
fn metal_memory(device: &candle_core::MetalDevice) -> Option<Memory> {
    let device = device.metal_device();
    let total = device.recommended_max_working_set_size() as u64;
    Some(Memory { total, available: total.saturating_sub(device.current_allocated_size() as u64) })
}

#[cfg(not(feature = "metal"))]
fn metal_name(_: &candle_core::MetalDevice) -> Option<String> {
    None
}

#[cfg(not(feature = "metal"))]
fn metal_memory(_: &candle_core::MetalDevice) -> Option<Memory> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_a_name_and_no_memory_of_its_own() {
        assert!(name(&Device::Cpu).starts_with("cpu ("));
        assert_eq!((memory(&Device::Cpu), peak(&Device::Cpu)), (None, None));
    }
}
