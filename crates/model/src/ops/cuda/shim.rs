//! Runs the CUDA kernels on the CPU, for the tests: the same sources, compiled as C++ against `tests/shim`.
//!
//! Each launch happens twice, with the threads in the one order and in the other, over memory that ends at a guard page;
//! the results have to have equal bits. Argument types are checked against the kernel's own. Where there is no C++
//! compiler, tests say so and pass, unless `BELLOWS_NEEDS_CXX` is set.

use super::{Argument, Grid, Kernel, Machine, Product, Target, View};
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use half::bf16;
use libloading::{Library, Symbol};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A device that is this CPU.
pub(crate) struct Shim;

/// The shim, or `None` where there is no C++ compiler; then the test has nothing to do.
pub(crate) fn shim() -> Option<Shim> {
    let found = Command::new(compiler()).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        let message = format!("the CUDA kernels are not tested: there is no C++ compiler `{}`", compiler());
        assert!(std::env::var_os("BELLOWS_NEEDS_CXX").is_none(), "{message}");
        eprintln!("{message}");
    }
    found.then_some(Shim)
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// The folder of the shim's own sources.
fn shim_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim")
}

/// Where a library will be when it is compiled.
type Slot = Arc<OnceLock<Arc<Library>>>;

/// A kernel file, compiled once a process.
fn library(file: &'static str) -> Arc<Library> {
    static LIBRARIES: OnceLock<Mutex<HashMap<&'static str, Slot>>> = OnceLock::new();
    let mut libraries = LIBRARIES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let cell = libraries.entry(file).or_default().clone();
    drop(libraries);
    cell.get_or_init(|| Arc::new(compile(file))).clone()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn compile(file: &'static str) -> Library {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda");
    let folder = tempfile::tempdir().unwrap();
    let command = || {
        let mut command = Command::new(compiler());
        command.args([
            "-std=c++17",
            "-O1",
            "-g",
            "-w",
            "-x",
            "c++",
            "-fPIC",
            "-ffp-contract=off",
            "-U_FORTIFY_SOURCE",
            "-DKERNELS_ON_HOST",
        ]);
        command.arg("-I").arg(shim_folder()).arg("-I").arg(&sources);
        command
    };
    let preprocessed = run(command().arg("-E").arg("-P").arg(sources.join(format!("{file}.cu"))));
    let entries: String = kernel_names(&String::from_utf8(preprocessed).unwrap())
        .iter()
        .map(|name| format!("    shim::entry<&{name}>(\"{name}\"),\n"))
        .collect();
    assert!(!entries.is_empty(), "{file}.cu has no kernel");
    let unit = folder.path().join("unit.cpp");
    let text = format!(
        "#include \"guarded.hpp\"\n#include \"{file}.cu\"\nstatic const shim::Entry entries[] = {{\n{entries}}};\n\
         extern \"C\" int shim_run(const char *name, const shim::Request *request) {{\n    \
         return shim::run(entries, sizeof entries / sizeof *entries, name, request);\n}}\n"
    );
    std::fs::write(&unit, text).unwrap();
    let library = folder.path().join("kernels.so");
    run(command().arg("-shared").arg("-o").arg(&library).arg(&unit));
    // SAFETY: the library is the kernels and the shim; loading it runs nothing but the initialisers of empty containers.
    unsafe { Library::new(library) }.unwrap()
}

/// Names of the functions that `__global__` stands before.
fn kernel_names(preprocessed: &str) -> Vec<&str> {
    let parts = preprocessed.split("__attribute__((used))").skip(1);
    parts.filter_map(|part| part.trim_start().strip_prefix("void")?.split('(').next().map(str::trim)).collect()
}

/// The shim's `Request`.
#[repr(C)]
struct Request {
    blocks: [u32; 3],
    threads: u32,
    shared: u32,
    backwards: u32,
    count: u32,
    kinds: *const u32,
    values: *const u64,
}

/// A copy of some memory that ends at a guard page.
struct Guarded {
    bytes: *mut u8,
    len: usize,
    library: Arc<Library>,
}

impl Guarded {
    fn new(library: &Arc<Library>, bytes: &[u8]) -> Self {
        // SAFETY: the signature is that of `guarded_allocate`, which gives `bytes.len()` bytes or null.
        unsafe {
            let allocate: Symbol<unsafe extern "C" fn(usize) -> *mut c_void> =
                library.get(b"guarded_allocate").unwrap();
            let copy = allocate(bytes.len()).cast::<u8>();
            assert!(!copy.is_null(), "no memory");
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
            Self { bytes: copy, len: bytes.len(), library: library.clone() }
        }
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes from `bytes` on are this value's own.
        unsafe { std::slice::from_raw_parts(self.bytes, self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the signature is that of `guarded_release`, and the block was made by `guarded_allocate` with this length.
        unsafe {
            let release: Symbol<unsafe extern "C" fn(*mut c_void, usize)> =
                self.library.get(b"guarded_release").unwrap();
            release(self.bytes.cast(), self.len);
        }
    }
}

fn bytes_of(memory: &CpuStorage) -> &[u8] {
    fn raw<T>(values: &[T]) -> &[u8] {
        // SAFETY: the numbers have no padding, so that all their bytes are set.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }
    match memory {
        CpuStorage::F32(values) => raw(values),
        CpuStorage::BF16(values) => raw(values),
        CpuStorage::U32(values) => raw(values),
        CpuStorage::F64(values) => raw(values),
        _ => panic!("memory of a type that no kernel takes"),
    }
}

fn write_back(memory: &mut CpuStorage, bytes: &[u8]) {
    let words = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    match memory {
        CpuStorage::F32(values) => values.iter_mut().zip(words()).for_each(|(v, bits)| *v = f32::from_bits(bits)),
        CpuStorage::U32(values) => values.iter_mut().zip(words()).for_each(|(v, bits)| *v = bits),
        CpuStorage::BF16(values) => {
            let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            values.iter_mut().zip(halves).for_each(|(v, bits)| *v = bf16::from_bits(bits));
        }
        CpuStorage::F64(values) => {
            let words = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b));
            values.iter_mut().zip(words).for_each(|(v, word)| *v = word);
        }
        _ => panic!("memory of a type that no kernel takes"),
    }
}

/// The shim's kinds of a memory that is read or written, and the size of its elements.
fn element(memory: &CpuStorage) -> ([u32; 2], usize) {
    match memory {
        CpuStorage::F32(_) => ([0, 3], 4),
        CpuStorage::BF16(_) => ([1, 4], 2),
        CpuStorage::U32(_) => ([2, 5], 4),
        CpuStorage::F64(_) => ([9, 10], 8),
        _ => panic!("memory of a type that no kernel takes"),
    }
}

/// One run of a kernel over copies of its memory; the copies, in the order of the arguments.
fn run_once(
    kernel: Kernel,
    grid: Grid,
    arguments: &[Argument<'_, CpuStorage>],
    backwards: bool,
) -> Vec<Option<Guarded>> {
    let library = library(kernel.file);
    let (mut kinds, mut values, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for argument in arguments {
        let (memory, offset, written) = match argument {
            Argument::Read(view) => (view.memory, view.offset, 0),
            Argument::Write(memory, offset) => (&**memory, *offset, 1),
            Argument::Null => {
                kinds.push(6);
                values.push(0);
                copies.push(None);
                continue;
            }
            Argument::U32(value) => {
                kinds.push(7);
                values.push(u64::from(*value));
                copies.push(None);
                continue;
            }
            Argument::F32(value) => {
                kinds.push(8);
                values.push(u64::from(value.to_bits()));
                copies.push(None);
                continue;
            }
        };
        let (of_use, size) = element(memory);
        let copy = Guarded::new(&library, bytes_of(memory));
        kinds.push(of_use[written]);
        values.push(copy.bytes as u64 + (offset * size) as u64);
        copies.push(Some(copy));
    }
    let request = Request {
        blocks: grid.blocks.map(|count| count as u32),
        threads: grid.threads as u32,
        shared: grid.shared as u32,
        backwards: backwards.into(),
        count: kinds.len() as u32,
        kinds: kinds.as_ptr(),
        values: values.as_ptr(),
    };
    let name = CString::new(kernel.name).unwrap();
    // SAFETY: the signatures are those of the shim; the request's lists have `count` items each, and what the kernel does
    // out of bounds hits a guard page.
    let code = unsafe {
        let note: Symbol<unsafe extern "C" fn(*const c_char)> = library.get(b"guarded_name").unwrap();
        note(name.as_ptr());
        let run: Symbol<unsafe extern "C" fn(*const c_char, *const Request) -> c_int> =
            library.get(b"shim_run").unwrap();
        run(name.as_ptr(), &request)
    };
    let kernel = format!("{}.cu: {}", kernel.file, kernel.name);
    match code {
        0 => copies,
        -1 => panic!("{kernel}: there is no such kernel"),
        -2 => panic!("{kernel}: launched with {} arguments, it has another number", kinds.len()),
        -3 => panic!("{kernel}: threads wait at a barrier to which others never come"),
        code => panic!("{kernel}: argument {} is of another type", code - 100),
    }
}

impl Machine for Shim {
    type Memory = CpuStorage;

    /// Not zeros but NaNs and large numbers, for a kernel that reads what it has not written.
    fn allocate(&self, dtype: DType, len: usize) -> Result<CpuStorage> {
        Ok(match dtype {
            DType::F32 => CpuStorage::F32(vec![f32::NAN; len]),
            DType::BF16 => CpuStorage::BF16(vec![bf16::NAN; len]),
            DType::U32 => CpuStorage::U32(vec![u32::MAX; len]),
            DType::F64 => CpuStorage::F64(vec![f64::NAN; len]),
            other => bail!("no memory of {other:?}"),
        })
    }

    fn zeros(&self, dtype: DType, len: usize) -> Result<CpuStorage> {
        Ok(match dtype {
            DType::F32 => CpuStorage::F32(vec![0.0; len]),
            DType::BF16 => CpuStorage::BF16(vec![bf16::ZERO; len]),
            DType::U32 => CpuStorage::U32(vec![0; len]),
            DType::F64 => CpuStorage::F64(vec![0.0; len]),
            other => bail!("no memory of {other:?}"),
        })
    }

    fn resident_u32(&self, values: &Arc<[u32]>) -> Result<Arc<CpuStorage>> {
        Ok(Arc::new(CpuStorage::U32(values.to_vec())))
    }

    fn resident_f32(&self, values: &Arc<[f32]>) -> Result<Arc<CpuStorage>> {
        Ok(Arc::new(CpuStorage::F32(values.to_vec())))
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &mut [Argument<'_, CpuStorage>]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let forwards = run_once(kernel, grid, arguments, false);
        let backwards = run_once(kernel, grid, arguments, true);
        for ((argument, one), other) in arguments.iter_mut().zip(&forwards).zip(&backwards) {
            if let (Argument::Write(memory, _), Some(one), Some(other)) = (argument, one, other) {
                let same = one.as_slice() == other.as_slice();
                assert!(same, "{}: the order of threads or blocks shows in the result", kernel.name);
                write_back(memory, one.as_slice());
            }
        }
        Ok(())
    }

    fn product(&self, product: &Product<'_, CpuStorage>, c: Target<'_, CpuStorage>) -> Result<()> {
        let Product { a, b, m, n, k, .. } = *product;
        assert!(a.len >= m * k && b.len >= k * n, "a product of {m} x {k} x {n} reaches beyond its factors");
        assert!(a.dtype == b.dtype && (c.dtype == a.dtype || c.dtype == DType::F32));
        let (a, b) = (widened(a), widened(b));
        let at = |i: usize, j: usize| -> f32 {
            let a = |l| a[if product.a_transposed { l * m + i } else { i * k + l }];
            let b = |l| b[if product.b_transposed { j * k + l } else { l * n + j }];
            (0..k).map(|l| f64::from(a(l)) * f64::from(b(l))).sum::<f64>() as f32
        };
        for (i, j) in (0..m * n).map(|x| (x / n, x % n)) {
            let (place, value) = (c.offset + i * n + j, at(i, j));
            match &mut *c.memory {
                CpuStorage::F32(values) => values[place] = value + if c.add { values[place] } else { 0.0 },
                CpuStorage::BF16(values) => {
                    let old = if c.add { values[place].to_f32() } else { 0.0 };
                    values[place] = bf16::from_f32(value + old);
                }
                _ => panic!("a product into memory of another type"),
            }
        }
        Ok(())
    }
}

/// The elements of a view as f32.
fn widened(view: View<'_, CpuStorage>) -> Vec<f32> {
    let range = view.offset..view.offset + view.len;
    match view.memory {
        CpuStorage::F32(values) => values[range].to_vec(),
        CpuStorage::BF16(values) => values[range].iter().map(|v| v.to_f32()).collect(),
        _ => panic!("elements of a type that no product takes"),
    }
}

/// A contiguous CPU tensor's memory as launch code takes it, copied.
pub(crate) struct Copied {
    pub memory: CpuStorage,
    dtype: DType,
    len: usize,
}

impl Copied {
    /// Something lies before the elements, so that a kernel that forgets an offset is found.
    pub fn new(x: &Tensor) -> Self {
        let before = Tensor::full(7.0f32, 8, x.device()).unwrap().to_dtype(x.dtype()).unwrap();
        let flat = Tensor::cat(&[before, x.flatten_all().unwrap()], 0).unwrap();
        let (storage, _) = flat.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { panic!("a tensor that is not on the CPU") };
        Self { memory: storage.clone(), dtype: x.dtype(), len: x.elem_count() }
    }

    pub fn view(&self) -> View<'_, CpuStorage> {
        View { memory: &self.memory, offset: 8, len: self.len, dtype: self.dtype }
    }
}

/// Kernel results as an f32 tensor.
pub(crate) fn result(memory: &CpuStorage, shape: &[usize]) -> Tensor {
    let dtype = if matches!(memory, CpuStorage::BF16(_)) { DType::BF16 } else { DType::F32 };
    let len = shape.iter().product();
    Tensor::from_vec(widened(View::whole(memory, dtype, len)), shape, &candle_core::Device::Cpu).unwrap()
}

/// The types that kernels take, and how far a result in them may be from its twin's, over the largest magnitude.
pub(crate) const TYPES: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::BF16, 1.5e-2)];

/// Pseudo-random inputs of a type, one of each shape.
pub(crate) fn inputs(shapes: &[&[usize]], dtype: DType) -> Vec<Tensor> {
    let one = |(i, shape): (usize, &&[usize])| {
        let values = crate::ops::testing::variable(shape, i as u64 + 1).as_detached_tensor();
        values.to_dtype(dtype).unwrap()
    };
    shapes.iter().enumerate().map(one).collect()
}

/// The value of a composed twin at `inputs` and, of its sum weighted by `g`, their gradients, in f32 throughout.
pub(crate) fn gradients(
    inputs: &[Tensor],
    g: &Tensor,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, Vec<Tensor>) {
    let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let variables: Vec<_> = inputs.iter().map(|x| candle_core::Var::from_tensor(&wide(x)).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let y = composed(&tensors).unwrap();
    let store = (&y * &wide(g)).unwrap().sum_all().unwrap().backward().unwrap();
    let found = variables.iter().map(|v| store.get(v).unwrap().clone()).collect();
    (y.detach(), found)
}

/// Asserts that kernel results are a twin's, in its shape.
pub(crate) fn close(memory: &CpuStorage, expected: &Tensor, tolerance: f64) {
    let found = result(memory, expected.dims());
    let expected = expected.to_dtype(DType::F32).unwrap();
    let wrong = found.sum_all().unwrap().to_scalar::<f32>().unwrap().is_nan();
    assert!(!wrong, "a result is not a number");
    let gap = crate::ops::testing::gap(&found, &expected);
    assert!(gap < tolerance, "differs by {gap}");
}
