//! What the machine has: threads, vector instructions, memory and devices.

use std::process::Command;

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::config::DeviceChoice;

/// Memory of a machine or a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What a program can still take.
    pub available: u64,
}

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

/// Whether this program can use a device here, and if not, why and what to do.
///
/// # Errors
/// The reason, as a clause.
pub fn usable(device: DeviceChoice) -> Result<(), String> {
    let refused = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_string();
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(()),
        DeviceChoice::Cuda if !cfg!(feature = "cuda") => {
            Err("this program was built without CUDA; build it with --features cuda".into())
        }
        DeviceChoice::Metal if !cfg!(feature = "metal") => {
            Err("this program was built without Metal; build it with --features metal".into())
        }
        DeviceChoice::Cuda => candle_core::Device::new_cuda(0).map(drop).map_err(refused),
        DeviceChoice::Metal => candle_core::Device::new_metal(0).map(drop).map_err(refused),
    }
}

/// The device that `choice` stands for here: `auto` takes the first that is usable of CUDA, Metal and the CPU.
pub fn resolve(choice: DeviceChoice) -> DeviceChoice {
    match choice {
        DeviceChoice::Auto => [DeviceChoice::Cuda, DeviceChoice::Metal]
            .into_iter()
            .find(|&device| usable(device).is_ok())
            .unwrap_or(DeviceChoice::Cpu),
        chosen => chosen,
    }
}

/// The memory that tensors on `device` share; `None` where it cannot be told.
pub fn device_memory(device: DeviceChoice) -> Option<Memory> {
    match device {
        // Metal devices share the machine's memory.
        DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::Metal => Some(memory()),
        DeviceChoice::Cuda => {
            let query = ["--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits", "--id=0"];
            let output = Command::new("nvidia-smi").args(query).output().ok()?;
            parse_nvidia_smi(&String::from_utf8_lossy(&output.stdout))
        }
    }
}

/// `total, free` in MiB, the first line of what `nvidia-smi` says.
fn parse_nvidia_smi(text: &str) -> Option<Memory> {
    let (total, free) = text.lines().next()?.split_once(',')?;
    let mebibytes = |text: &str| text.trim().parse::<u64>().ok().map(|number| number << 20);
    Some(Memory { total: mebibytes(total)?, available: mebibytes(free)? })
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
    fn what_nvidia_smi_says_is_read() {
        let memory = parse_nvidia_smi("81559, 80994\n").unwrap();
        assert_eq!((memory.total, memory.available), (81559 << 20, 80994 << 20));
        assert_eq!(parse_nvidia_smi("No devices were found"), None);
    }
}
