//! What a kernel launch is made of, apart from the machine that runs it.
//!
//! Every op says in these terms what it launches: which kernel over which memory, with how many threads. Metal executes
//! that on a Mac; in tests, the same launches of the same kernel sources run on the CPU (`host`), wherever a C++ compiler
//! is. What is left for a Mac alone is the few lines of `device`.

#[cfg(feature = "metal")]
use candle_core::DType;
use candle_core::{Result, bail};
use std::sync::Arc;

/// Threads of a SIMD-group, on every Apple GPU.
pub const LANES: usize = 32;

/// The type of the elements of a tensor that a kernel is compiled for (`scalar` in its source).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// 32 bits.
    F32,
    /// The upper 16 bits of those; needs Metal 3.1.
    Bf16,
}

impl Scalar {
    /// That of a tensor's type.
    ///
    /// # Errors
    /// When there are no kernels for it.
    #[cfg(feature = "metal")]
    pub fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::BF16 => Ok(Self::Bf16),
            other => bail!("the Metal kernels compute in f32 or bf16, not in {other:?}"),
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Its name in Metal's language.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::Bf16 => "bfloat",
        }
    }
}

/// A kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// AdamW's update.
    AdamW,
    /// Attention of training, forward and backward.
    Attention,
    /// Attention of one new position over the cache.
    DecodeAttention,
    /// Log-probability, entropy and the gradient of logits.
    LogProb,
    /// The norm of a gradient.
    Norm,
    /// RMSNorm.
    RmsNorm,
    /// Rotary embedding.
    Rope,
    /// Sums of rows that were picked.
    Rows,
    /// Drawing tokens.
    Sample,
    /// The gate of the feed-forward.
    Swiglu,
}

impl Source {
    /// All of them.
    #[cfg(test)]
    pub const ALL: [Self; 10] = [
        Self::AdamW,
        Self::Attention,
        Self::DecodeAttention,
        Self::LogProb,
        Self::Norm,
        Self::RmsNorm,
        Self::Rope,
        Self::Rows,
        Self::Sample,
        Self::Swiglu,
    ];

    /// What stands in the file.
    fn text(self) -> &'static str {
        match self {
            Self::AdamW => include_str!("adamw.metal"),
            Self::Attention => include_str!("attention.metal"),
            Self::DecodeAttention => include_str!("decode_attention.metal"),
            Self::LogProb => include_str!("log_prob.metal"),
            Self::Norm => include_str!("norm.metal"),
            Self::RmsNorm => include_str!("rms_norm.metal"),
            Self::Rope => include_str!("rope.metal"),
            Self::Rows => include_str!("rows.metal"),
            Self::Sample => include_str!("sample.metal"),
            Self::Swiglu => include_str!("swiglu.metal"),
        }
    }
}

/// What is compiled at once: a file for one type and, where its tiles depend on it, one width of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Library {
    /// The kernels.
    pub source: Source,
    /// What `scalar` stands for.
    pub scalar: Scalar,
    /// `HEAD_DIM`, 0 where the file does not ask for it.
    pub head_dim: usize,
}

impl Library {
    /// A file that does not depend on the width of a head.
    pub fn new(source: Source, scalar: Scalar) -> Self {
        Self { source, scalar, head_dim: 0 }
    }

    /// Every file for every type, for heads of some widths.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        let dims = |source| match source {
            Source::Attention | Source::DecodeAttention => &[8, 64, 96, 128][..],
            _ => &[0],
        };
        let files = Source::ALL.into_iter().flat_map(move |source| dims(source).iter().map(move |&dim| (source, dim)));
        files.flat_map(|(source, head_dim)| [Scalar::F32, Scalar::Bf16].map(|scalar| Self { source, scalar, head_dim }))
    }

    /// The text to compile.
    pub fn text(&self) -> String {
        let Self { source, scalar, head_dim } = self;
        let kind = match scalar {
            Scalar::F32 => "",
            // Says why, where the compiler would only not know the name.
            Scalar::Bf16 => {
                "#ifndef __HAVE_BFLOAT__\n#error bf16 needs Metal 3.1 (macOS 14): set model.dtype = \"f32\"\n#endif\n"
            }
        };
        let dim = if *head_dim > 0 { format!("#define HEAD_DIM {head_dim}\n") } else { String::new() };
        let name = scalar.name();
        let common = include_str!("common.metal");
        format!("#include <metal_stdlib>\n{kind}#define scalar {name}\n{dim}{common}\n{}", source.text())
    }
}

/// Elements that lie one behind the other in a buffer.
#[derive(Debug)]
pub struct View<'a, M> {
    /// The memory.
    pub memory: &'a M,
    /// Where they start, in bytes.
    pub offset: usize,
}

impl<M> Clone for View<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for View<'_, M> {}

impl<'a, M> View<'a, M> {
    /// A whole buffer.
    pub fn all(memory: &'a M) -> Self {
        Self { memory, offset: 0 }
    }
}

/// An argument of a kernel; its place in the list is its index in the source.
#[derive(Debug)]
pub enum Argument<'a, M> {
    /// Memory that is only read.
    Read(View<'a, M>),
    /// Memory that is written, and perhaps read.
    Write(View<'a, M>),
    /// A `constant uint&`.
    U32(u32),
    /// A `constant float&`.
    F32(f32),
    /// A `constant` struct of 32-bit members.
    Words(&'a [u32]),
}

/// One kernel over a grid.
#[derive(Debug)]
pub struct Launch<'a, M> {
    /// Where the kernel is.
    pub library: Library,
    /// Its name.
    pub function: &'static str,
    /// In the order of the source.
    pub arguments: Vec<Argument<'a, M>>,
    /// Threadgroups along each axis.
    pub groups: [usize; 3],
    /// Threads of a threadgroup, whole SIMD-groups of them.
    pub threads: usize,
}

/// Something that runs kernels, one after the other as far as one needs what another has written.
pub trait Gpu {
    /// Memory of the device.
    type Memory;

    /// Memory that holds anything.
    ///
    /// # Errors
    /// When there is none.
    fn allocate(&self, bytes: usize) -> Result<Arc<Self::Memory>>;

    /// A copy of these numbers.
    ///
    /// # Errors
    /// When there is no memory.
    fn upload(&self, numbers: &[u32]) -> Result<Arc<Self::Memory>>;

    /// Starts a kernel; one of no threadgroups is none.
    ///
    /// # Errors
    /// When the kernel cannot be compiled or does not run with that many threads.
    fn launch(&self, launch: Launch<Self::Memory>) -> Result<()>;
}

/// A number that a kernel takes as `uint`.
///
/// # Errors
/// When it is too large.
pub fn count(n: usize) -> Result<u32> {
    match u32::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => bail!("a Metal kernel was given a size of {n}, beyond 32 bits"),
    }
}
