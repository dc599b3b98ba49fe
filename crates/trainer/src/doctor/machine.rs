//! What the machine has: threads, vector instructions, memory and devices.

use candle_core::Device;
pub use model::device::Memory;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::config::DeviceChoice;

/// The machine's memory, or the container's share of it where that is less.
pub fn memory() -> Memory {
    let refresh = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(refresh);
    let host = Memory { total: system.total_memory(), available: system.available_memory() };
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 => {
            Memory { total: host.total.min(limits.total_memory), available: host.available.min(limits.free_memory) }
        }
        _ => host,
    }
}

/// Threads that the machine runs at once.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The vector instructions that the CPU operations can use, and whether the CPU has them.
pub fn vector_instructions() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![("NEON", std::arch::is_aarch64_feature_detected!("neon"))]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// The devices that this program was built for besides the CPU, the best first.
pub fn built_for() -> Vec<DeviceChoice> {
    let built = |device: &DeviceChoice| match device {
        DeviceChoice::Cuda => cfg!(feature = "cuda"),
        DeviceChoice::Metal => cfg!(feature = "metal"),
        DeviceChoice::Auto | DeviceChoice::Cpu => false,
    };
    [DeviceChoice::Cuda, DeviceChoice::Metal].into_iter().filter(built).collect()
}

/// Opens a device; `auto` is [`resolve`]d first.
///
/// # Errors
/// Why it cannot be used here and what to do, as a clause.
pub fn open(device: DeviceChoice) -> Result<Device, String> {
    let refused = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_string();
    match device {
        DeviceChoice::Auto => open(resolve(device)),
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda if !cfg!(feature = "cuda") => {
            Err("this program was built without CUDA; build it with --features cuda".into())
        }
        DeviceChoice::Metal if !cfg!(feature = "metal") => {
            Err("this program was built without Metal; build it with --features metal".into())
        }
        DeviceChoice::Cuda => model::device::open_cuda().map_err(refused),
        DeviceChoice::Metal => model::device::open_metal().map_err(refused),
    }
}

/// Whether this program can use a device here, and if not, why and what to do.
///
/// # Errors
/// The reason, as a clause.
pub fn usable(device: DeviceChoice) -> Result<(), String> {
    open(device).map(drop)
}

/// The device that `choice` stands for here: `auto` takes the first that is usable of CUDA, Metal and the CPU.
pub fn resolve(choice: DeviceChoice) -> DeviceChoice {
    match choice {
        DeviceChoice::Auto => {
            built_for().into_iter().find(|&device| usable(device).is_ok()).unwrap_or(DeviceChoice::Cpu)
        }
        chosen => chosen,
    }
}

/// The memory that tensors on `device` share; `None` where it cannot be told.
///
/// Metal shares the machine's: what is available is the least of what the system recommends to use and what is free.
pub fn device_memory(device: DeviceChoice) -> Option<Memory> {
    let of_its_own = || model::device::memory(&open(device).ok()?);
    match resolve(device) {
        DeviceChoice::Auto | DeviceChoice::Cpu => Some(memory()),
        DeviceChoice::Cuda => of_its_own(),
        DeviceChoice::Metal => {
            let (metal, machine) = (of_its_own()?, memory());
            Some(Memory { available: metal.available.min(machine.available), ..metal })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_memory_and_a_thread() {
        let memory = memory();
        assert!(memory.total >= memory.available && memory.available > 0, "{memory:?}");
        assert!(threads() >= 1);
    }

    #[test]
    fn the_cpu_is_always_usable_and_auto_is_something_usable() {
        assert_eq!(usable(DeviceChoice::Cpu), Ok(()));
        assert_eq!(usable(resolve(DeviceChoice::Auto)), Ok(()));
    }

    #[test]
    fn a_device_that_the_program_was_not_built_for_says_how_to_build_it() {
        for (device, feature) in [(DeviceChoice::Cuda, "cuda"), (DeviceChoice::Metal, "metal")] {
            if !built_for().contains(&device) {
                assert!(usable(device).unwrap_err().contains(&format!("--features {feature}")));
                assert_eq!(device_memory(device), None);
            }
        }
        assert_eq!(device_memory(DeviceChoice::Cpu).map(|memory| memory.total), Some(memory().total));
    }
}
