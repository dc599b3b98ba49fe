//! Kernels on an NVIDIA GPU: through candle's device, on its stream.

use super::adamw::Place;
use super::{Argument, Grid, Kernel, Machine, Product, Target, View};
use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas, sys as blas};
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop, sys,
};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor,
    bail,
};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, Weak};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Dynamic shared memory that a kernel gets without asking.
const SHARED_WITHOUT_ASKING: usize = 48 << 10;

/// A GPU and the stream that everything runs on.
pub(crate) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
}

impl Gpu {
    pub fn new(device: &CudaDevice) -> Self {
        Self { device: device.clone(), stream: device.cuda_stream() }
    }

    /// The GPU that a tensor is on.
    pub fn of(x: &Tensor) -> Result<Self> {
        match x.device() {
            Device::Cuda(device) => Ok(Self::new(device)),
            other => bail!("a tensor on {:?} for a CUDA kernel", other.location()),
        }
    }
}

/// A contiguous storage as a kernel reads it.
pub(crate) fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> Result<View<'a, CudaStorage>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a CUDA kernel was given a tensor that is not contiguous");
    };
    Ok(View { memory: storage, offset: start, len: end - start, dtype: storage_dtype(storage) })
}

fn storage_dtype(storage: &CudaStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// A contiguous tensor's storage, held for as long as kernels are launched over it.
pub(crate) struct Operand<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Operand<'a> {
    pub fn new(x: &'a Tensor) -> Self {
        let (storage, layout) = x.storage_and_layout();
        Self { storage, layout }
    }

    pub fn view(&self) -> Result<View<'_, CudaStorage>> {
        match &*self.storage {
            Storage::Cuda(storage) => view(storage, self.layout),
            _ => bail!("a tensor that is not on the GPU for a CUDA kernel"),
        }
    }
}

/// Calls `f` with a GPU and the contiguous storages of tensors on it; the first says which.
pub(crate) fn with<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce(&Gpu, [View<'_, CudaStorage>; N]) -> Result<R>,
) -> Result<R> {
    let contiguous = tensors.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let Some(first) = contiguous.first() else { bail!("a CUDA kernel without an input") };
    let gpu = Gpu::of(first)?;
    let operands: Vec<_> = contiguous.iter().map(Operand::new).collect();
    let views = operands.iter().map(Operand::view).collect::<Result<Vec<_>>>()?;
    match views.try_into() {
        Ok(views) => f(&gpu, views),
        Err(_) => bail!("a CUDA kernel got another number of inputs"),
    }
}

/// Calls `f` with a tensor's storage to write to and where the tensor begins in it. All that share the storage see what is
/// written.
pub(crate) fn write(x: &Tensor, f: impl FnOnce(Place<'_, CudaStorage>, DType) -> Result<()>) -> Result<()> {
    x.inplace_op1(&Write(RefCell::new(Some(f))))
}

/// A closure that writes; in a cell because candle hands an operation to its storage by shared reference.
struct Write<F>(RefCell<Option<F>>);

impl<F: FnOnce(Place<'_, CudaStorage>, DType) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("a tensor on the CPU for a CUDA kernel")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("a CUDA kernel was to write to a tensor that is not contiguous");
        };
        let dtype = storage_dtype(storage);
        match self.0.take() {
            Some(f) => f((storage, start), dtype),
            None => bail!("a CUDA kernel was to write twice"),
        }
    }
}

/// Device memory as a tensor without a graph.
pub(crate) fn tensor(memory: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(memory), shape, BackpropOp::none(), false)
}

/// The address of an element, and what notes on the stream that the memory is in use.
macro_rules! address {
    ($slice:expr, $offset:expr, $stream:expr, $pointer:ident) => {{
        macro_rules! at {
            ($s:expr, $t:ty) => {{
                let (pointer, sync) = $s.$pointer($stream);
                (pointer + ($offset * size_of::<$t>()) as u64, sync)
            }};
        }
        match $slice {
            CudaStorageSlice::F32(s) => at!(s, f32),
            CudaStorageSlice::BF16(s) => at!(s, half::bf16),
            CudaStorageSlice::U32(s) => at!(s, u32),
            CudaStorageSlice::I64(s) => at!(s, i64),
            CudaStorageSlice::U8(s) => at!(s, u8),
            CudaStorageSlice::F64(s) => at!(s, f64),
            _ => bail!("device memory of a type that no kernel takes"),
        }
    }};
}

fn read_at<'a>(memory: &'a CudaStorage, offset: usize, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(address!(&memory.slice, offset, stream, device_ptr))
}

fn write_at<'a>(memory: &'a mut CudaStorage, offset: usize, stream: &'a CudaStream) -> Result<(u64, SyncOnDrop<'a>)> {
    Ok(address!(&mut memory.slice, offset, stream, device_ptr_mut))
}

impl Machine for Gpu {
    type Memory = CudaStorage;

    /// At least one element: the driver has no block of none.
    fn allocate(&self, dtype: DType, len: usize) -> Result<CudaStorage> {
        // SAFETY: every bit pattern is a value of the types that kernels take, and kernels write before they read.
        unsafe { self.device.alloc_uninit(&Shape::from(len.max(1)), dtype) }
    }

    fn zeros(&self, dtype: DType, len: usize) -> Result<CudaStorage> {
        self.device.zeros_impl(&Shape::from(len.max(1)), dtype)
    }

    fn resident_u32(&self, values: &Arc<[u32]>) -> Result<Arc<CudaStorage>> {
        resident(&self.device, values)
    }

    fn resident_f32(&self, values: &Arc<[f32]>) -> Result<Arc<CudaStorage>> {
        resident(&self.device, values)
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &mut [Argument<'_, CudaStorage>]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let Some(ptx) = ptx(kernel.file) else { bail!("there is no CUDA source {}.cu", kernel.file) };
        let function = self.device.get_or_load_custom_func(kernel.name, kernel.file, ptx)?;
        if grid.shared > SHARED_WITHOUT_ASKING {
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, grid.shared as i32).w()?;
        }
        // The driver takes an argument's bytes from where it points: eight hold each of them, the low ones first.
        let (mut values, mut in_use) = (Vec::with_capacity(arguments.len()), Vec::new());
        for argument in arguments {
            values.push(match argument {
                Argument::Read(view) => {
                    let (pointer, sync) = read_at(view.memory, view.offset, &self.stream)?;
                    in_use.push(sync);
                    pointer
                }
                Argument::Write(memory, offset) => {
                    let (pointer, sync) = write_at(memory, *offset, &self.stream)?;
                    in_use.push(sync);
                    pointer
                }
                Argument::Null => 0,
                Argument::U32(value) => u64::from(*value),
                Argument::F32(value) => u64::from(value.to_bits()),
            });
        }
        let mut launch = function.builder();
        for value in &values {
            launch.arg(value);
        }
        let [x, y, z] = grid.blocks.map(|count| count as u32);
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: grid.shared as u32,
        };
        // SAFETY: the caller's, passed on.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    fn product(&self, product: &Product<'_, CudaStorage>, c: Target<'_, CudaStorage>) -> Result<()> {
        let kind = |dtype| match dtype {
            DType::F32 => Ok(blas::cudaDataType::CUDA_R_32F),
            DType::BF16 => Ok(blas::cudaDataType::CUDA_R_16BF),
            other => bail!("no product of {other:?}; f32 and bf16 are supported"),
        };
        let Product { a, b, m, n, k, .. } = *product;
        if a.dtype != b.dtype || (c.dtype != a.dtype && c.dtype != DType::F32) {
            bail!("a product of {:?} and {:?} into {:?}", a.dtype, b.dtype, c.dtype);
        }
        if a.len < m * k || b.len < k * n {
            bail!("a product of {m} x {k} x {n} reaches beyond its factors");
        }
        if m == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        let (alpha, beta) = (1.0f32, if c.add { 1.0f32 } else { 0.0 });
        let (a_kind, c_kind) = (kind(a.dtype)?, kind(c.dtype)?);
        let handle = self.device.cublas_handle();
        let (a_pointer, _a) = read_at(a.memory, a.offset, &self.stream)?;
        let (b_pointer, _b) = read_at(b.memory, b.offset, &self.stream)?;
        let (c_pointer, _c) = write_at(c.memory, c.offset, &self.stream)?;
        let operation = |transposed| {
            if transposed { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N }
        };
        let leading = |transposed, rows: usize, columns: usize| if transposed { rows } else { columns } as i32;
        // cuBLAS has columns first: it computes `c^T = b^T a^T`, and a matrix with rows first is its own transpose there.
        // SAFETY: the factors' lengths were checked above, the target is the caller's `[m, n]`, and the scalars are f32, as
        // the type of the computation asks for.
        unsafe {
            cublas::gemm_ex(
                *handle.handle(),
                operation(product.b_transposed),
                operation(product.a_transposed),
                n as i32,
                m as i32,
                k as i32,
                (&raw const alpha).cast::<c_void>(),
                b_pointer as *const c_void,
                a_kind,
                leading(product.b_transposed, k, n),
                a_pointer as *const c_void,
                a_kind,
                leading(product.a_transposed, m, k),
                (&raw const beta).cast::<c_void>(),
                c_pointer as *mut c_void,
                c_kind,
                n as i32,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()
    }
}

/// What was copied to a device, by the device and the address of the host's values. A weak reference keeps that address
/// from being given to others.
type Residents = HashMap<(candle_core::cuda_backend::DeviceId, usize), (Box<dyn Any + Send>, Arc<CudaStorage>)>;

static RESIDENTS: Mutex<Option<Residents>> = Mutex::new(None);

fn resident<T: candle_core::WithDType>(device: &CudaDevice, values: &Arc<[T]>) -> Result<Arc<CudaStorage>> {
    let mut residents = RESIDENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let residents = residents.get_or_insert_with(HashMap::new);
    let key = (device.id(), Arc::as_ptr(values).cast::<T>() as usize);
    if let Some((_, memory)) = residents.get(&key) {
        return Ok(memory.clone());
    }
    residents.retain(|_, (values, _)| alive::<u32>(values.as_ref()) || alive::<f32>(values.as_ref()));
    let memory = Arc::new(device.storage_from_slice(values)?);
    residents.insert(key, (Box::new(Arc::downgrade(values)), memory.clone()));
    Ok(memory)
}

/// Whether a weak reference to values of this type still has them.
fn alive<T: 'static>(values: &(dyn Any + Send)) -> bool {
    values.downcast_ref::<Weak<[T]>>().is_some_and(|values| values.strong_count() > 0)
}
