//! The kernels on the CPU, for tests: the same sources compiled as C++ (`tests/shim/metal.h`), the same launches.
//!
//! Each launch happens twice, with the threads of a group in the one order and in the other; the results have to have equal
//! bits. Where there is no C++ compiler, tests say so and pass, unless `BELLOWS_NEEDS_CXX` is set.

use super::gpu::{Argument, Gpu, LANES, Launch, Library};
use candle_core::Result;
use half::bf16;
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};

/// Words before and behind each allocation that nothing may write.
const GUARD: usize = 32;

/// What fresh memory and the guards hold: NaN in every type.
const UNWRITTEN: u32 = 0xffff_ffff;

/// Kernels that have been compiled, each file once a process. The shim has one threadgroup at a time.
static COMPILED: LazyLock<Mutex<HashMap<Library, libloading::Library>>> = LazyLock::new(Mutex::default);

/// Runs kernels on the CPU.
pub struct Host {
    compiler: String,
}

/// Memory between guards.
pub struct HostMemory {
    words: UnsafeCell<Box<[u32]>>,
}

// SAFETY: memory is written by kernels alone, which run one at a time under the lock of `COMPILED`.
unsafe impl Sync for HostMemory {}
// SAFETY: as above.
unsafe impl Send for HostMemory {}

impl HostMemory {
    fn holding(content: &[u32]) -> Arc<Self> {
        let mut words = vec![UNWRITTEN; content.len() + 2 * GUARD];
        words[GUARD..GUARD + content.len()].copy_from_slice(content);
        Arc::new(Self { words: UnsafeCell::new(words.into()) })
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: the allocation is longer than a guard.
        unsafe { (*self.words.get()).as_mut_ptr().add(GUARD).cast() }
    }

    /// With the guards.
    fn words(&self) -> &[u32] {
        // SAFETY: no kernel runs while a test looks at results.
        unsafe { &*self.words.get() }
    }

    fn restore(&self, words: &[u32]) {
        // SAFETY: as above, and nobody holds a reference to them.
        unsafe { (*self.words.get()).copy_from_slice(words) };
    }

    fn content(&self) -> &[u32] {
        &self.words()[GUARD..self.words().len() - GUARD]
    }

    /// The first `n` numbers.
    pub fn f32s(&self, n: usize) -> Vec<f32> {
        self.content()[..n].iter().map(|&w| f32::from_bits(w)).collect()
    }

    /// The first `n` numbers.
    pub fn u32s(&self, n: usize) -> Vec<u32> {
        self.content()[..n].to_vec()
    }

    /// The first `n` numbers, widened.
    pub fn bf16s(&self, n: usize) -> Vec<f32> {
        let half = |i: usize| (self.content()[i / 2] >> (16 * (i % 2))) as u16;
        (0..n).map(|i| bf16::from_bits(half(i)).to_f32()).collect()
    }
}

impl Host {
    /// One, or `None` where there is no compiler.
    pub fn new() -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let there = Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success());
        if !there {
            let message = format!("the kernels are not tested: there is no C++ compiler `{compiler}`");
            assert!(std::env::var_os("BELLOWS_NEEDS_CXX").is_none(), "{message}");
            eprintln!("{message}");
        }
        there.then_some(Self { compiler })
    }

    /// These numbers as the device holds them.
    pub fn f32s(values: &[f32]) -> Arc<HostMemory> {
        HostMemory::holding(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    }

    /// These numbers, rounded.
    pub fn bf16s(values: &[f32]) -> Arc<HostMemory> {
        let bits = |v: f32| u32::from(bf16::from_f32(v).to_bits());
        let word = |pair: &[f32]| bits(pair[0]) | pair.get(1).map_or(0xffff, |&v| bits(v)) << 16;
        HostMemory::holding(&values.chunks(2).map(word).collect::<Vec<_>>())
    }

    fn compile(&self, library: &Library) -> libloading::Library {
        let folder = tempfile::tempdir().unwrap();
        let (source, object) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        std::fs::write(&source, translate(&library.text())).unwrap();
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim");
        let flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"];
        let mut command = Command::new(&self.compiler);
        command.args(flags).arg("-I").arg(&shim).arg("-o").arg(&object).arg(&source);
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{library:?} does not compile: {said}");
        // SAFETY: the library has no initialisers; it is kept loaded after its file is gone.
        unsafe { libloading::Library::new(PathBuf::from(&object)) }.unwrap()
    }
}

impl Gpu for Host {
    type Memory = HostMemory;

    fn allocate(&self, bytes: usize) -> Result<Arc<HostMemory>> {
        Ok(HostMemory::holding(&vec![UNWRITTEN; bytes.div_ceil(4)]))
    }

    fn upload(&self, numbers: &[u32]) -> Result<Arc<HostMemory>> {
        Ok(HostMemory::holding(numbers))
    }

    fn launch(&self, launch: Launch<HostMemory>) -> Result<()> {
        type Run = unsafe extern "C" fn(*mut *mut u8, *const u32, u32, bool) -> bool;
        assert!(launch.threads.is_multiple_of(LANES) && (LANES..=1024).contains(&launch.threads));
        let number = |argument: &Argument<HostMemory>| match argument {
            Argument::U32(n) => *n,
            Argument::F32(x) => x.to_bits(),
            Argument::Read(_) | Argument::Write(_) | Argument::Words(_) => 0,
        };
        let mut numbers: Vec<u32> = launch.arguments.iter().map(number).collect();
        let pointer = |(argument, number): (&Argument<HostMemory>, &mut u32)| match argument {
            // SAFETY: views lie within their memory.
            Argument::Read(view) | Argument::Write(view) => unsafe { view.memory.pointer().add(view.offset) },
            Argument::U32(_) | Argument::F32(_) => std::ptr::from_mut(number).cast(),
            Argument::Words(words) => words.as_ptr().cast_mut().cast(),
        };
        let mut pointers: Vec<*mut u8> = launch.arguments.iter().zip(&mut numbers).map(pointer).collect();
        let groups = launch.groups.map(|n| n as u32);
        let mut compiled = COMPILED.lock().unwrap();
        let library = compiled.entry(launch.library).or_insert_with(|| self.compile(&launch.library));
        let written = launch.arguments.iter().filter_map(|argument| match argument {
            Argument::Write(view) => Some(view.memory),
            _ => None,
        });
        let written: Vec<&HostMemory> = written.collect();
        let before: Vec<Vec<u32>> = written.iter().map(|memory| memory.words().to_vec()).collect();
        let mut run = |backwards| {
            let name = format!("run_{}", launch.function);
            // SAFETY: the shim defines this for every kernel; there are as many pointers as it has arguments.
            let met = unsafe {
                let run: libloading::Symbol<Run> = library.get(name.as_bytes()).unwrap();
                run(pointers.as_mut_ptr(), groups.as_ptr(), launch.threads as u32, backwards)
            };
            assert!(met, "{}: a barrier or SIMD-group function that not all threads reach", launch.function);
        };
        run(false);
        let after: Vec<Vec<u32>> = written.iter().map(|memory| memory.words().to_vec()).collect();
        written.iter().zip(&before).for_each(|(memory, before)| memory.restore(before));
        run(true);
        for (memory, after) in written.iter().zip(&after) {
            let name = launch.function;
            assert!(memory.words() == after, "{name}: the result depends on the order of the threads");
            let guards = after[..GUARD].iter().chain(&after[after.len() - GUARD..]);
            assert!(guards.into_iter().all(|&w| w == UNWRITTEN), "{name} writes beyond its memory");
        }
        Ok(())
    }
}

/// Has clang check a file as C++ for OpenCL, whose address spaces are Metal's; `None` where there is no clang.
pub fn check_address_spaces(library: &Library) -> Option<()> {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    if !Command::new(&clang).arg("--version").output().is_ok_and(|out| out.status.success()) {
        let message = format!("address spaces are not checked: there is no `{clang}`");
        assert!(std::env::var("BELLOWS_NEEDS_CLANG").unwrap_or_default().is_empty(), "{message}");
        eprintln!("{message}");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("kernel.clcpp");
    let text: Vec<String> =
        library.text().lines().filter(|l| !l.starts_with("#include")).map(without_attributes).collect();
    std::fs::write(&source, format!("#include \"metal_spaces.h\"\n{}", text.join("\n"))).unwrap();
    let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim");
    let flags = ["-cc1", "-x", "clcpp", "-cl-std=clc++2021", "-triple", "spir64", "-fsyntax-only", "-Wall", "-Werror"];
    let out = Command::new(&clang).args(flags).arg("-I").arg(shim).arg(&source).output().unwrap();
    assert!(out.status.success(), "{library:?}: {}", String::from_utf8_lossy(&out.stderr));
    Some(())
}

/// A line without its `[[..]]`.
fn without_attributes(line: &str) -> String {
    let mut parts = line.split("[[");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |text, part| text + part.split_once("]]").unwrap().1)
}

/// Metal's text as C++: attributes away, threadgroup arrays static and poisoned, an entry point for each kernel.
fn translate(metal: &str) -> String {
    let mut text = String::from("#include \"metal.h\"\n");
    for line in metal.lines().filter(|line| !line.starts_with("#include")) {
        let trimmed = line.trim_start();
        match trimmed.strip_prefix("threadgroup ").filter(|rest| rest.ends_with("];")) {
            Some(declaration) => {
                let name = declaration.split(['[', ' ']).nth(1).unwrap();
                writeln!(text, "static {declaration} shim::poison({name}, sizeof({name}));").unwrap();
            }
            None => writeln!(text, "{line}").unwrap(),
        }
    }
    let entries: String = text.split("\nkernel void ").skip(1).map(entry).collect();
    let plain: Vec<String> = text.lines().map(without_attributes).collect();
    format!("{}\n{entries}", plain.join("\n").replace("threadgroup ", ""))
}

/// The entry point of a kernel from what follows `kernel void`.
fn entry(kernel: &str) -> String {
    let (name, rest) = kernel.split_once('(').unwrap();
    let (parameters, _) = rest.split_once("\n)").unwrap();
    let argument = |parameter: &str| {
        let (declared, attribute) = parameter.split_once("[[").unwrap();
        let attribute = attribute.trim_end().trim_end_matches(',').trim_end_matches("]]");
        let (kind, _) = declared.trim().rsplit_once(' ').unwrap();
        match attribute.strip_prefix("buffer(").map(|index| index.trim_end_matches(')')) {
            Some(index) => match kind.strip_suffix('&') {
                Some(kind) => format!("*({kind}*)buffers[{index}]"),
                None => format!("({kind})buffers[{index}]"),
            },
            None if kind == "uint" && attribute == "threadgroup_position_in_grid" => format!("SHIM_{attribute}.x"),
            None => format!("SHIM_{attribute}"),
        }
    };
    let arguments: Vec<String> = parameters.lines().filter(|l| l.contains("[[")).map(argument).collect();
    let arguments = arguments.join(", ");
    format!(
        "static void body_{name}(void** buffers) {{ (void)buffers; {name}({arguments}); }}\n\
         extern \"C\" bool run_{name}(void** buffers, const uint* groups, uint threads, bool backwards) {{\n\
         \x20   return shim::run(body_{name}, buffers, groups, threads, backwards);\n}}\n"
    )
}
